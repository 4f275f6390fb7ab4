"""R9: processes that share a journal: stopped, continued and killed, each task has one owner at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import images
import pytest
from objects import runs
from tasks import sharing
from tasks.accounts import BUCKET, held
from tasks.processes import Engines

import amistore
from amistore import DirectoryBackend, TaskEngine
from amistore.backends import files
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.ec2 import DirectoryEC2
from amistore.backends.directory.s3 import DirectoryS3
from amistore.tasks import run

LONG = bool(os.environ.get("AMISTORE_LONG"))

STOPS = {
    "store": [
        ("append", 1),
        ("create_multipart_upload", 1),
        ("append", 2),
        ("upload_part", 1),
        ("append", 3),
        ("upload_part", runs.PARTS),
        ("complete_multipart_upload", 1),
        ("complete", 1),
    ],
    "restore": [
        ("append", 1),
        ("start_snapshot", 1),
        ("append", 3),
        ("put_snapshot_block", 5),
        ("append", 9),
        ("complete_snapshot", 1),
        ("register_image", 1),
        ("complete", 1),
    ],
}

HELD: dict[str, list[tuple[type, str] | None]] = {
    "store": [None, (DirectoryS3, "upload_part"), (DirectoryS3, "complete_multipart_upload")],
    "restore": [None, (DirectoryEBS, "put_snapshot_block"), (DirectoryEC2, "register_image")],
}
"""Where the new owner is when the stopped one goes on; None is behind its end."""


@pytest.mark.parametrize("what", ["store", "restore"])
def test_an_owner_that_was_stopped_and_goes_on_changes_nothing_of_the_next_ones(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PAUSE", 0.0)
    monkeypatch.setattr("amistore.tasks.store.StoreJob", sharing.pack_in_parts)
    stopped, rng = 0, random.Random(f"stops {what}")
    with Engines(what, tmp_path) as engines:
        engines.finish()
        engines.check()
        for verb, number in STOPS[what]:
            for when in ("before", "after"):
                for place in HELD[what] if LONG else [rng.choice(HELD[what])]:
                    engines.renew()
                    stopped += stop_and_go_on(engines, [when, verb, number], place)
                    engines.check()
    print(f"{what}: {stopped} owners stopped and continued, none of whose later writes was accepted")


def stop_and_go_on(engines: Engines, stop: list[object], place: tuple[type, str] | None) -> bool:
    """Stop an owner, take its task over, and continue it while the next owner works, or after it."""
    processes = engines.processes
    # Its lease has ended as soon as it begins.
    if not processes.run_until(engines.what, str(engines.root), engines.image_id, 0.0, stop=stop):
        return False
    with TaskEngine(engines.cloud, workers=1) as engine:
        database = sqlite3.connect(engines.root / "tasks.db", isolation_level=None)
        taken = engine.resume()
        if place is not None and taken:
            with held(*place) as reached:
                # It may not come there: the stopped one has done that already.
                while not reached.wait(0.01) and engine._runner.has(taken[0].task_id):
                    pass
                before = database.execute("SELECT epoch, owner FROM task").fetchall()
                code, lines = processes.go_on()
                assert database.execute("SELECT epoch, owner FROM task").fetchall() == before
            engine.wait()
        else:
            engine.wait()
            before = list(database.iterdump())
            code, lines = processes.go_on()
            assert not taken or list(database.iterdump()) == before
        database.close()
    assert code == 0, lines[-1]
    return True


class Sharers:
    """Processes that work on the tasks of one folder."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.running: list[subprocess.Popen[str]] = []
        for process in [self.start() for _ in range(count)]:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.running:
            self.begin(process)

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.sharing", str(self.root)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def begin(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    def kill(self, process: subprocess.Popen[str]) -> None:
        self.running.remove(process)
        process.kill()
        process.communicate()


def owned(database: sqlite3.Connection, pid: int) -> list[tuple[str, int]]:
    """Tasks of a process that are not at rest, and the epochs of its leases."""
    sql = "SELECT task_id, epoch FROM task WHERE owner LIKE ? AND stage != 'ended'"
    return database.execute(sql, [f"{pid}-%"]).fetchall()


Disks = list[dict[int, bytes]]


@pytest.mark.parametrize("count", [2, 8] if LONG else [2, 5])  # a process takes a second to begin
def test_processes_that_are_stopped_and_killed_do_every_task_once(count: int, tmp_path: Path) -> None:
    rng = random.Random(f"sharers {count}")
    done: Counter[str] = Counter()
    while done["killed"] + done["stopped"] < (100 if LONG else 1):
        cloud = DirectoryBackend(tmp_path / "cloud")
        done += share(cloud, count, rng) + Counter(rounds=1)
        shutil.rmtree(cloud.path)
    print(
        f"{count} processes, {done['rounds']} times: {done['writes']} writes to {done['tasks']} tasks, "
        f"{done['killed']} killed, {done['stopped']} stopped past their leases and continued: "
        "0 writes of an earlier owner accepted"
    )


def share(cloud: DirectoryBackend, count: int, rng: random.Random) -> Counter[str]:
    """Let processes do all tasks of some AMIs while some are stopped and killed; what was done."""
    amis = registered(cloud)
    with TaskEngine(cloud) as engine:  # the archives that are restored
        for image_id in list(amis)[::2]:
            engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/done")
        engine.wait()
    own = snapshots_in(cloud)
    with contextlib.closing(
        sqlite3.connect(str(cloud.journal), isolation_level=None, timeout=60)
    ) as database:
        database.executescript(sharing.WRITTEN)
        leave_tasks(cloud, amis)
        sharers = Sharers(cloud.path, count)
        done = disturb(sharers, database, rng)
        told = [process.communicate()[0] for process in sharers.running]
        assert [process.returncode for process in sharers.running] == [0] * count, told
        writes = database.execute("SELECT task_id, epoch, now, owner FROM written ORDER BY number").fetchall()
    check_owners(writes)
    return done + Counter(writes=len(writes), tasks=check_tasks(cloud, amis, own))


def registered(cloud: DirectoryBackend) -> dict[str, Disks]:
    """The disks of each AMI that is registered here."""
    cloud.s3.create_bucket(BUCKET)
    amis = {}
    for number in range(12 if LONG else 8):
        disks = [
            {index: images.noise(100 * number + index) for index in range(12)},
            {7: images.block(number)},
        ]
        ids = [images.snapshot(cloud.ebs, 1, disk) for disk in disks]
        amis[cloud.ec2.register_image(images.image(ids, name=f"web-{number}"))] = disks
    return amis


def snapshots_in(cloud: DirectoryBackend) -> set[str]:
    return {path.name for path in (cloud.path / "ebs").iterdir() if path.name[0] != "."}


def disturb(sharers: Sharers, database: sqlite3.Connection, rng: random.Random) -> Counter[str]:
    """Kill and stop processes that have tasks, a dozen times or until all tasks are at rest; how many."""
    done: Counter[str] = Counter()
    while done.total() < 12 and not at_rest(database):
        written = database.execute("SELECT count(*) FROM written").fetchone()[0]
        goal = written + rng.randrange(1, 6)
        while database.execute("SELECT count(*) FROM written").fetchone()[0] < goal and not at_rest(database):
            pass
        working = [each for each in sharers.running if owned(database, each.pid)]
        if not working:
            continue
        victim = rng.choice(working)
        if rng.random() < 0.4:
            sharers.kill(victim)
            sharers.begin(sharers.start())
            done["killed"] += 1
            continue
        done["stopped"] += stop_past_lease(database, victim, sharers)
    return done


def check_tasks(cloud: DirectoryBackend, amis: dict[str, Disks], own: set[str]) -> int:
    """Each task has completed, what it made is whole, and there is nothing else; how many there were."""
    with TaskEngine(cloud) as engine:
        assert engine.resume() == ()
        assert engine.sweep().left == ()
        stores, restores = engine.describe_store_image_tasks(), engine.describe_restore_image_tasks()
        assert {task.state for task in (*stores, *restores)} == {"Completed"}
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    for task in stores:
        with amistore.open(cloud.s3.open_object(BUCKET, task.object_key)) as archive:
            archive.verify().check()
    made = set()
    for restored in restores:
        image = cloud.ec2.describe_image(str(restored.image_id))
        assert [disk for _, disk in runs.disks(cloud.ebs, image)] == amis[restored.source_image_id]
        made |= set(image.snapshot_ids)
    assert snapshots_in(cloud) == own | made
    return len(stores) + len(restores)


def stop_past_lease(database: sqlite3.Connection, victim: subprocess.Popen[str], sharers: Sharers) -> bool:
    """Stop a process until another has a task that it had; whether it had any."""
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if locks_others_out(database, sharers.root):
            return False
        had = set(owned(database, victim.pid))
        others = [each for each in sharers.running if each is not victim]
        while had and had <= set(owned(database, victim.pid)):
            assert any(each.poll() is None for each in others), "nobody has taken them over"
        return bool(had)
    finally:
        os.kill(victim.pid, signal.SIGCONT)


def locks_others_out(database: sqlite3.Connection, root: Path) -> bool:
    """Whether a process was stopped in a transaction, or while it held a folder of the backend.

    Those that work hold them for moments only.
    """
    try:
        database.execute("PRAGMA busy_timeout = 500")
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        database.execute("PRAGMA busy_timeout = 60000")
    return any(is_held(folder) for folder in (root / "ec2", *(root / "ebs").glob("snap-*")))


def is_held(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), files.open_descriptor(folder) as descriptor:
        for _ in range(10_000):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
        return True
    return False


def leave_tasks(cloud: DirectoryBackend, amis: dict[str, Disks]) -> None:
    """Tasks that nobody works on: a store of each AMI, and a restore of each second one."""
    program = sharing.LEFT
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, cloud.path, *amis], env=environment, check=True)


def at_rest(database: sqlite3.Connection) -> bool:
    return not database.execute("SELECT 1 FROM task WHERE stage != 'ended'").fetchone()


def check_owners(writes: list[tuple[str, int, int, str]]) -> None:
    """Each was accepted under the lease that counted then, and each lease had one owner."""
    last: dict[str, int] = {}
    owners: dict[tuple[str, int], str] = {}
    for task_id, epoch, now, owner in writes:
        assert epoch == now >= last.get(task_id, 0)
        assert owners.setdefault((task_id, epoch), owner) == owner
        last[task_id] = epoch
