"""The journal's tables, and how an older journal becomes one of this version."""

from __future__ import annotations

import sqlite3
from typing import Final

from amistore import forks
from amistore.errors import InvalidRequestError

__all__ = ["MIGRATIONS", "migrate", "refuse_foreign"]

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


def refuse_foreign(database: sqlite3.Connection, path: str) -> None:
    """Refuse a database that is another program's, before anything of it is changed.

    Raises:
        InvalidRequestError: it is.
    """
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise InvalidRequestError(f"{path} is a database of another program: name another file")


def migrate(database: sqlite3.Connection, path: str) -> None:
    """Bring a journal, also a new one, to this version.

    Raises:
        InvalidRequestError: a newer amistore has made it.
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
