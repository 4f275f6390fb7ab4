"""Restore tasks: `RestoreRequest`, checked before there is one, and `RestoreRecord`, the task in the journal.

As `store.py`. Next: `objects/restore.py` has the job, `descriptions.py` describes the images and snapshots
that tasks make.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar

import attrs
from attrs.validators import instance_of

from amistore.archive.opening import open_container
from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, checks
from amistore.backends.quotas import Quotas
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import AlreadyExistsError
from amistore.model import Image
from amistore.model.fields import from_wire, identifier, text, to_wire
from amistore.objects.restore import RestoreJob, restorable_image
from amistore.objects.resumelog import ResumeLog
from amistore.objects.store import REGION_KEY
from amistore.pipeline.orders import Cluster
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.snapshots import RestorePolicy
from amistore.tasks.record import Kind, TaskRecord, VolumeRecord, check_tags
from amistore.tasks.requests import needed, split_tags
from amistore.tasks.task import RestoreImageTask, SnapshotProgress, TagSpecification, tags_of
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["RestoreRecord", "RestoreRequest"]


@attrs.frozen(kw_only=True)
class RestoreRecord(TaskRecord):
    """A restore task.

    Attributes:
        image_id: the new AMI's id, once it is known.
        source_image_id: the stored AMI's id.
        name: the new AMI's name.
        image_tags: the tags to set on the new AMI, over the stored ones.
        snapshot_tags: the tags to set on each of its snapshots, over the stored ones.
        fill_holes, allow_lost: the arguments of `restore`.
        region: the stored AMI's Region; None where it is not known.
        image: the stored image as plain values, to describe the new one; without UEFI data, which may hold
            keys, and without members that this version does not know.
    """

    kind: ClassVar[Kind] = "restore"
    unique: ClassVar[tuple[str, ...]] = ("name",)

    source_image_id: str = identifier("ami", required=True)
    name: str = text(required=True)
    image_tags: Mapping[str, str | None] = attrs.field(factory=dict, validator=check_tags)
    snapshot_tags: Mapping[str, str | None] = attrs.field(factory=dict, validator=check_tags)
    fill_holes: bool = attrs.field(default=False, validator=instance_of(bool))
    allow_lost: bool = attrs.field(default=False, validator=instance_of(bool))
    region: str | None = text()
    image: Mapping[str, Any] = attrs.field(validator=lambda _, __, members: from_wire(Image, members))

    def task(self) -> RestoreImageTask:
        return RestoreImageTask(
            image_id=self.image_id,
            source_image_id=self.source_image_id,
            name=self.name,
            object_key=self.object_key,
            snapshots=self.snapshots(),
            **self._told(),
        )

    def snapshots(self) -> tuple[SnapshotProgress, ...]:
        """The snapshots with their progress, by the task's: all are restored one by one, then all filled."""
        total = sum(volume.blocks + volume.filled for volume in self.volumes)
        done = total * self.progress // 100
        listed = sum(volume.blocks for volume in self.volumes)
        restored, filled = min(done, listed), max(0, done - listed)
        found = []
        for volume in self.volumes:
            part, fill = min(restored, volume.blocks), min(filled, volume.filled)
            restored, filled = restored - part, filled - fill
            blocks = volume.blocks + volume.filled
            percent = 100 * (part + fill) // blocks if blocks else self.progress
            found.append(
                SnapshotProgress(
                    stored_id=volume.stored_id,
                    snapshot_id=volume.snapshot_id,
                    volume_size=volume.size,
                    progress_percentage=percent,
                )
            )
        return tuple(found)

    def conflict(self, other: str) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"{other} is restoring an image named {self.name!r}: wait for that task, or give another name"
        )

    def run(
        self,
        backend: Backend,
        log: ResumeLog,
        workers: int | None,
        cluster: Cluster | None,
        progress: ProgressCallback,
        now: datetime,
    ) -> tuple[str, str]:
        location = backend.s3.at(self.bucket, self.object_key)
        with contextlib.closing(open_container(location)) as stored:
            restored = self._job(backend).run(
                stored, log, workers=workers, cluster=cluster, progress=progress
            )
        return restored.image_id, restored.content_id

    def is_done(self, backend: Backend, log: ResumeLog) -> bool:
        return self._job(backend).is_done(self.name, log)

    def _job(self, backend: Backend) -> RestoreJob:
        return RestoreJob(
            backend=backend,
            name=self.name,
            image_tags=tags_of(self.image_tags),
            region=self.region,
            policy=RestorePolicy(
                expected=parse_content_id(self.content_id),
                tags=tags_of(self.snapshot_tags),
                fill_holes=self.fill_holes,
                allow_lost=self.allow_lost,
            ),
            image_id=self.image_id,
        )


@attrs.frozen(kw_only=True)
class RestoreRequest:
    """A checked request to restore an archive.

    Attributes:
        stored: the archive, its end checked.
        restorable: the archive's image, without mappings whose snapshots are not in the archive.
        job: the job of the new task.
        holes: the numbers of blocks that are neither listed nor lost, by the archived snapshots' ids.
        record: the record of a new task.
    """

    stored: ContainerFile
    restorable: Image
    job: RestoreJob
    holes: Mapping[str, int]
    record: RestoreRecord

    @classmethod
    def of(
        cls,
        backend: Backend,
        quotas: Quotas,
        place: str,
        started: int,
        *,
        bucket: str,
        object_key: str,
        name: str | None,
        tag_specifications: Iterable[TagSpecification],
        fill_holes: bool,
        allow_lost: bool,
        expected_content_id: str | None,
    ) -> RestoreRequest:
        """Check what was asked for; see `TaskEngine.create_restore_image_task` and `TaskRecord`."""
        image_tags, snapshot_tags = split_tags(tag_specifications)
        policy = RestorePolicy(
            expected=parse_content_id(expected_content_id),
            tags=snapshot_tags,
            fill_holes=fill_holes,
            allow_lost=allow_lost,
        )
        stored = _opened(backend, bucket, object_key)
        # A claim so far: the task's run proves that what it restores is of this id.
        check_content_id(stored.index.content_id, policy.expected)
        restorable = restorable_image(stored)
        size = sum(volume.size // GIB for volume in stored.index.volumes)
        quotas.check_image(stored.image.image_id, size)
        region = stored.metadata.get(REGION_KEY)
        job = RestoreJob(backend=backend, name=name, image_tags=image_tags, region=region, policy=policy)
        holes = _holes(stored)
        record = RestoreRecord(
            task_id=checks.new_id("restore"),
            place=place,
            started=started,
            source_image_id=stored.image.image_id,
            name=job.admit(restorable),
            bucket=bucket,
            object_key=object_key,
            size=size,
            image_tags={tag.key: tag.value for tag in image_tags},
            snapshot_tags={tag.key: tag.value for tag in snapshot_tags},
            fill_holes=fill_holes,
            allow_lost=allow_lost,
            region=region,
            image=to_wire(attrs.evolve(stored.image, uefi_data=None, snapshots=(), extra={})),
            volumes=_volumes(stored, holes if fill_holes else {}),
            content_id=stored.index.content_id.hex(),
        )
        return cls(stored=stored, restorable=restorable, job=job, holes=holes, record=record)


def _opened(backend: Backend, bucket: str, object_key: str) -> ContainerFile:
    location = backend.s3.at(needed(bucket, "a bucket's name"), needed(object_key, "an object's key"))
    backend.s3.head_bucket(bucket)
    return open_container(location)


def _holes(stored: ContainerFile) -> dict[str, int]:
    holes = {}
    for volume in stored.index.volumes:
        lost = sum(each.block_count for each in stored.image.snapshot(volume.snapshot_id).lost_blocks)
        holes[volume.snapshot_id] = volume.size // BLOCK_SIZE - volume.blocks - lost
    return holes


def _volumes(stored: ContainerFile, filled: Mapping[str, int]) -> tuple[VolumeRecord, ...]:
    return tuple(
        VolumeRecord(
            stored_id=volume.snapshot_id,
            size=volume.size // GIB,
            blocks=volume.blocks,
            filled=filled.get(volume.snapshot_id, 0),
        )
        for volume in stored.index.volumes
    )
