"""EC2's operations on images."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.describing import FILTERS, filtered, paged, sees, tag_set, well_formed
from amistore.testing.aws.query import required, wrong
from amistore.testing.aws.records import Credential, Image
from amistore.testing.aws.registering import REGISTER_IMAGE, new_image
from amistore.testing.aws.wire import moment

__all__ = ["Images"]

ONE_IMAGE: dict[str, Any] = {"ImageId": str, "DryRun": bool}


class Images:
    """Answer the operations; whoever calls holds the cloud's lock.

    Attributes:
        operations: the parameters each one knows, and what carries it out.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.operations: dict[str, tuple[dict[str, Any], Callable[[Any, Credential], dict[str, Any]]]] = {
            "DescribeImages": (
                {
                    "ExecutableBy": [str],
                    "ImageId": [str],
                    "Owner": [str],
                    "IncludeDeprecated": bool,
                    "IncludeDisabled": bool,
                    "MaxResults": int,
                    "NextToken": str,
                    "DryRun": bool,
                    "Filter": FILTERS,
                },
                self._describe,
            ),
            "DescribeImageAttribute": ({"Attribute": str, **ONE_IMAGE}, self._describe_attribute),
            "RegisterImage": (REGISTER_IMAGE, self._register),
            "DeregisterImage": ({"DeleteAssociatedSnapshots": bool, **ONE_IMAGE}, self._deregister),
            "EnableImageDeprecation": (
                {"DeprecateAt": datetime.datetime, **ONE_IMAGE},
                self._enable_deprecation,
            ),
            "DisableImageDeprecation": (ONE_IMAGE, self._disable_deprecation),
            "EnableImageDeregistrationProtection": (
                {"WithCooldown": bool, **ONE_IMAGE},
                self._enable_protection,
            ),
            "DisableImageDeregistrationProtection": (ONE_IMAGE, self._disable_protection),
        }

    def _describe(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        ids = values.get("ImageId", [])
        if ids:
            found = [self._visible(image_id, caller) for image_id in dict.fromkeys(ids)]
        else:
            found = [image for image in self._cloud.images.values() if sees(image, caller)]
        for image in found:
            self._cloud.settle_image(image)
        if not ids:
            now = self._cloud.clock.now()
            found = [
                image
                for image in found
                if (image.state in ("available", "pending", "failed") or values.get("IncludeDisabled"))
                and (
                    values.get("IncludeDeprecated")
                    or image.owner_id == caller.account_id
                    or image.deprecation_time is None
                    or now < image.deprecation_time
                )
            ]
        owners = {caller.account_id if owner == "self" else owner for owner in values.get("Owner", [])}
        if owners:
            found = [i for i in found if {i.owner_id, i.members.get("imageOwnerAlias")} & owners]
        if executable := values.get("ExecutableBy"):
            found = [i for i in found if executable_by(i, executable, caller)]
        found = filtered(found, values.get("Filter", []), known=IMAGE_FILTERS, tags=lambda image: image.tags)
        found.sort(key=lambda image: image.number)
        page, token = paged(self._cloud, found, values, "ImageId", lambda image: f"{image.number:012d}")
        answer = {"imagesSet": [described(image) for image in page], "nextToken": token}
        for image in page:
            image.describes = max(0, image.describes - 1)
        return answer

    def _describe_attribute(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        attribute = required(values, "Attribute")
        image = self._own(required(values, "ImageId"), caller)
        members = image.members
        simple = {
            "description": members.get("description"),
            "kernel": members.get("kernelId"),
            "ramdisk": members.get("ramdiskId"),
            "sriovNetSupport": members.get("sriovNetSupport"),
            "bootMode": members.get("bootMode"),
            "tpmSupport": members.get("tpmSupport"),
            "imdsSupport": members.get("imdsSupport"),
            "lastLaunchedTime": members.get("lastLaunchedTime"),
            "uefiData": None,
            "deregistrationProtection": "disabled",
        } | image.attributes
        if attribute in simple:
            # An attribute that was never set is there, but empty.
            value: Any = {"value": simple[attribute]}
        elif attribute == "launchPermission":
            value = [{"group": "all"}] * image.public + [
                {"userId": user} for user in sorted(image.shared_with)
            ]
        elif attribute == "productCodes":
            value = members.get("productCodes", [])
        elif attribute == "blockDeviceMapping":
            hidden = ("encrypted",)  # "EC2 API reference: EbsBlockDevice"
            value = [
                item | {"ebs": {k: v for k, v in item["ebs"].items() if k not in hidden}}
                if "ebs" in item
                else item
                for item in image.mappings
            ]
        else:
            raise wrong(f"Value ({attribute}) for parameter attribute is invalid. Unknown attribute.")
        return {"imageId": image.image_id, attribute: value}

    def _register(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        image = new_image(self._cloud, values, caller)
        self._cloud.images[image.image_id] = image
        return {"imageId": image.image_id}

    def _deregister(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        image = self._own(required(values, "ImageId"), caller)
        if image.attributes.get("deregistrationProtection", "disabled") != "disabled":
            message = f"The image {image.image_id} has deregistration protection enabled."
            raise wrong(message, "OperationNotPermitted")
        del self._cloud.images[image.image_id]
        self._cloud.deregistered.add(image.image_id)
        answer: dict[str, Any] = {"return": True}
        if values.get("DeleteAssociatedSnapshots"):
            answer["deleteSnapshotResultSet"] = [
                {"snapshotId": name, "returnCode": self._delete_snapshot(name, caller)}
                for name in dict.fromkeys(image.snapshot_ids)
            ]
        return answer

    def _delete_snapshot(self, snapshot_id: str, caller: Credential) -> str:
        if any(snapshot_id in image.snapshot_ids for image in self._cloud.images.values()):
            return "skipped"
        snapshot = self._cloud.snapshots.get(snapshot_id)
        if caller.denies("ec2:DeleteSnapshot"):
            return "missing-permissions"
        if snapshot is None or snapshot.owner_id != caller.account_id:
            return "client-error"
        del self._cloud.snapshots[snapshot_id]
        return "success"

    def _enable_deprecation(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        at = required(values, "DeprecateAt")
        image = self._own(required(values, "ImageId"), caller)
        now = self._cloud.clock.now()
        # "EC2 API reference: EnableImageDeprecation": not in the past, at most ten years ahead.
        if not now <= at <= now + datetime.timedelta(days=3653):
            raise wrong("DeprecateAt must be in the future, and within ten years.")
        # Seconds are rounded to the nearest minute (the same page).
        image.deprecation_time = (at + datetime.timedelta(seconds=30)).replace(second=0, microsecond=0)
        return {"return": True}

    def _disable_deprecation(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        self._own(required(values, "ImageId"), caller).deprecation_time = None
        return {"return": True}

    def _enable_protection(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        image = self._own(required(values, "ImageId"), caller)
        state = "enabled-with-cooldown" if values.get("WithCooldown") else "enabled-without-cooldown"
        image.attributes["deregistrationProtection"] = state
        return {"return": state}

    def _disable_protection(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        image = self._own(required(values, "ImageId"), caller)
        image.attributes["deregistrationProtection"] = "disabled"
        return {"return": "disabled"}

    def _visible(self, image_id: str, caller: Credential) -> Image:
        image = self._cloud.images.get(well_formed(image_id, "ami"))
        if image is None and image_id in self._cloud.deregistered:
            raise wrong(f"The image ID '{image_id}' is no longer available", "InvalidAMIID.Unavailable")
        if image is None or not sees(image, caller):
            raise wrong(f"The image id '[{image_id}]' does not exist", "InvalidAMIID.NotFound")
        return image

    def _own(self, image_id: str, caller: Credential) -> Image:
        image = self._visible(image_id, caller)
        if image.owner_id != caller.account_id:
            raise wrong(f"Not authorized for image:{image_id}", "AuthFailure", 403)
        self._cloud.settle_image(image)
        return image


def executable_by(image: Image, users: list[str], caller: Credential) -> bool:
    named = {caller.account_id if user == "self" else user for user in users}
    return ("all" in named and image.public) or not named.isdisjoint(image.shared_with)


def described(image: Image) -> dict[str, Any]:
    """The members of an Image by their names in the XML."""
    reason = {"code": "Client.UserInitiated", "message": image.state_message} if image.state_message else None
    return {
        "imageId": image.image_id,
        "name": image.name,
        "imageOwnerId": image.owner_id,
        "creationDate": moment(image.creation_time),
        "imageState": image.state,
        "stateReason": reason,
        "isPublic": image.public,
        **image.members,
        "blockDeviceMapping": image.mappings,
        "deprecationTime": moment(image.deprecation_time) if image.deprecation_time else None,
        "deregistrationProtection": image.attributes.get("deregistrationProtection", "disabled"),
        "tagSet": tag_set(image.tags),
    }


def member(name: str) -> Callable[[Image], Any]:
    return lambda image: image.members.get(name)


def ebs_members(name: str) -> Callable[[Image], Any]:
    return lambda image: [item["ebs"].get(name) for item in image.mappings if "ebs" in item]


IMAGE_FILTERS: dict[str, Callable[[Image], Any]] = {
    "architecture": member("architecture"),
    "block-device-mapping.delete-on-termination": ebs_members("deleteOnTermination"),
    "block-device-mapping.device-name": lambda image: [item["deviceName"] for item in image.mappings],
    "block-device-mapping.snapshot-id": ebs_members("snapshotId"),
    "block-device-mapping.volume-size": ebs_members("volumeSize"),
    "block-device-mapping.volume-type": ebs_members("volumeType"),
    "block-device-mapping.encrypted": ebs_members("encrypted"),
    "boot-mode": member("bootMode"),
    "creation-date": lambda image: moment(image.creation_time),
    "description": member("description"),
    "ena-support": member("enaSupport"),
    "hypervisor": member("hypervisor"),
    "image-id": lambda image: image.image_id,
    "image-type": member("imageType"),
    "is-public": lambda image: image.public,
    "kernel-id": member("kernelId"),
    "manifest-location": member("imageLocation"),
    "name": lambda image: image.name,
    "owner-alias": member("imageOwnerAlias"),
    "owner-id": lambda image: image.owner_id,
    "platform": member("platform"),
    "ramdisk-id": member("ramdiskId"),
    "root-device-name": member("rootDeviceName"),
    "root-device-type": member("rootDeviceType"),
    "source-image-id": member("sourceImageId"),
    "source-image-region": member("sourceImageRegion"),
    "sriov-net-support": member("sriovNetSupport"),
    "state": lambda image: image.state,
    "tpm-support": member("tpmSupport"),
    "virtualization-type": member("virtualizationType"),
}
