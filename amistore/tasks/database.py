"""`Database`: the SQLite file of a journal; one connection, for one thread at a time, carried over no fork.

SQLite forbids to carry one over ("How To Corrupt An SQLite Database File", 2.7). A connection that a child
opens beside an inherited one takes that one's locks for its own, so it takes none, or waits in vain. Each
fork therefore waits until no thread of ours is in SQLite, and closes the file; parent and child reopen it
when they need it. This module also has the tables, the migration of older files, the file's path, and
`Ownership`, the files beside it. Next: `journal.py`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from amistore import forks
from amistore.backends.locking import FileLock
from amistore.errors import InvalidRequestError, JournalError

__all__ = ["MIGRATIONS", "Database", "Ownership", "journal_path"]

_BUSY: Final = 60_000  # milliseconds that another process may take for its transaction


class Database:
    """A journal's file, opened.

    Args:
        path: the file's path; it is made where it is missing, readable by its owner only. None for a journal
            in memory.

    Attributes:
        path: the absolute path.
        name: the name for messages.

    Raises:
        JournalError: the file cannot be opened, or is no journal.
        InvalidRequestError: a newer amistore made the journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path).absolute()
        self.name = "in memory" if self.path is None else str(self.path)
        self._file: os.stat_result | None = None
        self._connection: sqlite3.Connection | None = None  # none while it is closed for a fork, too
        self._closed = False
        self._uses = 0  # by the thread that has the lock
        self._process = os.getpid()
        self._renew_lock()
        forks.register(self, Database._renew_lock, before=Database._pause, after=Database._go_on)
        with self.using():
            pass

    @contextlib.contextmanager
    def using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; its errors become ours.

        Raises:
            InvalidRequestError: the journal was opened by another process; or SQLite refuses a text.
        """
        forks.check_owner(self._process, f"the open journal {self.name}")
        with self._errors(), self._lock:
            self._uses += 1
            try:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
            finally:
                self._uses -= 1

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"the journal {self.name}: {error}", operation="journal") from error
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"{error.object!r:.80} is no text that a journal can hold") from None

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise OSError("it is closed")
        if self._file is not None:
            self.check_file()
        elif self.path is not None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its other files the mode of this one. One that is there is not opened: to
            # close it would drop the locks of this process's other engines (fcntl(2)).
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            self.path or ":memory:", timeout=_BUSY / 1000, isolation_level=None, check_same_thread=False
        )
        with forks.undoing(lambda _: connection.close()):
            if self.path is not None and self._file is None:
                self._file = self.path.stat()
            connection.row_factory = sqlite3.Row
            # Else one damaged byte would keep all rows of a list from being read.
            connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
            _refuse_foreign(connection, self.name)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, self.name)
            self._keep_private()
        return connection

    def _keep_private(self) -> None:
        """Make the journal's files private, once they are known to be ours: the path may be a mistake."""
        for suffix in ("", "-wal", "-shm") if self.path is not None else ():
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").chmod(0o600)

    def check_file(self) -> None:
        """Refuse a file that has lost its name: what is written there is lost."""
        if self.path is not None and self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._file, self.path.stat()):
                    return
            raise OSError("it was removed or replaced while it was in use: put it back, or make a new engine")

    def close(self) -> None:
        """Close the file; in a forked child do nothing, since SQLite forbids that, too."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    def _pause(self) -> None:
        self._lock.acquire()
        # In use now, it is so by the thread that forks, from the handler of a signal: it goes on after that.
        if self.path is not None and self._connection is not None and not self._uses:
            with forks.undoing(lambda _: self._go_on()):
                self._connection.close()
                self._connection = None

    def _go_on(self) -> None:
        self._lock.release()


def journal_path(given: str | os.PathLike[str] | None, own: str | None) -> Path | None:
    """The journal's path: the given one, or the backend's, or one in the user's state folder.

    Args:
        given: the path that the engine was given.
        own: the backend's path.

    Returns:
        The path; None for a journal in memory.

    Raises:
        InvalidRequestError: the path is none, or the user has no state folder.
    """
    chosen = own if given is None else given
    if chosen is not None:
        if not isinstance(chosen, (str, os.PathLike)):
            raise InvalidRequestError(f"a journal is a path, not {type(chosen).__name__}")
        # Its real name: engines that know it by several ones must see each other.
        return None if chosen == ":memory:" else Path(os.path.realpath(chosen))
    folder = os.environ.get("AMISTORE_STATE_DIR") or Path(_state_folder(), "amistore")
    return Path(os.path.realpath(Path(folder, "tasks.db")))


def _state_folder() -> str | Path:
    """The state folder of the XDG Base Directory Specification."""
    try:
        return os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        raise InvalidRequestError(
            "the user has no home for the journal: give TaskEngine(journal=...), or set AMISTORE_STATE_DIR"
        ) from None


_APPLICATION: Final = int.from_bytes(b"amis", "big")
"""SQLite's application id of a journal; file(1) shows it."""

MIGRATIONS: Final = (
    # Times are milliseconds since 1970, UTC, but for `lease_until`: seconds of the machine's
    # monotonic clock, which no change of its date moves.
    """
    CREATE TABLE task (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        task_id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('store', 'restore')),
        place TEXT NOT NULL,
        image_id TEXT,
        source_image_id TEXT,
        name TEXT,
        bucket TEXT NOT NULL,
        object_key TEXT NOT NULL,
        size INTEGER NOT NULL,
        request TEXT NOT NULL,
        started INTEGER NOT NULL,
        stage TEXT NOT NULL CHECK (stage IN ('queued', 'running', 'undoing', 'ended')),
        progress INTEGER NOT NULL DEFAULT 0,
        failure_reason TEXT,
        content_id TEXT,
        volumes TEXT NOT NULL DEFAULT '[]',
        left_behind TEXT NOT NULL DEFAULT '[]',
        cancelled INTEGER NOT NULL DEFAULT 0,
        owner TEXT,
        epoch INTEGER NOT NULL DEFAULT 0,
        lease_until REAL NOT NULL DEFAULT 0
    );
    CREATE INDEX task_newest ON task (place, kind, sequence);
    CREATE INDEX task_unfinished ON task (place, kind) WHERE stage != 'ended';
    CREATE INDEX task_owned ON task (owner) WHERE stage != 'ended';
    CREATE INDEX task_image ON task (place, kind, image_id);
    CREATE TABLE entry (
        task_id TEXT NOT NULL REFERENCES task (task_id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        content BLOB NOT NULL,
        PRIMARY KEY (task_id, number)
    ) WITHOUT ROWID;
    """,
)
"""One script for each version, in order; a script that was released is never changed."""


def _refuse_foreign(database: sqlite3.Connection, path: str) -> None:
    """Refuse another program's database, before it is changed.

    Raises:
        InvalidRequestError: the database is another program's.
    """
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise InvalidRequestError(f"{path} is a database of another program: name another file")


def _migrate(database: sqlite3.Connection, path: str) -> None:
    """Migrate a journal, also a new one, to this version.

    Raises:
        InvalidRequestError: a newer amistore made the journal.
    """
    if _version(database) == len(MIGRATIONS):
        return
    database.execute("BEGIN IMMEDIATE")
    with forks.undoing(lambda _: database.execute("ROLLBACK")):
        version = _version(database)  # another process may have been faster
        if version > len(MIGRATIONS):
            raise InvalidRequestError(
                f"the journal {path} is of version {version}, and this amistore knows {len(MIGRATIONS)}: "
                "install a newer one"
            )
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in script.split(";"):
                if statement.strip():
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {number}")
        database.execute("COMMIT")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


class Ownership:
    """One engine as an owner of tasks, with a sign of life that no crash can leave behind.

    Each engine holds a lock on a file of its own beside the journal. The kernel releases it when the process
    ends, however that happens, so a killed process's tasks are free at once, even if a forked child lives on.
    A process that was only stopped keeps the lock, and loses its tasks when their leases end.

    Args:
        folder: the folder of the owners' files, made where it is missing; None for a journal that no other
            process can see.

    Attributes:
        owner: the owner's name, new in each engine.

    Raises:
        JournalError: the file cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.owner = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._folder = folder
        self._lock: FileLock | None = None
        self.hold()

    def hold(self) -> None:
        """Give the sign of life; a second call restores a file that was removed by hand.

        Raises:
            JournalError: the file cannot be made.
        """
        if self._folder is None:
            return
        path = self._folder / self.owner
        if self._lock is not None and path.exists():
            return
        self._let_go()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}", operation="journal") from error

    def alive(self, owner: str) -> bool:
        """Whether an owner's process still runs; the file of an ended one is removed."""
        if owner == self.owner:
            return True
        if self._folder is None or "/" in owner:
            return False
        path = self._folder / owner
        try:
            with FileLock(path, os.O_RDWR | os.O_NOFOLLOW, wait=False):
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        except OSError:  # it is held; or too many open files, for one: that proves nothing
            return True
        return False

    def close(self) -> None:
        """End the sign of life: this owner counts as ended."""
        if self._lock is not None and self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / self.owner).unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
