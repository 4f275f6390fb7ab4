"""The journal's indexes: what is asked often looks at unfinished tasks only."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from amistore.tasks import journal
from amistore.tasks.journal import Journal


@pytest.mark.parametrize("more", ["", " AND bucket = 'b' AND object_key = 'k'", " AND name = 'web'"])
def test_tasks_in_progress_are_found_by_the_index_of_the_unfinished(more: str, tmp_path: Path) -> None:
    Journal(tmp_path / "tasks.db").close()
    database = sqlite3.connect(tmp_path / "tasks.db")
    sql = f"EXPLAIN QUERY PLAN SELECT sum(size) FROM task WHERE {journal._IN_PROGRESS}{more}"
    steps = [row[3] for row in database.execute(sql, ["place", "store"])]
    database.close()
    assert len(steps) == 1
    assert "task_unfinished (place=? AND kind=?)" in steps[0]


def test_an_owners_tasks_are_found_by_their_index(tmp_path: Path) -> None:
    Journal(tmp_path / "tasks.db").close()
    database = sqlite3.connect(tmp_path / "tasks.db")
    sql = f"EXPLAIN QUERY PLAN UPDATE task SET lease_until = 0 WHERE {journal._OWNED}"
    steps = [row[3] for row in database.execute(sql, ["owner"])]
    database.close()
    assert "task_owned (owner=?)" in steps[0]
