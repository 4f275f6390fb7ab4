"""The journal by itself: what it keeps, who may write, which versions it reads."""

from __future__ import annotations

import pwd
import sqlite3
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest

import amistore
from amistore.tasks import database as schema
from amistore.tasks.database import journal_path
from amistore.tasks.journal import Journal, LeaseLostError
from amistore.tasks.record import VolumeRecord
from amistore.tasks.store import StoreRecord

RECORD = StoreRecord(
    task_id="store-0123456789abcdef0",
    place="somewhere",
    image_id="ami-0123456789abcdef0",
    bucket="archive",
    object_key="größe.bin",
    size=9,
    object_tags={"team": "images"},
    started=1_700_000_000_123,
    volumes=(VolumeRecord(stored_id="snap-0123456789abcdef0", size=9),),
    owner="me",
    epoch=1,
    lease_until=5.5,
)


@pytest.fixture
def journal(tmp_path: Path):
    opened = Journal(tmp_path / "state" / "tasks.db")
    opened.add(RECORD, None)
    yield opened
    opened.close()


def test_a_task_comes_back_as_it_was_written(journal: Journal) -> None:
    assert journal._database.path is not None
    again = Journal(journal._database.path)
    assert again.task(RECORD.task_id) == attrs.evolve(RECORD, sequence=1)
    again.close()


def test_files_and_folder_are_their_owners_alone(journal: Journal) -> None:
    assert journal._database.path is not None
    folder = journal._database.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {each.name for each in folder.iterdir()} >= {"tasks.db", "tasks.db-wal"}
    for each in folder.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each


def test_what_is_written_is_synchronised_with_the_disk(journal: Journal) -> None:
    def pragma(name: str) -> object:
        with journal._database.using() as database:
            return database.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2  # FULL


def test_progress_never_falls(journal: Journal) -> None:
    for given, kept in ((40, 40), (20, 40), (41, 41)):
        journal.advance(RECORD.lease, given)
        assert journal.task(RECORD.task_id).progress == kept


def test_nothing_of_an_earlier_owner_is_accepted(journal: Journal) -> None:
    taken = journal.take(RECORD.task_id, "another", 9.0, lambda record: True)
    assert taken is not None
    assert taken.lease.epoch == 2
    before = journal.task(RECORD.task_id)
    writes = [
        lambda: journal.begin(RECORD.lease),
        lambda: journal.advance(RECORD.lease, 50),
        lambda: journal.complete(RECORD.lease, image_id="ami-0123456789abcdef0", content_id="00" * 32),
        lambda: journal.fail(RECORD.lease, "why"),
        lambda: journal.leave(RECORD.lease, ["upload 1"]),
        lambda: journal.undone(RECORD.lease),
        lambda: journal.append(RECORD.lease, b"{}"),
        lambda: journal.clear(RECORD.lease),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError):
            write()
    assert journal.task(RECORD.task_id) == before
    assert journal.entries(RECORD.task_id) == []
    journal.advance(taken.lease, 50)


def test_a_task_that_somebody_works_on_is_not_taken(journal: Journal) -> None:
    assert journal.take(RECORD.task_id, "another", 9.0, lambda record: False) is None
    journal.complete(RECORD.lease, image_id="ami-0123456789abcdef0", content_id="00" * 32)
    assert journal.take(RECORD.task_id, "another", 9.0, lambda record: True) is None


class Interrupted:
    """A database whose user loses patience while it waits for another process's transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        cursor = self._database.execute(sql, *values)
        if sql.startswith("BEGIN"):
            raise KeyboardInterrupt
        return cursor


def test_an_interrupted_wait_for_the_journal_leaves_it_to_others(journal: Journal) -> None:
    database = journal._database._connection
    assert database is not None
    journal._database._connection = Interrupted(database)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        journal.begin(RECORD.lease)
    assert not database.in_transaction
    journal._database._connection = database
    journal.begin(RECORD.lease)
    assert journal.task(RECORD.task_id).stage == "running"


def test_a_log_is_kept_in_order_and_goes_with_the_end_of_its_task(journal: Journal) -> None:
    for number in range(3):
        journal.append(RECORD.lease, b'{"part":%d}' % number)
    assert journal.entries(RECORD.task_id) == [b'{"part":0}', b'{"part":1}', b'{"part":2}']
    journal.complete(RECORD.lease, image_id="ami-0123456789abcdef0", content_id="00" * 32)
    assert journal.entries(RECORD.task_id) == []


def test_a_journal_of_a_newer_version_is_refused_and_not_changed(journal: Journal) -> None:
    assert journal._database.path is not None
    with journal._database.using() as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(amistore.InvalidRequestError, match="version 99"):
        Journal(journal._database.path)
    with journal._database.using() as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == 99
    assert journal.task(RECORD.task_id).size == RECORD.size


def test_a_journal_of_an_older_version_is_brought_to_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Journal(tmp_path / "tasks.db")
    old.add(RECORD, None)
    old.close()
    newer = (
        *schema.MIGRATIONS,
        "ALTER TABLE task RENAME COLUMN size TO gib; ALTER TABLE task ADD COLUMN size",
    )
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*newer, "UPDATE task SET size = gib; ALTER TABLE task DROP COLUMN gib")
    )
    new = Journal(tmp_path / "tasks.db")
    assert new.task(RECORD.task_id) == attrs.evolve(RECORD, sequence=1)
    new.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tasks.db"
    old = Journal(path)
    old.add(RECORD, None)
    old.close()
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "DELETE FROM task; no such statement"))
        with pytest.raises(amistore.JournalError):
            Journal(path)
    again = Journal(path)
    assert again.task(RECORD.task_id).size == RECORD.size
    again.close()


def test_a_place_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(amistore.JournalError, match="file"):
        Journal(tmp_path / "file" / "tasks.db")


def test_a_journal_lies_where_it_was_said_or_in_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "AMISTORE_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as in a container for any user
    with pytest.raises(amistore.InvalidRequestError, match="set AMISTORE_STATE_DIR"):
        journal_path(None, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert journal_path(None, None) == tmp_path / ".local" / "state" / "amistore" / "tasks.db"
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert journal_path(None, None) == tmp_path / "amistore" / "tasks.db"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("AMISTORE_STATE_DIR", str(tmp_path))
    assert journal_path(None, None) == tmp_path / "tasks.db"
    assert journal_path(None, str(tmp_path / "own.db")) == tmp_path / "own.db"
    assert journal_path(tmp_path / "said.db", "own.db") == tmp_path / "said.db"
    assert journal_path(":memory:", "own.db") is journal_path(None, ":memory:") is None


def test_a_journal_in_memory_is_nobody_elses() -> None:
    one, other = Journal(None), Journal(None)
    one.add(RECORD, None)
    with pytest.raises(amistore.InvalidRequestError):
        other.task(RECORD.task_id)
    one.close()
    other.close()
