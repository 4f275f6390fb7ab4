"""`TaskRecord`: a row of the journal, its description for users, and the job that it stands for.

A row may be damaged, or written by another program. A record is validated at birth, so that no other code has
to check. Next: `store.py` and `restore.py` have the two kinds.
"""

from __future__ import annotations

import abc
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, ClassVar, Final, Literal, get_args

import attrs
from attrs.validators import instance_of, optional
from typing_extensions import Self

from amistore.backends import Backend
from amistore.errors import AlreadyExistsError, InvalidValueError
from amistore.model.fields import identifier, integer, rule, text
from amistore.objects.resumelog import ResumeLog
from amistore.pipeline import Phase, Progress
from amistore.pipeline.orders import Cluster
from amistore.pipeline.progress import ProgressCallback
from amistore.tasks.task import Task, TaskState

__all__ = ["MOST_GIB", "Kind", "Lease", "Stage", "TaskRecord", "VolumeRecord", "check_tags"]

Kind = Literal["store", "restore"]

Stage = Literal["queued", "running", "undoing", "ended"]
"""``undoing``: failed, and what it has made is still to be removed."""

MOST_GIB: Final = 2**40
"""More than any image has; the sum of all tasks fits into an integer of SQLite's."""

_YEAR_10000: Final = 253_402_300_800_000  # no date of Python's


def _is_text(value: object) -> bool:
    """Whether a string is Unicode: SQLite returns bytes that are no UTF-8 as lone surrogates."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _like(pattern: str, told: str) -> Any:
    """A field for strings that match a pattern, or None."""
    form = re.compile(pattern)
    holds = rule(told, lambda value: isinstance(value, str) and form.fullmatch(value) is not None)
    return attrs.field(default=None, validator=optional(holds))


check_tags: Final = rule(
    "tags, a mapping of texts, none of them empty, to texts or None",
    lambda value: (
        isinstance(value, Mapping)
        and all(map(_is_text, (*value, *(each for each in value.values() if each is not None))))
        and all(value)
    ),
)


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

    stored_id: str = identifier("snap", required=True)
    snapshot_id: str | None = identifier("snap")
    size: int = integer(most=MOST_GIB, required=True)
    blocks: int = integer(most=2**53, default=0)
    filled: int = integer(most=2**53, default=0)


@attrs.frozen(kw_only=True)
class TaskRecord(abc.ABC):
    """A task as the journal has it; docs/tasks.md explains its stages.

    The attributes are columns. Those that a kind adds are members of the column ``request``, in JSON.

    Attributes:
        kind: the kind of task.
        unique: the names of the columns that no two tasks of its kind in progress may share.
        sequence: the task's number, in the order of creation.
        place: the name of the task's backend.
        source_image_id, name: see `RestoreRecord`.
        size: the GiB that count for the quota.
        started: the time of creation, in milliseconds since 1970, UTC.
        volumes: the snapshots, in the archive's order.
        cancelled: whether the task is to be cancelled, 0 or 1.
        epoch: the number of the current lease.
    """

    kind: ClassVar[Kind]
    unique: ClassVar[tuple[str, ...]]

    sequence: int = integer(default=0)
    task_id: str = text(required=True)
    place: str = text(default="")
    image_id: str | None = identifier("ami")
    source_image_id: str | None = identifier("ami")
    name: str | None = text()
    bucket: str = text(required=True)
    object_key: str = text(required=True)
    size: int = integer(most=MOST_GIB, required=True)
    started: int = integer(most=_YEAR_10000 - 1, required=True)
    stage: Stage = attrs.field(default="queued", validator=rule("a stage", get_args(Stage).__contains__))
    progress: int = integer(most=100, default=0)
    failure_reason: str | None = text()
    content_id: str | None = _like("[0-9a-f]{64}", "a SHA-256")
    volumes: tuple[VolumeRecord, ...] = ()
    left_behind: tuple[str, ...] = attrs.field(
        default=(), validator=rule("texts", lambda value: all(map(_is_text, value)))
    )
    cancelled: int = integer(most=1, default=0)
    owner: str | None = _like("[0-9a-z-]{1,64}", "an engine's name")
    epoch: int = integer(most=2**53, default=0)
    lease_until: float = attrs.field(default=0.0, validator=instance_of(float))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of a row's columns.

        Raises:
            InvalidValueError: the row is damaged.
        """
        try:
            volumes = tuple(VolumeRecord(**each) for each in _json_list(row["volumes"]))
            left_behind = tuple(_json_list(row["left_behind"]))
            columns = {**json.loads(row["request"]), **row, "volumes": volumes, "left_behind": left_behind}
            return cls(**{field.name: columns[field.name] for field in attrs.fields(cls)})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidValueError(f"{type(error).__name__}: {error}") from None

    def row(self) -> dict[str, Any]:
        """The columns of a new record."""
        members = attrs.asdict(self)
        columns = {field.name: members.pop(field.name) for field in attrs.fields(TaskRecord)}
        del columns["sequence"]
        lists = {name: json.dumps(columns[name]) for name in ("volumes", "left_behind")}
        return {**columns, **lists, "kind": self.kind, "request": json.dumps(members)}

    @property
    def lease(self) -> Lease:
        """The current lease."""
        return Lease(self.task_id, self.epoch)

    @property
    def reads(self) -> tuple[str, ...]:
        """The ids of the snapshots that the task lists."""
        return ()

    @property
    def uploads(self) -> tuple[str, str] | None:
        """The bucket and key of the object that the task makes; None where it makes none."""
        return None

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

    def begun(self, stored_id: str, snapshot_id: str) -> Self:
        """With the id of a snapshot that was begun for an archived one."""
        volumes = (
            attrs.evolve(each, snapshot_id=snapshot_id) if each.stored_id == stored_id else each
            for each in self.volumes
        )
        return attrs.evolve(self, volumes=tuple(volumes))

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
        workers: int | None,
        cluster: Cluster | None,
        progress: ProgressCallback,
        now: datetime,
    ) -> tuple[str, str]:
        """Do the task's job, from where its log ends.

        Args:
            backend: the task's backend.
            log: the task's log.
            workers: the number of segments worked on at once; None for the number of CPUs.
            cluster: who does the job by orders; None for threads of this process.
            progress: a function called with a `Progress`, often; an exception of it ends the run.
            now: the object's time stamp.

        Returns:
            The AMI's id, and the archive's content id.
        """

    @abc.abstractmethod
    def is_done(self, backend: Backend, log: ResumeLog) -> bool:
        """Whether the task's result exists, though the journal does not know it yet."""

    def _told(self) -> dict[str, Any]:
        """The attributes of every `Task`."""
        return {
            "task_id": self.task_id,
            "task_start_time": datetime.fromtimestamp(self.started / 1000, timezone.utc),
            "bucket": self.bucket,
            "progress_percentage": self.progress,
            "state": self.state,
            "failure_reason": self.failure_reason,
            "left_behind": self.left_behind,
        }


def _json_list(column: str) -> list[Any]:
    found = json.loads(column)
    if not isinstance(found, list):
        raise TypeError(f"{column:.80} is no list")
    return found
