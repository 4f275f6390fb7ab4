"""`register_restored`: the last step of a restore, which registers the image on its new snapshots.

The other functions check beforehand whether that will succeed.
"""

from __future__ import annotations

import logging

from amistore import forks
from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, checks
from amistore.errors import AlreadyExistsError, InvalidRequestError
from amistore.model import Fate, Image
from amistore.objects.resumelog import ResumeLog
from amistore.units import BLOCK_SIZE, GIB

__all__ = [
    "refuse_taken",
    "register_restored",
    "restorable_image",
    "warn_of_dropped",
    "warn_of_holes",
]

_logger = logging.getLogger("amistore")


def refuse_taken(destination: Backend, name: str) -> None:
    """Refuse a name that is taken before the work, not after it."""
    if destination.ec2.find_images(name):
        raise AlreadyExistsError(f"an image named {name!r} exists: give another name")


def restorable_image(stored: ContainerFile) -> Image:
    """The image of an archive, without the mappings whose snapshots are not in it.

    Raises:
        InvalidRequestError: the root device's snapshot is missing, or not known.
    """
    checks.check_root(stored.image)  # of what is left one mapping may look like it that is not
    there = {volume.snapshot_id: volume.snapshot_id for volume in stored.index.volumes}
    root = stored.image.root_mapping
    missing = None if root is None or root.ebs is None else root.ebs.snapshot_id
    if root is not None and missing not in (None, *there):
        raise InvalidRequestError(
            f"no image can be made of the archive: it does not have the root device {root.device_name}, "
            f"{missing}; unpack gives the snapshots that it has",
            code="InvalidSnapshot.NotFound",
        )
    return stored.image.with_snapshots(there)


def warn_of_holes(image: Image, source: Backend, destination: Backend) -> bool:
    """Log that holes will read as noise, where that is known before the work; return whether it is."""
    if not destination.ebs.encrypts_snapshots():
        return False
    for snapshot_id in image.snapshot_ids:
        if _has_hole(snapshot_id, source):
            _logger.warning(
                "%s gets encrypted snapshots, and blocks that %s does not list read as noise on an encrypted "
                "volume: fill_holes=True puts zeros into all holes of this image",
                image.image_id,
                snapshot_id,
            )
            return True
    return False


def _has_hole(snapshot_id: str, source: Backend) -> bool:
    expected = size = 0
    for page in source.ebs.pages(snapshot_id):
        size = page.volume_size * GIB
        expected += len(page.blocks)
        if page.blocks and page.blocks[-1].block_index >= expected:
            return True
    return expected * BLOCK_SIZE < size


def warn_of_dropped(destination: Backend, image: Image, name: str | None) -> None:
    """Log which attributes the new image will lack; the archive keeps them."""
    reports = destination.ec2.fidelity(image, name=name)
    dropped = [str(each) for each in reports if each.fate is Fate.DROPPED]
    if dropped:
        _logger.warning("%s is restored without %s", image.image_id, "; ".join(dropped))


def register_restored(
    restored: Image,
    name: str | None,
    destination: Backend,
    log: ResumeLog | None = None,
    *,
    image_id: str | None = None,
) -> str:
    """Register a restored image, once: with a log, an image that an earlier call registered is found.

    Args:
        restored: the image, on its new snapshots.
        name: the new image's name; None for that of `restored`.
        destination: the backend that has the snapshots.
        log: the run's log, ended once the image is registered. Without a log, the snapshots are deleted on
            an error.
        image_id: an id from `reserve_image_id`; None for the registry's choice.
    """
    wanted = name or restored.name

    def undo(_: BaseException) -> None:
        if log is None and not _registered(restored, wanted, destination):
            for snapshot_id in restored.snapshot_ids:
                try:
                    destination.ebs.delete_snapshot(snapshot_id)
                except Exception as error:
                    _logger.error("snapshot %s is left behind, delete it: %s", snapshot_id, error)

    with forks.undoing(undo):
        for found in destination.ec2.find_images(wanted) if log is not None and wanted else ():
            if found.snapshot_ids == restored.snapshot_ids:
                destination.ec2.finish_registration(found.image_id, restored)
                registered = found.image_id
                break
        else:
            registered = destination.ec2.register_image(restored, name=name, image_id=image_id)
    if log is not None:
        log.end()
    return registered


def _registered(restored: Image, wanted: str | None, destination: Backend) -> bool:
    """Whether the image was registered in spite of the error, or may have been."""
    try:
        found = destination.ec2.find_images(wanted) if wanted else []
    except Exception as error:
        ids = ", ".join(restored.snapshot_ids)
        _logger.error("keeping %s: an image may be on them, which cannot be asked: %s", ids, error)
        return True
    return any(each.snapshot_ids == restored.snapshot_ids for each in found)
