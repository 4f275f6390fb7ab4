"""EC2's operations on snapshots, tags, and what an account has set for EBS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.describing import (
    FILTERS,
    TAGS,
    check_tags,
    filtered,
    paged,
    sees,
    tag_set,
    visible_snapshot,
    well_formed,
)
from amistore.testing.aws.query import required, wrong
from amistore.testing.aws.records import Credential, Image, Snapshot
from amistore.testing.aws.wire import moment
from amistore.units import BLOCK_SIZE

__all__ = ["Snapshots"]

ONE_SNAPSHOT: dict[str, Any] = {"SnapshotId": str, "DryRun": bool}
PAGED: dict[str, Any] = {"MaxResults": int, "NextToken": str, "DryRun": bool, "Filter": FILTERS}
SUFFIXES = {"aws-cn": "amazonaws.com.cn"}


class Snapshots:
    """Answer the operations; whoever calls holds the cloud's lock.

    Attributes:
        operations: the parameters each one knows, and what carries it out.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        tagging = {"ResourceId": [str], "Tag": TAGS, "DryRun": bool}
        self.operations: dict[str, tuple[dict[str, Any], Callable[[Any, Credential], dict[str, Any]]]] = {
            "DescribeSnapshots": (
                {"SnapshotId": [str], "Owner": [str], "RestorableBy": [str], **PAGED},
                self._describe,
            ),
            "DescribeSnapshotAttribute": ({"Attribute": str, **ONE_SNAPSHOT}, self._describe_attribute),
            "DeleteSnapshot": (ONE_SNAPSHOT, self._delete),
            "CreateTags": (tagging, self._create_tags),
            "DeleteTags": (tagging, self._delete_tags),
            "DescribeTags": (PAGED, self._describe_tags),
            "GetEbsEncryptionByDefault": ({"DryRun": bool}, self._encryption_by_default),
            "GetEbsDefaultKmsKeyId": ({"DryRun": bool}, self._default_key),
            "DescribeRegions": (
                {"RegionName": [str], "AllRegions": bool, "DryRun": bool, "Filter": FILTERS},
                self._describe_regions,
            ),
        }

    def _describe(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        ids = values.get("SnapshotId", [])
        if ids:
            found = [visible_snapshot(self._cloud, name, caller) for name in dict.fromkeys(ids)]
        else:
            found = [
                s for s in self._cloud.snapshots.values() if sees(s, caller) and not self._cloud.is_missing(s)
            ]
            for snapshot in found:
                self._cloud.settle(snapshot)
        owners = {caller.account_id if owner == "self" else owner for owner in values.get("Owner", [])}
        if owners:
            found = [snapshot for snapshot in found if snapshot.owner_id in owners]
        restorers = {caller.account_id if user == "self" else user for user in values.get("RestorableBy", [])}
        if restorers:
            found = [s for s in found if restorers & {s.owner_id, *s.shared_with, *(["all"] * s.public)}]
        found = filtered(found, values.get("Filter", []), known=SNAPSHOT_FILTERS, tags=lambda item: item.tags)
        found.sort(key=lambda snapshot: snapshot.number)
        page, token = paged(self._cloud, found, values, "SnapshotId", lambda item: f"{item.number:012d}")
        answer = {"snapshotSet": [described(snapshot) for snapshot in page], "nextToken": token}
        for snapshot in page:
            if snapshot.sealed is not None:
                snapshot.describes = max(0, snapshot.describes - 1)
        return answer

    def _describe_attribute(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        attribute = required(values, "Attribute")
        snapshot = self._own(required(values, "SnapshotId"), caller)
        if attribute == "createVolumePermission":
            users = [{"userId": user} for user in sorted(snapshot.shared_with)]
            value = [{"group": "all"}] * snapshot.public + users
        elif attribute == "productCodes":
            value = []
        else:
            raise wrong(f"Value ({attribute}) for parameter attribute is invalid. Unknown attribute.")
        return {"snapshotId": snapshot.snapshot_id, attribute: value}

    def _delete(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        snapshot = self._own(required(values, "SnapshotId"), caller)
        for image in self._cloud.images.values():
            if snapshot.snapshot_id in image.snapshot_ids:
                message = f"The snapshot {snapshot.snapshot_id} is currently in use by {image.image_id}"
                raise wrong(message, "InvalidSnapshot.InUse")
        del self._cloud.snapshots[snapshot.snapshot_id]
        return {"return": True}

    def _create_tags(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        tags = required(values, "Tag")
        resources = [self._resource(name, caller) for name in required(values, "ResourceId")]
        made = [check_tags(tags, resource.tags) for resource in resources]
        for resource, new in zip(resources, made, strict=True):
            resource.tags.update(new)
        return {"return": True}

    def _delete_tags(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        for name in required(values, "ResourceId"):
            tags = self._resource(name, caller).tags
            for tag in values.get("Tag", [{"Key": key} for key in tags if not key.startswith("aws:")]):
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
        found = sorted(
            (key, name, kind, value)
            for kind, name, record in records
            if record.owner_id == caller.account_id
            for key, value in record.tags.items()
        )
        found = filtered(
            found,
            values.get("Filter", []),
            known={
                "key": lambda tag: tag[0],
                "resource-id": lambda tag: tag[1],
                "resource-type": lambda tag: tag[2],
                "value": lambda tag: tag[3],
            },
            tags=lambda tag: {tag[0]: tag[3]},
        )
        page, token = paged(cloud, found, values, "ResourceId", lambda tag: f"{tag[0]}\0{tag[1]}")
        names = ("key", "resourceId", "resourceType", "value")
        return {"tagSet": [dict(zip(names, tag, strict=True)) for tag in page], "nextToken": token}

    def _encryption_by_default(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        enabled = self._cloud.behaviour.encryption_by_default
        return {"ebsEncryptionByDefault": enabled, "sseType": "sse-kms" if enabled else "none"}

    def _default_key(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        return {"kmsKeyId": self._cloud.behaviour.default_kms_key or "alias/aws/ebs"}

    def _describe_regions(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        region = self._cloud.region
        for name in values.get("RegionName", []):
            if name != region:
                raise wrong(f"Invalid region(s) provided: {name}")
        endpoint = f"ec2.{region}.{SUFFIXES.get(self._cloud.partition, 'amazonaws.com')}"
        known = {
            "region-name": lambda item: item["regionName"],
            "endpoint": lambda item: item["regionEndpoint"],
            "opt-in-status": lambda item: item["optInStatus"],
        }
        one = {"regionName": region, "regionEndpoint": endpoint, "optInStatus": "opt-in-not-required"}
        return {"regionInfo": filtered([one], values.get("Filter", []), known=known, tags=lambda item: {})}

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
        "startTime": snapshot.start_time,
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


SNAPSHOT_FILTERS: dict[str, Callable[[Snapshot], Any]] = {
    "description": lambda snapshot: snapshot.description,
    "encrypted": lambda snapshot: snapshot.encrypted,
    "owner-id": lambda snapshot: snapshot.owner_id,
    "progress": lambda snapshot: f"{snapshot.progress}%",
    "snapshot-id": lambda snapshot: snapshot.snapshot_id,
    "start-time": lambda snapshot: moment(snapshot.start_time),
    "status": lambda snapshot: snapshot.state,
    "storage-tier": lambda snapshot: snapshot.storage_tier,
    "transfer-type": lambda snapshot: "standard",
    "volume-id": lambda snapshot: snapshot.volume_id,
    "volume-size": lambda snapshot: snapshot.volume_size,
}
