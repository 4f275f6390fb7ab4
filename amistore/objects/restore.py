"""`restore`: an archive becomes an AMI; `unpack`: its snapshots alone.

`transfer` and restore tasks run `RestoreJob`, too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from typing import Any, BinaryIO, cast

import attrs

from amistore import forks
from amistore.archive.opening import Openable, open_container
from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, BlockSink, checks
from amistore.backends.base import check_backend
from amistore.backends.checks import check_kind
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import AlreadyExistsError, InvalidRequestError
from amistore.model import Fate, Image, Tag
from amistore.objects.multipart import StoredArchive
from amistore.objects.restoration import restore_snapshots
from amistore.objects.resumelog import LogPhase, ResumeLog, read_entry, using_log
from amistore.objects.store import REGION_KEY
from amistore.pipeline.orders import Cluster, given_cluster
from amistore.pipeline.progress import ProgressCallback, ProgressOption, reporting
from amistore.pipeline.snapshots import RestorePolicy
from amistore.pipeline.unpack import restore_stream

__all__ = ["RestoreJob", "RestoredImage", "restorable_image", "restore", "unpack", "warn_of_dropped"]

_logger = logging.getLogger("amistore")


@attrs.frozen(kw_only=True)
class RestoredImage:
    """An AMI that was made of an archive, or of another backend's AMI.

    Attributes:
        image: the new AMI, on its new snapshots.
        content_id: the content id of the archive that the AMI was made of, 64 hexadecimal digits, also where
            `transfer` kept no archive. Every block of the new snapshots is one that it stands for.
        kept: the archive that `transfer` kept; None where it kept none.
    """

    image: Image
    content_id: str
    kept: StoredArchive | None = None

    @property
    def image_id(self) -> str:
        """The new AMI's id."""
        return self.image.image_id


@attrs.frozen(kw_only=True)
class RestoreJob:
    """An archive that becomes an AMI.

    Attributes:
        backend: the backend that gets the AMI.
        name: the AMI's name; None for the stored name.
        image_tags: the tags to set on the AMI, over the stored ones.
        region: the stored AMI's Region; None for the one in the object's metadata.
        policy: what is made of the archive's snapshots.
        image_id: an id from `reserve_image_id`; None for the registry's choice.
    """

    backend: Backend
    name: str | None = None
    image_tags: tuple[Tag, ...] = ()
    region: str | None = None
    policy: RestorePolicy = RestorePolicy()
    image_id: str | None = None

    def admit(self, image: Image) -> str:
        """Check what can be checked before the work.

        Args:
            image: the image to restore, such as `restorable_image` returns.

        Returns:
            The name of the new AMI.

        Raises:
            AlreadyExistsError: the name is taken.
            AccessDeniedError: registering would be refused in the end.
            InvalidRequestError: the image cannot be registered as it is.
        """
        wanted = checks.check_registrable(image, self.name)
        self._refuse_taken(wanted)
        self.backend.ec2.dry_run_register_image(image, name=self.name)
        return wanted

    def _refuse_taken(self, name: str) -> None:
        """Refuse a name that is taken before the work, not after it."""
        if self.backend.ec2.find_images(name):
            raise AlreadyExistsError(f"an image named {name!r} exists: give another name")

    def run(
        self,
        stored: ContainerFile,
        log: ResumeLog | None,
        *,
        workers: int | None,
        progress: ProgressCallback,
        cluster: Cluster | None = None,
    ) -> RestoredImage:
        """Do the job, or what earlier runs with this log left to do; errors are those of `restore`.

        Every run looks the name up again: it may begin hours after the job was admitted.

        Args:
            stored: the archive.
            log: the log of earlier runs; None to remove on an error what this run made.
            workers: the number of segments worked on at once; None for the number of CPUs.
            progress: a function called with a `Progress`.
            cluster: who does the job by orders; None for threads of this process.
        """
        self.admit_again(restorable_image(stored), log)
        restored = restore_snapshots(
            stored,
            self.backend.ebs,
            self.policy,
            log=None if log is None else LogPhase(log, "unpack"),
            workers=workers,
            cluster=cluster,
            progress=progress,
        )
        region = self.region or stored.metadata.get(REGION_KEY)
        return self.register(restored, stored.image.image_id, region, stored.index.content_id.hex(), log)

    def admit_again(self, image: Image, log: ResumeLog | None) -> None:
        """Look the name up, which the image of this log's runs may have."""
        wanted = checks.check_registrable(image, self.name)
        if not self.is_done(wanted, log):
            self._refuse_taken(wanted)

    def register(
        self,
        restored: Image,
        stored_id: str | None,
        region: str | None,
        content_id: str,
        log: ResumeLog | None,
    ) -> RestoredImage:
        """Register the AMI on its new snapshots: the last step.

        Args:
            restored: the stored image on its new snapshots.
            stored_id: the stored image's id; None for an image of disks.
            region: the stored AMI's Region; None where it is not known.
            content_id: the archive's content id.
            log: the run's log, ended once the AMI is registered. Without a log, the snapshots are deleted on
                an error.
        """
        image = self.registered(restored, stored_id, region)
        wanted = self.name or image.name

        def undo(_: BaseException) -> None:
            if log is None and not _registered(image, wanted, self.backend):
                for snapshot_id in image.snapshot_ids:
                    try:
                        self.backend.ebs.delete_snapshot(snapshot_id)
                    except Exception as error:
                        _logger.error("snapshot %s is left behind, delete it: %s", snapshot_id, error)

        with forks.undoing(undo):
            before = self.backend.ec2.find_images(wanted) if log is not None and wanted else []
            image_id = self._register(image, before)
        if log is not None:
            log.end()
        return RestoredImage(image=attrs.evolve(image, image_id=image_id, name=wanted), content_id=content_id)

    def _register(self, image: Image, before: Iterable[Image]) -> str:
        """Register the image once: one that an earlier run registered is found."""
        for found in before:
            if found.snapshot_ids == image.snapshot_ids:
                self.backend.ec2.finish_registration(found.image_id, image)
                return found.image_id
        return self.backend.ec2.register_image(image, name=self.name, image_id=self.image_id)

    def registered(self, restored: Image, stored_id: str | None, region: str | None) -> Image:
        """The image to register, made from the restored one; arguments as in `register`."""
        tagged = restored.with_tags(self.image_tags)
        return attrs.evolve(tagged, source_image_id=stored_id, source_image_region=region)

    def is_done(self, name: str, log: ResumeLog | None) -> bool:
        """Whether an AMI of this name exists on snapshots that this log's runs began."""
        entries = [] if log is None else log.entries()
        told = (read_entry(entry).get("snapshot") for entry in entries)
        begun = {snapshot_id for snapshot_id in told if isinstance(snapshot_id, str)}
        if not begun:
            return False
        images = self.backend.ec2.find_images(name)
        return any(image.snapshot_ids and begun.issuperset(image.snapshot_ids) for image in images)


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


def warn_of_dropped(destination: Backend, image: Image, name: str | None) -> None:
    """Log which attributes the new image will lack; the archive keeps them."""
    reports = destination.ec2.fidelity(image, name=name)
    dropped = [str(each) for each in reports if each.fate is Fate.DROPPED]
    if dropped:
        _logger.warning("%s is restored without %s", image.image_id, "; ".join(dropped))


def _registered(restored: Image, wanted: str | None, destination: Backend) -> bool:
    """Whether the image was registered in spite of the error, or may have been."""
    try:
        found = destination.ec2.find_images(wanted) if wanted else []
    except Exception as error:
        ids = ", ".join(restored.snapshot_ids)
        _logger.error("keeping %s: an image may be on them, which cannot be asked: %s", ids, error)
        return True
    return any(each.snapshot_ids == restored.snapshot_ids for each in found)


def restore(
    archive: Openable,
    backend: Backend,
    *,
    name: str | None = None,
    image_tags: Iterable[Tag] = (),
    snapshot_tags: Iterable[Tag] = (),
    log: ResumeLog | str | os.PathLike[str] | None = None,
    expected_content_id: str | None = None,
    fill_holes: bool = False,
    allow_lost: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressOption = None,
    options: Mapping[str, Any] | None = None,
) -> RestoredImage:
    """Make an AMI of an archive: restore its snapshots, and register the image on them.

    Attributes that the new AMI will lack are logged (WARNING) before the work.

    Args:
        archive: the archive's location, path, URL or open file, as in `open`.
        backend: the backend that gets the AMI.
        name: the AMI's name; None for the stored name.
        image_tags: the tags to set on the AMI, over the stored ones.
        snapshot_tags: the tags to set on each of its snapshots, over the stored ones. A resumed run must
            have the same.
        log: a path, or a log, from which a failed or killed call is resumed, also one that ended between
            restoring and registering; cleared once the AMI is registered.
        expected_content_id: the only content id to accept, 64 hexadecimal digits; None for any. Every
            restored block is proved to be one that it stands for.
        fill_holes: whether to put a block of zeros for each block that a snapshot does not list, as in
            `unpack`. A resumed run must have the same.
        allow_lost: whether to restore snapshots with lost blocks, too, as in `unpack`.
        workers: the number of segments worked on at once; None for the number of CPUs. With an executor, the
            number of orders that are out at once.
        executor: an executor whose workers read the archive and put the blocks by themselves, as in `store`;
            None for threads of this process. Archive and backend must be picklable, unless it has threads.
        progress: True for a bar (extra ``progress``), or a function called with a `Progress`.
        options: the options for a URL, as in `open`.

    Returns:
        The new AMI, and the archive's content id.

    Raises:
        NotFoundError: no such archive.
        AlreadyExistsError: the name is taken.
        AccessDeniedError: registering would be refused; raised before anything is made.
        ArchiveError: the archive is damaged, or has another content id.
        SourceChangedError: the archive was replaced, during this run or since the resumed one.
        InvalidRequestError: the image cannot be registered as it is; the log belongs to another job.
        BackendError: the archive's store or the backend failed. Without a log, new snapshots are deleted.
    """
    check_backend(backend, "backend")
    job = RestoreJob(
        backend=backend,
        name=name,
        image_tags=tuple(image_tags),
        policy=RestorePolicy(
            expected=parse_content_id(expected_content_id),
            tags=tuple(snapshot_tags),
            fill_holes=fill_holes,
            allow_lost=allow_lost,
        ),
    )
    with (
        reporting(progress) as report,
        using_log(log) as opened,
        contextlib.closing(open_container(archive, options)) as stored,
    ):
        check_content_id(stored.index.content_id, job.policy.expected)
        if opened is None or not opened.entries():
            job.admit(restorable_image(stored))
        warn_of_dropped(backend, stored.image, name)
        cluster = given_cluster(executor, workers, archive=stored, sink=backend.ebs)
        return job.run(stored, opened, workers=workers, progress=report, cluster=cluster)


def unpack(
    archive: Openable,
    sink: BlockSink,
    *,
    snapshots: Iterable[str] | None = None,
    tags: Iterable[Tag] = (),
    log: ResumeLog | str | os.PathLike[str] | None = None,
    expected_content_id: str | None = None,
    fill_holes: bool = False,
    allow_lost: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressOption = None,
    options: Mapping[str, Any] | None = None,
) -> Image:
    """Restore the snapshots of an archive, verifying all of it.

    Everything is checked before a snapshot is completed: each record and frame, each block's SHA-256, each
    volume's LINEAR, index, tail and content ids, and that nothing follows. An open file is read once, in
    order. Of any other archive the end is checked before the first snapshot is started, and each worker
    reads its segments by itself.

    Blocks that a snapshot does not list stay unlisted. On an encrypted volume they read as noise, not as
    zeros: without `fill_holes` that is logged (WARNING), once, where the new snapshots are encrypted.

    Args:
        archive: an open binary file or stream, also a pipe, read from its position to its end; or a
            location, path or URL, as in `open`.
        sink: the sink that gets the new snapshots.
        snapshots: the archived ids of the snapshots to restore; None for all. All are verified.
        tags: the tags to set on every new snapshot, over the stored ones. A resumed run must have the same.
        log: a path, or a log, from which a failed or killed run is resumed: segments that it put are neither
            read nor put again. Without a log, new snapshots are deleted on an error. Not for a stream.
        expected_content_id: the only content id to accept, 64 hexadecimal digits; None for any. It is
            compared before a snapshot is completed.
        fill_holes: whether to put a block of zeros for each block that a snapshot does not list, once all is
            verified. The new snapshots then list every block, 2,048 per GiB. A resumed run must have the
            same.
        allow_lost: whether to restore snapshots with lost blocks, from an archive that `recover` wrote. Lost
            blocks are neither put nor filled; `Snapshot.lost_blocks` of the returned image lists them.
        workers: the number of segments worked on at once; None for the number of CPUs. With an executor, the
            number of orders that are out at once.
        executor: an executor whose workers read the archive and put the blocks by themselves, as in
            `store`; of a stream they get the segments from here. None for threads of this process. Archive
            and sink must be picklable, unless it has threads.
        progress: True for a bar (extra ``progress``), or a function called with a `Progress` after each
            segment.
        options: the options for a URL, as in `open`.

    Returns:
        The stored image on its new snapshots, ready for `register_image`. Mappings whose snapshot was not
        restored are left out, and logged.

    Raises:
        NotFoundError: no such archive.
        CorruptArchiveError: the bytes are damaged, or the content id is not the expected one; no snapshot
            was completed.
        UnsupportedArchiveError: the archive has a newer format.
        LostBlocksError: blocks of a snapshot were lost, without `allow_lost`.
        SourceChangedError: the archive was replaced, during this run or since the resumed one.
        InvalidRequestError: `snapshots` names one that is not in the archive; the log belongs to another job.
        BackendError: the archive's store or the sink failed; with a log the next run resumes this one.
    """
    check_kind(sink, BlockSink, "sink")
    policy = RestorePolicy(
        expected=parse_content_id(expected_content_id),
        snapshots=snapshots,
        tags=tuple(tags),
        fill_holes=fill_holes,
        allow_lost=allow_lost,
    )
    if hasattr(archive, "read"):
        if log is not None or options is not None:
            raise InvalidRequestError("log= and options= do not go with an open file: give its path")
        if isinstance(archive, io.TextIOBase):
            raise InvalidRequestError('the file is open as text: open it with open(path, "rb")')
        stream = cast(BinaryIO, archive)
        with reporting(progress) as report:
            return restore_stream(stream, sink, policy, workers=workers, executor=executor, progress=report)
    with (
        reporting(progress) as report,
        using_log(log) as opened,
        contextlib.closing(open_container(archive, options)) as stored,
    ):
        cluster = given_cluster(executor, workers, archive=stored, sink=sink)
        return restore_snapshots(
            stored, sink, policy, log=opened, workers=workers, cluster=cluster, progress=report
        )
