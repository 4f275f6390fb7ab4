"""StartSnapshot: what may be started, and how it is encrypted."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from typing import Any

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.content import Overlay, StoredBlocks
from amistore.testing.aws.records import Credential, Snapshot
from amistore.units import BLOCK_SIZE
from amistore.wire.calls import Call
from amistore.wire.errors import ServiceError, invalid

__all__ = ["start_snapshot"]

MEMBERS: dict[str, type] = {
    "VolumeSize": int,
    "ParentSnapshotId": str,
    "Tags": list,
    "Description": str,
    "ClientToken": str,
    "Encrypted": bool,
    "KmsKeyArn": str,
    "Timeout": int,
}
KEY_ARN = re.compile(r"arn:aws[a-z\-]*:kms:.*:[0-9]{12}:key/.*")
TAG_KEY, TAG_VALUE = 127, 255
"""Most characters, in the service's model; EC2 itself allows 128 and 256."""


def start_snapshot(
    cloud: Cloud, call: Call, caller: Credential, readable: Callable[[str, Credential], Snapshot]
) -> dict[str, Any]:
    """Start a snapshot, or tell of the one that this client token has started.

    Raises:
        ServiceError: the request is not one that the service carries out.
    """
    wanted = checked(call)
    token = wanted.get("ClientToken")
    asked = {name: value for name, value in wanted.items() if name != "ClientToken"}
    earlier = cloud.started.get((caller.account_id, token)) if token is not None else None
    if earlier is not None:
        if earlier[0] != asked:
            message = "The client token was used with other parameters."
            raise ServiceError("ConflictException", message, status=409)
        return described(earlier[1])
    if wanted.get("Tags") and caller.denies("ec2:CreateTags"):
        message = "The caller is not authorized to perform: ec2:CreateTags."
        raise ServiceError("AccessDeniedException", message, status=403, reason="UNAUTHORIZED_ACCOUNT")
    parent = readable(wanted["ParentSnapshotId"], caller) if "ParentSnapshotId" in wanted else None
    if parent is not None and wanted["VolumeSize"] < parent.volume_size:
        raise invalid("VolumeSize is smaller than the parent snapshot's.", "INVALID_VOLUME_SIZE")
    encrypted, key = encryption(cloud, wanted, parent)
    if encrypted and caller.denies("kms:GenerateDataKeyWithoutPlaintext"):
        message = "The caller is not authorized to use the KMS key."
        raise ServiceError("AccessDeniedException", message, status=403, reason="DEPENDENCY_ACCESS_DENIED")
    check_quota(cloud, caller)
    own, behaviour = StoredBlocks(cloud.pool), cloud.behaviour
    snapshot = cloud.add_snapshot(
        cloud.new_id("snap"),
        parent=parent,
        owner_id=caller.account_id,
        volume_size=wanted["VolumeSize"],
        own=own,
        content=own if parent is None else Overlay(parent.content, own),
        description=wanted.get("Description", ""),
        tags={tag["Key"]: tag.get("Value", "") for tag in wanted.get("Tags", ())},
        encrypted=encrypted,
        kms_key_arn=key,
        timeout=wanted.get("Timeout", 60),
        missing_until=cloud.clock.now() + datetime.timedelta(seconds=behaviour.missing_seconds),
        missing_calls=behaviour.missing_calls,
    )
    if token is not None:
        cloud.started[caller.account_id, token] = (asked, snapshot)
    return described(snapshot)


def check_quota(cloud: Cloud, caller: Credential) -> None:
    """Refuse one pending snapshot too many."""
    for other in cloud.snapshots.values():
        cloud.settle(other)
    pending = sum(
        item.state == "pending" and item.owner_id == caller.account_id for item in cloud.snapshots.values()
    )
    if pending >= cloud.behaviour.pending_snapshots:
        message = f"There are {pending} pending snapshots."
        reason = "DEPENDENCY_SERVICE_QUOTA_EXCEEDED"
        raise ServiceError("ServiceQuotaExceededException", message, status=402, reason=reason)


def described(snapshot: Snapshot) -> dict[str, Any]:
    members: dict[str, Any] = {
        "SnapshotId": snapshot.snapshot_id,
        "OwnerId": snapshot.owner_id,
        "Status": snapshot.state,
        "StartTime": snapshot.start_time.timestamp(),
        "VolumeSize": snapshot.volume_size,
        "BlockSize": BLOCK_SIZE,
        "SseType": "sse-kms" if snapshot.encrypted else "none",
    }
    optional = {
        "Description": snapshot.description,
        "ParentSnapshotId": snapshot.parent_snapshot_id,
        "KmsKeyArn": snapshot.kms_key_arn,
        "Tags": [{"Key": key, "Value": value} for key, value in snapshot.tags.items()],
    }
    return members | {name: value for name, value in optional.items() if value}


def encryption(cloud: Cloud, wanted: dict[str, Any], parent: Snapshot | None) -> tuple[bool, str | None]:
    """Whether and with which key a snapshot is encrypted ("Encryption outcomes for EBS direct APIs")."""
    by_default = cloud.behaviour.encryption_by_default
    encrypted, key = wanted.get("Encrypted"), wanted.get("KmsKeyArn")
    if parent is not None:
        if encrypted is not None:
            raise invalid("Encrypted and ParentSnapshotId cannot be specified together.")
        if parent.encrypted:
            if key is not None:
                raise invalid("KmsKeyArn cannot be specified with an encrypted parent snapshot.")
            return True, parent.kms_key_arn
        if by_default or key is not None:
            raise invalid("The parent snapshot is not encrypted, and the new one would have to be.")
        return False, None
    if key is not None and not encrypted and (encrypted is False or not by_default):
        raise invalid("KmsKeyArn cannot be specified without Encrypted.", "INVALID_CUSTOMER_KEY")
    if encrypted is False and by_default:
        raise invalid("Encryption by default is enabled: an unencrypted snapshot cannot be started.")
    return (True, key or cloud.default_key) if encrypted or by_default else (False, None)


def members(call: Call) -> dict[str, Any]:
    """The request's members, each of the type of the model."""
    try:
        wanted = json.loads(call.body)
    except ValueError:
        raise ServiceError("SerializationException", "The body is not JSON.") from None
    if not isinstance(wanted, dict):
        raise ServiceError("SerializationException", "The body is not an object.")
    for name, value in wanted.items():
        if name not in MEMBERS:
            raise invalid(f"'{name[:64]}' is not a member of StartSnapshot's request.")
        if type(value) is not MEMBERS[name]:
            raise ServiceError(
                "SerializationException", f"{name} is not of the type {MEMBERS[name].__name__}."
            )
    return wanted


def checked(call: Call) -> dict[str, Any]:
    """The request's members, in the bounds of the model."""
    wanted = members(call)
    size = wanted.get("VolumeSize")
    if size is None or not 1 <= size <= 65_536:
        raise invalid("VolumeSize must be from 1 to 65536 GiB.", "INVALID_VOLUME_SIZE")
    if not 10 <= wanted.get("Timeout", 60) <= 4320:
        raise invalid("Timeout must be from 10 to 4320 minutes.")
    if not 1 <= len(wanted.get("Description", "-")) <= 255:
        raise invalid("Description must have 1 to 255 characters.")
    # The guide "Ensure idempotency in StartSnapshot API requests" says 64; the model, 255.
    if re.fullmatch(r"[!-~]{1,64}", wanted.get("ClientToken", "-")) is None:
        raise invalid("ClientToken must have up to 64 ASCII characters.")
    if KEY_ARN.fullmatch(wanted.get("KmsKeyArn", "arn:aws:kms::000000000000:key/")) is None:
        raise invalid("KmsKeyArn is not the ARN of a key.", "INVALID_CUSTOMER_KEY")
    check_tags(wanted.get("Tags", []))
    return wanted


def check_tags(tags: list[Any]) -> None:
    for tag in tags:
        if not (isinstance(tag, dict) and tag.keys() <= {"Key", "Value"} and isinstance(tag.get("Key"), str)):
            raise ServiceError("SerializationException", "A tag is not an object with Key and Value.")
        value = tag.get("Value", "")
        if not isinstance(value, str) or len(value) > TAG_VALUE or not 1 <= len(tag["Key"]) <= TAG_KEY:
            raise invalid(
                f"A tag has a key of 1 to {TAG_KEY} and a value of up to {TAG_VALUE} characters.",
                "INVALID_TAG",
            )
        if tag["Key"].lower().startswith("aws:"):
            raise invalid("Tag keys that begin with aws: are reserved.", "INVALID_TAG")
    if len({tag["Key"] for tag in tags}) != len(tags) or len(tags) > 50:
        raise invalid("There may be 50 tags, each key once.", "INVALID_TAG")
