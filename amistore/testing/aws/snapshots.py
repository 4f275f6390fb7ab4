"""EC2's operations on snapshots, tags, and what an account has set for EBS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.describing import check_tags, paged, sees, tag_set, visible_snapshot, well_formed
from amistore.testing.aws.records import Credential, Image, Snapshot
from amistore.units import BLOCK_SIZE
from amistore.wire import describing as wire
from amistore.wire.answers import moment
from amistore.wire.describing import fitting, in_xml
from amistore.wire.errors import wrong
from amistore.wire.query import required

__all__ = ["Snapshots"]

SNAPSHOT_FILTERS = in_xml({**wire.SNAPSHOT_FILTERS, "transfer-type": "TransferType"}, "Snapshots")
TAG_FILTERS = {
    "key": "key",
    "resource-id": "resourceId",
    "resource-type": "resourceType",
    "tag-key": "key",
    "tag:<key>": "value",
    "value": "value",
}
REGION_FILTERS = {
    "endpoint": "regionEndpoint",
    "opt-in-status": "optInStatus",
    "region-name": "regionName",
}
SUFFIXES = {"aws-cn": "amazonaws.com.cn"}


class Snapshots:
    """Answer the operations; whoever calls holds the cloud's lock.

    Attributes:
        operations: what carries each one out.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.operations: dict[str, Callable[[Any, Credential], dict[str, Any]]] = {
            "DescribeSnapshots": self._describe,
            "DescribeSnapshotAttribute": self._describe_attribute,
            "DeleteSnapshot": self._delete,
            "CreateTags": self._create_tags,
            "DeleteTags": self._delete_tags,
            "DescribeTags": self._describe_tags,
            "GetEbsEncryptionByDefault": self._encryption_by_default,
            "GetEbsDefaultKmsKeyId": self._default_key,
            "DescribeRegions": self._describe_regions,
        }

    def _describe(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        ids = values.get("SnapshotIds", [])
        if ids:
            found = [visible_snapshot(self._cloud, name, caller) for name in dict.fromkeys(ids)]
        else:
            found = [
                s for s in self._cloud.snapshots.values() if sees(s, caller) and not self._cloud.is_missing(s)
            ]
            for snapshot in found:
                self._cloud.settle(snapshot)
        owners = {caller.account_id if owner == "self" else owner for owner in values.get("OwnerIds", [])}
        if owners:
            found = [snapshot for snapshot in found if snapshot.owner_id in owners]
        restorers = {
            caller.account_id if user == "self" else user for user in values.get("RestorableByUserIds", [])
        }
        if restorers:
            found = [s for s in found if restorers & {s.owner_id, *s.shared_with, *(["all"] * s.public)}]
        fits = fitting(values.get("Filters", []), SNAPSHOT_FILTERS)
        found = [snapshot for snapshot in found if fits(described(snapshot))]
        found.sort(key=lambda snapshot: snapshot.number)
        page, token = paged(self._cloud, found, values, "SnapshotIds", lambda item: f"{item.number:012d}")
        answer = {"snapshotSet": [described(snapshot) for snapshot in page], "nextToken": token}
        for snapshot in page:
            if snapshot.sealed is not None:
                snapshot.describes = max(0, snapshot.describes - 1)
        return answer

    def _describe_attribute(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        attribute = values["Attribute"]
        snapshot = self._own(values["SnapshotId"], caller)
        if attribute == "createVolumePermission":
            users = [{"userId": user} for user in sorted(snapshot.shared_with)]
            value = [{"group": "all"}] * snapshot.public + users
        elif attribute == "productCodes":
            value = []
        else:
            raise wrong(f"Value ({attribute}) for parameter attribute is invalid. Unknown attribute.")
        return {"snapshotId": snapshot.snapshot_id, attribute: value}

    def _delete(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        snapshot = self._own(values["SnapshotId"], caller)
        for image in self._cloud.images.values():
            if snapshot.snapshot_id in image.snapshot_ids:
                message = f"The snapshot {snapshot.snapshot_id} is currently in use by {image.image_id}"
                raise wrong(message, "InvalidSnapshot.InUse")
        del self._cloud.snapshots[snapshot.snapshot_id]
        return {"return": True}

    def _create_tags(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        resources = [self._resource(name, caller) for name in values["Resources"]]
        made = [check_tags(values["Tags"], resource.tags) for resource in resources]
        for resource, new in zip(resources, made, strict=True):
            resource.tags.update(new)
        return {"return": True}

    def _delete_tags(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        for name in values["Resources"]:
            tags = self._resource(name, caller).tags
            for tag in values.get("Tags", [{"Key": key} for key in tags if not key.startswith("aws:")]):
                key = required(tag, "Key")
                # "EC2 API reference: DeleteTags": a value, if given, has to be the tag's.
                if key in tags and tag.get("Value", tags[key]) == tags[key]:
                    del tags[key]
        return {"return": True}

    def _describe_tags(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        cloud = self._cloud
        resources = [("image", image.image_id, image) for image in cloud.images.values()]
        records: list[tuple[str, str, Snapshot | Image]] = [*resources]
        records += [("snapshot", item.snapshot_id, item) for item in cloud.snapshots.values()]
        names = ("key", "resourceId", "resourceType", "value")
        tags = sorted(
            (key, name, kind, value)
            for kind, name, record in records
            if record.owner_id == caller.account_id
            for key, value in record.tags.items()
        )
        fits = fitting(values.get("Filters", []), TAG_FILTERS)
        found: list[dict[str, Any]] = [dict(zip(names, each, strict=True)) for each in tags]
        found = [tag for tag in found if fits(tag)]
        page, token = paged(cloud, found, values, "Resources", lambda tag: "\0".join(list(tag.values())[:2]))
        return {"tagSet": page, "nextToken": token}

    def _encryption_by_default(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        enabled = self._cloud.behaviour.encryption_by_default
        return {"ebsEncryptionByDefault": enabled, "sseType": "sse-kms" if enabled else "none"}

    def _default_key(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        return {"kmsKeyId": self._cloud.behaviour.default_kms_key or "alias/aws/ebs"}

    def _describe_regions(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        region = self._cloud.region
        for name in values.get("RegionNames", []):
            if name != region:
                raise wrong(f"Invalid region(s) provided: {name}")
        endpoint = f"ec2.{region}.{SUFFIXES.get(self._cloud.partition, 'amazonaws.com')}"
        one = {"regionName": region, "regionEndpoint": endpoint, "optInStatus": "opt-in-not-required"}
        fits = fitting(values.get("Filters", []), REGION_FILTERS)
        return {"regionInfo": [one] if fits(one) else []}

    def _own(self, snapshot_id: str, caller: Credential) -> Snapshot:
        snapshot = visible_snapshot(self._cloud, snapshot_id, caller)
        if snapshot.owner_id != caller.account_id:
            message = f"You do not have permission to change the snapshot '{snapshot_id}'."
            raise wrong(message, "AuthFailure", 403)
        return snapshot

    def _resource(self, name: str, caller: Credential) -> Snapshot | Image:
        if name.startswith("snap-"):
            return self._own(name, caller)
        if not name.startswith("ami-"):
            raise wrong(f"The ID '{name}' is not valid", "InvalidID")
        image = self._cloud.images.get(well_formed(name, "ami"))
        if image is None or image.owner_id != caller.account_id:
            raise wrong(f"The image id '[{name}]' does not exist", "InvalidAMIID.NotFound")
        return image


def described(snapshot: Snapshot) -> dict[str, Any]:
    """The members of a Snapshot by their names in the XML."""
    full = None
    if snapshot.state == "completed":
        full = len(snapshot.content.indexes) * BLOCK_SIZE
    return {
        "snapshotId": snapshot.snapshot_id,
        "volumeId": snapshot.volume_id,
        "status": snapshot.state,
        "statusMessage": snapshot.state_message,
        "startTime": moment(snapshot.start_time),
        "progress": f"{snapshot.progress}%",
        "ownerId": snapshot.owner_id,
        "volumeSize": snapshot.volume_size,
        "description": snapshot.description,
        "encrypted": snapshot.encrypted,
        "kmsKeyId": snapshot.kms_key_arn,
        "storageTier": snapshot.storage_tier,
        "outpostArn": snapshot.outpost_arn,
        "sseType": "sse-kms" if snapshot.encrypted else "none",
        "transferType": "standard",
        "completionTime": snapshot.completion_time,
        "fullSnapshotSizeInBytes": full,
        "tagSet": tag_set(snapshot.tags),
    }
