"""`TaskRecord`: a row of the journal, and what is told of it."""

from __future__ import annotations

import datetime
import json
from typing import Any, Literal

import attrs

from amistore.tasks.task import RestoreImageTask, SnapshotProgress, StoreImageTask, TaskState

__all__ = ["Kind", "Lease", "Stage", "TaskRecord", "VolumeRecord"]

Kind = Literal["store", "restore"]

Stage = Literal["queued", "running", "undoing", "ended"]
"""``undoing``: failed, and what it has made is still to be removed."""


@attrs.frozen
class Lease:
    """The right to write of a task: lost once the journal's epoch of it is a later one."""

    task_id: str
    epoch: int


@attrs.frozen(kw_only=True)
class VolumeRecord:
    """A snapshot that is stored, or stored and to be restored: its id and size in GiB.

    Of a restore also the new snapshot's id, once it is known, and the number of listed blocks.
    """

    stored_id: str
    snapshot_id: str | None = None
    size: int
    blocks: int = 0


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

    sequence: int = 0
    task_id: str
    kind: Kind
    place: str
    image_id: str | None
    source_image_id: str | None
    name: str | None
    bucket: str
    object_key: str
    size: int
    request: dict[str, Any]
    started: int
    stage: Stage = "queued"
    progress: int = 0
    failure_reason: str | None = None
    content_id: str | None = None
    volumes: tuple[VolumeRecord, ...] = ()
    left_behind: tuple[str, ...] = ()
    cancelled: bool = False
    owner: str | None = None
    epoch: int = 0
    lease_until: float = 0.0

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> TaskRecord:
        """A record of a row's columns."""
        return cls(
            **{
                **row,
                "request": json.loads(row["request"]),
                "volumes": tuple(VolumeRecord(**each) for each in json.loads(row["volumes"])),
                "left_behind": tuple(json.loads(row["left_behind"])),
                "cancelled": bool(row["cancelled"]),
            }
        )

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
    def purpose(self) -> str:
        """What it makes of what, for people."""
        place = f"{self.bucket}/{self.object_key}"
        return f"{self.image_id} to {place}" if self.kind == "store" else f"{place} to {self.name!r}"

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
        """Those of a restore: one after the other is restored, so the task's progress tells that of each."""
        total = sum(volume.blocks for volume in self.volumes)
        done = total * self.progress // 100
        found = []
        for volume in self.volumes:
            part = min(done, volume.blocks)
            done -= part
            percent = 100 * part // volume.blocks if volume.blocks else self.progress
            found.append(
                SnapshotProgress(
                    stored_id=volume.stored_id,
                    snapshot_id=volume.snapshot_id,
                    volume_size=volume.size,
                    progress_percentage=percent,
                )
            )
        return tuple(found)
