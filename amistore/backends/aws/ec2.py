"""`AWSImageRegistry`: images in EC2. `ec2_images.py` knows what EC2 keeps of an image.

Each call has one attempt; `amistore.backends.retries` makes more. Only the steps after RegisterImage are
repeated here, since the image exists by then.
"""

from __future__ import annotations

import datetime
import functools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import botocore.exceptions

from amistore.backends import checks
from amistore.backends.aws import ec2_images
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.errors import aws_errors, member_of
from amistore.backends.aws.listing import pages
from amistore.backends.images import ImageRegistry
from amistore.errors import (
    AccessDeniedError,
    AmistoreError,
    BackendError,
    InvalidRequestError,
    NotFoundError,
)
from amistore.model import AttributeReport, Image, Snapshot, Tag

__all__ = ["AWSImageRegistry"]

R = TypeVar("R")

_logger = logging.getLogger("amistore")

_MOST_IDS = 200  # snapshots in a call
_PAGE = 1000  # images, the most (DescribeImages, MaxResults)
_MOST_IMAGES = 1_000_000  # an account has 50,000, unless AWS raises its quota
_FIRST_PAUSE = 0.5  # seconds
_LAST_PAUSE = 15.0  # seconds, as boto3's waiter image_available
_ATTEMPTS = 10  # with their pauses about a minute and a half
# It will not become available from these (EC2 API reference, Image, imageState).
_ENDED = frozenset({"invalid", "failed", "error", "deregistered", "disabled"})


def _following(page: Mapping[str, Any]) -> dict[str, str]:
    return {"NextToken": page["NextToken"]} if page.get("NextToken") else {}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@attrs.frozen
class AWSImageRegistry(ImageRegistry):
    """Images of an account in a Region.

    Attributes:
        connection: the connection to AWS.
        image_tags: the tags to set on every registered image, over its own.
        sleep: a function that waits for so many seconds.
        clock: a function that returns the time, with its zone.
    """

    connection: Connection
    image_tags: tuple[Tag, ...] = attrs.field(default=(), kw_only=True)
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True, repr=False)
    clock: Callable[[], datetime.datetime] = attrs.field(default=_now, kw_only=True, repr=False)
    region_name: str | None = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: self.connection.region_name, takes_self=True),
    )

    @property
    def _ec2(self) -> Any:
        return self.connection.client("ec2")

    def describe_image(self, image_id: str) -> Image:
        with aws_errors("describe_image", image_id=image_id):
            return next(self._images([self._members(image_id)]))

    def describe_images(self) -> list[Image]:
        with aws_errors("describe_images"):
            return self._owned({"image-type": "machine"})

    def find_images(self, name: str) -> list[Image]:
        with aws_errors("find_images"):
            found = self._owned({"image-type": "machine", "name": name})
        return [image for image in found if image.name == name]  # a filter knows wildcards

    def describe_snapshots(self, snapshot_ids: Iterable[str]) -> list[Snapshot]:
        """Describe those of the snapshots that exist and can be seen."""
        with aws_errors("describe_snapshots"):
            return list(self._snapshots(snapshot_ids))

    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        if image_id is not None:
            raise InvalidRequestError("EC2 gives an image its id when it is registered")
        with aws_errors("register_image"):
            answer = self._ec2.register_image(**self._request(image, name))
            image_id = str(member_of(answer, "ImageId"))
        self.finish_registration(image_id, image)
        return image_id

    def dry_run_register_image(self, image: Image, *, name: str | None = None) -> None:
        """Ask EC2 with DryRun, as the interface says; only a refusal counts.

        EC2 checks permissions first, and only then the old snapshots, which may be gone.
        """
        try:
            with aws_errors("register_image"):
                self._ec2.register_image(**self._request(image, name), DryRun=True)
        except AccessDeniedError as error:
            error.message = f"the image could not be registered in the end: {error.message}"
            error.args = (error.message,)
            raise
        except BackendError as error:  # the usual one is DryRunOperation
            if error.retryable:
                raise

    def _request(self, image: Image, name: str | None) -> dict[str, Any]:
        """The parameters of RegisterImage."""
        name = checks.check_registrable(image, name)
        kept = ec2_images.registered(image, name=name, image_tags=self.image_tags, now=self.clock())
        return ec2_images.register_request(kept)

    def finish_registration(self, image_id: str, image: Image) -> None:
        """Wait until the image is available, then set its deprecation and protection.

        If one of these cannot be set, that is logged: the image exists and is usable.
        """
        self._wait(image_id)
        kept = ec2_images.registered(image, now=self.clock())
        if kept.deprecation_time is not None:
            self._set(
                "enable_image_deprecation", image_id, ImageId=image_id, DeprecateAt=kept.deprecation_time
            )
        if kept.deregistration_protection not in (None, "disabled"):
            self._set(
                "enable_image_deregistration_protection",
                image_id,
                ImageId=image_id,
                WithCooldown=kept.deregistration_protection == "enabled-with-cooldown",
            )

    def deregister_image(self, image_id: str) -> None:
        with aws_errors("deregister_image", image_id=image_id):
            checks.check_image_id(image_id)
            self._ec2.deregister_image(ImageId=image_id)

    def fidelity(self, image: Image, *, name: str | None = None) -> tuple[AttributeReport, ...]:
        kept = ec2_images.registered(image, name=name, image_tags=self.image_tags, now=self.clock())
        return ec2_images.fidelity(image, kept)

    def _members(self, image_id: str) -> dict[str, Any]:
        """An image as DescribeImages describes it."""
        checks.check_image_id(image_id)
        found = self._ec2.describe_images(ImageIds=[image_id], IncludeDeprecated=True, IncludeDisabled=True)
        for members in member_of(found, "Images"):
            if members.get("ImageId") == image_id and members.get("State") != "deregistered":
                return dict(members)
        raise NotFoundError("no such image")

    def _owned(self, filters: dict[str, str]) -> list[Image]:
        found: list[dict[str, Any]] = []
        ask = functools.partial(
            self._ec2.describe_images,
            Owners=["self"],
            IncludeDeprecated=True,
            IncludeDisabled=True,
            Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()],
            MaxResults=_PAGE,
        )
        for page in pages(ask, _following, "Images"):
            found += (each for each in member_of(page, "Images") if each["State"] != "deregistered")
            if len(found) > _MOST_IMAGES:
                raise BackendError(f"EC2 lists more than {_MOST_IMAGES} images")
        return sorted(self._images(found), key=lambda image: image.image_id)

    def _images(self, found: Sequence[dict[str, Any]]) -> Iterator[Image]:
        snapshot_ids = {
            mapping["Ebs"]["SnapshotId"]
            for members in found
            for mapping in members.get("BlockDeviceMappings", ())
            if "SnapshotId" in mapping.get("Ebs", {})
        }
        snapshots = list(self._snapshots(snapshot_ids))
        for members in found:
            yield ec2_images.image_from(members, snapshots, self._uefi_data(members))

    def _snapshots(self, snapshot_ids: Iterable[str]) -> Iterator[Snapshot]:
        wanted = sorted(set(snapshot_ids))
        for start in range(0, len(wanted), _MOST_IDS):
            yield from map(ec2_images.snapshot_from, self._those_there(wanted[start : start + _MOST_IDS]))

    def _those_there(self, wanted: list[str]) -> list[dict[str, Any]]:
        """Snapshots as DescribeSnapshots describes them; it fails for all when one is gone.

        With a filter it would not fail, but search all public snapshots.
        """
        while wanted:
            try:
                found = self._ec2.describe_snapshots(SnapshotIds=wanted)
            except botocore.exceptions.ClientError as error:
                described = error.response["Error"]
                gone = set(wanted) & set(re.findall(r"snap-[0-9a-f]+", described.get("Message", "")))
                if described.get("Code") != "InvalidSnapshot.NotFound" or not gone:
                    raise
                wanted = [each for each in wanted if each not in gone]
            else:
                return list(member_of(found, "Snapshots"))
        return []

    def _uefi_data(self, members: dict[str, Any]) -> str | None:
        image_id = members["ImageId"]
        if members.get("BootMode") == "legacy-bios":
            return None
        try:
            answer = self._ec2.describe_image_attribute(ImageId=image_id, Attribute="uefiData")
        except botocore.exceptions.ClientError as error:
            # EC2's answer to anyone but the owner; a permission that is missing has another code.
            if error.response["Error"].get("Code") != "AuthFailure":
                raise
            _logger.warning("leaving out the UEFI data of %s: only its owner can read it", image_id)
            return None
        value = answer.get("UefiData", {}).get("Value")
        return value or None

    def _wait(self, image_id: str) -> None:
        """Wait until the image is available, without a limit."""
        pause = _FIRST_PAUSE
        while True:
            members = self._patiently("describe_image", image_id, lambda: self._members(image_id))
            state = members.get("State")
            if state == "available":
                return
            if state in _ENDED:
                reason = members.get("StateReason", {})
                told = [each for each in (reason.get("Code"), reason.get("Message")) if each]
                raise BackendError(
                    f"the image went into the state {state}: {': '.join(told) or 'EC2 gives no reason'}",
                    operation="register_image",
                    image_id=image_id,
                )
            self.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)

    def _set(self, operation: str, image_id: str, **parameters: Any) -> None:
        try:
            self._patiently(operation, image_id, lambda: getattr(self._ec2, operation)(**parameters))
        except AmistoreError as error:
            _logger.warning("%s is registered, but %s failed: %s", image_id, operation, error)

    def _patiently(self, operation: str, image_id: str, call: Callable[[], R]) -> R:
        """Repeat a call on a new image, which not every host of EC2 may know yet."""
        attempt = 0
        while True:
            attempt += 1
            try:
                with aws_errors(operation, image_id=image_id):
                    return call()
            except BackendError as error:
                if attempt == _ATTEMPTS:
                    error.retryable = False  # it was tried for long enough: nobody else shall go on with it
                    raise
                if not (error.retryable or isinstance(error, NotFoundError)):
                    raise
            self.sleep(min(_FIRST_PAUSE * 2 ** (attempt - 1), _LAST_PAUSE))
