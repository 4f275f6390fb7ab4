"""`transfer`: copy an AMI from one backend to another.

It takes two sets of credentials and no local disk: data passes through bounded memory. Every block is proved
on its way, and each new snapshot as it is completed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Executor

import attrs

from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, BlockSource, ObjectInfo, ObjectLocation
from amistore.backends.base import check_backend
from amistore.backends.locations import ObjectRanges
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.layout import Layout
from amistore.errors import AlreadyExistsError, InvalidRequestError
from amistore.model import Image
from amistore.objects.relay import relay_snapshots
from amistore.objects.restore import RestoredImage, RestoreJob, warn_of_dropped
from amistore.objects.resumelog import LogPhase, ResumeLog, using_log
from amistore.objects.store import StoreJob, find_image
from amistore.pipeline.orders import Cluster, given_cluster
from amistore.pipeline.pack import plan_pack
from amistore.pipeline.progress import ProgressCallback, ProgressOption, reporting
from amistore.pipeline.snapshots import RestorePolicy
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["transfer"]

_logger = logging.getLogger("amistore")

# Of a plan whose container nobody makes: small segments begin soonest. A huge one has none too many.
_SMALL = Layout(blocks_per_segment=32)
_HUGE = 32 * 1024  # GiB


def transfer(
    image_id: str,
    *,
    source: Backend,
    destination: Backend,
    name: str | None = None,
    keep: ObjectLocation | None = None,
    log: ResumeLog | str | os.PathLike[str] | None = None,
    expected_content_id: str | None = None,
    fill_holes: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressOption = None,
) -> RestoredImage:
    """Copy an AMI from one backend to another: between Regions, accounts or partitions.

    Attributes that the new image will lack are logged (WARNING) before the work. Without `fill_holes`, a
    warning says that holes will read as noise where the destination encrypts new snapshots; it comes before
    the work, or once the first snapshot is started, where only that tells.

    Args:
        image_id: the AMI's id in `source`.
        source: the backend that has the AMI.
        destination: the backend that gets the AMI.
        name: the new AMI's name; None for the same name.
        keep: the location, in any store, of an archive to make on the way. It is kept, also if a later step
            fails.
        log: with `keep`, a path, or a log, from which a failed or killed call is resumed.
        expected_content_id: the content id of an earlier archive of the image, 64 hexadecimal digits. An
            image that has changed since is refused before a snapshot is completed.
        fill_holes: whether to put a block of zeros for each block that a snapshot does not list, as in
            `unpack`.
        workers: the number of segments worked on at once, on each side; None for the number of CPUs. With an
            executor, the number of orders that are out at once.
        executor: an executor whose workers read and put the blocks by themselves, as in `store`; None for
            threads of this process. The backends must be picklable, unless it has threads.
        progress: True for a bar (extra ``progress``), or a function called with a `Progress`.

    Returns:
        The new AMI, and the archive that was kept. Each restored block is proved to be the packed one, also
        if the kept object is replaced meanwhile.

    Raises:
        NotFoundError: no such image.
        SourceChangedError: the object to keep was replaced as soon as it was made.
        CorruptArchiveError: the image's content id is not the expected one.
        InvalidRequestError: the image cannot be read, or cannot be registered as it is.
        AlreadyExistsError: the name, or the object to keep, exists.
        AccessDeniedError: registering would be refused; raised before anything is read or made.
        BackendError: either side failed. What was made is deleted, except what `log` resumes.
    """
    if keep is not None and not isinstance(keep, ObjectLocation):
        raise InvalidRequestError(
            f"keep= is a location, such as backend.s3.at(bucket, key), not {keep!r:.80}"
        )
    if log is not None and keep is None:
        raise InvalidRequestError("log= goes with keep=: only a kept archive can be resumed")
    check_backend(source, "source")
    check_backend(destination, "destination")
    kept = None if keep is None else keep.store
    cluster = given_cluster(executor, workers, source=source, destination=destination, store=kept)
    with reporting(progress) as report, using_log(log) as opened:
        phases = _Phases(opened)
        storing = None if keep is None else StoreJob(image=image_id, source=source, to=keep)
        if storing is None or phases.begun:
            image, blocks = find_image(image_id, source)
        else:
            with _telling_of_restore():
                image, blocks = storing.admit()
        policy = RestorePolicy(expected=parse_content_id(expected_content_id), fill_holes=fill_holes)
        job = RestoreJob(backend=destination, name=name, region=source.ec2.region_name, policy=policy)
        if not phases.restoring:
            job.admit(image)
            warn_of_dropped(destination, image, name)
        told = not fill_holes and (phases.begun or _warn_of_holes(image, source, destination))
        job = attrs.evolve(job, policy=attrs.evolve(policy, holes_told=told))
        if storing is None:
            return _relay(image, source, job, workers, cluster, report)
        restored = _keep(storing, (image, blocks), job, phases, workers, cluster, report)
        if opened is not None:
            opened.end()
        return restored


def _warn_of_holes(image: Image, source: Backend, destination: Backend) -> bool:
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


@contextlib.contextmanager
def _telling_of_restore() -> Iterator[None]:
    """Say what to do about an archive that is there: an earlier transfer without a log may have made it."""
    try:
        yield
    except AlreadyExistsError as error:
        error.message += "; if it is this image's archive, amistore.restore goes on from it"
        raise


class _Phases:
    """A transfer's log: first the entries of storing, then those of restoring.

    Attributes:
        pack, unpack: the logs of the two jobs; None without a log.
        begun: whether an earlier run has begun, and logged its warnings.
        restoring: whether an earlier run has begun to restore.
    """

    def __init__(self, log: ResumeLog | None) -> None:
        self.pack = None if log is None else LogPhase(log, "pack")
        self.unpack = None if log is None else LogPhase(log, "unpack", first="pack")
        self.begun = log is not None and bool(log.entries())
        self.restoring = self.unpack is not None and bool(self.unpack.entries())


def _relay(
    image: Image,
    source: Backend,
    job: RestoreJob,
    workers: int | None,
    cluster: Cluster | None,
    progress: ProgressCallback,
) -> RestoredImage:
    """`transfer` without an archive to keep."""
    sizes = [image.snapshot(each).volume_size for each in image.snapshot_ids]
    huge = None in sizes or sum(size for size in sizes if size) > _HUGE
    planned = plan_pack(image, source.ebs, progress=progress, layout=None if huge else _SMALL)
    restored, content_id = relay_snapshots(
        planned,
        source.ebs,
        job.backend.ebs,
        job.policy,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )
    return job.register(restored, image.image_id, job.region, content_id.hex(), None)


def _keep(
    storing: StoreJob,
    found: tuple[Image, BlockSource],
    restoring: RestoreJob,
    phases: _Phases,
    workers: int | None,
    cluster: Cluster | None,
    progress: ProgressCallback,
) -> RestoredImage:
    """`transfer` with a kept archive: the restore is bound to the packed content, not to a name."""
    with _telling_of_restore():
        kept = storing.run(phases.pack, workers=workers, progress=progress, found=found, cluster=cluster)
    computed = bytes.fromhex(kept.content_id)
    check_content_id(computed, restoring.policy.expected)
    # What was made is opened, not what has its name by now.
    ranges = ObjectRanges(storing.to, ObjectInfo(size=kept.size, etag=str(kept.etag)))
    stored = ContainerFile(ranges)
    job = attrs.evolve(restoring, policy=attrs.evolve(restoring.policy, expected=computed))
    restored = job.run(stored, phases.unpack, workers=workers, progress=progress, cluster=cluster)
    return attrs.evolve(restored, kept=kept)
