"""Which members requests and answers have: botocore's names and types, in one table.

A type is ``str``, ``int``, ``bool``, ``datetime.datetime``, a list with the type of its items,
or a mapping of members to types. Sources: EC2 API reference and botocore's service model of
2016-11-15, with which tests compare this. Imports nothing of ours.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

__all__ = ["OPERATIONS", "Operation", "answered", "faults"]

Kind = Any  # a type of this module's, see above


@attrs.frozen(kw_only=True)
class Operation:
    """An operation of EC2.

    Attributes:
        request: members to their types, in botocore's order.
        required: those that every request has.
        least: of numbers the lowest value, of strings the smallest length.
        answer: members to their types; only these are answered.
    """

    request: Mapping[str, Kind]
    required: tuple[str, ...] = ()
    least: Mapping[str, int] = {}
    answer: Mapping[str, Kind]


_FILTERS: Final = [{"Name": str, "Values": [str]}]
_TAGS: Final = [{"Key": str, "Value": str}]

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
    "PlatformDetails": str,
    "UsageOperation": str,
    "BlockDeviceMappings": [
        {
            "Ebs": {
                "DeleteOnTermination": bool,
                "Iops": int,
                "SnapshotId": str,
                "VolumeSize": int,
                "VolumeType": str,
                "KmsKeyId": str,
                "Throughput": int,
                "OutpostArn": str,
                "Encrypted": bool,
            },
            "NoDevice": str,
            "DeviceName": str,
            "VirtualName": str,
        }
    ],
    "Description": str,
    "EnaSupport": bool,
    "Hypervisor": str,
    "ImageOwnerAlias": str,
    "Name": str,
    "RootDeviceName": str,
    "RootDeviceType": str,
    "SriovNetSupport": str,
    "StateReason": {"Code": str, "Message": str},
    "Tags": _TAGS,
    "VirtualizationType": str,
    "BootMode": str,
    "TpmSupport": str,
    "DeprecationTime": str,
    "ImdsSupport": str,
    "SourceInstanceId": str,
    "DeregistrationProtection": str,
    "SourceImageId": str,
    "SourceImageRegion": str,
    "ImageId": str,
    "ImageLocation": str,
    "State": str,
    "OwnerId": str,
    "CreationDate": str,
    "ProductCodes": [{"ProductCodeId": str, "ProductCodeType": str}],
    "Architecture": str,
    "ImageType": str,
    "KernelId": str,
    "RamdiskId": str,
    "Platform": str,
}

_SNAPSHOT: Final = {
    "Tags": _TAGS,
    "StorageTier": str,
    "SnapshotId": str,
    "VolumeId": str,
    "State": str,
    "StateMessage": str,
    "StartTime": datetime.datetime,
    "Progress": str,
    "OwnerId": str,
    "Description": str,
    "VolumeSize": int,
    "Encrypted": bool,
    "KmsKeyId": str,
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
            "TagSpecifications": [{"ResourceType": str, "Tags": _TAGS}],
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
        answer={},
    ),
}


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
        for name in value:
            if name not in kind:
                known = ", ".join(kind)
                yield f'Unknown parameter in {path or "input"}: "{name}", must be one of: {known}'
        for name in value:
            if name in kind:
                yield from _faults(f"{path}.{name}" if path else name, kind[name], value[name], least)
    elif path in least:
        what, size = ("length", len(value)) if isinstance(value, str) else ("value", int(value))
        if size < least[path]:
            yield f"Invalid {what} for parameter {path}, value: {size}, valid min {what}: {least[path]}"


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
