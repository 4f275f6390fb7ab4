"""What is known of a task: `StoreImageTask`, `RestoreImageTask`, and pages of them.

The members are those of EC2's StoreImageTaskResult in Python spelling; what EC2 has no member
for is ours, and named so that it reads alike.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Literal, TypeVar, overload

import attrs

from amistore.errors import InvalidValueError
from amistore.model import Tag

__all__ = [
    "RestoreImageTask",
    "SnapshotProgress",
    "StoreImageTask",
    "TagSpecification",
    "Task",
    "TaskPage",
    "TaskState",
]

TaskState = Literal["InProgress", "Completed", "Failed"]


def _tags(tags: Iterable[Tag]) -> tuple[Tag, ...]:
    if not isinstance(tags, Iterable):
        field = "TagSpecification.tags"
        raise InvalidValueError(f"{field} is a list of Tag, not {tags!r}", field=field, value=tags)
    return tuple(tags)


@attrs.frozen(kw_only=True)
class TagSpecification:
    """Tags for what a restore makes.

    Attributes:
        resource_type: ``image``, or ``snapshot``: the same tags on every one.
        tags: set over those that were stored.
    """

    resource_type: str
    tags: tuple[Tag, ...] = attrs.field(converter=_tags)


@attrs.frozen(kw_only=True)
class Task:
    """What every task has.

    Attributes:
        task_id: ours; ``store-`` or ``restore-`` and 17 hexadecimal digits.
        task_start_time: when it was created, UTC, in milliseconds.
        bucket: of the object.
        progress_percentage: 0 to 100, an estimate that never falls; 0 while it is queued.
        state: ``InProgress``, ``Completed`` or ``Failed``.
        failure_reason: None unless it has failed.
        left_behind: what a failed task could not remove yet, by id; `TaskEngine.sweep` tries again.
    """

    task_id: str
    task_start_time: datetime.datetime
    bucket: str
    progress_percentage: int
    state: TaskState
    failure_reason: str | None = None
    left_behind: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class StoreImageTask(Task):
    """A task that stores an AMI as an object.

    Attributes:
        ami_id: of the AMI.
        s3_object_key: of the object, visible once the task is completed.
        content_id: of the archive, 64 hexadecimal digits, once the task is completed; keep it,
            to know an archive by it years later.
    """

    ami_id: str
    s3_object_key: str
    content_id: str | None = None

    @property
    def object_key(self) -> str:
        """As CreateStoreImageTask calls it."""
        return self.s3_object_key

    @property
    def store_task_state(self) -> TaskState:
        """As DescribeStoreImageTasks calls it."""
        return self.state

    @property
    def store_task_failure_reason(self) -> str | None:
        """As DescribeStoreImageTasks calls it."""
        return self.failure_reason


@attrs.frozen(kw_only=True)
class SnapshotProgress:
    """A snapshot that a restore makes.

    Attributes:
        stored_id: of the snapshot in the archive.
        snapshot_id: of the new one; None before it is begun.
        volume_size: in GiB.
        progress_percentage: 0 to 100.
    """

    stored_id: str
    snapshot_id: str | None
    volume_size: int
    progress_percentage: int


@attrs.frozen(kw_only=True)
class RestoreImageTask(Task):
    """A task that makes an AMI of an object.

    Attributes:
        image_id: of the new AMI; None until it is known, which is at once where the registry
            can reserve ids.
        source_image_id: of the AMI that was stored.
        name: of the new AMI.
        object_key: of the object.
        snapshots: what is made, in the archive's order.
    """

    image_id: str | None
    source_image_id: str
    name: str
    object_key: str
    snapshots: tuple[SnapshotProgress, ...] = ()


T = TypeVar("T", bound=Task)


@attrs.frozen
class TaskPage(Sequence[T], Generic[T]):
    """Some tasks, newest first.

    Attributes:
        tasks: of this page.
        next_token: asks for the next page; None where this is the last.
    """

    tasks: tuple[T, ...]
    next_token: str | None = None

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self.tasks[index]

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[T]:
        return iter(self.tasks)
