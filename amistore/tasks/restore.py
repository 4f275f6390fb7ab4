"""Restore tasks: `RestoreRequest`, checked before there is one, and `RestoreRecord`, the task in the journal.

As `store.py`. Next: `objects/restore.py` has the job, `restored.py` describes the images and snapshots that
tasks make.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import attrs
from attrs.validators import instance_of, optional

from amistore.archive.archive import open_container
from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, checks
from amistore.backends.quotas import Quotas
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import AlreadyExistsError
from amistore.model import Image, Tag
from amistore.model.fields import to_wire
from amistore.objects.restore import RestoreJob, restorable_image
from amistore.objects.resumelog import ResumeLog
from amistore.objects.store import REGION_KEY
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.snapshots import RestorePolicy
from amistore.tasks.record import (
    IMAGE_ID,
    TEXT,
    Kind,
    Outcome,
    TaskRecord,
    VolumeRecord,
    check_image,
    check_tags,
)
from amistore.tasks.requests import needed, split_tags
from amistore.tasks.task import RestoreImageTask, SnapshotProgress, TagSpecification
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["RestoreRecord", "RestoreRequest", "tags_of"]


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
    asked: ClassVar[tuple[str, ...]] = (
        "image_tags",
        "snapshot_tags",
        "fill_holes",
        "allow_lost",
        "region",
        "image",
    )
    unique: ClassVar[tuple[str, ...]] = ("name",)

    source_image_id: str = attrs.field(validator=IMAGE_ID)
    name: str = attrs.field(validator=TEXT)
    image_tags: Mapping[str, str | None] = attrs.field(factory=dict, validator=check_tags)
    snapshot_tags: Mapping[str, str | None] = attrs.field(factory=dict, validator=check_tags)
    fill_holes: bool = attrs.field(default=False, validator=instance_of(bool))
    allow_lost: bool = attrs.field(default=False, validator=instance_of(bool))
    region: str | None = attrs.field(default=None, validator=optional(TEXT))
    image: Mapping[str, Any] = attrs.field(validator=check_image)

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
        *,
        workers: int | None,
        progress: ProgressCallback,
        now: datetime.datetime,
    ) -> Outcome:
        location = backend.s3.at(self.bucket, self.object_key)
        with contextlib.closing(open_container(location)) as stored:
            restored = self._job(backend).run(stored, log, workers=workers, progress=progress)
        return Outcome(restored.image_id, restored.content_id)

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


def tags_of(members: Mapping[str, str | None]) -> tuple[Tag, ...]:
    """The tags in a column."""
    return tuple(Tag(key=key, value=value) for key, value in members.items())


@attrs.frozen(kw_only=True)
class RestoreRequest:
    """A checked request to restore an archive.

    Attributes:
        stored: the archive, its end checked.
        restorable: the archive's image, without mappings whose snapshots are not in the archive.
        bucket: the bucket that holds the object.
        object_key: the object's key.
        job: the job to do.
        name: the new AMI's name.
    """

    stored: ContainerFile
    restorable: Image
    bucket: str
    object_key: str
    job: RestoreJob
    name: str

    @classmethod
    def of(
        cls,
        backend: Backend,
        quotas: Quotas,
        *,
        bucket: str,
        object_key: str,
        name: str | None,
        tag_specifications: Iterable[TagSpecification],
        fill_holes: bool,
        allow_lost: bool,
        expected_content_id: str | None,
    ) -> RestoreRequest:
        """Check what was asked for; see `TaskEngine.create_restore_image_task`."""
        location = backend.s3.at(needed(bucket, "a bucket's name"), needed(object_key, "an object's key"))
        image_tags, snapshot_tags = split_tags(tag_specifications)
        job = RestoreJob(
            backend=backend,
            name=name,
            image_tags=image_tags,
            policy=RestorePolicy(
                expected=parse_content_id(expected_content_id),
                tags=snapshot_tags,
                fill_holes=fill_holes,
                allow_lost=allow_lost,
            ),
        )
        backend.s3.head_bucket(bucket)
        stored = open_container(location)
        # A claim so far: the task's run proves that what it restores is of this id.
        check_content_id(stored.index.content_id, job.policy.expected)
        restorable = restorable_image(stored)
        quotas.check_image(stored.image.image_id, _size(stored))
        return cls(
            stored=stored,
            restorable=restorable,
            bucket=bucket,
            object_key=object_key,
            job=attrs.evolve(job, region=stored.metadata.get(REGION_KEY)),
            name=job.admit(restorable),
        )

    @property
    def size(self) -> int:
        """GiB of the volumes."""
        return _size(self.stored)

    @property
    def holes(self) -> dict[str, int]:
        """The numbers of blocks that are neither listed nor lost, by the archived snapshots' ids."""
        image = self.stored.image
        return {
            volume.snapshot_id: volume.size // BLOCK_SIZE
            - volume.blocks
            - sum(lost.block_count for lost in image.snapshot(volume.snapshot_id).lost_blocks)
            for volume in self.stored.index.volumes
        }

    def record(self, place: str, started: int) -> RestoreRecord:
        """A new task of it; see `TaskRecord` for the arguments."""
        holes, job, policy = self.holes, self.job, self.job.policy
        return RestoreRecord(
            task_id=checks.new_id("restore"),
            place=place,
            started=started,
            source_image_id=self.stored.image.image_id,
            name=self.name,
            bucket=self.bucket,
            object_key=self.object_key,
            size=self.size,
            image_tags={tag.key: tag.value for tag in job.image_tags},
            snapshot_tags={tag.key: tag.value for tag in policy.tags},
            fill_holes=policy.fill_holes,
            allow_lost=policy.allow_lost,
            region=job.region,
            image=to_wire(attrs.evolve(self.stored.image, uefi_data=None, snapshots=(), extra={})),
            volumes=tuple(
                VolumeRecord(
                    stored_id=volume.snapshot_id,
                    size=volume.size // GIB,
                    blocks=volume.blocks,
                    filled=holes[volume.snapshot_id] if policy.fill_holes else 0,
                )
                for volume in self.stored.index.volumes
            ),
            content_id=self.stored.index.content_id.hex(),
        )


def _size(stored: ContainerFile) -> int:
    return sum(volume.size // GIB for volume in stored.index.volumes)
