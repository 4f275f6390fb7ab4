"""Checks of the services' rules, shared by all our backends."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
from typing_extensions import Buffer

from amistore.backends.blocks import BlockSink, BlockSource, BlockStore
from amistore.backends.etags import is_same_etag
from amistore.backends.images import ImageRegistry
from amistore.backends.locations import ObjectLocation
from amistore.backends.objects import ObjectStore
from amistore.backends.traits import MOST_PARTS
from amistore.backends.uploads import UploadedPart
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    ChecksumMismatchError,
    InvalidRequestError,
    InvalidValueError,
    NotFoundError,
)
from amistore.model import Image, Snapshot, fields
from amistore.text import printable
from amistore.units import BLOCK_SIZE, GIB

__all__ = [
    "check_block",
    "check_bucket",
    "check_complete",
    "check_flags",
    "check_image_id",
    "check_key",
    "check_kind",
    "check_order",
    "check_part_number",
    "check_parts",
    "check_path",
    "check_range",
    "check_registrable",
    "check_root",
    "check_snapshot_id",
    "check_storable",
    "check_target",
    "check_untaken",
    "check_volume_size",
    "is_image_id",
    "is_snapshot_id",
    "new_id",
    "new_image",
    "root_warning",
]

_logger = logging.getLogger("amistore")

_IMAGE_ID = re.compile(fields.IMAGE_ID)
_SNAPSHOT_ID = re.compile(fields.SNAPSHOT_ID)
# S3 user guide, "Bucket naming rules".
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# EC2 API reference, RegisterImage, Name.
_NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")


def new_id(prefix: str) -> str:
    """A new EC2 resource id: prefix and 17 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(9)[:17]}"


_PARTS: Final[Mapping[type, str]] = {
    BlockSource: "ebs",
    BlockSink: "ebs",
    BlockStore: "ebs",
    ObjectStore: "s3",
    ImageRegistry: "ec2",
}


def check_kind(given: object, kind: type, role: str, remedy: str = "") -> None:
    """Refuse an argument of the wrong class, before it is used.

    Args:
        given: the caller's argument.
        kind: the class that it must be of.
        role: the argument's role, for the message.
        remedy: the advice what to give; an interface has its own.
    """
    if isinstance(given, kind):
        return
    part = _PARTS.get(kind, "")
    if isinstance(getattr(given, part, None), kind):  # a Backend
        remedy = f"give its .{part}"
    name = kind.__name__
    raise InvalidRequestError(
        f"the {role} must be {'an' if name[0] in 'AEIO' else 'a'} {name}, not {type(given).__name__}: "
        f"{remedy or f'subclass amistore.backends.{name}'}"
    )


def check_flags(**flags: object) -> None:
    """Refuse anything but True or False: Python takes the text "no" for true."""
    for name, given in flags.items():
        if not isinstance(given, bool):
            raise InvalidRequestError(f"{name} must be True or False, not {given!r:.80}")


def check_path(given: object, role: str) -> Path:
    """The caller's path; refuse anything else."""
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise InvalidRequestError(f"the {role} must be a path, not {given!r:.80}")
    return Path(given)


def is_image_id(image_id: object) -> bool:
    """Whether the text is an AMI's id: ``ami-`` and 8 or 17 hexadecimal digits."""
    return isinstance(image_id, str) and _IMAGE_ID.fullmatch(image_id) is not None


def is_snapshot_id(snapshot_id: object) -> bool:
    """Whether the text is a snapshot's id: ``snap-`` and 8 or 17 hexadecimal digits."""
    return isinstance(snapshot_id, str) and _SNAPSHOT_ID.fullmatch(snapshot_id) is not None


def check_snapshot_id(snapshot_id: object) -> None:
    """Refuse text that no snapshot can have as its id, before it becomes part of a path."""
    if not is_snapshot_id(snapshot_id):
        raise NotFoundError("no such snapshot")


def check_image_id(image_id: object) -> None:
    """Refuse text that no image can have as its id."""
    if not is_image_id(image_id):
        error = NotFoundError("no such image: an id is ami- and 8 or 17 hexadecimal digits")
        error.locate(image_id=image_id)
        raise error


def check_volume_size(volume_size: int) -> None:
    """Refuse a size outside 1 to 65,536 GiB (EBS direct APIs, StartSnapshot)."""
    if type(volume_size) is not int or not 1 <= volume_size <= 65_536:
        raise InvalidRequestError(
            f"a volume has 1 to 65,536 GiB, not {volume_size}", code="InvalidParameterValue"
        )


def check_block(
    snapshot_id: str, volume_size: int, block_index: int, content: Buffer, checksum: bytes
) -> None:
    """Refuse a block outside the volume, of another size, or with another digest."""
    if not 0 <= block_index < volume_size * GIB // BLOCK_SIZE:
        raise InvalidRequestError(
            f"{snapshot_id}: block {block_index} is outside the volume of {volume_size} GiB",
            code="InvalidParameterValue",
        )
    if memoryview(content).nbytes != BLOCK_SIZE:
        raise InvalidRequestError(
            f"{snapshot_id}: block {block_index} has {memoryview(content).nbytes} bytes, not {BLOCK_SIZE}",
            code="InvalidParameterValue",
        )
    if hashlib.sha256(content).digest() != checksum:
        raise ChecksumMismatchError(
            "the block's SHA-256 is not the one given",
            operation="put_snapshot_block",
            snapshot_id=snapshot_id,
            block_index=block_index,
            retryable=True,
        )


def check_complete(snapshot_id: str, blocks: dict[int, bytes], count: int, checksum: bytes) -> None:
    """Refuse a count or LINEAR checksum (CompleteSnapshot) that is not that of `blocks`, the digests."""
    digest = hashlib.sha256()
    for index in sorted(blocks):
        digest.update(blocks[index])
    if count != len(blocks) or checksum != digest.digest():
        raise ChecksumMismatchError(
            f"{len(blocks)} blocks were written, not the {count} that the checksum stands for"
            if count != len(blocks)
            else "the LINEAR checksum is not that of the blocks written",
            operation="complete_snapshot",
            snapshot_id=snapshot_id,
        )


def check_bucket(bucket: str) -> None:
    """Refuse a bucket name that breaks S3's rules, which also make it safe as a folder's name."""
    if not isinstance(bucket, str) or not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise InvalidRequestError(
            f"{bucket!r} is no bucket name: 3 to 63 of a-z, 0-9, '.' and '-'",
            code="InaccessibleStorageLocation",
        )


def check_target(to: ObjectLocation) -> ObjectLocation:
    """Refuse a version as what is to be written."""
    if isinstance(to, ObjectLocation) and to.version is not None:
        raise InvalidRequestError(
            f"{to} is a version, which can only be read: give a location without version= to write to"
        )
    return to


def check_key(key: str) -> None:
    """Refuse a key outside 1 to 1,024 bytes of UTF-8 (S3 user guide, "Naming Amazon S3 objects")."""
    try:
        size = len(str.encode(key))
    except (TypeError, UnicodeEncodeError):
        raise InvalidRequestError(f"{key!r:.80} is no key: give text that UTF-8 can encode") from None
    if not 1 <= size <= 1024:
        raise InvalidRequestError(f"a key has 1 to 1,024 bytes, not {size}")


def check_range(start: int, length: int) -> None:
    """Refuse a negative offset or length."""
    if start < 0 or length < 0:
        raise InvalidRequestError(f"there are no {length} bytes at {start}")


def check_part_number(part_number: int) -> None:
    """Refuse a number outside 1 to 10,000."""
    if not 1 <= part_number <= MOST_PARTS:
        raise InvalidRequestError(f"part numbers are 1 to {MOST_PARTS}, not {part_number}")


def check_order(parts: Sequence[UploadedPart]) -> None:
    """Refuse a list of parts that is empty or out of order."""
    numbers = [part.part_number for part in parts]
    if not parts or numbers != sorted(set(numbers)):
        raise InvalidRequestError("parts must be given in ascending order, at least one")


def check_parts(bucket: str, key: str, given: Sequence[UploadedPart], found: Sequence[UploadedPart]) -> None:
    """Refuse a list of parts that is empty, out of order, or not what was uploaded."""
    check_order(given)
    there = {part.part_number: part.etag for part in found}
    for part in given:
        found_etag = there.get(part.part_number)
        if found_etag is None or not is_same_etag(found_etag, part.etag):
            raise BackendError(
                f"part {part.part_number} was not uploaded, or was replaced since",
                operation="complete_multipart_upload",
                bucket=bucket,
                key=key,
            )


def check_registrable(image: Image, name: str | None) -> str:
    """The name to register `image` by; refuse a bad name, and an image without its root device."""
    check_kind(image, Image, "image", "describe_image and unpack give one")
    chosen = image.name if name is None else name
    if not isinstance(chosen, str) or not _NAME.fullmatch(chosen):
        raise InvalidValueError(
            f"an image's name has 3 to 128 letters, digits or characters of ()[] ./-'@_ , not {chosen!r}"
            + ("; give another one with name=" if name is None else ""),
            field="Image.name",
            value=chosen,
            code="InvalidAMIName.Malformed",
        )
    check_root(image)
    return chosen


def check_root(image: Image) -> None:
    """Refuse an image whose root device's mapping is not known."""
    missing = _missing_root(image)
    if missing is not None:
        raise InvalidRequestError(missing, code="InvalidParameterValue")


def _missing_root(image: Image) -> str | None:
    """Why an image cannot be registered for its root device's sake; None where it can."""
    if image.root_device_name is None or image.root_mapping is not None:
        return None
    mapped = ", ".join(each.device_name for each in image.block_device_mappings)
    return (
        f"no mapping is named {image.root_device_name}, the root device, and it is not known which of "
        f"{mapped or 'none'} is meant: unpack the snapshots, name one with "
        "attrs.evolve(image, root_device_name=...), and register that image"
    )


def root_warning(image: Image) -> str | None:
    """A warning about the image's unusual root device, and how it is restored; None for a usual one."""
    missing = _missing_root(image)
    if missing is not None:
        return f"{image.image_id} can be stored, but restored by hand only: {missing}"
    root = image.root_mapping
    if root is None or root.device_name == image.root_device_name:
        return None
    return (
        f"no mapping of {image.image_id} is named {image.root_device_name}, its root device: "
        f"{root.device_name} is taken for it"
    )


def check_storable(image: Image) -> None:
    """Refuse images that are paravirtual or not EBS-backed, as EC2 does (EC2 user guide, "Limitations").

    An unusual root device is logged.
    """
    if image.virtualization_type == "paravirtual":
        raise InvalidRequestError(
            f"{image.image_id} is paravirtual; only HVM images can be stored", code="UnsupportedOperation"
        )
    if image.root_device_type == "instance-store" or not image.snapshot_ids:
        raise InvalidRequestError(
            f"{image.image_id} is not EBS-backed: it has no snapshot to store", code="UnsupportedOperation"
        )
    warning = root_warning(image)
    if warning is not None:
        _logger.warning("%s", printable(warning))


def new_image(
    image: Image,
    name: str | None,
    describe: Callable[[str], Snapshot],
    image_id: str | None = None,
) -> Image:
    """The image that RegisterImage makes of `image`: with a new id, a checked name and existing snapshots.

    Args:
        image: the image to register.
        name: the new image's name; None for that of `image`.
        describe: a function that describes a snapshot by id, or raises NotFoundError.
        image_id: a reserved id; None for a new one.
    """
    chosen = check_registrable(image, name)
    found = []
    for snapshot_id in image.snapshot_ids:
        snapshot = describe(snapshot_id)
        if snapshot.state != "completed":
            raise InvalidRequestError(
                f"{snapshot_id} is {snapshot.state}, not completed", code="InvalidSnapshot.NotFound"
            )
        known = {each.snapshot_id: each for each in image.snapshots}.get(snapshot_id, snapshot)
        found.append(attrs.evolve(known, volume_size=snapshot.volume_size, state=snapshot.state))
    return attrs.evolve(
        image, image_id=image_id or new_id("ami"), name=chosen, snapshots=tuple(found), state="available"
    )


def check_untaken(image: Image, others: Iterable[Image]) -> None:
    """Refuse a name or id that another image has."""
    for other in others:
        if other.name == image.name:
            raise AlreadyExistsError(f"an image named {image.name!r} exists: give another name")
        if other.image_id == image.image_id:
            raise AlreadyExistsError("the image exists", image_id=image.image_id)
