"""`TaskRun`: one run of a task by its owner, to the task's end or until the run must stop.

A run stops where it notes progress or writes to the log, that is, between parts or segments.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import time
from collections.abc import Callable
from typing import Final

import attrs

from amistore.backends import Backend
from amistore.backends.redaction import hide_secrets
from amistore.errors import (
    BackendError,
    CredentialsExpiredError,
    JournalError,
    StorageFullError,
    is_final,
)
from amistore.objects.abandonment import abandon
from amistore.objects.resumelog import ResumeLog, read_entry
from amistore.pipeline import Progress
from amistore.pipeline.workers import threads_can_begin
from amistore.tasks.journal import Journal, LeaseLostError
from amistore.tasks.record import TaskRecord

__all__ = [
    "CancelledError",
    "StoppedError",
    "TaskLog",
    "TaskRun",
    "tell",
]


_RUNS: Final = 3  # of a task that ends in an error which may pass; each goes on where the last ended
_PAUSE: Final = 5.0  # seconds, doubled
_REPORT: Final = 0.5  # seconds between two notes of progress, which are an fsync each

_logger = logging.getLogger("amistore")


class StoppedError(Exception):
    """The engine is closing."""


class CancelledError(Exception):
    """The task was cancelled."""

    def __str__(self) -> str:
        return "cancelled"


class TaskRun:
    """One run of a task.

    Args:
        record: the task's record, with its owner's lease.
        backend: the task's backend.
        journal: the journal with the task.
        workers: the number of segments worked on at once; None for the number of CPUs.
        clock: a function that returns the seconds since 1970.
        check: a function that raises `StoppedError`, `LeaseLostError` or `CancelledError` to stop the run.
        pause: a function that waits for so many seconds, or until the engine is closing.
    """

    def __init__(
        self,
        record: TaskRecord,
        backend: Backend,
        journal: Journal,
        *,
        workers: int | None,
        clock: Callable[[], float],
        check: Callable[[], None],
        pause: Callable[[float], None],
    ) -> None:
        self._record = record
        self._backend = backend
        self._journal = journal
        self._log = TaskLog(journal, record)
        self._workers = workers
        self._clock = clock
        self._check_here = check
        self._pause = pause
        self._done = False  # whether all is made, and the journal alone does not know it

    def run(self) -> None:
        """Do the task, again after errors that may pass by themselves; or undo what it made.

        Raises:
            StoppedError, LeaseLostError: another owner resumes the task.
            Exception: the error is not final; another run resumes the task.
        """
        record = self._record
        attempt = 0
        while record.stage != "undoing":
            attempt += 1
            try:
                self._check()
                self._do()
                return
            except (StoppedError, LeaseLostError, JournalError, StorageFullError, CredentialsExpiredError):
                raise  # nothing can be done here and now, not even asked
            except Exception as error:
                if not threads_can_begin():
                    raise StoppedError from error
                # Then only the journal does not know it yet: the answer was lost, or an earlier owner
                # that had been stopped went on for a moment. It is too late to fail.
                done = record.is_done(self._backend, self._log)
                self._done = self._done or done
                if attempt < _RUNS and (done or (isinstance(error, BackendError) and error.retryable)):
                    tell(record, "trying again", error, logging.WARNING)
                    if not isinstance(error, CancelledError):
                        self._pause(_PAUSE * 2 ** (attempt - 1))
                    continue
                if done or not (isinstance(error, CancelledError) or is_final(error)):
                    raise
                self._fail(error)
                break
        self._undo()

    def _check(self) -> None:
        """Stop the run if there is a reason; a completed task cannot be cancelled."""
        try:
            self._check_here()
        except CancelledError:
            if not self._done:
                raise

    def _do(self) -> None:
        record = self._record
        self._journal.begin(record.lease)
        tell(record, "running")
        reported = time.monotonic(), record.progress

        def progress(event: Progress) -> None:
            nonlocal reported
            self._check()
            percent = record.percentage(event)
            if percent > reported[1] and time.monotonic() - reported[0] >= _REPORT:
                self._journal.advance(record.lease, percent)
                reported = time.monotonic(), percent

        now = datetime.datetime.fromtimestamp(self._clock(), datetime.timezone.utc)
        outcome = record.run(self._backend, self._log, workers=self._workers, progress=progress, now=now)
        self._journal.complete(record.lease, image_id=outcome.image_id, content_id=outcome.content_id)
        tell(record, "completed", f"{outcome.image_id}, content id {outcome.content_id}")

    def _fail(self, error: Exception) -> None:
        record = self._record
        # A file name may hold bytes that are no text; SQLite takes text.
        reason = hide_secrets(str(error)).encode(errors="backslashreplace").decode()
        self._journal.fail(record.lease, reason)
        if isinstance(error, CancelledError):
            tell(record, "cancelled")
        else:
            tell(record, "failed", reason, logging.ERROR)

    def _undo(self) -> None:
        """Remove what a failed task made; what cannot be removed is noted, to try again."""
        record = self._record
        left = [_thing(entry) for entry in map(read_entry, self._log.entries())]
        try:
            abandon(self._log, self._backend, completed=True)
        except (LeaseLostError, JournalError):
            raise
        except Exception as error:
            if not threads_can_begin():
                raise StoppedError from error
            tell(record, "left behind", error, logging.ERROR)
            self._journal.leave(record.lease, sorted({thing for thing in left if thing}))
        else:
            self._journal.undone(record.lease)
            tell(record, "cleaned up")


def tell(record: TaskRecord, state: str, detail: object = "", level: int = logging.INFO) -> None:
    """Log a change of state in one line; docs/tasks.md has them all."""
    facts = {"task_id": record.task_id, "task_state": state}
    _logger.log(level, f"%s: %s{': ' if detail else ''}%s", record.task_id, state, detail, extra=facts)


def _thing(entry: dict[str, object]) -> str:
    """What was made according to a log's entry, with its id."""
    with contextlib.suppress(KeyError):
        return f"snapshot {entry['snapshot']}"
    with contextlib.suppress(KeyError):
        return f"upload {entry['upload']}"
    return ""


class TaskLog(ResumeLog):
    """A task's resume log, which its owner writes.

    Args:
        journal: the journal with the task.
        record: the task's record, with the owner's lease.
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
        """Keep the log: the journal ends it in the transaction that completes the task."""
