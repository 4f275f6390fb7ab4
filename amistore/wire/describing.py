"""What EC2's Describe operations have in common: filters, owners, pages.

Source: EC2 API reference, DescribeImages and DescribeSnapshots; EC2 user guide, "Filter your
resources", Wildcards.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from amistore.wire.errors import wrong
from amistore.wire.members import xml_name

__all__ = ["IMAGE_FILTERS", "SNAPSHOT_FILTERS", "fitting", "in_xml", "owned", "page", "page_size"]

Members = Mapping[str, Any]

IMAGE_FILTERS: Final[Mapping[str, str]] = {
    "architecture": "Architecture",
    "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
    "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
    "block-device-mapping.encrypted": "BlockDeviceMappings.Ebs.Encrypted",
    "block-device-mapping.snapshot-id": "BlockDeviceMappings.Ebs.SnapshotId",
    "block-device-mapping.volume-size": "BlockDeviceMappings.Ebs.VolumeSize",
    "block-device-mapping.volume-type": "BlockDeviceMappings.Ebs.VolumeType",
    "boot-mode": "BootMode",
    "creation-date": "CreationDate",
    "description": "Description",
    "ena-support": "EnaSupport",
    "hypervisor": "Hypervisor",
    "image-id": "ImageId",
    "image-type": "ImageType",
    "kernel-id": "KernelId",
    "manifest-location": "ImageLocation",
    "name": "Name",
    "owner-alias": "ImageOwnerAlias",
    "owner-id": "OwnerId",
    "platform": "Platform",
    "product-code": "ProductCodes.ProductCodeId",
    "product-code.type": "ProductCodes.ProductCodeType",
    "ramdisk-id": "RamdiskId",
    "root-device-name": "RootDeviceName",
    "root-device-type": "RootDeviceType",
    "source-image-id": "SourceImageId",
    "source-image-region": "SourceImageRegion",
    "source-instance-id": "SourceInstanceId",
    "sriov-net-support": "SriovNetSupport",
    "state": "State",
    "state-reason-code": "StateReason.Code",
    "state-reason-message": "StateReason.Message",
    "tag-key": "Tags.Key",
    "tag:<key>": "Tags.Value",
    "tpm-support": "TpmSupport",
    "virtualization-type": "VirtualizationType",
}
"""DescribeImages' filters to the members of an image that they look at."""

SNAPSHOT_FILTERS: Final[Mapping[str, str]] = {
    "description": "Description",
    "encrypted": "Encrypted",
    "owner-id": "OwnerId",
    "progress": "Progress",
    "snapshot-id": "SnapshotId",
    "start-time": "StartTime",
    "status": "State",
    "storage-tier": "StorageTier",
    "tag-key": "Tags.Key",
    "tag:<key>": "Tags.Value",
    "volume-id": "VolumeId",
    "volume-size": "VolumeSize",
}
"""DescribeSnapshots', likewise."""

_LEAST, _MOST = 5, 1000  # of a page (DescribeInstances, MaxResults; EC2 refuses others here, too)


def in_xml(filters: Mapping[str, str], above: str) -> dict[str, str]:
    """The same filters, of members by their names in an answer's XML.

    Args:
        filters: to paths of members by boto3's names.
        above: the list that holds what they look at, such as ``Images``.
    """
    return {name: ".".join(_spelled(path.split("."), above)) for name, path in filters.items()}


def _spelled(path: Sequence[str], above: str) -> Iterator[str]:
    for name in path:
        yield xml_name(name, above)
        above = name


def fitting(filters: Sequence[Members], known: Mapping[str, str]) -> Callable[[Members], bool]:
    """What tells whether something fits every filter by one of its values, in which * and ? are wildcards.

    Args:
        filters: of a request.
        known: filters to the paths of the members that they look at; ``tag:<key>`` stands for all of its
            kind, and goes with ``tag-key``.

    Raises:
        ServiceError: a filter is unknown or has no values.
    """
    patterns: list[tuple[str, re.Pattern[str]]] = []
    for each in filters:
        name, values = each.get("Name", ""), each.get("Values")
        if _of_table(name) not in known:
            raise wrong(f"the filter {name!r} is not known here: {', '.join(known)} are")
        if not values:
            raise wrong(f"the filter {name} has no values")
        patterns.append((name, re.compile("|".join(map(_pattern, values)), re.DOTALL)))
    return lambda members: all(
        any(map(pattern.fullmatch, _texts(members, name, known))) for name, pattern in patterns
    )


def _pattern(value: str) -> str:
    parts = re.findall(r"\\.|.", value, re.DOTALL)
    return "".join({"*": ".*", "?": "."}.get(part) or re.escape(part[-1]) for part in parts)


def _of_table(name: str) -> str:
    return "tag:<key>" if name.startswith("tag:") else name


def _texts(members: Members, name: str, known: Mapping[str, str]) -> Iterator[str]:
    """What a filter compares."""
    *above, last = known[_of_table(name)].split(".")
    key = known["tag-key"].rpartition(".")[2] if name.startswith("tag:") else None
    for holder in _values(members, above):
        if key is None or name == f"tag:{holder.get(key)}":
            for value in _values(holder, [last]):
                yield str(value).lower() if isinstance(value, bool) else str(value)


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _values(each, path)
    elif not path and value is not None:
        yield value
    elif isinstance(value, Mapping) and path[0] in value:
        yield from _values(value[path[0]], path[1:])


def owned(found: Sequence[Members], owners: Sequence[str], alias: str) -> list[Members]:
    """Those of these owners: account ids, aliases, in the member `alias`, or ``self``, which all are of."""
    if not owners or "self" in owners:
        return list(found)
    return [each for each in found if {each.get("OwnerId"), each.get(alias)} & set(owners)]


def page_size(request: Members, ids: str) -> int | None:
    """How many results a page may have; None for all.

    Args:
        request: with ``MaxResults``, if any.
        ids: the parameter that excludes it.

    Raises:
        ServiceError: the number breaks a rule.
    """
    most: int | None = request.get("MaxResults")
    if most is not None and request.get(ids):
        raise wrong(f"{ids} and MaxResults cannot be given together", "InvalidParameterCombination")
    if most is not None and not _LEAST <= most <= _MOST:
        raise wrong(f"a page has {_LEAST} to {_MOST} results, not {most}")
    return most


def page(
    found: Sequence[Members], request: Members, *, key: str, ids: str
) -> tuple[list[Members], str | None]:
    """One page of what is in the order of its ids, and the token of the next.

    Args:
        found: all, by id; what comes and goes between two calls moves nothing else.
        request: with ``MaxResults`` and ``NextToken``.
        key: the member that has the id.
        ids: the parameter that excludes ``MaxResults``.

    Raises:
        ServiceError: a parameter breaks a rule.
    """
    most, token = page_size(request, ids), request.get("NextToken")
    left = list(found)
    if token is not None:
        try:
            kind, _, last = base64.urlsafe_b64decode(token).decode().partition(" ")
        except ValueError:
            kind, last = "", ""
        if kind != key:
            raise wrong(
                "the token is of another request, or damaged: begin with the first page", "InvalidNextToken"
            )
        left = [each for each in left if each[key] > last]
    if most is None or len(left) <= most:
        return left, None
    return left[:most], base64.urlsafe_b64encode(f"{key} {left[most - 1][key]}".encode()).decode()
