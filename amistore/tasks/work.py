"""What a task does, from its record and its log: all of it, or what an earlier run has left to do.

Every check of the first run is made in each: the AMI is described and tried again, the object
opened again. Next: `objects/` has the store and the restore themselves.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable

import attrs

from amistore.backends import Backend
from amistore.errors import NotFoundError
from amistore.model import Image, Tag
from amistore.objects import pack_object, unpack_object
from amistore.objects.registration import refuse_taken, register_restored
from amistore.objects.resumelog import ResumeLog, read_entry
from amistore.objects.upload import RUN_KEY
from amistore.pipeline import Phase, Progress
from amistore.pipeline.foreign import foreign_errors
from amistore.tasks.metadata import object_metadata
from amistore.tasks.record import TaskRecord

__all__ = ["Outcome", "do_task", "is_done", "restored_image"]

Percent = Callable[[int], None]


@attrs.frozen
class Outcome:
    """What a task has made: the AMI's id, and the archive's content id."""

    image_id: str | None
    content_id: str


def do_task(
    record: TaskRecord,
    backend: Backend,
    log: ResumeLog,
    *,
    workers: int | None,
    progress: Percent,
    now: datetime.datetime,
) -> Outcome:
    """Store or restore, as the record says; on from the log's end.

    Args:
        record: of the task.
        backend: of its place.
        log: of the task.
        workers: segments worked on at once; None for the number of CPUs.
        progress: called with a percentage, often; what it raises ends the run.
        now: of the object's time stamp.
    """

    def report(event: Progress) -> None:
        progress(_percentage(record, event))

    if record.kind == "store":
        return _store(record, backend, log, workers, report, now)
    return _restore(record, backend, log, workers, report)


def _percentage(record: TaskRecord, progress: Progress) -> int:
    """An estimate, 99 at most: all of it is done when the task is completed."""
    if progress.phase is Phase.LIST or not progress.total_blocks:
        return 0
    holes = sum(volume.filled for volume in record.volumes)
    done, total = progress.blocks, progress.total_blocks + holes
    if progress.phase is Phase.FILL:  # after all that is listed
        listed = sum(volume.blocks for volume in record.volumes)
        done, total = listed + progress.blocks, listed + progress.total_blocks
    return 99 * done // total


def _store(
    record: TaskRecord,
    backend: Backend,
    log: ResumeLog,
    workers: int | None,
    progress: Callable[[Progress], None],
    now: datetime.datetime,
) -> Outcome:
    image_id = str(record.image_id)
    with foreign_errors("describe_image", image_id=image_id):
        image = backend.ec2.describe_image(image_id)
        backend.preflight(image)
    stored = pack_object(
        image,
        backend.ebs,
        backend.s3,
        record.bucket,
        record.object_key,
        log=log,
        metadata=object_metadata(image, record.task_id, now, backend.ec2.region_name),
        tags=record.request["object_tags"] or None,
        workers=workers,
        progress=progress,
    )
    return Outcome(image_id, stored.content_id)


def _restore(
    record: TaskRecord,
    backend: Backend,
    log: ResumeLog,
    workers: int | None,
    progress: Callable[[Progress], None],
) -> Outcome:
    # It may have waited for hours, and only an image of its own may have its name by now.
    if not is_done(record, backend, log):
        refuse_taken(backend, record.name)
    restored = unpack_object(
        backend.s3,
        record.bucket,
        record.object_key,
        backend.ebs,
        log=log,
        expected_content_id=record.content_id,
        tags=_tags(record.request["snapshot_tags"]),
        fill_holes=record.request["fill_holes"],
        allow_lost=record.request["allow_lost"],
        workers=workers,
        progress=progress,
    )
    restored = restored_image(
        restored,
        tags=_tags(record.request["image_tags"]),
        source_image_id=record.source_image_id,
        region=record.request["region"],
    )
    image_id = register_restored(restored, record.name, backend, log, image_id=record.image_id)
    return Outcome(image_id, str(record.content_id))


def restored_image(
    image: Image, *, tags: Iterable[Tag], source_image_id: str | None, region: str | None
) -> Image:
    """What is registered of an image whose snapshots are restored.

    Args:
        image: on its new snapshots.
        tags: set over those that were stored.
        source_image_id: of the AMI that was stored.
        region: where that was; None where it is not known.
    """
    return attrs.evolve(image.with_tags(tags), source_image_id=source_image_id, source_image_region=region)


def _tags(members: dict[str, str]) -> list[Tag]:
    return [Tag(key=key, value=value) for key, value in members.items()]


def is_done(record: TaskRecord, backend: Backend, log: ResumeLog) -> bool:
    """Whether what the task makes is there already, and only the journal does not know it yet."""
    entries = [read_entry(entry) for entry in log.entries()]
    if not entries:
        return False
    if record.kind == "store":
        try:
            with foreign_errors("head_object", bucket=record.bucket, key=record.object_key):
                found = backend.s3.head_object(record.bucket, record.object_key)
        except NotFoundError:
            return False
        return found.metadata.get(RUN_KEY) == entries[0].get("task")
    begun = {entry["snapshot"] for entry in entries if "snapshot" in entry}
    with foreign_errors("find_images"):
        images = backend.ec2.find_images(str(record.name))
    return any(image.snapshot_ids and begun.issuperset(image.snapshot_ids) for image in images)
