"""Which members EC2's requests and answers have: boto3's names, their types, the Query protocol's names.

A type is ``str``, ``int``, ``bool``, ``datetime.datetime``, a list with the type of its items,
or a mapping of members to types. What EC2 tells of an image or a snapshot stands in the model, as
the fields of its values. Sources: EC2 API reference and botocore's service model of 2016-11-15,
with which tests compare this.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from amistore.model import BlockDeviceMapping, EbsBlockDevice, Image, Snapshot, Tag
from amistore.model.fields import wire_name

__all__ = ["OPERATIONS", "Kind", "Operation", "answered", "faults", "query_name", "xml_name"]

Kind = Any  # a type of this module's, see above


@attrs.frozen(kw_only=True)
class Operation:
    """An operation of EC2.

    Attributes:
        request: members to their types, in botocore's order.
        required: those that every request has.
        least: of numbers the lowest value, of strings the smallest length.
        answer: members to their types; only these are answered. Of what the engine has no answer to, none.
    """

    request: Mapping[str, Kind]
    required: tuple[str, ...] = ()
    least: Mapping[str, int] = {}
    answer: Mapping[str, Kind] = {}


def _members(kind: type, *left_out: str) -> dict[str, Kind]:
    """The members that EC2 has for the fields of a value of the model."""
    found: dict[str, Kind] = {}
    for field in attrs.fields(kind):
        if "many" in field.metadata:
            found[wire_name(field.name)] = [_members(field.metadata["many"])]
        elif "one" in field.metadata:
            found[wire_name(field.name)] = _members(field.metadata["one"])
        elif "type" in field.metadata:
            found[wire_name(field.name)] = field.metadata["type"]
    return {name: each for name, each in found.items() if name not in left_out}


_FILTERS: Final = [{"Name": str, "Values": [str]}]
_TAGS: Final = [_members(Tag)]
_TAG_SPECIFICATIONS: Final = [{"ResourceType": str, "Tags": _TAGS}]

_TASK: Final = {
    "AmiId": str,
    "TaskStartTime": datetime.datetime,
    "Bucket": str,
    "S3objectKey": str,
    "ProgressPercentage": int,
    "StoreTaskState": str,
    "StoreTaskFailureReason": str,
}

_IMAGE: Final = {
    # UEFI data are DescribeImageAttribute's, snapshots DescribeSnapshots'.
    **_members(Image, "UefiData", "Snapshots"),
    "StateReason": {"Code": str, "Message": str},
}

_SNAPSHOT: Final = {
    **_members(Snapshot, "LostBlocks"),  # which are ours
    "StartTime": datetime.datetime,
    "StateMessage": str,
    "Progress": str,
}

_NEW_MAPPING: Final = {
    **_members(BlockDeviceMapping),
    "Ebs": {
        **_members(EbsBlockDevice),
        "AvailabilityZone": str,
        "AvailabilityZoneId": str,
        "VolumeInitializationRate": int,
        "EbsCardIndex": int,
    },
}

OPERATIONS: Final[Mapping[str, Operation]] = {
    "CreateStoreImageTask": Operation(
        request={"ImageId": str, "Bucket": str, "S3ObjectTags": _TAGS, "DryRun": bool},
        required=("ImageId", "Bucket"),
        answer={"ObjectKey": str},
    ),
    "DescribeStoreImageTasks": Operation(
        request={
            "ImageIds": [str],
            "DryRun": bool,
            "Filters": _FILTERS,
            "NextToken": str,
            "MaxResults": int,
        },
        least={"MaxResults": 1},
        answer={"StoreImageTaskResults": [_TASK], "NextToken": str},
    ),
    "CreateRestoreImageTask": Operation(
        request={
            "Bucket": str,
            "ObjectKey": str,
            "Name": str,
            "TagSpecifications": _TAG_SPECIFICATIONS,
            "DryRun": bool,
        },
        required=("Bucket", "ObjectKey"),
        least={"Name": 3},
        answer={"ImageId": str},
    ),
    "DescribeImages": Operation(
        request={
            "ExecutableUsers": [str],
            "ImageIds": [str],
            "Owners": [str],
            "IncludeDeprecated": bool,
            "IncludeDisabled": bool,
            "MaxResults": int,
            "NextToken": str,
            "DryRun": bool,
            "Filters": _FILTERS,
        },
        answer={"NextToken": str, "Images": [_IMAGE]},
    ),
    "DescribeSnapshots": Operation(
        request={
            "MaxResults": int,
            "NextToken": str,
            "OwnerIds": [str],
            "RestorableByUserIds": [str],
            "SnapshotIds": [str],
            "DryRun": bool,
            "Filters": _FILTERS,
        },
        answer={"NextToken": str, "Snapshots": [_SNAPSHOT]},
    ),
    "DeregisterImage": Operation(
        request={"ImageId": str, "DeleteAssociatedSnapshots": bool, "DryRun": bool},
        required=("ImageId",),
        answer={"Return": bool, "DeleteSnapshotResults": [{"SnapshotId": str, "ReturnCode": str}]},
    ),
    "DeleteSnapshot": Operation(
        request={"SnapshotId": str, "DryRun": bool},
        required=("SnapshotId",),
    ),
    "RegisterImage": Operation(
        request={
            "ImageLocation": str,
            "BillingProducts": [str],
            "BootMode": str,
            "TpmSupport": str,
            "UefiData": str,
            "ImdsSupport": str,
            "TagSpecifications": _TAG_SPECIFICATIONS,
            "DryRun": bool,
            "Name": str,
            "Description": str,
            "Architecture": str,
            "KernelId": str,
            "RamdiskId": str,
            "RootDeviceName": str,
            "BlockDeviceMappings": [_NEW_MAPPING],
            "VirtualizationType": str,
            "SriovNetSupport": str,
            "EnaSupport": bool,
        },
        required=("Name",),
        least={"Name": 3},
    ),
    "DescribeImageAttribute": Operation(
        request={"Attribute": str, "ImageId": str, "DryRun": bool}, required=("Attribute", "ImageId")
    ),
    "EnableImageDeprecation": Operation(
        request={"ImageId": str, "DeprecateAt": datetime.datetime, "DryRun": bool},
        required=("ImageId", "DeprecateAt"),
    ),
    "DisableImageDeprecation": Operation(request={"ImageId": str, "DryRun": bool}, required=("ImageId",)),
    "EnableImageDeregistrationProtection": Operation(
        request={"ImageId": str, "WithCooldown": bool, "DryRun": bool}, required=("ImageId",)
    ),
    "DisableImageDeregistrationProtection": Operation(
        request={"ImageId": str, "DryRun": bool}, required=("ImageId",)
    ),
    "DescribeSnapshotAttribute": Operation(
        request={"Attribute": str, "SnapshotId": str, "DryRun": bool}, required=("Attribute", "SnapshotId")
    ),
    "CreateTags": Operation(
        request={"DryRun": bool, "Resources": [str], "Tags": _TAGS}, required=("Resources", "Tags")
    ),
    "DeleteTags": Operation(
        request={"DryRun": bool, "Resources": [str], "Tags": _TAGS}, required=("Resources",)
    ),
    "DescribeTags": Operation(
        request={"DryRun": bool, "Filters": _FILTERS, "MaxResults": int, "NextToken": str}
    ),
    "GetEbsEncryptionByDefault": Operation(request={"DryRun": bool}),
    "GetEbsDefaultKmsKeyId": Operation(request={"DryRun": bool}),
    "DescribeRegions": Operation(
        request={"RegionNames": [str], "AllRegions": bool, "DryRun": bool, "Filters": _FILTERS}
    ),
}

# Where the Query protocol's names do not follow the two rules below.
_IN_QUERY: Final = {
    "ExecutableUsers": "ExecutableBy",
    "OwnerIds": "Owner",
    "Resources": "ResourceId",
    "RestorableByUserIds": "RestorableBy",
}
_IN_XML: Final = {
    "AvailabilityZoneId": "AvailabilityZoneId",
    "BlockDeviceMappings": "blockDeviceMapping",
    "DeleteSnapshotResults": "deleteSnapshotResultSet",
    "Images": "imagesSet",
    "Images.OwnerId": "imageOwnerId",
    "Images.Public": "isPublic",
    "Images.State": "imageState",
    "ProductCodeId": "productCode",
    "ProductCodeType": "type",
    "Snapshots": "snapshotSet",
    "Snapshots.State": "status",
    "Snapshots.StateMessage": "statusMessage",
    "StoreImageTaskResults": "storeImageTaskResultSet",
    "Tags": "tagSet",
    "VolumeInitializationRate": "VolumeInitializationRate",
}


def query_name(name: str, kind: Kind) -> str:
    """How a request's form spells a member: that of a list without its plural, as its items have it."""
    return _IN_QUERY.get(name) or (name.removesuffix("s") if isinstance(kind, list) else name)


def xml_name(name: str, above: str = "") -> str:
    """How an answer's XML spells a member; what is spelled so already stays as it is.

    Args:
        name: of the member.
        above: the name of the member, or list, that holds it.
    """
    return _IN_XML.get(f"{above}.{name}") or _IN_XML.get(name) or name[:1].lower() + name[1:]


def faults(operation: Operation, request: Mapping[str, Any]) -> list[str]:
    """What is wrong with a request's members, in botocore's words; nothing where all are right."""
    missing = [name for name in operation.required if name not in request]
    found = [f'Missing required parameter in input: "{name}"' for name in missing]
    return [*found, *_faults("", operation.request, request, operation.least)]


def _faults(path: str, kind: Kind, value: Any, least: Mapping[str, int]) -> Iterator[str]:
    valid: tuple[type, ...] = (
        (list, tuple) if isinstance(kind, list) else (dict,) if isinstance(kind, Mapping) else (kind,)
    )
    fits = isinstance(value, valid)
    if not fits:
        yield (
            f"Invalid type for parameter {path}, value: {value}, type: {type(value)}, "
            f"valid types: {', '.join(map(str, valid))}"
        )
    elif isinstance(kind, list):
        for number, item in enumerate(value):
            yield from _faults(f"{path}[{number}]", kind[0], item, least)
    elif isinstance(kind, Mapping):
        yield from _member_faults(path, kind, value, least)
    elif path in least:
        what, size = ("length", len(value)) if isinstance(value, str) else ("value", int(value))
        if size < least[path]:
            yield f"Invalid {what} for parameter {path}, value: {size}, valid min {what}: {least[path]}"


def _member_faults(
    path: str, known: Mapping[str, Kind], value: Mapping[str, Any], least: Mapping[str, int]
) -> Iterator[str]:
    for name in value:
        if name not in known:
            yield f'Unknown parameter in {path or "input"}: "{name}", must be one of: {", ".join(known)}'
    for name in value:
        if name in known:
            yield from _faults(f"{path}.{name}" if path else name, known[name], value[name], least)


def answered(operation: Operation, members: Mapping[str, Any]) -> dict[str, Any]:
    """An answer's members: those that the operation has, as far as they are known."""
    answer: dict[str, Any] = _answered(operation.answer, members)
    return answer


def _answered(kind: Kind, value: Any) -> Any:
    """A value of this type; None where it is none, as what an archive tells may be anything."""
    if isinstance(kind, Mapping):
        if not isinstance(value, Mapping):
            return None
        found = {name: _answered(each, value.get(name)) for name, each in kind.items()}
        return {name: each for name, each in found.items() if each is not None}
    if isinstance(kind, list):
        return [_answered(kind[0], each) for each in value] if isinstance(value, (list, tuple)) else None
    if kind is datetime.datetime and isinstance(value, str):
        return _moment(value)
    return value if isinstance(value, kind) else None


def _moment(text: str) -> datetime.datetime | None:
    """A time as EC2 writes it: ``2026-01-02T03:04:05.000Z``."""
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment
