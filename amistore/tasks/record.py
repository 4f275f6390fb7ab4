"""`TaskRecord`: a row of the journal, and what is told of it.

A row may be damaged, or written by another program: a record is valid from birth, so that nothing
else has to look. Next: `columns.py` has the rules.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, Final, Literal, get_args

import attrs
from attrs.validators import optional

from amistore.backends.checks import is_image_id, is_snapshot_id
from amistore.errors import InvalidValueError
from amistore.tasks.columns import TEXT, check_request, json_list, like, rule, tuple_of, whole
from amistore.tasks.task import RestoreImageTask, SnapshotProgress, StoreImageTask, TaskState

__all__ = ["MOST_GIB", "Kind", "Lease", "Stage", "TaskRecord", "VolumeRecord"]

Kind = Literal["store", "restore"]

Stage = Literal["queued", "running", "undoing", "ended"]
"""``undoing``: failed, and what it has made is still to be removed."""

MOST_GIB: Final = 2**40
"""More than any image has; the sum of all tasks fits into an integer of SQLite's."""

_IMAGE_ID: Final = rule("an AMI's id", is_image_id)
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


@attrs.frozen(kw_only=True)
class TaskRecord:
    """A task as the journal has it; docs/tasks.md explains its stages.

    Attributes:
        sequence: ascends in the order of creation.
        place: which backend it is of.
        size: GiB that it takes of the quota.
        request: what else it was asked for, of plain values.
        started: milliseconds since 1970, UTC.
        volumes: in the archive's order.
        epoch: of the current lease.
    """

    sequence: int = attrs.field(default=0, validator=whole(most=2**63 - 1))
    task_id: str = attrs.field(validator=TEXT)
    kind: Kind = attrs.field(validator=rule("store or restore", get_args(Kind).__contains__))
    place: str = attrs.field(validator=TEXT)
    image_id: str | None = attrs.field(validator=optional(_IMAGE_ID))
    source_image_id: str | None = attrs.field(validator=optional(_IMAGE_ID))
    name: str | None = attrs.field(validator=optional(TEXT))
    bucket: str = attrs.field(validator=TEXT)
    object_key: str = attrs.field(validator=TEXT)
    size: int = attrs.field(validator=_SIZE)
    request: dict[str, Any] = attrs.field(validator=check_request)
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
    def of_row(cls, row: dict[str, Any]) -> TaskRecord:
        """A record of a row's columns.

        Raises:
            InvalidValueError: it is damaged.
        """
        try:
            columns = {
                **row,
                "request": json.loads(row["request"]),
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
            **columns,
            "request": json.dumps(self.request),
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
        return tuple(volume.stored_id for volume in self.volumes) if self.kind == "store" else ()

    @property
    def state(self) -> TaskState:
        """As EC2 names it."""
        if self.stage in ("queued", "running"):
            return "InProgress"
        return "Completed" if self.failure_reason is None else "Failed"

    def task(self) -> StoreImageTask | RestoreImageTask:
        """What is told of it."""
        members: dict[str, Any] = {
            "task_id": self.task_id,
            "task_start_time": datetime.datetime.fromtimestamp(self.started / 1000, datetime.timezone.utc),
            "bucket": self.bucket,
            "progress_percentage": self.progress,
            "state": self.state,
            "failure_reason": self.failure_reason,
            "left_behind": self.left_behind,
        }
        if self.kind == "store":
            return StoreImageTask(
                ami_id=self.image_id or "",
                s3_object_key=self.object_key,
                content_id=self.content_id if self.state == "Completed" else None,
                **members,
            )
        return RestoreImageTask(
            image_id=self.image_id,
            source_image_id=self.source_image_id or "",
            name=self.name or "",
            object_key=self.object_key,
            snapshots=self.snapshots(),
            **members,
        )

    def snapshots(self) -> tuple[SnapshotProgress, ...]:
        """Those of a restore, told by the task's progress: all are restored one by one, then all filled."""
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
