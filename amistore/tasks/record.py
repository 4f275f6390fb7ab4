"""`TaskRecord`: a row of the journal, its description for users, and the job that it stands for.

A row may be damaged, or written by another program. A record is validated at birth, so that no other code has
to check. Next: `store.py` and `restore.py` have the two kinds.
"""

from __future__ import annotations

import abc
import datetime
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal, get_args

import attrs
from attrs.validators import optional
from typing_extensions import Self

from amistore.backends import Backend
from amistore.backends.checks import is_image_id, is_snapshot_id
from amistore.errors import AlreadyExistsError, InvalidValueError
from amistore.model import Image
from amistore.model.fields import from_wire
from amistore.objects.resumelog import ResumeLog
from amistore.pipeline import Phase, Progress
from amistore.pipeline.progress import ProgressCallback
from amistore.tasks.task import Task, TaskState

__all__ = [
    "IMAGE_ID",
    "MOST_GIB",
    "TEXT",
    "Kind",
    "Lease",
    "Outcome",
    "Stage",
    "TaskRecord",
    "VolumeRecord",
    "check_image",
    "check_tags",
    "json_list",
    "like",
    "rule",
    "tuple_of",
    "whole",
]


Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def rule(told: str, holds: Callable[[Any], bool]) -> Validator:
    """A validator: a value must be as `told`."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not holds(value):
            field = f"{type(instance).__name__}.{attribute.name}"
            raise InvalidValueError(f"{field} must be {told}, not {value!r:.80}", field=field, value=value)

    return check


def _is_text(value: Any) -> bool:
    """Whether a string is Unicode: SQLite returns bytes that are no UTF-8 as lone surrogates."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


TEXT: Final = rule("a string of Unicode", _is_text)


def whole(*, most: int) -> Validator:
    """A validator for whole numbers from 0."""
    return rule(f"a whole number from 0 to {most}", lambda value: type(value) is int and 0 <= value <= most)


def like(pattern: str, told: str) -> Validator:
    """A validator for strings that match a pattern."""
    form = re.compile(pattern)
    return rule(told, lambda value: isinstance(value, str) and form.fullmatch(value) is not None)


def tuple_of(kind: type) -> Validator:
    """A validator for tuples of such values; strings must be text."""
    return rule(
        f"a tuple of {kind.__name__}",
        lambda value: (
            isinstance(value, tuple)
            and all(isinstance(each, kind) and (kind is not str or _is_text(each)) for each in value)
        ),
    )


def json_list(column: str) -> list[Any]:
    """The list in a column of JSON."""
    found = json.loads(column)
    if not isinstance(found, list):
        raise TypeError(f"{column:.80} is no list")
    return found


def check_tags(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Refuse anything but a mapping of texts, none of them empty, to texts or None."""
    if not isinstance(value, Mapping) or not all(
        key and _is_text(key) and (each is None or _is_text(each)) for key, each in value.items()
    ):
        raise InvalidValueError(f"{attribute.name} must be tags", field=attribute.name, value=value)


def check_image(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Refuse anything but an image's wire form; the error says why."""
    from_wire(Image, value)


Kind = Literal["store", "restore"]

Stage = Literal["queued", "running", "undoing", "ended"]
"""``undoing``: failed, and what it has made is still to be removed."""

MOST_GIB: Final = 2**40
"""More than any image has; the sum of all tasks fits into an integer of SQLite's."""

IMAGE_ID: Final = rule("an AMI's id", is_image_id)
_SNAPSHOT_ID: Final = rule("a snapshot's id", is_snapshot_id)
_SIZE: Final = whole(most=MOST_GIB)
_YEAR_10000: Final = 253_402_300_800_000  # no date of Python's


@attrs.frozen
class Lease:
    """The right to write a task's row: lost once the row has a later epoch."""

    task_id: str
    epoch: int


@attrs.frozen(kw_only=True)
class VolumeRecord:
    """A snapshot to store or restore: its archived id and its size in GiB.

    A restore's has also the new snapshot's id, once known, and the numbers of listed blocks and of blocks
    that fill holes.
    """

    stored_id: str = attrs.field(validator=_SNAPSHOT_ID)
    snapshot_id: str | None = attrs.field(default=None, validator=optional(_SNAPSHOT_ID))
    size: int = attrs.field(validator=_SIZE)
    blocks: int = attrs.field(default=0, validator=whole(most=2**53))
    filled: int = attrs.field(default=0, validator=whole(most=2**53))


@attrs.frozen
class Outcome:
    """A task's result: the AMI's id, and the archive's content id."""

    image_id: str
    content_id: str


@attrs.frozen(kw_only=True)
class TaskRecord(abc.ABC):
    """A task as the journal has it; docs/tasks.md explains its stages.

    Attributes:
        kind: the kind of task.
        asked: the names of the attributes that the column ``request`` holds, in JSON.
        unique: the names of the columns that no two tasks of its kind in progress may share.
        sequence: the task's number, in the order of creation.
        place: the name of the task's backend.
        size: the GiB that count for the quota.
        started: the time of creation, in milliseconds since 1970, UTC.
        volumes: the snapshots, in the archive's order.
        epoch: the number of the current lease.
    """

    kind: ClassVar[Kind]
    asked: ClassVar[tuple[str, ...]]
    unique: ClassVar[tuple[str, ...]]

    sequence: int = attrs.field(default=0, validator=whole(most=2**63 - 1))
    task_id: str = attrs.field(validator=TEXT)
    place: str = attrs.field(validator=TEXT)
    image_id: str | None = attrs.field(default=None, validator=optional(IMAGE_ID))
    bucket: str = attrs.field(validator=TEXT)
    object_key: str = attrs.field(validator=TEXT)
    size: int = attrs.field(validator=_SIZE)
    started: int = attrs.field(validator=whole(most=_YEAR_10000 - 1))
    stage: Stage = attrs.field(default="queued", validator=rule("a stage", get_args(Stage).__contains__))
    progress: int = attrs.field(default=0, validator=whole(most=100))
    failure_reason: str | None = attrs.field(default=None, validator=optional(TEXT))
    content_id: str | None = attrs.field(default=None, validator=optional(like("[0-9a-f]{64}", "a SHA-256")))
    volumes: tuple[VolumeRecord, ...] = attrs.field(default=(), validator=tuple_of(VolumeRecord))
    left_behind: tuple[str, ...] = attrs.field(default=(), validator=tuple_of(str))
    cancelled: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    owner: str | None = attrs.field(
        default=None, validator=optional(like("[0-9a-z-]{1,64}", "an engine's name"))
    )
    epoch: int = attrs.field(default=0, validator=whole(most=2**53))
    lease_until: float = attrs.field(default=0.0, validator=attrs.validators.instance_of(float))

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> Self:
        """The record of a row's columns.

        Raises:
            InvalidValueError: the row is damaged.
        """
        names = {field.name for field in attrs.fields(cls)}
        try:
            request = json.loads(row["request"])
            columns = {
                **{name: value for name, value in row.items() if name in names},
                **{name: request[name] for name in cls.asked},
                "volumes": tuple(VolumeRecord(**each) for each in json_list(row["volumes"])),
                "left_behind": tuple(json_list(row["left_behind"])),
                "cancelled": {0: False, 1: True}.get(row["cancelled"], row["cancelled"]),
            }
            return cls(**columns)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidValueError(f"{type(error).__name__}: {error}") from None

    def row(self) -> dict[str, Any]:
        """The columns of a new record."""
        columns = attrs.asdict(self, recurse=False)
        del columns["sequence"]
        return {
            "kind": self.kind,
            "request": json.dumps({name: columns.pop(name) for name in self.asked}),
            **columns,
            "volumes": json.dumps([attrs.asdict(volume) for volume in self.volumes]),
            "left_behind": json.dumps(self.left_behind),
            "cancelled": int(self.cancelled),
        }

    @property
    def lease(self) -> Lease:
        """The current lease."""
        return Lease(self.task_id, self.epoch)

    @property
    def reads(self) -> tuple[str, ...]:
        """The ids of the snapshots that the task lists."""
        return ()

    @property
    def state(self) -> TaskState:
        """The task's state, by EC2's name."""
        if self.stage in ("queued", "running"):
            return "InProgress"
        return "Completed" if self.failure_reason is None else "Failed"

    def percentage(self, event: Progress) -> int:
        """The estimated progress in percent: at most 99 before the task is completed."""
        if event.phase is Phase.LIST or not event.total_blocks:
            return 0
        holes = sum(volume.filled for volume in self.volumes)
        done, total = event.blocks, event.total_blocks + holes
        if event.phase is Phase.FILL:  # after all that is listed
            listed = sum(volume.blocks for volume in self.volumes)
            done, total = listed + event.blocks, listed + event.total_blocks
        return 99 * done // total

    @abc.abstractmethod
    def task(self) -> Task:
        """The task's description for users."""

    @abc.abstractmethod
    def conflict(self, other: str) -> AlreadyExistsError:
        """The refusal of a task that shares its `unique` columns with another one, given by its id."""

    @abc.abstractmethod
    def run(
        self,
        backend: Backend,
        log: ResumeLog,
        *,
        workers: int | None,
        progress: ProgressCallback,
        now: datetime.datetime,
    ) -> Outcome:
        """Do the task's job, from where its log ends.

        Args:
            backend: the task's backend.
            log: the task's log.
            workers: the number of segments worked on at once; None for the number of CPUs.
            progress: a function called with a `Progress`, often; an exception of it ends the run.
            now: the object's time stamp.
        """

    @abc.abstractmethod
    def is_done(self, backend: Backend, log: ResumeLog) -> bool:
        """Whether the task's result exists, though the journal does not know it yet."""

    def _told(self) -> dict[str, Any]:
        """The attributes of every `Task`."""
        return {
            "task_id": self.task_id,
            "task_start_time": datetime.datetime.fromtimestamp(self.started / 1000, datetime.timezone.utc),
            "bucket": self.bucket,
            "progress_percentage": self.progress,
            "state": self.state,
            "failure_reason": self.failure_reason,
            "left_behind": self.left_behind,
        }
