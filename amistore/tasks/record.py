"""`TaskRecord`: a row of the journal, what is told of it, and the job that it stands for.

A row may be damaged, or written by another program: a record is valid from birth, so that nothing
else has to look. Next: `store.py` and `restore.py` have the two kinds.
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
from amistore.objects import ResumeLog
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
    """A value must be what is told."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not holds(value):
            field = f"{type(instance).__name__}.{attribute.name}"
            raise InvalidValueError(f"{field} must be {told}, not {value!r:.80}", field=field, value=value)

    return check


def _is_text(value: Any) -> bool:
    """SQLite hands over bytes that are no UTF-8 as lone surrogates, which no string of ours has."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


TEXT: Final = rule("a string of Unicode", _is_text)


def whole(*, most: int) -> Validator:
    """A whole number from 0 on."""
    return rule(f"a whole number from 0 to {most}", lambda value: type(value) is int and 0 <= value <= most)


def like(pattern: str, told: str) -> Validator:
    """A string of this form."""
    form = re.compile(pattern)
    return rule(told, lambda value: isinstance(value, str) and form.fullmatch(value) is not None)


def tuple_of(kind: type) -> Validator:
    """A tuple of such values; strings must be text."""
    return rule(
        f"a tuple of {kind.__name__}",
        lambda value: (
            isinstance(value, tuple)
            and all(isinstance(each, kind) and (kind is not str or _is_text(each)) for each in value)
        ),
    )


def json_list(column: str) -> list[Any]:
    """A column's list, in JSON."""
    found = json.loads(column)
    if not isinstance(found, list):
        raise TypeError(f"{column:.80} is no list")
    return found


def check_tags(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """A mapping of texts to texts, or None; no key is empty."""
    if not isinstance(value, Mapping) or not all(
        key and _is_text(key) and (each is None or _is_text(each)) for key, each in value.items()
    ):
        raise InvalidValueError(f"{attribute.name} must be tags", field=attribute.name, value=value)


def check_image(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """The wire form of an image; the error of one that is none tells why."""
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
    """The right to write of a task: lost once the journal's epoch of it is a later one."""

    task_id: str
    epoch: int


@attrs.frozen(kw_only=True)
class VolumeRecord:
    """A snapshot that is stored, or stored and to be restored: its id and size in GiB.

    Of a restore also the new snapshot's id, once it is known, and the numbers of listed blocks and of those
    that fill holes.
    """

    stored_id: str = attrs.field(validator=_SNAPSHOT_ID)
    snapshot_id: str | None = attrs.field(default=None, validator=optional(_SNAPSHOT_ID))
    size: int = attrs.field(validator=_SIZE)
    blocks: int = attrs.field(default=0, validator=whole(most=2**53))
    filled: int = attrs.field(default=0, validator=whole(most=2**53))


@attrs.frozen
class Outcome:
    """What a task has made: the AMI's id, and the archive's content id."""

    image_id: str
    content_id: str


@attrs.frozen(kw_only=True)
class TaskRecord(abc.ABC):
    """A task as the journal has it; docs/tasks.md explains its stages.

    Attributes:
        kind: which one it is.
        asked: names of the attributes that the column ``request`` holds, in JSON.
        unique: names of the columns that no two tasks of its kind in progress have in common.
        sequence: ascends in the order of creation.
        place: which backend it is of.
        size: GiB that it takes of the quota.
        started: milliseconds since 1970, UTC.
        volumes: in the archive's order.
        epoch: of the current lease.
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
        """A record of the columns of a row of this kind.

        Raises:
            InvalidValueError: it is damaged.
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
        """The columns of a record that is not in the journal yet."""
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
        """The current one."""
        return Lease(self.task_id, self.epoch)

    @property
    def reads(self) -> tuple[str, ...]:
        """Ids of the snapshots that it lists."""
        return ()

    @property
    def state(self) -> TaskState:
        """As EC2 names it."""
        if self.stage in ("queued", "running"):
            return "InProgress"
        return "Completed" if self.failure_reason is None else "Failed"

    def percentage(self, event: Progress) -> int:
        """How much of it is done, an estimate: 99 at most, as all is done when it is completed."""
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
        """What is told of it."""

    @abc.abstractmethod
    def conflict(self, other: str) -> AlreadyExistsError:
        """Why it is refused beside another task, given by its id, that has what is `unique`."""

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
        """Do its job; on from the log's end.

        Args:
            backend: of its place.
            log: of the task.
            workers: segments worked on at once; None for the number of CPUs.
            progress: called with a `Progress`, often; what it raises ends the run.
            now: the time of an object's stamp.
        """

    @abc.abstractmethod
    def is_done(self, backend: Backend, log: ResumeLog) -> bool:
        """Whether what it makes is there already, and only the journal does not know it yet."""

    def _told(self) -> dict[str, Any]:
        """Members that every `Task` has."""
        return {
            "task_id": self.task_id,
            "task_start_time": datetime.datetime.fromtimestamp(self.started / 1000, datetime.timezone.utc),
            "bucket": self.bucket,
            "progress_percentage": self.progress,
            "state": self.state,
            "failure_reason": self.failure_reason,
            "left_behind": self.left_behind,
        }
