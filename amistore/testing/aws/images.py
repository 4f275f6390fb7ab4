"""EC2's operations on images."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.describing import paged, sees, tag_set, well_formed
from amistore.testing.aws.records import Credential, Image
from amistore.testing.aws.registering import new_image
from amistore.wire import describing as wire
from amistore.wire.answers import moment
from amistore.wire.describing import fitting, in_xml
from amistore.wire.errors import wrong

__all__ = ["Images"]

IMAGE_FILTERS = in_xml({**wire.IMAGE_FILTERS, "is-public": "Public"}, "Images")


class Images:
    """Answer the operations; whoever calls holds the cloud's lock.

    Attributes:
        operations: what carries each one out.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.operations: dict[str, Callable[[Any, Credential], dict[str, Any]]] = {
            "DescribeImages": self._describe,
            "DescribeImageAttribute": self._describe_attribute,
            "RegisterImage": self._register,
            "DeregisterImage": self._deregister,
            "EnableImageDeprecation": self._enable_deprecation,
            "DisableImageDeprecation": self._disable_deprecation,
            "EnableImageDeregistrationProtection": self._enable_protection,
            "DisableImageDeregistrationProtection": self._disable_protection,
        }

    def _describe(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        ids = values.get("ImageIds", [])
        if ids:
            found = [self._visible(image_id, caller) for image_id in dict.fromkeys(ids)]
        else:
            found = [image for image in self._cloud.images.values() if sees(image, caller)]
        for image in found:
            self._cloud.settle_image(image)
        if not ids:
            found = [image for image in found if self._is_listed(image, values, caller)]
        owners = {caller.account_id if owner == "self" else owner for owner in values.get("Owners", [])}
        if owners:
            found = [i for i in found if {i.owner_id, i.members.get("imageOwnerAlias")} & owners]
        if executable := values.get("ExecutableUsers"):
            found = [i for i in found if executable_by(i, executable, caller)]
        fits = fitting(values.get("Filters", []), IMAGE_FILTERS)
        found = [image for image in found if fits(described(image))]
        found.sort(key=lambda image: image.number)
        page, token = paged(self._cloud, found, values, "ImageIds", lambda image: f"{image.number:012d}")
        answer = {"imagesSet": [described(image) for image in page], "nextToken": token}
        for image in page:
            image.describes = max(0, image.describes - 1)
        return answer

    def _is_listed(self, image: Image, values: Mapping[str, Any], caller: Credential) -> bool:
        """Whether an image that nobody asked for by its id is told of."""
        if image.state not in ("available", "pending", "failed") and not values.get("IncludeDisabled"):
            return False
        if values.get("IncludeDeprecated") or image.owner_id == caller.account_id:
            return True
        return image.deprecation_time is None or self._cloud.clock.now() < image.deprecation_time

    def _describe_attribute(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        attribute = values["Attribute"]
        image = self._own(values["ImageId"], caller)
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
        return {"imageId": new_image(self._cloud, values, caller).image_id}

    def _deregister(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        image = self._own(values["ImageId"], caller)
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
        at = values["DeprecateAt"]
        image = self._own(values["ImageId"], caller)
        now = self._cloud.clock.now()
        # "EC2 API reference: EnableImageDeprecation": not in the past, at most ten years ahead.
        if not now <= at <= now + datetime.timedelta(days=3653):
            raise wrong("DeprecateAt must be in the future, and within ten years.")
        # Seconds are rounded to the nearest minute (the same page).
        image.deprecation_time = (at + datetime.timedelta(seconds=30)).replace(second=0, microsecond=0)
        return {"return": True}

    def _disable_deprecation(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        self._own(values["ImageId"], caller).deprecation_time = None
        return {"return": True}

    def _enable_protection(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        image = self._own(values["ImageId"], caller)
        state = "enabled-with-cooldown" if values.get("WithCooldown") else "enabled-without-cooldown"
        image.attributes["deregistrationProtection"] = state
        return {"return": state}

    def _disable_protection(self, values: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
        image = self._own(values["ImageId"], caller)
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
