"""R8: a journal without room, with errors of its disk, that cannot be written; and a full backend."""

from __future__ import annotations

import collections
import contextlib
import functools
import resource
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest
from tasks.accounts import BUCKET, DISKS, account, disks, stored

import amistore
from amistore import DirectoryBackend, JournalError, MemoryBackend, TaskEngine


class Disk:
    """What happens to the commits of all journals of this process.

    Attributes:
        commits: how many there were.
        fail_at: number of the first that fails; None for none.
        how: ``full``: no file can grow any more; ``before`` and ``after``: the disk has an error, and
            the transaction is lost, or is not.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.fail_at: int | None = None
        self.how = ""
        self._lock = threading.Lock()

    def commit(self, commit: Any) -> Any:
        with self._lock:
            self.commits += 1
            failing = self.fail_at is not None and self.commits >= self.fail_at
        if not failing:
            return commit()
        if self.how == "full":
            with no_room():
                return commit()
        if self.how == "after":
            commit()
        raise sqlite3.OperationalError("disk I/O error")


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can be written to, as on a full disk: SQLite gets EFBIG for ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            call = functools.partial(super().execute, sql, *arguments)
            return made.commit(call) if sql == "COMMIT" else call()  # type: ignore[no-any-return]

    connect = functools.partial(sqlite3.connect, factory=Connection)
    monkeypatch.setattr("amistore.tasks.journal.sqlite3.connect", connect)
    return made


def check_journal(path: Path) -> None:
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def create(engine: TaskEngine, what: str, image_id: str, key: str) -> amistore.tasks.Task:
    if what == "store":
        return engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/again")
    return engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")


def is_right(cloud: MemoryBackend, task: amistore.tasks.Task) -> bool:
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    if isinstance(task, amistore.StoreImageTask):
        with amistore.open(cloud.s3.open_object(BUCKET, task.object_key)) as archive:
            archive.verify().check()
        return True
    assert isinstance(task, amistore.RestoreImageTask)
    mapped = {each for image in cloud.ec2.describe_images() for each in image.snapshot_ids}
    assert set(cloud.ebs._snapshots) == mapped
    return disks(cloud, str(task.image_id)) == DISKS


@pytest.mark.parametrize("how", ["full", "before", "after"])
@pytest.mark.parametrize("what", ["store", "restore"])
def test_whichever_write_of_the_journal_fails_it_stays_whole_and_the_task_goes_on(
    what: str, how: str, disk: Disk, tmp_path: Path
) -> None:
    disk.how = how
    number = writes = 0
    while True:
        number += 1
        cloud, image_id = account()
        key = stored(cloud, image_id)
        path = tmp_path / f"{number}.db"
        with TaskEngine(cloud, journal=path) as engine:
            disk.commits, disk.fail_at = 0, number
            try:
                create(engine, what, image_id, key)
                engine.wait()
            except JournalError as error:
                assert str(path) in str(error)
            else:
                break  # it has fewer writes
            if number % 2:  # room again, in the same engine; else only in the next one
                disk.fail_at = None
                go_on(engine, cloud, what, image_id, key)
        disk.fail_at = None
        if not number % 2:
            with TaskEngine(cloud, journal=path) as engine:
                go_on(engine, cloud, what, image_id, key)
        check_journal(path)
        writes += 1
    assert writes >= 4
    print(f"{what}: each of {writes} writes to the journal and all after it failed ({how}): nothing lost")


def go_on(engine: TaskEngine, cloud: MemoryBackend, what: str, image_id: str, key: str) -> None:
    """The task that is in the journal, or another one where it is not, comes to its end."""
    engine.resume()
    found = [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]
    task = found[0] if found else create(engine, what, image_id, key)
    assert len(found) <= 1
    assert is_right(cloud, engine.wait(task))


@contextlib.contextmanager
def mounted(path: Path, size: str) -> Iterator[None]:
    """A small disk of its own."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_journal_on_a_disk_that_is_read_only_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1m"):
        path = tmp_path / "disk" / "tasks.db"
        cloud, image_id = account()
        with TaskEngine(cloud, journal=path) as engine:
            engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        with pytest.raises(JournalError, match=str(path)):
            TaskEngine(cloud, journal=path)


@contextlib.contextmanager
def only(ballast: Path, room: int) -> Iterator[None]:
    """A disk with so many free bytes."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(2**16)):
            pass
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - room))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.parametrize("what", ["store", "restore"])
def test_a_disk_that_is_full_for_backend_and_journal_loses_nothing(what: str, tmp_path: Path) -> None:
    """Whether the task or only its run ends depends on which write comes first; with room it completes."""
    outcomes: collections.Counter[str] = collections.Counter()
    content = {index: images.noise(index) for index in range(8)}  # 4 MiB
    for room in range(0, 10 * 2**20, 2**20):
        with mounted(tmp_path / f"disk{room}", "24m"):
            cloud = DirectoryBackend(tmp_path / f"disk{room}")
            cloud.s3.create_bucket(BUCKET)
            image_id = cloud.ec2.register_image(images.image([images.snapshot(cloud.ebs, 1, content)]))
            key = stored(cloud, image_id)
            outcome = "complete"
            with only(cloud.path / "ballast", room):
                try:
                    with TaskEngine(cloud) as engine:
                        create(engine, what, image_id, key)
                        engine.wait()
                except (JournalError, amistore.StorageFullError, amistore.TaskFailedError) as error:
                    outcome = type(error).__name__
            outcomes[outcome] += 1
            check_journal(Path(str(cloud.journal)))
            with TaskEngine(cloud) as engine:
                with contextlib.suppress(amistore.TaskFailedError):
                    for task in engine.resume():
                        engine.wait(task)
                assert engine.sweep().left == ()
                tasks = [*engine.describe_restore_image_tasks(), *engine.describe_store_image_tasks()[:-1]]
                if not tasks or tasks[0].state == "Failed":  # none was made, or it was given up
                    engine.wait(create(engine, what, image_id, key))
            assert cloud.s3.list_multipart_uploads(BUCKET) == []
            made = cloud.ec2.describe_images()
            assert [disks(cloud, image.image_id) for image in made] == [[content]] * len(made)
            there = {path.name for path in (cloud.path / "ebs").iterdir() if path.name[0] != "."}
            assert there == {each for image in made for each in image.snapshot_ids}
            for prefix in ("", "again/") if what == "store" else ("",):
                with amistore.open(cloud.s3.open_object(BUCKET, f"{prefix}{key}")) as archive:
                    archive.verify().check()
    assert len(outcomes) > 1
    print(f"{what}: {dict(outcomes)}")
