"""`TaskRun`: one run of a task by its owner, to the task's end or until the run must stop.

A run stops where it notes progress or writes to the log, that is, between parts or segments. `sweep_uploads`
removes what lost runs have left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final

import attrs

from amistore.backends import Backend
from amistore.backends.redaction import hide_secrets
from amistore.errors import (
    AmistoreError,
    BackendError,
    CredentialsExpiredError,
    JournalError,
    NotFoundError,
    StorageFullError,
    is_final,
)
from amistore.objects import abandon
from amistore.objects.resumelog import ResumeLog, read_entry
from amistore.pipeline import Progress
from amistore.pipeline.orders import Cluster
from amistore.pipeline.workers import threads_can_begin
from amistore.tasks.journal import Journal, LeaseLostError
from amistore.tasks.record import Lease, TaskRecord

__all__ = ["CancelledError", "StoppedError", "SweepReport", "TaskRun", "sweep_uploads", "tell"]

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


@attrs.define(eq=False)
class TaskRun:
    """One run of a task.

    Attributes:
        record: the task's record, with its owner's lease.
        backend: the task's backend.
        journal: the journal with the task.
        workers: the number of segments worked on at once; None for the number of CPUs.
        cluster: who does all tasks' jobs by orders; None for threads of this process.
        clock: a function that returns the seconds since 1970.
        check: a function that raises `StoppedError`, `LeaseLostError` or `CancelledError` to stop the run.
        pause: a function that waits for so many seconds, or until the engine is closing.
    """

    record: TaskRecord
    backend: Backend
    journal: Journal
    workers: int | None
    cluster: Cluster | None
    clock: Callable[[], float]
    check: Callable[[], None]
    pause: Callable[[float], None]
    _done: bool = attrs.field(default=False, init=False)  # all is made, and the journal alone does not know

    @property
    def _log(self) -> TaskLog:
        return TaskLog(self.journal, self.record.lease)

    def run(self) -> None:
        """Do the task, again after errors that may pass by themselves; or undo what it made.

        Raises:
            StoppedError, LeaseLostError: another owner resumes the task.
            Exception: the error is not final; another run resumes the task.
        """
        record = self.record
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
                done = record.is_done(self.backend, self._log)
                self._done = self._done or done
                if attempt < _RUNS and (done or (isinstance(error, BackendError) and error.retryable)):
                    tell(record, "trying again", error, logging.WARNING)
                    if not isinstance(error, CancelledError):
                        self.pause(_PAUSE * 2 ** (attempt - 1))
                    continue
                if done or not (isinstance(error, CancelledError) or is_final(error)):
                    raise
                self._fail(error)
                break
        self._undo()

    def _check(self) -> None:
        """Stop the run if there is a reason; a completed task cannot be cancelled."""
        try:
            self.check()
        except CancelledError:
            if not self._done:
                raise

    def _do(self) -> None:
        record = self.record
        self.journal.begin(record.lease)
        tell(record, "running")
        reported = time.monotonic(), record.progress

        def progress(event: Progress) -> None:
            nonlocal reported
            self._check()
            percent = record.percentage(event)
            if percent > reported[1] and time.monotonic() - reported[0] >= _REPORT:
                self.journal.advance(record.lease, percent)
                reported = time.monotonic(), percent

        now = datetime.fromtimestamp(self.clock(), timezone.utc)
        image_id, content_id = record.run(self.backend, self._log, self.workers, self.cluster, progress, now)
        self.journal.complete(record.lease, image_id=image_id, content_id=content_id)
        tell(record, "completed", f"{image_id}, content id {content_id}")

    def _fail(self, error: Exception) -> None:
        record = self.record
        # A file name may hold bytes that are no text; SQLite takes text.
        reason = hide_secrets(str(error)).encode(errors="backslashreplace").decode()
        self.journal.fail(record.lease, reason)
        if isinstance(error, CancelledError):
            tell(record, "cancelled")
        else:
            tell(record, "failed", reason, logging.ERROR)

    def _undo(self) -> None:
        """Remove what a failed task made; what cannot be removed is noted, to try again."""
        record = self.record
        left = [_thing(entry) for entry in map(read_entry, self._log.entries())]
        try:
            abandon(self._log, self.backend, completed=True)
        except (LeaseLostError, JournalError):
            raise
        except Exception as error:
            if not threads_can_begin():
                raise StoppedError from error
            tell(record, "left behind", error, logging.ERROR)
            self.journal.leave(record.lease, sorted({thing for thing in left if thing}))
        else:
            self.journal.undone(record.lease)
            tell(record, "cleaned up")


def tell(record: TaskRecord, state: str, detail: object = "", level: int = logging.INFO) -> None:
    """Log a change of state in one line; docs/tasks.md has them all."""
    facts = {"task_id": record.task_id, "task_state": state}
    _logger.log(level, f"%s: %s{': ' if detail else ''}%s", record.task_id, state, detail, extra=facts)


def _thing(entry: dict[str, object]) -> str:
    """What was made according to a log's entry, with its id."""
    return next((f"{kind} {entry[kind]}" for kind in ("snapshot", "upload") if kind in entry), "")


@attrs.frozen
class TaskLog(ResumeLog):
    """A task's resume log in the journal, which the lease's owner writes."""

    journal: Journal
    lease: Lease

    def entries(self) -> list[bytes]:
        return self.journal.entries(self.lease.task_id)

    def append(self, entry: bytes) -> None:
        self.journal.append(self.lease, entry)

    def clear(self) -> None:
        self.journal.clear(self.lease)

    def end(self) -> None:
        """Keep the log: the journal ends it in the transaction that completes the task."""


@attrs.frozen(kw_only=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        removed: what was removed, each with its id.
        left: what may not or could not be removed, each with the reason.
    """

    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def sweep_uploads(backend: Backend, journal: Journal, place: str) -> SweepReport:
    """Abort empty uploads at the keys of ended tasks.

    If the answer to a call that begins an upload is lost, the next attempt begins another, and an empty
    upload is left. It holds nothing, and a run elsewhere that has just begun it begins another. An upload
    with parts belongs to another program: a task sends parts only to an upload whose id its log has.
    """
    removed: list[str] = []
    left: list[str] = []
    for made in dict.fromkeys(record.uploads for record in journal.ended(place)):
        if made is None:
            continue
        bucket, key = made
        try:
            uploads = [each for each in backend.s3.list_multipart_uploads(bucket, key) if each.key == key]
        except NotFoundError:
            continue  # the bucket is gone
        except AmistoreError as error:
            left.append(f"uploads of {bucket}/{key}, which could not be listed: {error}")
            continue
        # Asked for after the list: an upload in it that is of a live task is of one of these.
        if not uploads or any(each.uploads == made for each in journal.unfinished(place)):
            continue
        for upload in uploads:
            told = f"upload {upload.upload_id} of {bucket}/{key}"
            try:
                if backend.s3.list_parts(bucket, key, upload.upload_id):
                    left.append(f"{told}, which no task here has begun")
                    continue
                backend.s3.abort_multipart_upload(bucket, key, upload.upload_id)
                removed.append(told)
            except NotFoundError:
                continue  # completed or aborted meanwhile
            except AmistoreError as error:
                left.append(f"{told}: {error}")
    return SweepReport(removed=tuple(removed), left=tuple(left))
