"""`restore`: an archive becomes an AMI; `unpack`: its snapshots alone.

`RestoreJob` is what `transfer` and a restore task do, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from typing import Any, BinaryIO, cast

import attrs

from amistore.archive.archive import Openable, open_container
from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, BlockSink, checks
from amistore.backends.base import check_backend
from amistore.backends.checks import check_flag, check_kind
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import InvalidRequestError
from amistore.model import Image, Tag
from amistore.objects.registration import (
    refuse_taken,
    register_restored,
    restorable_image,
    warn_of_dropped,
)
from amistore.objects.restoration import restore_snapshots
from amistore.objects.results import RestoredImage
from amistore.objects.resumelog import LogPhase, ResumeLog, read_entry, using_log
from amistore.objects.store import REGION_KEY
from amistore.pipeline.holes import HolePolicy
from amistore.pipeline.progress import ProgressCallback, ProgressOption, reporting
from amistore.pipeline.unpack import restore_stream

__all__ = ["RestoreJob", "restore", "unpack"]


@attrs.frozen(kw_only=True)
class RestoreJob:
    """An archive that becomes an AMI.

    Attributes:
        backend: where the AMI is made.
        name: the AMI's; None for the stored one's.
        image_tags: the AMI's, over those that were stored.
        snapshot_tags: each of its snapshots', likewise.
        region: where the stored AMI was; None for what the archive's object tells.
        expected: the content id of the archive; None for whatever it is.
        holes: what is done with blocks that a snapshot does not list.
        allow_lost: restore snapshots with lost blocks, too.
        image_id: one that `reserve_image_id` gave; None for the registry's choice.
    """

    backend: Backend
    name: str | None = None
    image_tags: tuple[Tag, ...] = ()
    snapshot_tags: tuple[Tag, ...] = ()
    region: str | None = None
    expected: bytes | None = None
    holes: HolePolicy = HolePolicy(False)
    allow_lost: bool = attrs.field(
        default=False, validator=lambda job, field, given: check_flag(given, field.name)
    )
    image_id: str | None = None

    def admit(self, image: Image) -> str:
        """Check what can be checked before the work.

        Args:
            image: the one to restore, such as `restorable_image` gives.

        Returns:
            The name of the new AMI.

        Raises:
            AlreadyExistsError: the name is taken.
            AccessDeniedError: registering would be refused in the end.
            InvalidRequestError: the image cannot be registered so.
        """
        wanted = checks.check_registrable(image, self.name)
        refuse_taken(self.backend, wanted)
        self.backend.ec2.dry_run_register_image(image, name=self.name)
        return wanted

    def run(
        self, stored: ContainerFile, log: ResumeLog | None, *, workers: int | None, progress: ProgressCallback
    ) -> RestoredImage:
        """Do all of it, or what earlier runs with this log have left to do; errors are those of `restore`.

        The name is looked up in every run: a run may begin hours after it was admitted.

        Args:
            stored: the archive.
            log: what earlier runs have done; None to remove on an error what this one has done.
            workers: segments worked on at once; None for the number of CPUs.
            progress: called with a `Progress`.
        """
        check_content_id(stored.index.content_id, self.expected)
        wanted = checks.check_registrable(restorable_image(stored), self.name)
        if not self.is_done(wanted, log):
            refuse_taken(self.backend, wanted)
        restored = restore_snapshots(
            stored,
            self.backend.ebs,
            self.holes,
            log=None if log is None else LogPhase(log, "unpack"),
            expected=self.expected,
            tags=self.snapshot_tags,
            allow_lost=self.allow_lost,
            workers=workers,
            progress=progress,
        )
        region = self.region or stored.metadata.get(REGION_KEY)
        return self.register(restored, stored.image.image_id, region, stored.index.content_id.hex(), log)

    def register(
        self,
        restored: Image,
        stored_id: str,
        region: str | None,
        content_id: str,
        log: ResumeLog | None,
    ) -> RestoredImage:
        """Register the AMI on its new snapshots: the last step.

        Args:
            restored: the stored image on its new snapshots.
            stored_id: the stored image's id.
            region: where the stored AMI was; None where that is not known.
            content_id: of the archive.
            log: of the run; ended once the AMI is there. Without one, the snapshots are deleted on an error.
        """
        image = self.registered(restored, stored_id, region)
        image_id = register_restored(image, self.name, self.backend, log, image_id=self.image_id)
        image = attrs.evolve(image, image_id=image_id, name=self.name or image.name)
        return RestoredImage(image=image, content_id=content_id)

    def registered(self, restored: Image, stored_id: str, region: str | None) -> Image:
        """What is registered of a restored image; see `register` for the arguments."""
        tagged = restored.with_tags(self.image_tags)
        return attrs.evolve(tagged, source_image_id=stored_id, source_image_region=region)

    def is_done(self, name: str, log: ResumeLog | None) -> bool:
        """Whether an AMI of this name is there, on snapshots that the runs of this log have begun."""
        entries = [] if log is None else log.entries()
        begun = {entry["snapshot"] for entry in map(read_entry, entries) if "snapshot" in entry}
        if not begun:
            return False
        images = self.backend.ec2.find_images(name)
        return any(image.snapshot_ids and begun.issuperset(image.snapshot_ids) for image in images)


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
    progress: ProgressOption = None,
    options: Mapping[str, Any] | None = None,
) -> RestoredImage:
    """Make an AMI of an archive: restore its snapshots, and register the image on them.

    Attributes that the new AMI will not have are logged (WARNING) before the work.

    Args:
        archive: what `open` takes, such as ``cloud.s3.at("archive", "web.bin")`` or a path.
        backend: where the AMI is made.
        name: the AMI's name; None for the stored one's.
        image_tags: tags of the AMI, over those that were stored.
        snapshot_tags: tags of each of its snapshots, likewise.
        log: a path, or a log, from which an earlier call that ended in a crash or an error is resumed, also
            one that ended between restoring and registering; cleared once the AMI is registered.
        expected_content_id: refuse another archive; 64 hexadecimal digits. Every block that is
            restored is proved to be one that it stands for.
        fill_holes: put a block of zeros for each block that a snapshot does not list; see `unpack`.
            A run that is resumed must have the same.
        allow_lost: restore snapshots with lost blocks, too; see `unpack`.
        workers: segments worked on at once; None for the number of CPUs.
        progress: True for a bar (extra ``progress``), or a function that is called with a `Progress`.
        options: for a URL, as in `open`.

    Returns:
        The new AMI, and the archive's content id.

    Raises:
        NotFoundError: no such archive.
        AlreadyExistsError: the name is taken.
        AccessDeniedError: registering would be refused in the end, told before anything is made.
        ArchiveError: the archive is damaged, or another one.
        SourceChangedError: the archive was replaced, during the run or since the one that is resumed.
        InvalidRequestError: the image cannot be registered so; the log belongs to another job.
        BackendError: the archive's store or the backend failed. Without a log, what was begun is deleted.
    """
    check_backend(backend, "backend")
    job = RestoreJob(
        backend=backend,
        name=name,
        image_tags=tuple(image_tags),
        snapshot_tags=tuple(snapshot_tags),
        expected=parse_content_id(expected_content_id),
        holes=HolePolicy(fill_holes),
        allow_lost=allow_lost,
    )
    with (
        reporting(progress) as report,
        using_log(log) as opened,
        contextlib.closing(open_container(archive, options)) as stored,
    ):
        check_content_id(stored.index.content_id, job.expected)
        if opened is None or not opened.entries():
            job.admit(restorable_image(stored))
        warn_of_dropped(backend, stored.image, name)
        return job.run(stored, opened, workers=workers, progress=report)


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

    Everything is checked before success is reported: each record and frame, each block's
    SHA-256, LINEAR per volume, index, tail and content ids, and that nothing follows. An open file is read
    once, in order. Of all else the end is checked before the first snapshot is started, and each worker reads
    its segments by itself.

    Blocks that a snapshot does not list stay unlisted. On an encrypted volume these read as noise, not
    as zeros: without `fill_holes` that is logged (WARNING), once, where the new snapshots are encrypted.

    Args:
        archive: an open binary file or stream, read from where it stands to its end, a pipe too; or what
            `open` takes: a location, a path or a URL.
        sink: where new snapshots are made.
        snapshots: ids, as in the archive, of those to restore; None for all. All are verified.
        tags: set on every new snapshot, over those that were stored.
        log: a path, or a log, from which an earlier run that ended in a crash or an error is resumed:
            segments that it has put are neither read nor put again. Without one, the snapshots that were
            begun are deleted on an error. Not for a stream.
        expected_content_id: refuse another archive before a snapshot is completed; 64 hexadecimal digits.
        fill_holes: put a block of zeros for each block that a snapshot does not list, after all was
            verified; the new snapshots then list every block, 2,048 per GiB. A run that is resumed must
            have the same.
        allow_lost: restore snapshots with lost blocks, of an archive that `recover` wrote, too.
            What was lost is not put, nor filled; `Snapshot.lost_blocks` of the returned image lists it.
        workers: segments worked on at once; None for the number of CPUs.
        executor: where a stream's segments are worked on; None for threads. For processes `sink` must be
            picklable.
        progress: True for a bar (extra ``progress``), or a function that is called with a `Progress` after
            each segment.
        options: for a URL, as in `open`.

    Returns:
        The stored image on its new snapshots, ready for `register_image`. Mappings whose
        snapshot was not restored are left out, and logged.

    Raises:
        NotFoundError: no such archive.
        CorruptArchiveError: damaged bytes, with the place, or another content id than the expected one;
            no snapshot was completed.
        UnsupportedArchiveError: a newer format.
        LostBlocksError: blocks of a snapshot were lost, without `allow_lost`.
        SourceChangedError: the archive was replaced, during the run or since the one that is resumed.
        InvalidRequestError: `snapshots` names one that is not in the archive; the log belongs to another job.
        BackendError: the archive's store or the sink failed; with a log the next run resumes this one.
    """
    check_kind(sink, BlockSink, "sink")
    expected = parse_content_id(expected_content_id)
    holes = HolePolicy(fill_holes)
    if hasattr(archive, "read"):
        if log is not None or options is not None:
            raise InvalidRequestError("log= and options= do not go with an open file: give its path")
        with reporting(progress) as report:
            return restore_stream(
                cast(BinaryIO, archive),
                sink,
                holes,
                expected=expected,
                snapshots=snapshots,
                tags=tags,
                allow_lost=allow_lost,
                workers=workers,
                executor=executor,
                progress=report,
            )
    if executor is not None:
        raise InvalidRequestError("executor= goes with an open file or stream only")
    with (
        reporting(progress) as report,
        using_log(log) as opened,
        contextlib.closing(open_container(archive, options)) as stored,
    ):
        return restore_snapshots(
            stored,
            sink,
            holes,
            log=opened,
            expected=expected,
            snapshots=snapshots,
            tags=tags,
            allow_lost=allow_lost,
            workers=workers,
            progress=report,
        )
