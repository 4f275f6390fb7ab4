"""What EC2's operations have in common: pages, tags, ids, and who sees what."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.records import Credential, Image, Snapshot
from amistore.wire.describing import page_size
from amistore.wire.errors import wrong
from amistore.wire.query import required

__all__ = [
    "check_tags",
    "paged",
    "sees",
    "tag_set",
    "visible_snapshot",
    "well_formed",
]

Record = TypeVar("Record")
ID = {"ami": "InvalidAMIID.Malformed", "snap": "InvalidSnapshotID.Malformed"}


def well_formed(identifier: str, prefix: str) -> str:
    """An id with this prefix.

    Raises:
        ServiceError: it is none.
    """
    if re.fullmatch(rf"{prefix}-([0-9a-f]{{8}}|[0-9a-f]{{17}})", identifier) is None:
        raise wrong(f'Invalid id: "{identifier}" (expecting "{prefix}-...")', ID[prefix])
    return identifier


def paged(
    cloud: Cloud, records: list[Record], values: Mapping[str, Any], ids: str, key: Callable[[Record], Any]
) -> tuple[list[Record], str | None]:
    """One page of records that are in the order of their keys, and the token of the next one.

    Args:
        cloud: whose tokens and behaviour rule.
        records: all of them.
        values: the request's.
        ids: name of the parameter that excludes paging.
        key: a text that orders records and stays when others come and go.

    Raises:
        ServiceError: MaxResults or NextToken are not valid.
    """
    most, token = page_size(values, ids), values.get("NextToken")
    if token is not None:
        try:
            payload = cloud.tokens.open(ids.encode(), base64.b64decode(token, validate=True).decode())
        except (binascii.Error, ValueError):
            payload = None
        if payload is None:
            raise wrong("The NextToken is not valid.", "InvalidNextToken")
        records = [record for record in records if str(key(record)) > payload.decode()]
    if most is None:
        return records, None
    if cloud.behaviour.short_pages:
        most = max(1, most // 2)
    if len(records) <= most:
        return records, None
    sealed = cloud.tokens.seal(ids.encode(), str(key(records[most - 1])).encode())
    return records[:most], base64.b64encode(sealed.encode()).decode()


def tag_set(tags: Mapping[str, str]) -> list[dict[str, str]] | None:
    """Tags as the XML has them; None where there are none."""
    return [{"key": key, "value": value} for key, value in tags.items()] or None


def check_tags(tags: Sequence[Mapping[str, str]], present: Mapping[str, str] | None = None) -> dict[str, str]:
    """Tags that a user may set on a resource that has some ("EC2 user guide: Tag restrictions").

    Raises:
        ServiceError: a key or value is too long or reserved, or there are too many.
    """
    made: dict[str, str] = {}
    for tag in tags:
        key, value = required(tag, "Key"), tag.get("Value", "")
        if len(key) > 128:
            raise wrong("Tag keys may have up to 128 characters.", "InvalidTagKey.Malformed")
        if len(value) > 256:
            raise wrong("Tag values may have up to 256 characters.")
        if key.lower().startswith("aws:"):
            raise wrong("Tag keys starting with 'aws:' are reserved for internal use")
        if key in made:
            raise wrong(f"Duplicate tag key '{key}' specified.")
        made[key] = value
    count = sum(not key.startswith("aws:") for key in {**(present or {}), **made})
    if count > 50:
        raise wrong(f"The maximum number of tags is 50, and there would be {count}.", "TagLimitExceeded")
    return made


def visible_snapshot(cloud: Cloud, snapshot_id: str, caller: Credential) -> Snapshot:
    """A snapshot that an account owns, is shared with it, or is public.

    Raises:
        ServiceError: there is none for it.
    """
    snapshot = cloud.snapshots.get(well_formed(snapshot_id, "snap"))
    if snapshot is None or cloud.is_missing(snapshot) or not sees(snapshot, caller):
        raise wrong(f"The snapshot '{snapshot_id}' does not exist.", "InvalidSnapshot.NotFound")
    cloud.settle(snapshot)
    return snapshot


def sees(record: Snapshot | Image, caller: Credential) -> bool:
    """Whether a caller's account owns a record, has a share in it, or it is public."""
    return record.public or caller.account_id in {record.owner_id, *record.shared_with}
