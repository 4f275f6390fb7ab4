"""What is known of a task: `StoreImageTask`, `RestoreImageTask`, and pages of them.

The members are those of EC2's StoreImageTaskResult in Python spelling; what EC2 has no member
for is ours, and named so that it reads alike.
"""

from __future__ import annotations

import abc
import datetime
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, Literal, TypeVar, cast, overload

import attrs

from amistore.errors import InvalidValueError
from amistore.model import Tag
from amistore.text import printable

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


def _tags(tags: Iterable[Tag] | Mapping[str, str]) -> tuple[Tag, ...]:
    if isinstance(tags, Mapping):
        return tuple(Tag(key=key, value=value) for key, value in cast("Mapping[str, str]", tags).items())
    if not isinstance(tags, Iterable):
        field = "TagSpecification.tags"
        raise InvalidValueError(f"{field} is a list of Tag, not {tags!r}", field=field, value=tags)
    return tuple(tags)


@attrs.frozen(kw_only=True)
class TagSpecification:
    """Tags for what a restore makes.

    Attributes:
        resource_type: ``image``, or ``snapshot``: the same tags on every one.
        tags: set over those that were stored; a mapping of keys to values does, too.
    """

    resource_type: str
    tags: tuple[Tag, ...] = attrs.field(converter=_tags)


@attrs.frozen(kw_only=True)
class Task(abc.ABC):
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

    @property
    @abc.abstractmethod
    def purpose(self) -> str:
        """What it makes of what, for people."""

    def __str__(self) -> str:
        started = self.task_start_time.strftime("%Y-%m-%d %H:%M:%SZ")
        reason = f": {self.failure_reason}" if self.failure_reason else ""
        return printable(
            f"{self.task_id:25}  {started}  {self.progress_percentage:3} %  {self.state:10}  "
            f"{self.purpose}{reason}"
        )


@attrs.frozen(kw_only=True)
class StoreImageTask(Task):
    """A task that stores an AMI as an object; what every task has is told by `Task`.

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
    def purpose(self) -> str:
        return f"{self.ami_id} to {self.bucket}/{self.s3_object_key}"

    @property
    def image_id(self) -> str:
        """As CreateStoreImageTask calls `ami_id`."""
        return self.ami_id

    @property
    def object_key(self) -> str:
        """As CreateStoreImageTask calls `s3_object_key`."""
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
    """A task that makes an AMI of an object; what every task has is told by `Task`.

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

    @property
    def purpose(self) -> str:
        return f"{self.bucket}/{self.object_key} to {self.name!r}"


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

    def __str__(self) -> str:
        more = ["and more: next_token asks for them"] if self.next_token else []
        return "\n".join([*map(str, self.tasks), *more])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def __iter__(self) -> Iterator[T]:
        return iter(self.tasks)
