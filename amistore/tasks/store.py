"""Store tasks: `StoreRequest`, checked before there is one, and `StoreRecord`, the task in the journal.

`Journal.add` checks the quota and the other tasks in progress, which only the journal knows. Next:
`requests.py` has the rules of parameters, `objects/store.py` the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import ClassVar

import attrs

from amistore.backends import Backend, ObjectLocation, checks
from amistore.backends.quotas import Quotas
from amistore.errors import AlreadyExistsError
from amistore.model import Image, Tag
from amistore.model.fields import identifier
from amistore.objects import RUN_KEY, ResumeLog
from amistore.objects.store import StoreJob
from amistore.pipeline.orders import Cluster
from amistore.pipeline.progress import ProgressCallback
from amistore.tasks.record import Kind, TaskRecord, VolumeRecord, check_tags
from amistore.tasks.requests import check_image_id, object_place, object_tags
from amistore.tasks.task import StoreImageTask

__all__ = ["StoreRecord", "StoreRequest", "check_stored"]


@attrs.frozen(kw_only=True)
class StoreRecord(TaskRecord):
    """A store task.

    Attributes:
        image_id: the AMI's id.
        object_tags: the object's tags.
    """

    kind: ClassVar[Kind] = "store"
    unique: ClassVar[tuple[str, ...]] = ("bucket", "object_key")

    image_id: str = identifier("ami", required=True)
    object_tags: Mapping[str, str] = attrs.field(factory=dict, validator=check_tags)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(volume.stored_id for volume in self.volumes)

    @property
    def uploads(self) -> tuple[str, str]:
        return self.bucket, self.object_key

    def task(self) -> StoreImageTask:
        return StoreImageTask(
            ami_id=self.image_id,
            s3_object_key=self.object_key,
            content_id=self.content_id if self.state == "Completed" else None,
            **self._told(),
        )

    def conflict(self, other: str) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"{other} is storing it: wait for that task; wait() resumes it if nobody runs it",
            bucket=self.bucket,
            key=self.object_key,
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
        stored = self._job(backend).run(log, workers=workers, cluster=cluster, progress=progress, now=now)
        return self.image_id, stored.content_id

    def is_done(self, backend: Backend, log: ResumeLog) -> bool:
        return self._job(backend).is_done(log)

    def _job(self, backend: Backend) -> StoreJob:
        return StoreJob(
            image=self.image_id,
            source=backend,
            to=backend.s3.at(self.bucket, self.object_key),
            metadata={"amistore-task": self.task_id},
            tags=self.object_tags,
        )


@attrs.frozen
class StoreRequest:
    """A checked request to store an AMI: the AMI's present description, and the record of a new task."""

    image: Image
    record: StoreRecord

    @classmethod
    def of(
        cls,
        backend: Backend,
        quotas: Quotas,
        place: str,
        started: int,
        *,
        image_id: str,
        bucket: str,
        s3_object_tags: Iterable[Tag] | Mapping[str, str],
    ) -> StoreRequest:
        """Check what was asked for; see `TaskEngine.create_store_image_task` and `TaskRecord`."""
        check_image_id(image_id)
        name, key = object_place(bucket, image_id)
        tags = object_tags(s3_object_tags)
        image = StoreJob(image=image_id, source=backend, to=backend.s3.at(name, key)).admit()[0]
        volumes = tuple(_volume(backend, image, snapshot_id) for snapshot_id in image.snapshot_ids)
        size = sum(volume.size for volume in volumes)
        quotas.check_image(image_id, size)
        record = StoreRecord(
            task_id=checks.new_id("store"),
            place=place,
            started=started,
            image_id=image.image_id,
            bucket=name,
            object_key=key,
            size=size,
            object_tags=tags,
            volumes=volumes,
        )
        return cls(image, record)


def _volume(backend: Backend, image: Image, snapshot_id: str) -> VolumeRecord:
    size = image.snapshot(snapshot_id).volume_size
    if size is None:
        size = backend.ebs.list_snapshot_blocks(snapshot_id).volume_size
    return VolumeRecord(stored_id=snapshot_id, size=size)


def check_stored(location: ObjectLocation, error: AlreadyExistsError) -> None:
    """Raise the error of a store whose object exists, unless that is one that amistore has stored.

    Told by the metadata alone, which an object of an archived storage class gives, too.
    """
    if RUN_KEY not in location.head().metadata:
        error.message += "; amistore did not store it, so it is not skipped"
        raise error
