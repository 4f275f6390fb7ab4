"""`policy`: IAM policies of least privilege, made from the actions that the backend's verbs need.

``python -m amistore.backends.aws.policies store --bucket my-archives`` prints one as JSON.
Sources: Service Authorization Reference (which action can be limited to which resource); EBS
user guide, "Control access to EBS direct APIs using IAM" and "Requirements for Amazon EBS
encryption".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from amistore.backends.aws.actions import ACTIONS, KMS_READ, KMS_WRITE
from amistore.backends.aws.s3_names import check_bucket_name
from amistore.errors import InvalidRequestError

__all__ = ["FLOWS", "actions", "policy"]

_READ: Final = ("describe_image", "describe_images", "describe_snapshots")
_READ_BLOCKS: Final = ("list_snapshot_blocks", "get_snapshot_block")
_WRITE: Final = (
    "start_snapshot",
    "put_snapshot_block",
    "complete_snapshot",
    "describe_snapshot",
    "delete_snapshot",
    "register_image",
    "finish_registration",
    "find_images",
    "encryption_by_default",
)
_READ_OBJECT: Final = ("head_object", "get_object_range")
_WRITE_OBJECT: Final = (
    "head_object",
    "get_object_range",
    "delete_object",
    "create_multipart_upload",
    "upload_part",
    "list_parts",
    "complete_multipart_upload",
    "abort_multipart_upload",
    "list_multipart_uploads",
    "bucket_warnings",
)

FLOWS: Final[Mapping[str, tuple[str, ...]]] = {
    "read": (*_READ, *_READ_BLOCKS, *_READ_OBJECT),
    "store": (*_READ, *_READ_BLOCKS, *_WRITE_OBJECT),
    "restore": (*_READ_OBJECT, *_WRITE),
    "transfer": (*_READ, *_READ_BLOCKS, *_WRITE, *_WRITE_OBJECT),
}
"""The verbs of each flow. A transfer between accounts: ``read`` here, ``transfer`` there."""

# AWS General Reference, "ARNs"; the Regions of all others are in ``aws``.
_PARTITIONS: Final = {
    "us-gov-": "aws-us-gov",
    "cn-": "aws-cn",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "eu-isoe-": "aws-iso-e",
    "us-isof-": "aws-iso-f",
    "eusc-": "aws-eusc",
}

_WRITING: Final = frozenset({"restore", "transfer"})

# Actions that can be limited to resources; the others are given on all ("*").
_RESOURCES: Final[Mapping[str, tuple[str, ...]]] = {
    "ebs:ListSnapshotBlocks": ("snapshot",),
    "ebs:GetSnapshotBlock": ("snapshot",),
    "ebs:StartSnapshot": ("snapshot",),
    "ebs:PutSnapshotBlock": ("snapshot",),
    "ebs:CompleteSnapshot": ("snapshot",),
    "ec2:DeleteSnapshot": ("snapshot",),
    "ec2:DescribeImageAttribute": ("image",),
    "ec2:RegisterImage": ("image", "snapshot"),
    "ec2:CreateTags": ("image", "snapshot"),
    "ec2:EnableImageDeprecation": ("image",),
    "ec2:EnableImageDeregistrationProtection": ("image",),
    "ec2:DeregisterImage": ("image",),
    "s3:ListBucket": ("bucket",),
    "s3:ListBucketMultipartUploads": ("bucket",),
    "s3:GetBucketPublicAccessBlock": ("bucket",),
    "s3:GetEncryptionConfiguration": ("bucket",),
    "s3:GetObject": ("object",),
    "s3:PutObject": ("object",),
    "s3:PutObjectTagging": ("object",),
    "s3:GetObjectTagging": ("object",),
    "s3:DeleteObject": ("object",),
    "s3:RestoreObject": ("object",),
    "s3:AbortMultipartUpload": ("object",),
    "s3:ListMultipartUploadParts": ("object",),
}

_GRANT: Final = "kms:CreateGrant"

# IAM user guide, "IAM JSON policy elements: Version".
_VERSION: Final = "2012-10-17"


def actions(flow: str, *, archived: bool = False) -> tuple[str, ...]:
    """The EBS, EC2 and S3 actions that a flow needs, in order.

    Raises:
        InvalidRequestError: no such flow.
    """
    if flow not in FLOWS:
        raise InvalidRequestError(f"there is no policy for {flow!r}, only for {', '.join(FLOWS)}")
    verbs = [*FLOWS[flow], *(["restore_object"] if archived else [])]
    return tuple(sorted({action for verb in verbs for action in ACTIONS[verb]}))


def policy(
    flow: str,
    *,
    partition: str | None = None,
    region: str | None = None,
    bucket: str | None = None,
    prefix: str = "",
    kms_key_arns: Iterable[str] = (),
    bucket_kms_key_arns: Iterable[str] = (),
    archived: bool = False,
) -> dict[str, Any]:
    """An identity policy that allows what a flow needs, and nothing else.

    Args:
        flow: ``store``, ``restore``, ``transfer`` or ``read``.
        partition: ``aws``, ``aws-us-gov``, ``aws-cn``; None for the Region's, or else ``aws``.
        region: the only Region of the snapshots and images; None for all Regions.
        bucket: the bucket of the archives, needed to store and restore. Without it a ``read`` policy covers
            images and snapshots only, and a ``transfer`` keeps no archive.
        prefix: the prefix of the archives' keys.
        kms_key_arns: the ARNs of the KMS keys of the snapshots that are read or made.
        bucket_kms_key_arns: the ARNs of the KMS keys that encrypt the archives, if the bucket uses KMS.
        archived: whether archives are to be restored from S3 Glacier.

    Raises:
        InvalidRequestError: the flow is unknown, the bucket is missing, or an ARN would match nothing: it
            has another partition than the Region, the key is no ARN, or the bucket is no name.
    """
    kms_key_arns, bucket_kms_key_arns = tuple(kms_key_arns), tuple(bucket_kms_key_arns)
    partition = _partition(partition, region)
    for arn in (*kms_key_arns, *bucket_kms_key_arns):
        _check_key(arn, partition, region)
    if not re.fullmatch(r"[^*?$\s]*", str(prefix)) or not isinstance(prefix, str):
        raise InvalidRequestError(f"{prefix!r} is no prefix of keys, or matches more than it says")
    if bucket is not None:
        check_bucket_name(bucket)
    wanted = actions(flow, archived=archived)
    if bucket is None:
        if flow in ("store", "restore"):
            raise InvalidRequestError(f"a policy to {flow} needs the bucket")
        if prefix or archived or bucket_kms_key_arns:
            raise InvalidRequestError("a prefix, the bucket's KMS keys and Glacier go with the bucket")
        wanted = tuple(action for action in wanted if not action.startswith("s3:"))
    places = {
        "snapshot": f"arn:{partition}:ec2:{region or '*'}::snapshot/*",
        "image": f"arn:{partition}:ec2:{region or '*'}::image/*",
        "bucket": f"arn:{partition}:s3:::{bucket}",
        "object": f"arn:{partition}:s3:::{bucket}/{prefix}*",
    }
    groups: dict[tuple[str, ...], list[str]] = {}
    for action in wanted:
        groups.setdefault(_RESOURCES.get(action, ()), []).append(action)
    statements = [
        _statement(kinds, found, [places[kind] for kind in kinds] or ["*"])
        for kinds, found in sorted(groups.items())
    ]
    statements += _of_keys(flow, sorted(kms_key_arns))
    if bucket_kms_key_arns:
        # S3 user guide, "Protecting data using server-side encryption with AWS KMS keys".
        writing = ["kms:GenerateDataKey"] if flow in ("store", "transfer") else []
        found = ["kms:Decrypt", *writing]
        statements.append(_statement(("bucket", "keys"), found, sorted(bucket_kms_key_arns)))
    return {"Version": _VERSION, "Statement": statements}


def _of_keys(flow: str, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The statements for the snapshots' KMS keys, if there are any."""
    if not keys:
        return
    found = KMS_WRITE if flow in _WRITING else KMS_READ
    yield _statement(("keys",), [each for each in found if each != _GRANT], keys)
    if _GRANT in found:
        # Only EBS may make grants with it, on the caller's behalf.
        only_ebs = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        yield {**_statement(("grants",), [_GRANT], keys), "Condition": only_ebs}


def _check_key(arn: str, partition: str, region: str | None) -> None:
    # KMS developer guide, "Specifying KMS keys in IAM policy statements": no alias stands for a key.
    regions = rf"{region}|\*" if region else r"[a-z0-9-]+|\*"
    if not re.fullmatch(rf"arn:{partition}:kms:({regions}):[0-9]{{12}}:key/[^ ]+", str(arn)):
        where = region or f"the partition {partition}"
        raise InvalidRequestError(f"{arn} is no ARN of a KMS key in {where}; an alias does not do")


def _partition(partition: str | None, region: str | None) -> str:
    """The partition of a Region, which its name begins with."""
    if region is not None and not re.fullmatch("[a-z]+(-[a-z]+)+-[0-9]+", region):
        raise InvalidRequestError(f"{region!r} is no Region's name, such as us-gov-east-1")
    found = next((name for start, name in _PARTITIONS.items() if (region or "").startswith(start)), "aws")
    known = ("aws", *_PARTITIONS.values())
    if partition not in (None, *known):
        raise InvalidRequestError(f"there is no partition {partition!r}, only {', '.join(known)}")
    if partition is not None and region is not None and partition != found:
        raise InvalidRequestError(f"{region} is a Region of {found}, not of {partition}")
    return partition or found


def _statement(kinds: Sequence[str], found: Sequence[str], resources: Sequence[str]) -> dict[str, Any]:
    name = "".join(kind.capitalize() for kind in kinds) or "Lists"
    return {"Sid": f"Amistore{name}", "Effect": "Allow", "Action": list(found), "Resource": list(resources)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a policy as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m amistore.backends.aws.policies", description="Print an IAM policy for a flow as JSON."
    )
    parser.add_argument("flow", choices=sorted(FLOWS))
    parser.add_argument("--partition", help="aws, aws-us-gov or aws-cn; that of the Region without it")
    parser.add_argument("--region", help="limit snapshots and images to it")
    parser.add_argument("--bucket", help="where the archives are")
    parser.add_argument("--prefix", default="", help="of the archives' keys")
    parser.add_argument("--kms-key-arn", action="append", default=[], dest="kms_key_arns", metavar="ARN")
    parser.add_argument(
        "--bucket-kms-key-arn", action="append", default=[], dest="bucket_kms_key_arns", metavar="ARN"
    )
    parser.add_argument("--archived", action="store_true", help="restore archives from S3 Glacier")
    given = vars(parser.parse_args(arguments))
    try:
        made = policy(given.pop("flow"), **given)
    except InvalidRequestError as error:
        parser.error(str(error))
    json.dump(made, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
