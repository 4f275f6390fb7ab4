"""The journal of tasks with 10,000 of them: describing a page, creating one more.

The journal lies on a disk, beside a `DirectoryBackend`; what a created task then does is waited for
and not measured.
"""

from __future__ import annotations

import hashlib
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from amistore import BlockDeviceMapping, DirectoryBackend, EbsBlockDevice, Image, Quotas, TaskEngine
from amistore.backends import checks
from amistore.tasks.record import TaskRecord, VolumeRecord
from amistore.tasks.restore import RestoreRecord
from amistore.tasks.store import StoreRecord
from benchmarks.table import Row

__all__ = ["measure_tasks"]

TASKS = 10_000
_PLACE = ""  # of a directory backend with its own journal
ROUNDS = 20
DESCRIBE_GOAL, CREATE_GOAL = 50, 20  # milliseconds
BUCKET = "archive"


def measure_tasks(work: Path, repeats: int) -> Iterable[Row]:
    """Medians of `repeats` times 20 calls, each create beside an insert of plain SQLite."""
    cloud = DirectoryBackend(work / "cloud")
    cloud.s3.create_bucket(BUCKET)
    with TaskEngine(cloud, quotas=Quotas.unlimited()) as engine:
        records = [_record(number, _PLACE) for number in range(TASKS)]
        _insert_all(Path(str(cloud.journal)), records)
        oldest = engine.describe_store_image_tasks()
        while oldest.next_token is not None:
            token = oldest.next_token
            oldest = engine.describe_store_image_tasks(next_token=token)
        describe = engine.describe_store_image_tasks
        ids = [str(record.image_id) for record in records[::2]][:20]
        pages: dict[str, Callable[[], object]] = {
            "describe: the newest 200": describe,
            "describe: the oldest": lambda: describe(next_token=token),
            "describe: 200 that failed, 2 % of all": lambda: describe(filters={"task-state": ["Failed"]}),
            "describe: a bucket that none is in": lambda: describe(filters={"bucket": ["elsewhere"]}),
            "describe: 20 image ids": lambda: describe(image_ids=ids),
            "describe: the newest 200 restores": engine.describe_restore_image_tasks,
        }
        for name, page in pages.items():
            seconds = [_seconds(page) for _ in range(repeats * ROUNDS)]
            yield _row(name, seconds, DESCRIBE_GOAL)
        yield from _measure_create(cloud, engine, work / "plain.db", repeats * ROUNDS)


def _measure_create(cloud: DirectoryBackend, engine: TaskEngine, path: Path, count: int) -> Iterable[Row]:
    plain = _plain(path)
    created, restored, inserted = [], [], []
    for number in range(count):
        image_id = _image(cloud, f"web-{number}")
        row = _record(TASKS + number, "").row()
        inserted.append(_seconds(lambda row=row: _insert(plain, row)))  # type: ignore[misc]
        seconds, task = _timed(lambda: engine.create_store_image_task(image_id=image_id, bucket=BUCKET))  # noqa: B023
        created.append(seconds)
        key = engine.wait(task).object_key
        seconds, task = _timed(
            lambda: engine.create_restore_image_task(bucket=BUCKET, object_key=key, name=f"again-{number}")  # noqa: B023
        )
        restored.append(seconds)
        cloud.ec2.deregister_image(str(engine.wait(task).image_id))  # the registry has no index of names
    plain.close()
    yield _row("create, of a store", created, CREATE_GOAL)
    yield _row("create, of a restore", restored, CREATE_GOAL)
    yield _row("an insert of plain SQLite, the same row, synchronous=FULL", inserted, None)
    yield Row(
        name="create, of a store, as a multiple of that insert",
        value=statistics.median(created) / statistics.median(inserted),
    )


def _row(name: str, seconds: list[float], goal: int | None) -> Row:
    note = f"slowest of {len(seconds)}: {max(seconds) * 1e3:.1f} ms"
    return Row(name=name, value=statistics.median(seconds) * 1e3, unit="ms", goal=goal, note=note)


def _seconds(function: Callable[[], object]) -> float:
    return _timed(function)[0]


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _image(cloud: DirectoryBackend, name: str) -> str:
    """An image of one empty snapshot."""
    snapshot_id = cloud.ebs.start_snapshot(1)
    cloud.ebs.complete_snapshot(snapshot_id, 0, hashlib.sha256().digest())
    mapping = BlockDeviceMapping(device_name="/dev/xvda", ebs=EbsBlockDevice(snapshot_id=snapshot_id))
    image = Image(
        image_id=checks.new_id("ami"),
        name=name,
        root_device_name="/dev/xvda",
        block_device_mappings=(mapping,),
    )
    return cloud.ec2.register_image(image)


def _record(number: int, place: str) -> TaskRecord:
    """Of ten tasks five are stores; one of 50 stores has failed, and of the newest some wait."""
    image_id = f"ami-{number:017x}"
    waiting = number >= TASKS - 20
    told: dict[str, Any] = {
        "place": place,
        "image_id": image_id,
        "bucket": BUCKET,
        "object_key": f"{image_id}.bin",
        "size": 24,
        "started": int(time.time() * 1000) - (TASKS - number) * 1000,
        "stage": "queued" if waiting else "ended",
        "progress": 0 if waiting else 100,
        "failure_reason": "no such snapshot (snap-0)" if number % 100 == 0 and not waiting else None,
        "content_id": hashlib.sha256(image_id.encode()).hexdigest(),
    }
    if number % 2 == 0:
        tags = {"team": "web", "stage": "production"}
        return StoreRecord(task_id=checks.new_id("store"), object_tags=tags, **told)
    return RestoreRecord(
        task_id=checks.new_id("restore"),
        source_image_id=image_id,
        name=f"web {number}",
        image_tags={"team": "web"},
        image={"ImageId": image_id, "RootDeviceName": "/dev/xvda", "Architecture": "x86_64"},
        volumes=tuple(VolumeRecord(stored_id=f"snap-{each:017x}", size=8, blocks=9_000) for each in range(3)),
        **told,
    )


def _insert_all(path: Path, records: Iterable[TaskRecord]) -> None:
    database = sqlite3.connect(path)
    with database:
        for record in records:
            _insert(database, record.row())
    database.close()


def _plain(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    columns = ", ".join(_record(0, "").row())
    database.execute(f"CREATE TABLE task ({columns})")
    return database


def _insert(database: sqlite3.Connection, row: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(row))
    database.execute(f"INSERT INTO task ({', '.join(row)}) VALUES ({marks})", list(row.values()))
