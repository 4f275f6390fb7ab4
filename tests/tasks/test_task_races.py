"""R10 and R11: quotas under many threads and processes; many stores of one AMI."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import random
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest
from tasks.accounts import BUCKET, registered

import amistore
from amistore import DirectoryBackend, TaskEngine
from amistore.tasks.journal import Journal
from amistore.tasks.record import TaskRecord
from amistore.tasks.store import StoreRecord

LONG = bool(os.environ.get("AMISTORE_LONG"))
THREADS, ROUNDS = 100, 100 if LONG else 10
PROCESSES, PROCESS_ROUNDS = 8, 500 if LONG else 40
LIMIT = 10
RACERS = 50

# What the quota is measured by: each change of the sum in progress, in the order of transactions.
MEASURED = """
CREATE TABLE measured (number INTEGER PRIMARY KEY AUTOINCREMENT, change INTEGER);
CREATE TRIGGER begun AFTER INSERT ON task BEGIN INSERT INTO measured (change) VALUES (NEW.size); END;
CREATE TRIGGER finished AFTER UPDATE OF stage ON task WHEN NEW.stage = 'ended'
BEGIN INSERT INTO measured (change) VALUES (-NEW.size); END;
"""

Refusal = tuple[int, int]
"""The numbers of the last change before an attempt that was refused, and after it."""


def rounds(path: Path, name: str, count: int) -> list[Refusal]:
    """Tasks that begin and end, one after the other."""
    rng = random.Random(name)
    journal = Journal(path)
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    refused: list[Refusal] = []
    running: list[TaskRecord] = []
    for number in range(count):
        record = new_record(f"store-{name}-{number}", rng.randrange(1, 9))
        before = last(database)
        try:
            journal.add(record, LIMIT)
        except amistore.InvalidRequestError as error:
            assert error.code == "ResourceLimitExceeded"
            refused.append((before, last(database)))
        else:
            running.append(record)
        if len(running) > rng.randrange(2):
            journal.complete(running.pop(0).lease, image_id="ami-0123456789abcdef0", content_id="00" * 32)
    for record in running:
        journal.complete(record.lease, image_id="ami-0123456789abcdef0", content_id="00" * 32)
    database.close()
    journal.close()
    return refused


def new_record(task_id: str, size: int) -> TaskRecord:
    return StoreRecord(
        task_id=task_id,
        place="",
        image_id="ami-0123456789abcdef0",
        bucket=BUCKET,
        object_key=task_id,
        size=size,
        started=0,
        owner="test",
        epoch=1,
    )


def last(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT coalesce(max(number), 0) FROM measured").fetchone()[0])


def check_quota(path: Path, refusals: list[Refusal]) -> str:
    """Each that was admitted found the sum below the limit; each that was refused did not."""
    database = sqlite3.connect(path)
    changes = [row[0] for row in database.execute("SELECT change FROM measured ORDER BY number")]
    database.close()
    sums = [0]
    for change in changes:
        assert change < 0 or sums[-1] < LIMIT, "admitted above the quota"
        sums.append(sums[-1] + change)
    for before, after in refusals:
        assert max(sums[before : after + 1]) >= LIMIT, "refused below the quota"
    assert sums[-1] == 0
    admitted = sum(change > 0 for change in changes)
    return f"{admitted} admitted, {len(refusals)} refused, at most {max(sums)} GiB of {LIMIT} in progress"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Journal(tmp_path / "tasks.db").close()
    database = sqlite3.connect(tmp_path / "tasks.db")
    database.executescript(MEASURED)
    database.close()
    return tmp_path / "tasks.db"


def test_a_hundred_threads_are_admitted_up_to_the_quota_and_no_further(path: Path) -> None:
    begin = threading.Barrier(THREADS)

    def work(number: int) -> list[Refusal]:
        begin.wait()
        return rounds(path, f"thread{number}", ROUNDS)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        refusals = [each for found in pool.map(work, range(THREADS)) for each in found]
    print(f"{THREADS} threads, {ROUNDS} rounds: {check_quota(path, refusals)}")


def test_eight_processes_are_admitted_up_to_the_quota_and_no_further(path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["amistore", "tasks.test_task_races"])
    with processes.Pool(PROCESSES) as pool:
        arguments = [(path, f"process{number}", PROCESS_ROUNDS) for number in range(PROCESSES)]
        refusals = [each for found in pool.starmap(rounds, arguments, chunksize=1) for each in found]
    print(f"{PROCESSES} processes, {PROCESS_ROUNDS} rounds: {check_quota(path, refusals)}")


@pytest.mark.parametrize("journals", ["one journal", "a journal each"])
def test_of_fifty_stores_of_one_ami_exactly_one_makes_the_object(journals: str, tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    begin = threading.Barrier(RACERS)

    def store(number: int) -> str:
        path = tmp_path / ("tasks.db" if journals == "one journal" else f"tasks{number}.db")
        with TaskEngine(cloud, journal=path, workers=1, concurrency=1) as engine:
            begin.wait()
            try:
                task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
                engine.wait(task)
            except amistore.AmistoreError as error:
                assert "exist" in str(error) or "is stored there" in str(error) or "is storing" in str(error)
                return type(error).__name__
            return "complete"

    with concurrent.futures.ThreadPoolExecutor(RACERS) as pool:
        outcomes = Counter(pool.map(store, range(RACERS)))
    print(f"{RACERS} stores, {journals}: {dict(outcomes)}")
    assert outcomes["complete"] == 1
    assert set(outcomes) <= {"complete", "AlreadyExistsError", "TaskFailedError"}
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    assert [path.name for path in (tmp_path / "cloud" / "ebs").iterdir() if path.name[0] == "."] == []
    with amistore.open(cloud.s3.open_object(BUCKET, f"{image_id}.bin")) as archive:
        archive.verify().check()
