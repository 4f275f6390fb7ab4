"""`Journal`: tasks in an SQLite file that several processes share, so that a crash loses none.

Each method is one transaction, on the disk once it returns (write-ahead log, synchronous=FULL).
What a task's owner writes carries its lease: after another has taken the task over, nothing of
an earlier owner is accepted. Nothing secret is kept. Next: `database.py` has the file and
its columns, and tells who is alive.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from amistore import forks
from amistore.backends.quotas import REMEDY
from amistore.errors import AmistoreError, InvalidRequestError, InvalidValueError, JournalError
from amistore.objects.resumelog import read_entry
from amistore.tasks.database import Database
from amistore.tasks.record import MOST_GIB, Kind, Lease, TaskRecord
from amistore.tasks.requests import PageRequest, refused
from amistore.tasks.restore import RestoreRecord
from amistore.tasks.store import StoreRecord

__all__ = ["Journal", "LeaseLostError"]

_logger = logging.getLogger("amistore")


class LeaseLostError(AmistoreError):
    """Another owner has taken the task over."""


class Journal:
    """All tasks of one file.

    Args:
        path: the file's path; it is made where it is missing, readable by its owner only, and must be on a
            filesystem of this machine (SQLite's write-ahead log). None for a journal in memory.

    Raises:
        JournalError: the file cannot be opened, or is no journal.
        InvalidRequestError: a newer amistore made the journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._database = Database(path)
        self.name = self._database.name

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # What tasks there are.

    def task(self, task_id: str) -> TaskRecord:
        """A task.

        Raises:
            InvalidRequestError: no task has that id.
            JournalError: the task's row is damaged.
        """
        with self._database.using() as database:
            row = database.execute("SELECT * FROM task WHERE task_id = ?", [task_id]).fetchone()
        if row is None:
            raise refused(f"the journal {self.name} has no task {task_id}")
        return self._record(row)

    def unfinished(self, place: str) -> list[TaskRecord]:
        """The unfinished tasks of a backend, oldest first."""
        return self._select("place = ? AND stage != 'ended'", [place], "sequence")

    def ended(self, place: str) -> list[TaskRecord]:
        """The ended tasks of a backend, oldest first."""
        return self._select("place = ? AND stage = 'ended'", [place], "sequence")

    def in_progress(self, place: str, kind: Kind) -> int:
        """The GiB of a backend's queued and running tasks of a kind."""
        # No damaged size takes all of a quota, or gives some.
        sql = (
            f"SELECT coalesce(sum(size), 0) FROM task WHERE {_IN_PROGRESS} AND size BETWEEN 0 AND {MOST_GIB}"
        )
        with self._database.using() as database:
            return int(database.execute(sql, [place, kind]).fetchone()[0])

    def page(self, place: str, request: PageRequest) -> list[TaskRecord]:
        """The requested tasks of a backend, newest first."""
        where = ["place = ?", "kind = ?", "started >= ?"]
        values: list[object] = [place, request.kind, request.since]
        if request.before is not None:
            where.append("sequence < ?")
            values.append(request.before)
        given = (("image_id", request.image_ids), ("bucket", request.buckets), (_STATE, request.states))
        for column, wanted in given:
            if wanted:
                where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += wanted
        return self._select(" AND ".join(where), values, "sequence DESC", request.limit)

    def add(self, record: TaskRecord, limit: int | None, *, dry_run: bool = False) -> None:
        """Make a task durable, if the quota and the other tasks in progress allow it.

        Args:
            record: the task's record, of stage ``queued``, with its owner's lease.
            limit: the GiB in progress from which on the task is refused; None for no limit.
            dry_run: whether to check only.

        Raises:
            AlreadyExistsError: another task in progress makes the same object, or name.
            InvalidRequestError: the quota is used up; ``ResourceLimitExceeded``.
            JournalError: a task that does the same is damaged.
        """
        with self._writing() as database:
            same = " AND ".join(f"{name} = ?" for name in record.unique)
            sql = f"SELECT * FROM task WHERE {_IN_PROGRESS} AND {same}"
            values = [getattr(record, name) for name in record.unique]
            row = database.execute(sql, [record.place, record.kind, *values]).fetchone()
            if row is not None:
                raise record.conflict(self._record(row).task_id)
            used = self.in_progress(record.place, record.kind)
            if limit is not None and used >= limit:
                raise _used_up(record.kind, used, limit)
            if dry_run:
                return
            row = record.row()
            marks = ", ".join("?" * len(row))
            database.execute(f"INSERT INTO task ({', '.join(row)}) VALUES ({marks})", list(row.values()))

    def has_room(self, record: TaskRecord, limit: int, free: Callable[[TaskRecord], bool]) -> bool:
        """Whether the quota of a task's kind would admit it now.

        Args:
            record: the record of a task that is not in the journal.
            limit: the quota's GiB in progress.
            free: a function that tells, in the same transaction, whether no engine runs a task.

        Raises:
            InvalidRequestError: the quota is used up, and no engine runs the tasks that use it up.
        """
        with self._writing():
            used = self.in_progress(record.place, record.kind)
            if used < limit:
                return True
            others = [each for each in self.unfinished(record.place) if each.state == "InProgress"]
            if all(free(each) for each in others if each.kind == record.kind):
                raise _used_up(record.kind, used, limit)
            return False

    # Who works on them.

    def take(
        self, task_id: str, owner: str, until: float, free: Callable[[TaskRecord], bool]
    ) -> TaskRecord | None:
        """Become the owner of a task; None where it has an owner, or has ended.

        Args:
            task_id: the task's id.
            owner: the new owner's name.
            until: the lease's end.
            free: a function that says whether the task may be taken; it runs in the same transaction.
        """
        with self._writing():
            record = self.task(task_id)
            if record.stage == "ended" or not free(record):
                return None
            record = attrs.evolve(record, owner=owner, epoch=record.epoch + 1, lease_until=until)
            self._set(task_id, owner=owner, epoch=record.epoch, lease_until=until)
            return record

    def renew(self, owner: str, leases: Iterable[Lease], until: float) -> dict[Lease, bool]:
        """Extend an owner's leases; return those of unfinished tasks, and which of these are cancelled."""
        with self._writing() as database:
            sql = f"UPDATE task SET lease_until = ? WHERE {_OWNED} AND task_id = ?"
            database.executemany(sql, [(until, owner, lease.task_id) for lease in leases])
            sql = f"SELECT task_id, epoch, cancelled FROM task WHERE {_OWNED}"
            found = database.execute(sql, [owner]).fetchall()
        return {Lease(row["task_id"], row["epoch"]): bool(row["cancelled"]) for row in found}

    def release(self, owner: str) -> list[str]:
        """Leave an owner's tasks to others; return their ids."""
        with self._writing() as database:
            left = [record.task_id for record in self._select(_OWNED, [owner])]
            database.execute(f"UPDATE task SET owner = NULL WHERE {_OWNED}", [owner])
        return left

    # How far they are.

    def begin(self, lease: Lease) -> None:
        """Note that the task is running."""
        with self._writing(lease):
            self._set(lease.task_id, stage="running")

    def advance(self, lease: Lease, progress: int) -> None:
        """Note progress, in percent; it never falls."""
        with self._writing(lease) as database:
            sql = "UPDATE task SET progress = max(progress, ?) WHERE task_id = ?"
            database.execute(sql, [progress, lease.task_id])

    def complete(self, lease: Lease, *, image_id: str | None, content_id: str) -> None:
        """Note that the task is completed, and what it made."""
        with self._writing(lease):
            self._set(lease.task_id, image_id=image_id, content_id=content_id, progress=100)
            self._end(lease.task_id)

    def fail(self, lease: Lease, reason: str) -> None:
        """Note that the task has failed, so that what it made is removed."""
        with self._writing(lease):
            self._set(lease.task_id, stage="undoing", failure_reason=reason)

    def leave(self, lease: Lease, left_behind: Sequence[str]) -> None:
        """Note what of a failed task could not be removed yet, and give the task up."""
        with self._writing(lease):
            self._set(lease.task_id, left_behind=json.dumps(left_behind), owner=None)

    def undone(self, lease: Lease) -> None:
        """Note that all that a failed task made is removed."""
        with self._writing(lease):
            self._set(lease.task_id, left_behind="[]")
            self._end(lease.task_id)

    def cancel(self, task_id: str) -> TaskRecord:
        """Ask a task's owner to cancel it.

        Raises:
            InvalidRequestError: the task has ended; ``IncorrectState``.
        """
        with self._writing():
            record = self.task(task_id)
            if record.state != "InProgress":
                raise refused(f"{task_id} is {record.state} already", "IncorrectState")
            self._set(task_id, cancelled=1)
            return record

    def prune(self, place: str, before: int) -> None:
        """Forget ended tasks that were started before then."""
        with self._writing() as database:
            sql = "DELETE FROM task WHERE place = ? AND stage = 'ended' AND started < ?"
            database.execute(sql, [place, before])

    # Their logs.

    def entries(self, task_id: str) -> list[bytes]:
        """A task's log, oldest entry first.

        Raises:
            JournalError: an entry is damaged.
        """
        with self._database.using() as database:
            sql = "SELECT CAST(content AS BLOB) FROM entry WHERE task_id = ? ORDER BY number"
            found = [row[0] for row in database.execute(sql, [task_id])]
        try:
            for entry in found:
                read_entry(entry)
        except InvalidRequestError:
            remedy = f"DELETE FROM entry WHERE task_id = '{task_id}', and the task begins anew"
            raise self._damaged(f"the log of {task_id} in it is damaged", remedy) from None
        return found

    def append(self, lease: Lease, entry: bytes) -> None:
        """Add an entry to a task's log, and note a snapshot whose beginning it says."""
        said = read_entry(entry)
        with self._writing(lease) as database:
            sql = "SELECT coalesce(max(number), 0) + 1 FROM entry WHERE task_id = ?"
            number = database.execute(sql, [lease.task_id]).fetchone()[0]
            database.execute("INSERT INTO entry VALUES (?, ?, ?)", [lease.task_id, number, entry])
            if "snapshot" in said:
                begun = self.task(lease.task_id).begun(said["volume"], said["snapshot"])
                self._set(lease.task_id, volumes=begun.row()["volumes"])

    def clear(self, lease: Lease) -> None:
        """Remove a task's log."""
        with self._writing(lease) as database:
            database.execute("DELETE FROM entry WHERE task_id = ?", [lease.task_id])

    def _end(self, task_id: str) -> None:
        self._set(task_id, stage="ended", owner=None)
        with self._database.using() as database:
            database.execute("DELETE FROM entry WHERE task_id = ?", [task_id])

    def _set(self, task_id: str, **columns: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        sql = f"UPDATE task SET {names} WHERE task_id = ?"
        with self._database.using() as database:
            database.execute(sql, [*columns.values(), task_id])

    def _select(
        self, where: str, values: Sequence[object], order: str = "sequence", limit: int | None = None
    ) -> list[TaskRecord]:
        """The tasks found; damaged ones are skipped and logged."""
        sql = f"SELECT * FROM task WHERE {where} ORDER BY {order}"
        found: list[TaskRecord] = []
        damaged: list[JournalError] = []
        with self._database.using() as database, contextlib.closing(database.execute(sql, values)) as rows:
            while len(found) != limit and (row := rows.fetchone()) is not None:
                try:
                    found.append(self._record(row))
                except JournalError as error:
                    damaged.append(error)
        for each in damaged:
            _logger.error("skipping a task: %s", each.message)
        return found

    def _record(self, row: sqlite3.Row) -> TaskRecord:
        try:
            kind = _KINDS.get(row["kind"])
            if kind is None:
                raise InvalidValueError(f"{row['kind']!r:.80} is no kind of task")
            return kind.of_row(dict(row))
        except InvalidValueError as error:
            what = f"the task {row['task_id']!r:.60} in it is damaged: {error}"
            raise self._damaged(what, f"DELETE FROM task WHERE sequence = {row['sequence']}") from None

    def _damaged(self, what: str, remedy: str) -> JournalError:
        return JournalError(
            f"the journal {self.name}: {what}: put a copy of the journal back, or let SQLite run {remedy} "
            "(list_multipart_uploads, and pending snapshots, tell what the task has left)",
            operation="journal",
        )

    @contextlib.contextmanager
    def _writing(self, lease: Lease | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction; it changes nothing if another owner has the lease by now."""

        def roll_back(_: BaseException) -> None:
            with contextlib.suppress(sqlite3.Error):  # a failed BEGIN or COMMIT has left none
                database.execute("ROLLBACK")

        with self._database.using() as database, forks.undoing(roll_back):
            # Taken at once, so that what is read in it is still so when it is written.
            database.execute("BEGIN IMMEDIATE")
            if lease is not None and self.task(lease.task_id).epoch != lease.epoch:
                raise LeaseLostError(f"another process has taken {lease.task_id} over")
            yield database
            self._database.check_file()
            database.execute("COMMIT")


def _used_up(kind: Kind, used: int, limit: int) -> InvalidRequestError:
    return refused(
        f"{used} GiB of {kind} tasks are in progress, the quota is {limit} GiB: try again when one has "
        f"ended, or {REMEDY}; resume() continues tasks that no engine runs",
        "ResourceLimitExceeded",
    )


# Said so that SQLite sees that the index of what has not ended holds them all.
_OWNED: Final = "owner = ? AND stage != 'ended'"
_IN_PROGRESS: Final = "place = ? AND kind = ? AND stage != 'ended' AND stage != 'undoing'"

_STATE: Final = (
    "CASE WHEN stage IN ('queued', 'running') THEN 'InProgress' "
    "WHEN failure_reason IS NULL THEN 'Completed' ELSE 'Failed' END"
)


_KINDS: Final[Mapping[str, type[TaskRecord]]] = {kind.kind: kind for kind in (StoreRecord, RestoreRecord)}
