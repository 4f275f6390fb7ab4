"""`TaskRunner`: the threads that run an engine's tasks, and the engine's leases.

A limited number runs at once, the others wait, first in, first out; `run.py` is one run of a task.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final, TypeVar

import attrs

from amistore import forks
from amistore.backends import Backend
from amistore.backends.quotas import Quotas
from amistore.backends.redaction import hide_secrets, redact_log
from amistore.errors import (
    AmistoreError,
    InvalidRequestError,
    JournalError,
    ResourcesExhaustedError,
    machine_limits,
)
from amistore.pipeline.orders import Cluster
from amistore.pipeline.workers import threads_can_begin
from amistore.tasks.database import Ownership
from amistore.tasks.journal import Journal, LeaseLostError
from amistore.tasks.record import Lease, TaskRecord
from amistore.tasks.requests import OnQuota, check_choice, dry_run_succeeded, engine_closed
from amistore.tasks.run import CancelledError, StoppedError, TaskRun, tell
from amistore.tasks.task import TaskCallback

__all__ = ["LEASE", "TaskRunner"]

LEASE: Final = 60.0
"""Seconds that a task stays its owner's without a sign of life, where the process still exists."""

_HEARTBEAT: Final = 5.0

_logger = logging.getLogger("amistore")

R = TypeVar("R", bound=TaskRecord)


@attrs.define(eq=False, slots=False)
class TaskRunner:
    """Runs an owner's tasks.

    Args:
        backend: the tasks' backend.
        journal: the journal with the tasks.
        ownership: the engine's sign of life.
        workers: the number of segments of a task worked on at once; None for the number of CPUs.
        cluster: who does all tasks' jobs by orders; None for threads of this process.
        concurrency: the number of tasks run at once.
        clock: a function that returns the seconds since 1970.

    Attributes:
        mine: the ids of the tasks that were created or taken here, oldest first.
        changed: the condition that is notified when a task's run ends; it guards all below.
        stuck: the errors that ended a run but not its task, by the task's id.
    """

    _backend: Backend
    _journal: Journal
    _ownership: Ownership
    _workers: int | None
    _cluster: Cluster | None
    _concurrency: int
    _clock: Callable[[], float]
    mine: list[str] = attrs.field(factory=list, init=False)
    changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    stuck: dict[str, AmistoreError] = attrs.field(factory=dict, init=False)
    _queue: deque[TaskRecord] = attrs.field(factory=deque, init=False)
    _active: dict[str, TaskRecord] = attrs.field(factory=dict, init=False)
    _lost: set[str] = attrs.field(factory=set, init=False)
    _cancelled: set[str] = attrs.field(factory=set, init=False)
    _threads: list[threading.Thread] = attrs.field(factory=list, init=False)
    _cancelling: list[threading.Thread] = attrs.field(factory=list, init=False)
    _closing: bool = attrs.field(default=False, init=False)
    _changes: int = attrs.field(default=0, init=False)  # how often a task came to rest here, or all did
    # Held so that a task of ours in the journal is one that is here, too.
    _taking: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        redact_log(_logger.name)  # a backend's error may tell a signed URL

    def until(self) -> float:
        """The end of a lease that begins now, by the clock of leases."""
        return time.monotonic() + LEASE

    def _create(self, record: TaskRecord, limit: int | None) -> None:
        """Add a new task to the journal, and run it.

        Raises:
            ResourcesExhaustedError: no thread can be started; there is no task then.
            others: the errors of `Journal.add`.
        """
        record = attrs.evolve(record, owner=self._ownership.owner, epoch=1, lease_until=self.until())
        with self._taking:
            self._begin_threads()
            self._journal.add(record, limit)
            tell(record, "queued", record.task().purpose)
            self.mine.append(record.task_id)
            self._submit([record])

    def admit(self, check: Callable[[], R], quotas: Quotas, *, on_quota: OnQuota, dry_run: bool) -> R:
        """Make a new task durable, and work on it.

        Args:
            check: a function that checks the request as things are now, and gives the task's record. It is
                called again after waiting, which may take hours.
            quotas: the engine's quotas.
            on_quota: whether a task waits or is refused where its kind's quota is used up.
            dry_run: whether to check only if the task would be admitted.

        Raises:
            InvalidRequestError: the quota is used up, and no engine runs the tasks that use it up, or
                `on_quota` refuses; or this was a dry run, and nothing is wrong.
            others: the errors of `Journal.add`.
        """
        check_choice(on_quota, "on_quota", OnQuota)
        while True:
            record = check()
            limit = quotas.in_progress(record.kind)
            if dry_run:
                self._journal.add(record, limit if on_quota == "refuse" else None, dry_run=True)
                raise dry_run_succeeded()
            try:
                self._create(record, limit)
                return record
            except InvalidRequestError as error:
                if on_quota == "refuse" or limit is None or error.code != "ResourceLimitExceeded":
                    raise
                _logger.info("%s waits: %s", record.task().purpose, error.message)
            self._wait_for_room(record, limit)

    def _wait_for_room(self, record: TaskRecord, limit: int) -> None:
        """Wait until a new task would be admitted, beside those of other processes too.

        Raises:
            InvalidRequestError: the engine was closed meanwhile, or nobody works on what uses the quota up.
        """
        while True:
            with self.changed:
                seen = self._changes
            with self._taking:
                if self._journal.has_room(record, limit, self.is_free):
                    return
            self._wait_for_change(seen, _HEARTBEAT)
            if self._closing:
                raise engine_closed()

    def take(self, records: Iterable[TaskRecord]) -> list[TaskRecord]:
        """Take those of the journal's tasks that nobody runs, and run them; return them."""
        owner, until = self._ownership.owner, self.until()
        with self._taking:
            wanted = list(records)
            if wanted:
                self._begin_threads()
            found = [self._journal.take(each.task_id, owner, until, self.is_free) for each in wanted]
            taken = [record for record in found if record is not None]
            self.mine += [record.task_id for record in taken if record.task_id not in self.mine]
            for record in taken:
                tell(record, "taken over", record.task().purpose)
            if taken:
                self._submit(taken)
        return taken

    def forget(self, task_ids: Set[str]) -> None:
        """Take tasks out of `mine`; others may be added meanwhile."""
        with self._taking:
            self.mine = [each for each in self.mine if each not in task_ids]

    def is_free(self, record: TaskRecord) -> bool:
        """Whether no living owner has the task."""
        if record.owner == self._ownership.owner:
            return not self.has(record.task_id)  # its run ended without an end of the task
        return (
            record.owner is None
            or record.lease_until <= time.monotonic()
            or not self._ownership.alive(record.owner)
        )

    def wait(self, task_ids: Sequence[str], report: TaskCallback | None = None) -> list[TaskRecord]:
        """Wait until tasks have ended or stopped; those that nobody runs are taken.

        Args:
            task_ids: the ids of the tasks, also of other processes'.
            report: a function called now and then with each task that is not queued here.

        Raises:
            JournalError: the journal could not be written.
            InvalidRequestError: the engine was closed meanwhile, or no thread can be started.
        """
        rest: dict[str, TaskRecord] = {}
        while True:
            with self.changed:
                seen = self._changes
                waiting = {record.task_id for record in self._queue}
            for task_id in task_ids:
                if task_id in rest or task_id in waiting:
                    continue
                record = self._journal.task(task_id)
                if report is not None:
                    report(record.task())
                if record.stage == "ended" or (record.stage == "undoing" and record.owner is None):
                    rest[task_id] = record
                else:
                    self._follow(record)
            if len(rest) == len(task_ids):
                return [rest[task_id] for task_id in task_ids]
            self._wait_for_change(seen, 0.5)

    def _wait_for_change(self, seen: int, seconds: float) -> None:
        """Wait until a task came to rest, or so long: of another process nothing is told here."""
        with self.changed:
            self.changed.wait_for(lambda: self._changes != seen, timeout=seconds)

    def _follow(self, record: TaskRecord) -> None:
        """Take a task if nobody runs it, or raise the reason why that is impossible."""
        with self.changed:
            if record.owner == self._ownership.owner and record.task_id in self.stuck:
                raise self.stuck[record.task_id]
            if self._closing:
                raise engine_closed()
            here = self.has(record.task_id)
        if not here and self.is_free(record):
            if not threads_can_begin():
                raise InvalidRequestError(
                    f"{record.task_id} stopped, as no thread can be begun any more: wait for it before the "
                    "program's main thread ends, or resume it in the next run"
                )
            self.take([record])

    def _submit(self, records: Iterable[TaskRecord]) -> None:
        with self.changed:
            for record in records:
                self._lost.discard(record.task_id)
                self.stuck.pop(record.task_id, None)
                if record.cancelled:
                    self._cancelled.add(record.task_id)
                self._queue.append(record)
            self.changed.notify_all()

    def _begin_threads(self) -> None:
        """Start missing threads, before there is a task that would wait for them for ever.

        Raises:
            ResourcesExhaustedError: no thread can be started.
        """
        with self.changed:
            while len(self._threads) < self._concurrency + 1:
                target = self._serve if self._threads else self._keep_leases
                # Daemons: a script's end does not wait for its tasks, which another run resumes.
                thread = threading.Thread(target=target, name="amistore-task", daemon=True)
                with machine_limits():
                    thread.start()
                self._threads.append(thread)

    def has(self, task_id: str) -> bool:
        """Whether a task is queued or running here."""
        with self.changed:
            return task_id in self._active or any(each.task_id == task_id for each in self._queue)

    def cancel(self, task_id: str) -> None:
        """Cancel a task: a queued one at once (in its turn without a thread), others where they stop next."""
        with self.changed:
            self._cancelled.add(task_id)
            waiting = next((each for each in self._queue if each.task_id == task_id), None)
            if waiting is None:
                return
            thread = threading.Thread(target=self._work_on, args=(waiting,), daemon=True)
            try:
                with machine_limits():
                    thread.start()
            except ResourcesExhaustedError:
                return  # when its turn comes
            self._cancelling.append(thread)
            self._queue.remove(waiting)
            self._active[task_id] = waiting

    def close(self) -> None:
        """Stop all tasks at the next part, and end the threads."""
        with self.changed:
            self._closing = True
            self._changes += 1
            self._queue.clear()
            self.changed.notify_all()
        for thread in (*self._threads, *self._cancelling):
            thread.join()

    def _serve(self) -> None:
        while True:
            with self.changed:
                while (record := self._next()) is None and not self._closing:
                    self.changed.wait()
                if record is None or self._closing:
                    return
                self._queue.remove(record)
                self._active[record.task_id] = record
            self._work_on(record)

    def _next(self) -> TaskRecord | None:
        """The first queued task that reads no snapshot that a running one reads.

        Listing a snapshot ends the block tokens that another lister of it has (EBS direct APIs,
        ListSnapshotBlocks).
        """
        read = {snapshot_id for record in self._active.values() for snapshot_id in record.reads}
        return next((record for record in self._queue if read.isdisjoint(record.reads)), None)

    def _work_on(self, record: TaskRecord) -> None:
        check = functools.partial(self._check, record)
        run = TaskRun(
            record,
            self._backend,
            self._journal,
            self._workers,
            self._cluster,
            self._clock,
            check=check,
            pause=self._pause,
        )
        try:
            with forks.confined():
                run.run()
        except StoppedError:
            tell(record, "stopped", "to be resumed")
        except LeaseLostError as error:
            tell(record, "left to another", error, logging.WARNING)
        except BaseException as error:  # a thread that ended by it would serve no other task
            tell(record, "left unfinished", error, logging.ERROR)
            if not isinstance(error, AmistoreError):
                _logger.exception("%s: unexpected", record.task_id)
                error = AmistoreError(f"{type(error).__name__}: {error}")
            error.message = hide_secrets(error.message)  # as the log does
            error.args = (error.message,)
            with self.changed:
                self.stuck[record.task_id] = error
        finally:
            with self.changed:
                del self._active[record.task_id]
                self._cancelled.discard(record.task_id)
                self._changes += 1
                self.changed.notify_all()

    def _check(self, record: TaskRecord) -> None:
        if self._closing:
            raise StoppedError
        if record.task_id in self._lost:
            raise LeaseLostError("its lease has ended")
        if record.task_id in self._cancelled:
            raise CancelledError

    def _pause(self, seconds: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self._closing, timeout=seconds)

    def _keep_leases(self) -> None:
        while True:
            with self.changed:
                if self.changed.wait_for(lambda: self._closing, timeout=_HEARTBEAT):
                    return
            before = self._leases()
            try:
                self._ownership.hold()
                owned = self._journal.renew(self._ownership.owner, before, self.until())
            except JournalError as error:
                _logger.warning("cannot renew leases: %s", error)
                continue
            with self.changed:
                # What was left meanwhile is not in `owned` any more.
                ours = before & self._leases()
                self._lost |= {lease.task_id for lease in ours if lease not in owned}
                cancelled = {lease.task_id for lease in ours if owned.get(lease)} - self._cancelled
            for task_id in cancelled:
                self.cancel(task_id)

    def _leases(self) -> set[Lease]:
        """The leases of the tasks that are queued or running here."""
        with self.changed:
            return {record.lease for record in (*self._active.values(), *self._queue)}
