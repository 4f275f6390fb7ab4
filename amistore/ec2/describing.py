"""What EC2's Describe operations have in common: filters, owners, pages.

Source: EC2 API reference, DescribeImages and DescribeSnapshots; EC2 user guide, "Filter your
resources", Wildcards.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from amistore.errors import InvalidRequestError
from amistore.tasks.requests import invalid_token

__all__ = ["IMAGE_FILTERS", "SNAPSHOT_FILTERS", "filtered", "owned", "page"]

Members = Mapping[str, Any]

IMAGE_FILTERS: Final[Mapping[str, str]] = {
    "architecture": "Architecture",
    "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
    "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
    "block-device-mapping.encrypted": "BlockDeviceMappings.Ebs.Encrypted",
    "block-device-mapping.snapshot-id": "BlockDeviceMappings.Ebs.SnapshotId",
    "block-device-mapping.volume-size": "BlockDeviceMappings.Ebs.VolumeSize",
    "block-device-mapping.volume-type": "BlockDeviceMappings.Ebs.VolumeType",
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
    "virtualization-type": "VirtualizationType",
}
"""DescribeImages' filters to the members of an image that they look at; tags are known besides."""

SNAPSHOT_FILTERS: Final[Mapping[str, str]] = {
    "description": "Description",
    "encrypted": "Encrypted",
    "owner-id": "OwnerId",
    "progress": "Progress",
    "snapshot-id": "SnapshotId",
    "start-time": "StartTime",
    "status": "State",
    "storage-tier": "StorageTier",
    "volume-id": "VolumeId",
    "volume-size": "VolumeSize",
}
"""DescribeSnapshots', likewise."""

_LEAST, _MOST = 5, 1000  # of a page (DescribeInstances, MaxResults; EC2 refuses others here, too)


def filtered(found: Sequence[Members], filters: Sequence[Members], known: Mapping[str, str]) -> list[Members]:
    """Those that fit every filter by one of its values, in which * and ? are wildcards.

    Raises:
        InvalidRequestError: a filter is unknown or has no values.
    """
    left = list(found)
    for each in filters:
        name, values = each.get("Name", ""), each.get("Values")
        path = "Tags.Key" if name == "tag-key" else known.get(name)
        if path is None and not name.startswith("tag:"):
            raise InvalidRequestError(
                f"the filter {name!r} is not known here: {', '.join(known)}, tag-key and tag:<key> are",
                code="InvalidParameterValue",
            )
        if not values:
            raise InvalidRequestError(f"the filter {name} has no values", code="InvalidParameterValue")
        fits = re.compile("|".join(map(_pattern, values)), re.DOTALL).fullmatch
        left = [one for one in left if any(fits(text) for text in _texts(one, name, path))]
    return left


def _pattern(value: str) -> str:
    parts = re.findall(r"\\.|.", value, re.DOTALL)
    return "".join({"*": ".*", "?": "."}.get(part) or re.escape(part[-1]) for part in parts)


def _texts(members: Members, name: str, path: str | None) -> Iterator[str]:
    """What a filter compares."""
    if path is None:
        yield from (tag["Value"] for tag in members.get("Tags", ()) if f"tag:{tag['Key']}" == name)
        return
    for value in _values(members, path.split(".")):
        yield str(value).lower() if isinstance(value, bool) else str(value)


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _values(each, path)
    elif not path:
        yield value
    elif isinstance(value, Mapping) and path[0] in value:
        yield from _values(value[path[0]], path[1:])


def owned(found: Sequence[Members], owners: Sequence[str], alias: str) -> list[Members]:
    """Those of these owners: account ids, aliases, in the member `alias`, or ``self``, which all are of."""
    if not owners or "self" in owners:
        return list(found)
    return [each for each in found if {each.get("OwnerId"), each.get(alias)} & set(owners)]


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
        InvalidRequestError: a parameter breaks a rule.
    """
    most, token = request.get("MaxResults"), request.get("NextToken")
    if most is not None and request.get(ids):
        raise InvalidRequestError(
            f"{ids} and MaxResults cannot be given together", code="InvalidParameterCombination"
        )
    if most is not None and not _LEAST <= most <= _MOST:
        raise InvalidRequestError(
            f"a page has {_LEAST} to {_MOST} results, not {most}", code="InvalidParameterValue"
        )
    left = list(found)
    if token is not None:
        try:
            kind, _, last = base64.urlsafe_b64decode(token).decode().partition(" ")
        except ValueError:
            kind, last = "", ""
        if kind != key:
            raise invalid_token()
        left = [each for each in left if each[key] > last]
    if most is None or len(left) <= most:
        return left, None
    return left[:most], base64.urlsafe_b64encode(f"{key} {left[most - 1][key]}".encode()).decode()
