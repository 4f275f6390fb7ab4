"""Processes that share a journal: `python -m tasks.sharing`; each works until all tasks have ended.

It tells that it is ready, and begins when it is sent a line.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import sys
from collections.abc import Iterator

from objects import runs

import amistore
from amistore.objects.store import StoreJob
from amistore.tasks import run, runner, store
from amistore.tasks.journal import Journal
from amistore.tasks.record import Lease

LEASE = 1.0

WRITTEN = """
CREATE TABLE written (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT,
    epoch INTEGER,
    now INTEGER,
    owner TEXT
)
"""
"""What was written to tasks: the writer's epoch, the task's in that transaction, and the process."""

LEFT = """
import os, sys, amistore
from amistore.tasks.runner import TaskRunner
TaskRunner._submit = lambda *arguments: None
engine = amistore.TaskEngine(amistore.DirectoryBackend(sys.argv[1]), quotas=amistore.Quotas.unlimited())
for image_id in sys.argv[2::2]:
    engine.create_restore_image_task(
        bucket="archive", object_key=f"done/{image_id}.bin", name=f"restored-{image_id}"
    )
for image_id in sys.argv[2:]:
    engine.create_store_image_task(image_id=image_id, bucket="archive")
os._exit(0)
"""
"""Stores of all AMIs, and restores of each second one, by a process that dies before it works."""

pack_in_parts = functools.partial(StoreJob, options=runs.PACKING)


def main(root: str) -> None:
    runner.LEASE = LEASE  # type: ignore[misc]
    runner._HEARTBEAT = LEASE / 8  # type: ignore[misc]
    run._PAUSE = 0.0  # type: ignore[misc]
    store.StoreJob = pack_in_parts  # type: ignore[assignment]
    note_writes()
    with amistore.TaskEngine(amistore.DirectoryBackend(root), workers=1) as engine:
        os.write(1, b"ready\n")
        sys.stdin.readline()
        unfinished = True
        while unfinished:
            engine.resume()
            tasks = [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]
            unfinished = any(task.state == "InProgress" for task in tasks)
            for task in tasks:
                try:
                    engine.wait(task)
                except amistore.AmistoreError as error:
                    os.write(1, f"{task.task_id}: {type(error).__name__}: {error}\n".encode())


def note_writes() -> None:
    """Note in the journal, in the same transaction, who writes to which task under which lease."""
    writing = Journal._writing

    @contextlib.contextmanager
    def noted(self: Journal, lease: Lease | None = None) -> Iterator[sqlite3.Connection]:
        with writing(self, lease) as database:
            if lease is not None:
                (now,) = database.execute(
                    "SELECT epoch FROM task WHERE task_id = ?", [lease.task_id]
                ).fetchone()
                database.execute(
                    "INSERT INTO written (task_id, epoch, now, owner) VALUES (?, ?, ?, ?)",
                    [lease.task_id, lease.epoch, now, str(os.getpid())],
                )
            yield database

    Journal._writing = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1])
