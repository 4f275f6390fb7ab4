"""Descriptions of tasks: `StoreImageTask`, `RestoreImageTask`, and pages of them.

The members are those of EC2's StoreImageTaskResult in Python spelling, and ours with similar names.
"""

from __future__ import annotations

import abc
import contextlib
import datetime
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, TypeVar, overload

import attrs

from amistore.errors import InvalidValueError
from amistore.model import Tag
from amistore.pipeline.bars import Bars
from amistore.pipeline.progress import reporting_by
from amistore.text import html_table, printable

__all__ = [
    "RestoreImageTask",
    "SnapshotProgress",
    "StoreImageTask",
    "TagSpecification",
    "Task",
    "TaskCallback",
    "TaskPage",
    "TaskState",
    "reporting_tasks",
    "tags_of",
]

TaskState = Literal["InProgress", "Completed", "Failed"]

_HEADS: Final = ("task", "started", "progress", "state", "purpose")


def tags_of(members: Mapping[Any, Any]) -> tuple[Tag, ...]:
    """The tags of a mapping of keys to values."""
    return tuple(Tag(key=key, value=value) for key, value in members.items())


def _tags(tags: Iterable[Tag] | Mapping[str, str]) -> tuple[Tag, ...]:
    if isinstance(tags, Mapping):
        return tags_of(tags)
    if not isinstance(tags, Iterable):
        field = "TagSpecification.tags"
        raise InvalidValueError(f"{field} is a list of Tag, not {tags!r}", field=field, value=tags)
    return tuple(tags)


@attrs.frozen(kw_only=True)
class TagSpecification:
    """Tags for the resources that a restore makes.

    Attributes:
        resource_type: the kind of resource: ``image``, or ``snapshot`` for every snapshot.
        tags: the tags to set, over the stored ones: a list of `Tag`, or a mapping of keys to values.
    """

    resource_type: str
    tags: tuple[Tag, ...] = attrs.field(converter=_tags)


@attrs.frozen(kw_only=True)
class Task(abc.ABC):
    """The attributes of every task.

    Attributes:
        task_id: the task's id: ``store-`` or ``restore-`` and 17 hexadecimal digits.
        task_start_time: the time of creation, UTC, to the millisecond.
        bucket: the bucket that holds the object.
        progress_percentage: the progress, 0 to 100, an estimate that never falls; 0 while the task is queued.
        state: the task's state: ``InProgress``, ``Completed`` or ``Failed``.
        failure_reason: the reason of the failure; None unless the task has failed.
        left_behind: the ids of what a failed task could not remove yet; `TaskEngine.sweep` tries again.
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
        """A line that says what the task makes of what."""

    def __str__(self) -> str:
        task_id, started, progress, state, told = self._row()
        return printable(f"{task_id:25}  {started}  {progress:>5}  {state:10}  {told}")

    def _row(self) -> tuple[str, ...]:
        """Texts of the columns `_HEADS`."""
        started = self.task_start_time.strftime("%Y-%m-%d %H:%M:%SZ")
        reason = f": {self.failure_reason}" if self.failure_reason else ""
        return self.task_id, started, f"{self.progress_percentage} %", self.state, f"{self.purpose}{reason}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        left = ("left behind", ", ".join(self.left_behind))
        return html_table([*zip(_HEADS, self._row(), strict=True), *self._facts(), left], *self._parts())

    def _facts(self) -> list[tuple[str, str | None]]:
        """What this kind has beside, by name."""
        return []

    def _parts(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads and rows of what it is made of."""
        return (), []


@attrs.frozen(kw_only=True)
class StoreImageTask(Task):
    """A task that stores an AMI as an object. It has the attributes of `Task`, too.

    Attributes:
        ami_id: the AMI's id.
        s3_object_key: the object's key; the object is visible once the task is completed.
        content_id: the archive's content id, 64 hexadecimal digits, once the task is completed. Keep it: it
            identifies the archive years later.
    """

    ami_id: str
    s3_object_key: str
    content_id: str | None = None

    @property
    def purpose(self) -> str:
        return f"{self.ami_id} to {self.bucket}/{self.s3_object_key}"

    def _facts(self) -> list[tuple[str, str | None]]:
        return [("content id", self.content_id)]

    @property
    def image_id(self) -> str:
        """`ami_id`, by its name in CreateStoreImageTask."""
        return self.ami_id

    @property
    def object_key(self) -> str:
        """`s3_object_key`, by its name in CreateStoreImageTask."""
        return self.s3_object_key

    @property
    def store_task_state(self) -> TaskState:
        """`state`, by its name in DescribeStoreImageTasks."""
        return self.state

    @property
    def store_task_failure_reason(self) -> str | None:
        """`failure_reason`, by its name in DescribeStoreImageTasks."""
        return self.failure_reason


@attrs.frozen(kw_only=True)
class SnapshotProgress:
    """A snapshot that a restore makes.

    Attributes:
        stored_id: the archived snapshot's id.
        snapshot_id: the new snapshot's id; None before it is begun.
        volume_size: the volume's size in GiB.
        progress_percentage: the progress, 0 to 100.
    """

    stored_id: str
    snapshot_id: str | None
    volume_size: int
    progress_percentage: int


@attrs.frozen(kw_only=True)
class RestoreImageTask(Task):
    """A task that makes an AMI of an object. It has the attributes of `Task`, too.

    Attributes:
        image_id: the new AMI's id; None until it is known. It is known at once if the registry can reserve
            ids.
        source_image_id: the stored AMI's id.
        name: the new AMI's name.
        object_key: the object's key.
        snapshots: the snapshots that the task makes, in the archive's order.
    """

    image_id: str | None
    source_image_id: str
    name: str
    object_key: str
    snapshots: tuple[SnapshotProgress, ...] = ()

    @property
    def purpose(self) -> str:
        return f"{self.bucket}/{self.object_key} to {self.name!r}"

    def _facts(self) -> list[tuple[str, str | None]]:
        return [("image", self.image_id), ("source image", self.source_image_id)]

    def _parts(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        rows: list[tuple[str, ...]] = []
        for each in self.snapshots:
            size, progress = f"{each.volume_size:,} GiB", f"{each.progress_percentage} %"
            rows.append((each.stored_id, each.snapshot_id or "", size, progress))
        return ("stored snapshot", "new snapshot", "size", "progress"), rows


T = TypeVar("T", bound=Task)


@attrs.frozen
class TaskPage(Sequence[T], Generic[T]):
    """A page of tasks, newest first.

    Attributes:
        tasks: the page's tasks.
        next_token: the token of the next page; None on the last page.
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
        more = "next_token asks for them" if self.next_token else None
        return html_table([("more", more)], _HEADS, (task._row() for task in self.tasks))

    def __iter__(self) -> Iterator[T]:
        return iter(self.tasks)


TaskCallback = Callable[[Task], None]


@contextlib.contextmanager
def reporting_tasks(progress: bool | TaskCallback | None, count: int) -> Iterator[TaskCallback | None]:
    """What to call with a task each time it was looked at.

    Args:
        progress: True for a bar, or what to call with the task each time its percentage or state has changed.
        count: of tasks that are waited for.

    Raises:
        ImportError, InvalidRequestError: as `reporting` does.
    """
    with reporting_by(progress, functools.partial(_drawn, count=count)) as report:
        yield None if report is None else _changes(report)


def _changes(report: TaskCallback) -> TaskCallback:
    last: dict[str, tuple[int, str]] = {}

    def changed(task: Task) -> None:
        now = task.progress_percentage, task.state
        if last.get(task.task_id) != now:
            last[task.task_id] = now
            report(task)

    return changed


def _drawn(bars: Bars, count: int) -> TaskCallback:
    """One bar for all tasks: what a task has done is its part of it."""
    seen: dict[str, Task] = {}

    def draw(task: Task) -> None:
        seen[task.task_id] = task
        ended = sum(each.state != "InProgress" for each in seen.values())
        title = printable(task.purpose) if count == 1 else f"{ended} of {count} tasks"
        bars.show_percent(title, sum(each.progress_percentage for each in seen.values()), 100 * count)

    return draw
