"""`store`: an AMI becomes an object or a file. `transfer` and store tasks run `StoreJob`, too."""

from __future__ import annotations

import datetime
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import attrs

from amistore.backends import Backend, BlockSource, ObjectLocation, checks, files
from amistore.backends.remote import is_url
from amistore.errors import InvalidRequestError, NotFoundError
from amistore.model import Image
from amistore.objects.multipart import RUN_KEY, StoredArchive, refuse_existing
from amistore.objects.ordered_upload import OrderedUpload
from amistore.objects.partlog import is_by_orders
from amistore.objects.resumelog import ResumeLog, read_entry, using_log
from amistore.objects.store_orders import takes_orders
from amistore.objects.upload import ArchiveUpload
from amistore.pipeline.orders import Cluster, given_cluster, using_cluster
from amistore.pipeline.pack import DEFAULTS, PackOptions, check_packing, pack, plan_pack
from amistore.pipeline.packing import SegmentEncode
from amistore.pipeline.progress import ProgressCallback, ProgressOption, reporting

__all__ = [
    "REGION_KEY",
    "StoreJob",
    "file_target",
    "object_metadata",
    "store",
    "write_file",
]


@attrs.frozen(kw_only=True)
class StoreJob:
    """An AMI that becomes an archive.

    Attributes:
        image: the AMI's id, or an image whose snapshots are in a source without a registry.
        source: the backend that has the AMI, or the source of the image's blocks.
        to: the object's location.
        metadata: the object's user metadata, beside the facts about the AMI.
        tags: the object's tags.
        overwrite, level, snapshots, options: the arguments of `store`.
    """

    image: str | Image
    source: Backend | BlockSource
    to: ObjectLocation = attrs.field(converter=checks.check_target)
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    tags: Mapping[str, str] | None = None
    overwrite: bool = False
    level: int = 3
    snapshots: Iterable[str] | None = None
    options: PackOptions = DEFAULTS

    def admit(self) -> tuple[Image, BlockSource]:
        """Check what can be checked before the work.

        Returns:
            The AMI's present description, and the source of its blocks.

        Raises:
            NotFoundError: no such AMI or bucket.
            AlreadyExistsError: the object exists, without `overwrite`.
            InvalidRequestError: the AMI cannot be stored.
        """
        found = find_image(self.image, self.source)
        self.to.store.traits.check_tags(self.tags)
        self.to.store.head_bucket(self.to.bucket)
        if not self.overwrite:
            refuse_existing(self.to)
        return found

    def run(
        self,
        log: ResumeLog | None,
        *,
        workers: int | None,
        progress: ProgressCallback,
        now: datetime.datetime | None = None,
        found: tuple[Image, BlockSource] | None = None,
        cluster: Cluster | None = None,
    ) -> StoredArchive:
        """Do the job, or what earlier runs with this log left to do; errors are those of `store`.

        Every run describes the AMI again and runs the backend's `preflight`.

        Args:
            log: the log of earlier runs; None to remove on an error what this run made.
            workers: the number of segments worked on, and parts sent, at once; None for the number of CPUs.
            progress: a function called with a `Progress`.
            now: the object's time stamp; None for the time of the call.
            found: what `admit` gave this run already; None to ask now.
            cluster: who does the job by orders; None for threads of this process.
        """
        image, blocks = found or find_image(self.image, self.source)
        region = self.source.ec2.region_name if isinstance(self.source, Backend) else None
        options = self.options
        executor = None if cluster is None else cluster.executor
        check_packing(image, blocks, self.level, workers, executor)
        planned = plan_pack(image, blocks, snapshots=self.snapshots, progress=progress, layout=options.layout)
        encode = SegmentEncode(self.level, options.check_frames)
        given = (planned, blocks, encode, self.to, log, options.part_size)
        metadata = {**object_metadata(image, now, region), **self.metadata}
        tags = self.tags or None
        # A log's runs go on as they began, with and without an executor.
        by_orders = is_by_orders(log)
        if by_orders is None:
            by_orders = cluster is not None and takes_orders(self.to.store.traits)
        if by_orders:
            with using_cluster(cluster, workers) as using:
                return OrderedUpload(*given, using).run(
                    metadata, tags, overwrite=self.overwrite, workers=workers, progress=progress
                )
        return ArchiveUpload(*given).run(
            metadata,
            tags,
            overwrite=self.overwrite,
            workers=workers,
            executor=executor,
            progress=progress,
        )

    def is_done(self, log: ResumeLog) -> bool:
        """Whether the object exists, and this log's runs made it."""
        entries = log.entries()
        try:
            metadata = self.to.head().metadata if entries else {}
        except NotFoundError:
            return False
        return bool(entries) and metadata.get(RUN_KEY) == read_entry(entries[0]).get("task")


def find_image(image: str | Image, source: Backend | BlockSource) -> tuple[Image, BlockSource]:
    """The image, if it can be stored, and the source of its blocks.

    Raises:
        NotFoundError: no such AMI.
        InvalidRequestError: the AMI cannot be stored, or image and source do not go together.
    """
    if isinstance(image, str) and isinstance(source, Backend):
        found = source.ec2.describe_image(image)
        source.preflight(found)
        return found, source.ebs
    if isinstance(image, Image) and isinstance(source, BlockSource):
        return image, source
    raise InvalidRequestError(
        "an AMI's id goes with a whole backend, not its .ebs or .s3, and an amistore.Image with a source of "
        f"blocks, such as backend.ebs: not {type(image).__name__} with {type(source).__name__}"
    )


def store(
    image: str | Image,
    source: Backend | BlockSource,
    to: ObjectLocation | str | os.PathLike[str],
    *,
    log: ResumeLog | str | os.PathLike[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    level: int = 3,
    snapshots: Iterable[str] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressOption = None,
    options: PackOptions = DEFAULTS,
) -> StoredArchive:
    """Store an AMI with its snapshots as one object or file, which appears when it is complete.

    Parts above 32 MiB, as of images above some 300 GiB, wait in unlinked temporary files (in ``TMPDIR``)
    until they are sent: one for each worker, and one more.

    Args:
        image: the AMI's id; with a source of blocks an `Image` that names its snapshots.
        source: the backend that has the AMI; or a source of blocks, with which less can be checked.
        to: a location, such as ``cloud.s3.at("archive", f"{image_id}.bin")``, whose bucket must exist; or
            the path of a file.
        log: for objects, a path, or a log, from which a failed or killed run is resumed: its parts are not
            sent again, and their blocks not read. Without a log, parts are removed on an error.
        metadata: the object's user metadata, beside the facts about the AMI.
        tags: the object's tags.
        overwrite: whether to replace an object or file that exists.
        level: the zstd level, 1 to 22, or negative for its fast modes.
        snapshots: the ids of the snapshots to include; None for all that the mappings name.
        workers: the number of segments worked on, and parts sent, at once; None for the number of CPUs. With
            an executor, the number of orders that are out at once.
        executor: an executor, such as Dask's ``client.get_executor()``, whose workers read the blocks and
            upload the parts by themselves: `docs/scale.md`. Source and store must be picklable, unless it has
            threads. The bytes are the same. A file, and an object of equal parts or of numbers without
            gaps, are written here, of segments that the workers make.
        progress: True for a bar (extra ``progress``), or a function called with a `Progress`.
        options: the options that are rarely needed.

    Returns:
        The archive's location, size, and computed content id.

    Raises:
        NotFoundError: no such AMI, snapshot, bucket or folder.
        AlreadyExistsError: the object or file exists, without `overwrite`.
        SourceChangedError: the image or a snapshot is not what it was in the resumed run; or the object was
            replaced as soon as it was made.
        CorruptArchiveError: the store does not have what was sent to it.
        InvalidRequestError: the AMI cannot be stored; the log belongs to another job.
        BackendError: the source or the store failed; with a log the next run resumes this one.
    """
    checks.check_flags(overwrite=overwrite)
    if not isinstance(to, ObjectLocation):
        if log is not None or metadata or tags:
            raise InvalidRequestError("log=, metadata= and tags= go with an object, not with a file")
        path = file_target(to, overwrite=overwrite)
        found, blocks = find_image(image, source)
        with pack(
            found,
            blocks,
            level=level,
            snapshots=snapshots,
            workers=workers,
            executor=executor,
            progress=progress,
            options=options,
        ) as pieces:
            size = write_file(pieces, path, overwrite=overwrite)
        return StoredArchive(location=path, size=size, content_id=pieces.content_id)
    job = StoreJob(
        image=image,
        source=source,
        to=to,
        metadata=metadata or {},
        tags=tags,
        overwrite=overwrite,
        level=level,
        snapshots=snapshots,
        options=options,
    )
    cluster = given_cluster(executor, workers, source=source, store=to.store)
    with reporting(progress) as report, using_log(log) as opened:
        admitted = job.admit() if opened is None or not opened.entries() else None
        return job.run(opened, workers=workers, progress=report, found=admitted, cluster=cluster)


def file_target(to: object, *, overwrite: bool) -> Path:
    """The path of a file that can be made."""
    if not isinstance(to, (str, os.PathLike)) or is_url(str(to)):
        raise InvalidRequestError(
            f"the target must be a path, or a location such as backend.s3.at(bucket, key), not {to!r:.80}"
        )
    path = checks.check_path(to, "target")
    with files.operation("store", path=path):
        files.check_target(path, overwrite=overwrite)
    return path


def write_file(pieces: Iterable[bytes], path: Path, *, overwrite: bool) -> int:
    """Write an archive to a file, which gets its name once it is whole and on the disk; return its size."""
    size = 0
    with files.operation("store", path=path), files.new_file(path, overwrite=overwrite) as descriptor:
        for piece in pieces:
            files.write_at(descriptor, piece, size)
            size += len(piece)
    return size


REGION_KEY: Final = "ami-region"
"""Of the object's metadata: where the AMI was."""

# S3 keeps 2 KB of names and values together; Swift 256 characters of a value. All of the
# image's metadata stands in the archive, so nothing is lost where this is cut.
_MOST: Final = 256


def object_metadata(image: Image, now: datetime.datetime | None, region: str | None) -> dict[str, str]:
    """Name, description, registration date, owner and Region of an AMI, and when it was stored.

    A value is cut where an HTTP header would need more than 256 characters for it. Unknown facts are
    left out.

    Args:
        image: the AMI.
        now: the time of storing; None for the time of the call.
        region: the AMI's Region; None where it has none.
    """
    now = now or datetime.datetime.now(datetime.timezone.utc)
    moment = now.astimezone(datetime.timezone.utc).replace(tzinfo=None).isoformat(timespec="milliseconds")
    values = {
        "ami-name": image.name,
        "ami-description": image.description,
        "ami-registration-date": image.creation_date,
        "ami-owner-account": image.owner_id,
        REGION_KEY: region,
        "ami-store-timestamp": f"{moment}Z",
    }
    return {key: _cut(value) for key, value in values.items() if value}


def _cut(value: str) -> str:
    while len(urllib.parse.quote(value, safe="")) + len("UTF-8''") > _MOST:
        value = value[: min(len(value) - 1, _MOST)]
    return value
