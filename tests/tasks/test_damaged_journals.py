"""A damaged or forged journal: the task is named with a remedy, and the others are told and worked on."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from tasks.accounts import BUCKET, elsewhere, registered
from tasks.test_journal import RECORD
from tasks.test_journal_files import DIED

import amistore
from amistore import DirectoryBackend, JournalError, MemoryBackend, TaskEngine
from amistore.tasks.journal import Journal

DEEP = "'" + "[" * 100_000 + "'"

OF_RESTORES = ("source_image_id", "name")
DAMAGE = {
    "kind": ["x'ff'"],
    "image_id": ["5", "x'00ff'", "'ami-1'"],
    "source_image_id": ["'web'"],
    "name": ["x'00ff'", "CAST(x'77ff' AS TEXT)"],
    "bucket": ["x'ff'", "CAST(x'ff' AS TEXT)"],
    "object_key": ["x'ff'"],
    "size": ["'x'", "-1", "1.5", "9e999", "1 << 62"],
    "request": [
        "''", "'{'", "'{}'", "'[]'", "'null'", "5", DEEP,
        "json_remove(request, '$.object_tags', '$.image_tags')",
        "json_set(request, '$.object_tags', 5, '$.snapshot_tags', 5)",
        "json_set(request, '$.object_tags', json('{\"a\": 5}'), '$.image_tags', json('{\"a\": 5}'))",
        "json_set(request, '$.object_tags', json('[]'), '$.image', json('{\"ImageId\": 5}'))",
        "json_set(request, '$.object_tags', 'x', '$.image', 5)",
        "json_set(request, '$.object_tags', 'x', '$.allow_lost', 'x')",
        "json_set(request, '$.object_tags', 'x', '$.region', 1)",
    ],
    "started": ["1 << 62", "'x'", "CAST(x'31ff' AS TEXT)"],
    "progress": ["'x'", "-5", "101", "1.5"],
    "failure_reason": ["x'ff'"],
    "content_id": ["5", "'zz'", "'00'"],
    "volumes": [
        "5", "'5'", "'{}'", "'[5]'", "'[{}]'", DEEP,
        "'[{\"stored_id\": 5, \"size\": 1}]'",
        "'[{\"stored_id\": \"snap-01234567\", \"size\": \"1\"}]'",
        "'[{\"stored_id\": \"snap-01234567\", \"size\": 1, \"blocks\": \"x\"}]'",
        "'[{\"stored_id\": \"snap-01234567\", \"size\": 1, \"blocks\": -1}]'",
        "'[{\"stored_id\": \"snap-01234567\", \"size\": 1, \"snapshot_id\": \"x\"}]'",
    ],
    "left_behind": ["'5'", "'[5]'", "'{}'", "'\"abc\"'", DEEP],
    "cancelled": ["'x'", "2"],
    "owner": ["char(0) || 'a'", "'../../etc/passwd'", "5.5", "''"],
    "epoch": ["'x'", "-1", "(1 << 63) - 1"],
    "lease_until": ["'x'"],
}  # fmt: skip

Given = tuple[MemoryBackend, Path, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A journal with two stores and two restores that have ended, of two images."""
    cloud, journal = MemoryBackend(), tmp_path_factory.mktemp("made") / "tasks.db"
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    with TaskEngine(cloud, journal=journal) as engine:
        for number in range(2):
            task = engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/{number}")
            key = engine.wait(task).object_key
            engine.wait(
                engine.create_restore_image_task(bucket=BUCKET, object_key=key, name=f"restored {number}")
            )
    return cloud, journal, image_id


@pytest.fixture
def given(made: Given, tmp_path: Path) -> Given:
    cloud, journal, image_id = made
    return cloud, Path(shutil.copy(journal, tmp_path / "tasks.db")), image_id


def execute(journal: str | Path, *statements: str) -> None:
    database = sqlite3.connect(journal, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()


def remedy(error: JournalError) -> str:
    """The statement that an error tells."""
    found = re.search(r"let SQLite run (DELETE FROM .*?)(, and the task| \()", str(error))
    assert found is not None, str(error)
    return found[1]


@pytest.mark.parametrize("stage", ["ended", "running", "undoing"])
@pytest.mark.parametrize("column", DAMAGE)
def test_a_damaged_task_is_named_with_a_remedy_and_keeps_no_other_from_being_told(
    given: Given, caplog: pytest.LogCaptureFixture, column: str, stage: str
) -> None:
    cloud, journal, _ = given
    for value in DAMAGE[column]:
        shutil.copy(journal, kept := journal.with_name("kept.db"))
        with TaskEngine(cloud, journal=kept) as engine:
            tasks = [engine.describe_store_image_tasks(), engine.describe_restore_image_tasks()]
            damaged = [page[1] for page in (tasks[1:] if column in OF_RESTORES else tasks)]
            whole = [each for page in tasks for each in page if each not in damaged]
        ids = ", ".join(f"'{task.task_id}'" for task in damaged)
        execute(
            kept,
            "PRAGMA ignore_check_constraints = ON",
            f"UPDATE task SET stage = '{stage}', {column} = {value} WHERE task_id IN ({ids})",
        )
        caplog.clear()
        with TaskEngine(cloud, journal=kept) as engine:
            told = [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]
            assert told == whole, value
            engine.describe_images()
            engine.describe_snapshots()
            assert engine.resume() == ()
            assert engine.wait() == ()
            engine.sweep()
            lines = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
            for task in damaged:
                errors = []
                for call in (engine.wait, engine.cancel):
                    with pytest.raises(JournalError) as caught:
                        call(task)
                    assert task.task_id in str(caught.value)
                    assert str(kept) in str(caught.value)
                    errors.append(caught.value)
                assert column in ("kind", "started") or any(errors[0].message in line for line in lines)
                execute(kept, remedy(errors[0]))
                with pytest.raises(amistore.InvalidRequestError, match="no task"):
                    engine.wait(task)
            caplog.clear()
            told = [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]
            assert told == whole
            assert caplog.records == []
        kept.unlink()


def test_a_damaged_task_in_the_way_of_a_new_one_is_told_with_its_remedy(given: Given) -> None:
    cloud, journal, image_id = given
    key = f"9/{image_id}.bin"
    execute(
        journal,
        f"UPDATE task SET stage = 'running', object_key = '{key}', request = '{{}}' "
        "WHERE sequence = (SELECT min(sequence) FROM task WHERE kind = 'store')",
    )
    with TaskEngine(cloud, journal=journal) as engine:
        with pytest.raises(JournalError) as caught:
            engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/9")
        execute(journal, remedy(caught.value))
        task = engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/9")
        assert engine.wait(task).state == "Completed"


def test_pages_are_full_and_lead_to_all_tasks_though_some_are_damaged(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "tasks.db")
    for number in range(7):
        journal.add(attrs.evolve(RECORD, task_id=f"store-{number}", object_key=f"{number}", place=""), None)
    execute(tmp_path / "tasks.db", "UPDATE task SET progress = -1 WHERE sequence IN (7, 4, 3)")
    journal.close()
    cloud = DirectoryBackend(tmp_path)
    pages = []
    with TaskEngine(cloud, clock=lambda: RECORD.started / 1000) as engine:
        pages.append(engine.describe_store_image_tasks(max_results=2))
        while pages[-1].next_token:
            pages.append(engine.describe_store_image_tasks(max_results=2, next_token=pages[-1].next_token))
    assert [[task.task_id for task in page] for page in pages] == [
        ["store-5", "store-4"],
        ["store-1", "store-0"],
    ]


@pytest.mark.parametrize("size", ["-(1 << 50)", "9e999", "1 << 62"])
def test_a_damaged_size_neither_uses_a_quota_up_nor_gives_room_in_it(given: Given, size: str) -> None:
    cloud, journal, image_id = given
    execute(journal, f"UPDATE task SET stage = 'running', size = {size} WHERE sequence IN (1, 3)")
    with TaskEngine(cloud, journal=journal) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=f"{BUCKET}/new")
        assert plan.in_progress == 0


@pytest.mark.parametrize("content", ["x'00ff'", "5", "'text'", "x'5b5d'", "CAST(x'ff' AS TEXT)", DEEP])
@pytest.mark.parametrize("number", [1, 2])
def test_a_task_whose_log_is_damaged_is_told_with_the_remedy_that_lets_it_begin_anew(
    tmp_path: Path, content: str, number: int
) -> None:
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    task_id = elsewhere(DIED, cloud.path, cloud.journal, registered(cloud))
    execute(str(cloud.journal), f"UPDATE entry SET content = {content} WHERE number = {number}")
    with TaskEngine(cloud) as engine:
        assert [task.task_id for task in engine.resume()] == [task_id]
        with pytest.raises(JournalError, match=f"the log of {task_id} in it is damaged") as caught:
            engine.wait(task_id)
        execute(str(cloud.journal), remedy(caught.value))
        engine.resume()
        assert engine.wait(task_id).state == "Completed"


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.wait("store-\ud800"),
        lambda engine: engine.cancel("store-\ud800"),
        lambda engine: engine.describe_store_image_tasks(filters={"bucket": ["\ud800"]}),
    ],
)
def test_what_no_journal_can_hold_is_refused(call: Callable[[TaskEngine], object]) -> None:
    with TaskEngine(MemoryBackend()) as engine, pytest.raises(amistore.InvalidRequestError, match="no text"):
        call(engine)
