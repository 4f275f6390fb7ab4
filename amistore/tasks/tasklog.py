"""`TaskLog`: a task's resume log, in the journal."""

from __future__ import annotations

import json

import attrs

from amistore.objects.resumelog import ResumeLog, read_entry
from amistore.tasks.journal import Journal
from amistore.tasks.record import TaskRecord

__all__ = ["TaskLog"]


class TaskLog(ResumeLog):
    """The log of one task, as its owner writes it.

    Args:
        journal: that has it.
        record: of the task, with the owner's lease.
    """

    def __init__(self, journal: Journal, record: TaskRecord) -> None:
        self._journal = journal
        self._lease = record.lease
        self._volumes = record.volumes

    def entries(self) -> list[bytes]:
        return self._journal.entries(self._lease.task_id)

    def append(self, entry: bytes) -> None:
        said = read_entry(entry)
        volumes = None
        if "snapshot" in said:
            self._volumes = tuple(
                attrs.evolve(volume, snapshot_id=said["snapshot"])
                if volume.stored_id == said["volume"]
                else volume
                for volume in self._volumes
            )
            volumes = json.dumps([attrs.asdict(volume) for volume in self._volumes])
        self._journal.append(self._lease, entry, volumes)

    def clear(self) -> None:
        self._journal.clear(self._lease)

    def end(self) -> None:
        """Kept: the journal ends it in the transaction that completes the task."""
