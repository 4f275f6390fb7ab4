"""`transfer`: an AMI from one backend to another; `restore_image`: an archive becomes an AMI.

Two sets of credentials, no local disk: what is read from one side goes to the other through
bounded memory. On the way it is a container, so every block is verified as in any restore.
"""

from __future__ import annotations

from typing import BinaryIO, cast

import attrs

from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, ObjectInfo, ObjectStore
from amistore.backends.base import check_backend
from amistore.backends.checks import check_kind
from amistore.backends.objects import ObjectRanges
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import (
    AlreadyExistsError,
    InvalidRequestError,
)
from amistore.model import Image
from amistore.objects.piecereader import PieceReader
from amistore.objects.registration import (
    refuse_unregistrable,
    register_restored,
    restorable_image,
    warn_of_dropped,
    warn_of_holes,
)
from amistore.objects.restoration import restore_snapshots
from amistore.objects.resumelog import HeldLog, ResumeLog, check_log
from amistore.objects.upload import StoredArchive, pack_object
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.holes import HolePolicy
from amistore.pipeline.pack import pack
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.unpack import restore_stream

__all__ = ["TransferredImage", "restore_image", "transfer"]

_LEVEL = 1  # of zstd, where nobody keeps the bytes


@attrs.frozen(kw_only=True)
class TransferredImage:
    """An AMI that was made of one of another backend.

    Attributes:
        image_id: of the new one.
        content_id: of the archive that it was on the way, computed while that was made: 64
            hexadecimal digits.
        kept: that archive, where it was to be kept.
    """

    image_id: str
    content_id: str
    kept: StoredArchive | None = None


def transfer(
    image_id: str,
    *,
    source: Backend,
    destination: Backend,
    name: str | None = None,
    keep: tuple[str, str] | None = None,
    logs: tuple[ResumeLog, ResumeLog] | None = None,
    expected_content_id: str | None = None,
    fill_holes: bool = False,
    workers: int | None = None,
    progress: ProgressCallback = None,
) -> TransferredImage:
    """Make an AMI of one backend an AMI of another: between Regions, accounts or partitions.

    Attributes that the new image will not have are logged (WARNING) before the work. So is, without
    `fill_holes`, that the destination encrypts new snapshots and blocks that were never written will read as
    noise; where only starting a snapshot tells, then.

    Args:
        image_id: in `source`.
        source: where the AMI is.
        destination: where it goes.
        name: of the new image; None for the same.
        keep: bucket of the destination, and key, of an archive to make on the way and to keep;
            it stays, whatever comes after it.
        logs: with `keep`, for storing and for restoring: what an earlier call with them has
            done is not done again.
        expected_content_id: of an earlier archive of the image, 64 hexadecimal digits: refuse the image
            if it is another by now, before a snapshot is completed.
        fill_holes: put a block of zeros for each block that a snapshot does not list; see `unpack`.
        workers: segments worked on at once, on each side; None for the number of CPUs.
        progress: called with a `Progress`.

    Returns:
        The new image, and what was kept. What is restored is proved block by block to be what was
        packed, also where the kept object is replaced meanwhile.

    Raises:
        NotFoundError: no such image.
        SourceChangedError: the object to keep was replaced as soon as it was made.
        CorruptArchiveError: the image's content id is not the expected one.
        InvalidRequestError: the image cannot be read, or not registered so.
        AlreadyExistsError: the name, or the object to keep, is taken.
        AccessDeniedError: registering would be refused in the end, told before anything is read or made.
        BackendError: either side failed. What was begun is deleted, but for what `logs` go on from.
    """
    packing, restoring = _check_keep(keep, logs)
    expected = parse_content_id(expected_content_id)
    check_backend(source, "source")
    check_backend(destination, "destination")
    image = _describe(image_id, source)
    refuse_unregistrable(destination, image, name, restoring)
    told = not fill_holes and (
        any(log is not None and log.entries() for log in (packing, restoring))  # by the run that began
        or warn_of_holes(image, source, destination)
    )
    holes = HolePolicy(fill_holes, told)
    if keep is not None:
        return _transfer_kept(
            image,
            source,
            destination,
            holes,
            keep,
            name=name,
            logs=(packing, restoring),
            expected=expected,
            workers=workers,
            progress=progress,
        )
    warn_of_dropped(destination, image, name)
    with pack(image, source.ebs, level=_LEVEL, workers=workers) as pieces:
        restored = restore_stream(
            cast(BinaryIO, PieceReader(pieces)),
            destination.ebs,
            holes,
            expected=expected,
            workers=workers,
            progress=progress,
        )
    new_id = register_restored(restored, name, destination)
    return TransferredImage(image_id=new_id, content_id=pieces.content_id)


def _check_keep(
    keep: tuple[str, str] | None, logs: tuple[ResumeLog, ResumeLog] | None
) -> tuple[ResumeLog | None, ResumeLog | None]:
    """The logs of storing and of restoring, if they and what is kept can be that."""
    if keep is not None and not (isinstance(keep, tuple) and len(keep) == 2):
        raise InvalidRequestError(
            f"keep= is a bucket and a key, such as ('archive', 'web.bin'), not {keep!r}"
        )
    if logs is not None and (keep is None or not isinstance(logs, tuple) or len(logs) != 2):
        raise InvalidRequestError("logs= are two, of storing and of restoring, and go with keep=")
    for each in logs or ():
        check_log(each)
    return logs or (None, None)


def _transfer_kept(
    image: Image,
    source: Backend,
    destination: Backend,
    holes: HolePolicy,
    keep: tuple[str, str],
    *,
    name: str | None,
    logs: tuple[ResumeLog | None, ResumeLog | None],
    expected: bytes | None,
    workers: int | None,
    progress: ProgressCallback,
) -> TransferredImage:
    """`transfer` by an archive that is kept: what is restored is bound to what was packed, not to a name."""
    packing, restoring = logs
    # Held until the image is there: it proves that the object is of these runs.
    held = None if packing is None else HeldLog(packing)
    try:
        kept = pack_object(
            image, source.ebs, destination.s3, *keep, log=held, workers=workers, progress=progress
        )
    except AlreadyExistsError as error:
        error.message += "; if it is this image's archive, amistore.restore_image goes on from it"
        raise
    computed = bytes.fromhex(kept.content_id)
    check_content_id(computed, expected)
    new_id = _restore(
        ObjectRanges(destination.s3, *keep, ObjectInfo(size=kept.size, etag=kept.etag)),
        destination,
        holes,
        name=name,
        log=restoring,
        expected=computed,
        workers=workers,
        progress=progress,
    )
    if packing is not None:
        packing.end()
    return TransferredImage(image_id=new_id, content_id=kept.content_id, kept=kept)


def restore_image(
    store: ObjectStore,
    bucket: str,
    key: str,
    destination: Backend,
    *,
    name: str | None = None,
    log: ResumeLog | None = None,
    expected_content_id: str | None = None,
    fill_holes: bool = False,
    allow_lost: bool = False,
    workers: int | None = None,
    progress: ProgressCallback = None,
) -> str:
    """Make an AMI of an archive: restore its snapshots, and register the image on them.

    Attributes that the new image will not have are logged (WARNING) before the work.

    Args:
        store: where the archive is.
        bucket: the bucket that holds the object.
        key: of the object.
        destination: where the AMI is made.
        name: of the image; None for the stored one's.
        log: from which an earlier call that ended in a crash or an error is continued, also one
            that ended between restoring and registering; cleared once the image is registered.
        expected_content_id: refuse another archive; 64 hexadecimal digits. Every block that is
            restored is proved to be one that it stands for.
        fill_holes: put a block of zeros for each block that a snapshot does not list; see `unpack`.
            A run that is continued must have the same.
        allow_lost: restore snapshots with lost blocks, too; see `unpack`.
        workers: segments worked on at once; None for the number of CPUs.
        progress: called with a `Progress`.

    Returns:
        The id of the new image.

    Raises:
        NotFoundError: no such object.
        AlreadyExistsError: the name is taken.
        AccessDeniedError: registering would be refused in the end, told before anything is made.
        ArchiveError: the archive is damaged.
        InvalidRequestError: the image cannot be registered so.
        BackendError: the store or the destination failed. Without a log, what was begun is deleted.
    """
    check_kind(store, ObjectStore, "store")
    check_backend(destination, "destination")
    check_log(log)
    expected = parse_content_id(expected_content_id)
    with foreign_errors("head_object", bucket=bucket, key=key):
        ranges = ObjectRanges(store, bucket, key)
    return _restore(
        ranges,
        destination,
        HolePolicy(fill_holes),
        name=name,
        log=log,
        expected=expected,
        allow_lost=allow_lost,
        workers=workers,
        progress=progress,
    )


def _restore(
    ranges: ObjectRanges,
    destination: Backend,
    holes: HolePolicy,
    *,
    name: str | None,
    log: ResumeLog | None,
    expected: bytes | None,
    allow_lost: bool = False,
    workers: int | None,
    progress: ProgressCallback,
) -> str:
    """`restore_image` of what `ranges` are pinned to."""
    with foreign_errors("get_object_range", bucket=ranges.bucket, key=ranges.key):
        stored = ContainerFile(ranges)
    check_content_id(stored.index.content_id, expected)
    refuse_unregistrable(destination, restorable_image(stored), name, log)
    warn_of_dropped(destination, stored.image, name)
    restored = restore_snapshots(
        ranges,
        stored,
        destination.ebs,
        holes,
        log=None if log is None else HeldLog(log),
        expected=expected,
        allow_lost=allow_lost,
        workers=workers,
        progress=progress,
    )
    return register_restored(restored, name, destination, log)


def _describe(image_id: str, source: Backend) -> Image:
    with foreign_errors("describe_image", image_id=image_id):
        image = source.ec2.describe_image(image_id)
        source.preflight(image)
        return image
