"""EC2's answers as an `Image`, and an `Image` as EC2's requests. No I/O; next: `ec2.py`.

`registered` alone knows what EC2 takes: requests are made from its result, and the fidelity report compares
an image with it. Sources: EC2 API reference, RegisterImage, Image,
Snapshot and EbsBlockDevice; EC2 user guide, "Deprecate an AMI" and "Protect an Amazon EC2 AMI
from deregistration".
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import attrs

from amistore.errors import BackendError, InvalidRequestError, InvalidValueError
from amistore.model import (
    AttributeReport,
    BlockDeviceMapping,
    EbsBlockDevice,
    Fate,
    Image,
    Snapshot,
    Tag,
)
from amistore.model.fidelity import Leaf, leaves, report
from amistore.model.fields import from_wire, to_wire, wire_name
from amistore.wire.answers import moment
from amistore.wire.members import OPERATIONS

__all__ = [
    "FATES",
    "KEPT",
    "fidelity",
    "image_from",
    "register_request",
    "registered",
    "snapshot_from",
    "without_reserved",
]

V = TypeVar("V", bound=attrs.AttrsInstance)

# Of an image: who it is shared with, which no archive keeps, and facts of the moment.
_IMAGE_LEFT_OUT = frozenset({"Public", "StateReason"})
_SNAPSHOT_LEFT_OUT = frozenset({"Progress", "StateMessage"})

_PARAMETERS: Final = OPERATIONS["RegisterImage"].request
# Of instance stores, and of paravirtual images.
_NOT_GIVEN: Final = frozenset({"image_location", "kernel_id", "ramdisk_id"})
KEPT: Final[tuple[str, ...]] = tuple(
    field.name
    for field in attrs.fields(Image)
    if _PARAMETERS.get(wire_name(field.name)) in (str, bool) and field.name not in _NOT_GIVEN
)
"""Attributes of an image that RegisterImage takes as they are."""

_TAKE_IOPS: Final = frozenset({"gp3", "io1", "io2"})
_PROTECTED: Final = frozenset({"disabled", "enabled-with-cooldown", "enabled-without-cooldown"})
_MOST_YEARS = 10  # EnableImageDeprecation, DeprecateAt

_ENCRYPTION = "the new snapshot's decides, by the settings of the destination"
_BILLING = "EC2 derives it from a snapshot's own billing codes, which a new snapshot does not have"
_OWN = "the new image's own"
_NEW = "the new snapshot's own"
_LINEAGE = "RegisterImage cannot say what an image comes from; the archive keeps it"
_CODES = "RegisterImage cannot set product codes"
_OVERWRITTEN = "a tag that is given for all images goes over it"
_OF_REGION = "kernels and RAM disks belong to paravirtual images and to a Region"

FATES: Final[Mapping[str, tuple[Fate, str]]] = {
    "image_id": (Fate.REMAPPED, "every image gets an id of its own"),
    "name": (Fate.REMAPPED, "another name was given"),
    "creation_date": (Fate.REMAPPED, _OWN),
    "owner_id": (Fate.REMAPPED, "the account that registers"),
    "image_owner_alias": (Fate.DROPPED, "EC2 gives aliases to its own images only"),
    "image_location": (Fate.REMAPPED, "the account that registers, and the name"),
    "image_type": (Fate.REMAPPED, "registered images are machine images"),
    "kernel_id": (Fate.DROPPED, _OF_REGION),
    "ramdisk_id": (Fate.DROPPED, _OF_REGION),
    "platform": (Fate.DROPPED, _BILLING),
    "platform_details": (Fate.REMAPPED, _BILLING),
    "usage_operation": (Fate.REMAPPED, _BILLING),
    "hypervisor": (Fate.REMAPPED, "EC2 sets it"),
    "root_device_name": (Fate.REMAPPED, "no mapping has that name; one of the same disk is taken"),
    "root_device_type": (Fate.REMAPPED, "registered images are EBS-backed"),
    "deprecation_time": (
        Fate.DROPPED,
        "past, more than ten years away, or no date; EnableImageDeprecation sets others, in whole minutes",
    ),
    "deregistration_protection": (Fate.DROPPED, "it is no setting that can be made"),
    "source_image_id": (Fate.DROPPED, _LINEAGE),
    "source_image_region": (Fate.DROPPED, _LINEAGE),
    "source_instance_id": (Fate.DROPPED, _LINEAGE),
    "product_codes.product_code_id": (Fate.DROPPED, _CODES),
    "product_codes.product_code_type": (Fate.DROPPED, _CODES),
    "tags.key": (Fate.DROPPED, "tags that begin with aws: are set by AWS only"),
    "tags.value": (Fate.DROPPED, "tags that begin with aws: are set by AWS only"),
    "block_device_mappings.ebs.snapshot_id": (Fate.REMAPPED, "restoring makes new snapshots"),
    "block_device_mappings.ebs.iops": (Fate.DROPPED, "only gp3, io1 and io2 volumes take it"),
    "block_device_mappings.ebs.throughput": (Fate.DROPPED, "only gp3 volumes take it"),
    "block_device_mappings.ebs.encrypted": (Fate.REMAPPED, _ENCRYPTION),
    "block_device_mappings.ebs.kms_key_id": (Fate.REMAPPED, _ENCRYPTION),
    "block_device_mappings.ebs.outpost_arn": (Fate.DROPPED, "new snapshots lie in the Region"),
    "snapshots.snapshot_id": (Fate.REMAPPED, "restoring makes new snapshots"),
    "snapshots.owner_id": (Fate.REMAPPED, "the account that restores"),
    "snapshots.start_time": (Fate.REMAPPED, _NEW),
    "snapshots.encrypted": (Fate.REMAPPED, _ENCRYPTION),
    "snapshots.kms_key_id": (Fate.REMAPPED, _ENCRYPTION),
    "snapshots.volume_id": (Fate.REMAPPED, "the new snapshot was made of no volume"),
    "snapshots.storage_tier": (Fate.REMAPPED, "new snapshots are in the standard tier"),
    "snapshots.extra.CompletionTime": (Fate.REMAPPED, _NEW),
    "snapshots.extra.FullSnapshotSizeInBytes": (Fate.REMAPPED, _NEW),
    "snapshots.extra.SseType": (Fate.REMAPPED, _NEW),
    "snapshots.extra.TransferType": (Fate.REMAPPED, _NEW),
    "snapshots.tags.key": (Fate.DROPPED, "tags that begin with aws: are set by AWS only"),
    "snapshots.tags.value": (Fate.DROPPED, "tags that begin with aws: are set by AWS only"),
    "snapshots.lost_blocks.first_block": (Fate.DROPPED, "EBS cannot say that a block was lost"),
    "snapshots.lost_blocks.block_count": (Fate.DROPPED, "EBS cannot say that a block was lost"),
}
"""By `Leaf.name`: what becomes of an attribute that is not kept, and why."""

_UNKNOWN = (Fate.DROPPED, "RegisterImage has no parameter for it")


def image_from(members: Mapping[str, Any], snapshots: Iterable[Snapshot], uefi_data: str | None) -> Image:
    """An `Image` from DescribeImages.

    Args:
        members: the image's members, as boto3 returns them.
        snapshots: the descriptions of the snapshots that it maps.
        uefi_data: the UEFI data from DescribeImageAttribute.

    Raises:
        BackendError: the answer breaks a rule of the model.
    """
    known = _plain({name: each for name, each in members.items() if name not in _IMAGE_LEFT_OUT})
    image = _value(Image, known)
    mine = set(image.snapshot_ids)
    return attrs.evolve(
        image,
        uefi_data=uefi_data,
        snapshots=tuple(each for each in snapshots if each.snapshot_id in mine),
    )


def snapshot_from(members: Mapping[str, Any]) -> Snapshot:
    """A `Snapshot` from boto3's members of DescribeSnapshots.

    Raises:
        BackendError: the answer breaks a rule of the model.
    """
    known = {name: each for name, each in members.items() if name not in _SNAPSHOT_LEFT_OUT}
    return _value(Snapshot, _plain(known))


def _value(kind: type[V], members: Any) -> V:
    try:
        return from_wire(kind, members)
    except InvalidValueError as error:
        raise BackendError(f"EC2's answer breaks a rule of the model: {error}") from error


def _plain(value: Any) -> Any:
    """boto3's datetimes in EC2's own spelling: ``2026-01-02T03:04:05.000Z``."""
    if isinstance(value, datetime.datetime):
        precision = "milliseconds" if value.microsecond % 1000 == 0 else "microseconds"
        at = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
        return f"{at.isoformat(timespec=precision)}Z"
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def registered(
    image: Image,
    *,
    name: str | None = None,
    image_tags: Sequence[Tag] = (),
    now: datetime.datetime,
) -> Image:
    """The image that EC2 will have once `image` is registered: attributes that are not kept are None.

    Args:
        image: the image to register, on its old snapshots or the new ones.
        name: the new image's name; None for that of `image`.
        image_tags: the tags to set over those of the image.
        now: the time, with its zone; deprecation times before it cannot be set.
    """
    tags = {tag.key: tag for tag in [*without_reserved(image.tags), *without_reserved(image_tags)]}
    taken = {each: getattr(image, each) for each in KEPT}
    if name is not None:
        taken["name"] = name
    if image.root_mapping is not None:
        taken["root_device_name"] = image.root_mapping.device_name
    if image.virtualization_type is None:
        taken["virtualization_type"] = "hvm"  # RegisterImage would take "paravirtual"
    return Image(
        image_id=image.image_id,
        deprecation_time=_deprecation(image.deprecation_time, now),
        deregistration_protection=image.deregistration_protection
        if image.deregistration_protection in _PROTECTED
        else None,
        block_device_mappings=tuple(_mapping(each) for each in image.block_device_mappings),
        snapshots=tuple(
            Snapshot(
                snapshot_id=each.snapshot_id,
                volume_size=each.volume_size,
                description=each.description,
                storage_tier="standard",
                tags=tuple(without_reserved(each.tags)),
            )
            for each in image.snapshots
            if each.snapshot_id in image.snapshot_ids
        ),
        tags=tuple(tags.values()),
        # What EC2 sets in every image that is registered from snapshots:
        image_type="machine",
        root_device_type="ebs",
        hypervisor="xen",
        **taken,
    )


def _mapping(mapping: BlockDeviceMapping) -> BlockDeviceMapping:
    ebs = mapping.ebs
    if ebs is not None:
        ebs = EbsBlockDevice(
            snapshot_id=ebs.snapshot_id,
            volume_size=ebs.volume_size,
            volume_type=ebs.volume_type,
            iops=ebs.iops if ebs.volume_type in _TAKE_IOPS else None,
            throughput=ebs.throughput if ebs.volume_type == "gp3" else None,
            delete_on_termination=ebs.delete_on_termination,
            # With a snapshot it must be left out, whatever it is (EbsBlockDevice, Encrypted).
            encrypted=ebs.encrypted if ebs.snapshot_id is None else None,
        )
    return BlockDeviceMapping(
        device_name=mapping.device_name,
        virtual_name=mapping.virtual_name,
        no_device=mapping.no_device,
        ebs=ebs,
    )


def without_reserved(tags: Iterable[Tag]) -> list[Tag]:
    """The tags that a caller may set: all but those with the prefix ``aws:``, in any case."""
    return [Tag(key=tag.key, value=tag.value or "") for tag in tags if not tag.key.lower().startswith("aws:")]


def _deprecation(text: str | None, now: datetime.datetime) -> str | None:
    """A time that EnableImageDeprecation takes, in whole minutes, or None."""
    for form in ("%Y-%m-%dT%H:%M:%S.%f%z", "%Y-%m-%dT%H:%M:%S%z"):
        try:
            at = datetime.datetime.strptime(text or "", form)
            at = at.astimezone(datetime.timezone.utc).replace(second=0, microsecond=0)
        except (ValueError, OverflowError):
            continue
        if now < at < now + datetime.timedelta(days=365 * _MOST_YEARS):
            return moment(at)
    return None


def register_request(kept: Image) -> dict[str, Any]:
    """The parameters of RegisterImage.

    Args:
        kept: the result of `registered`.

    Raises:
        InvalidRequestError: the image is paravirtual or not EBS-backed, or its root device has no snapshot.
    """
    if kept.virtualization_type != "hvm":
        raise InvalidRequestError(
            f"a {kept.virtualization_type} image cannot be registered, only hvm", code="UnsupportedOperation"
        )
    if not kept.snapshot_ids:
        raise InvalidRequestError("the image has no EBS snapshot", code="UnsupportedOperation")
    root = kept.root_mapping
    if root is None or root.ebs is None or root.ebs.snapshot_id is None:
        raise InvalidRequestError(
            f"no snapshot is mapped as the root device ({kept.root_device_name}): name one that is with "
            "attrs.evolve(image, root_device_name=...)",
            code="InvalidBlockDeviceMapping",
        )
    members = to_wire(kept)
    request = {name: members[name] for name in _PARAMETERS if name in members}
    if kept.tags:
        tags = [{"Key": tag.key, "Value": tag.value} for tag in kept.tags]
        request["TagSpecifications"] = [{"ResourceType": "image", "Tags": tags}]
    return request


def fidelity(image: Image, kept: Image) -> tuple[AttributeReport, ...]:
    """Whether each attribute of `image` is kept, dropped or remapped.

    Args:
        image: the image to register.
        kept: the result of `registered` for it.
    """
    there = {leaf.path: leaf.value for leaf in leaves(kept)}
    mapped = tuple(each for each in image.snapshots if each.snapshot_id in image.snapshot_ids)
    wanted = {leaf.path for leaf in leaves(attrs.evolve(image, snapshots=mapped))}

    def fate(leaf: Leaf) -> tuple[Fate, str]:
        found, reason = FATES.get(leaf.name, _UNKNOWN)
        if leaf.path not in wanted:
            return Fate.DROPPED, "no mapping names the snapshot"
        if leaf.name in _NEVER_KEPT:
            return found, reason
        if leaf.path in there:
            if there[leaf.path] == leaf.value:
                return Fate.KEPT, ""
            return Fate.REMAPPED, _OVERWRITTEN if leaf.name == "tags.value" else reason
        return found, reason

    return report(image, fate)


# `kept` has them, but of the old image.
_NEVER_KEPT = frozenset({"image_id", "block_device_mappings.ebs.snapshot_id", "snapshots.snapshot_id"})
