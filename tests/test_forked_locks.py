"""What a forked child holds of its parent's locks: nothing, whoever had them when it was forked."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import images
import pytest
from children import LEFT, answers, forked, split
from tasks.accounts import BUCKET, registered

import amistore
from amistore import DirectoryBackend, FileResumeLog, InvalidRequestError, TaskEngine, forks
from amistore.backends.locking import FileLock
from amistore.backends.retries import Retrier
from amistore.pipeline.workers import worker_pool
from amistore.testing import FaultyBackend


def is_free(path: Path) -> bool:
    try:
        with FileLock(path, wait=False):
            return True
    except BlockingIOError:
        return False


def test_a_lock_that_is_released_is_free_though_its_file_is_open_elsewhere(tmp_path: Path) -> None:
    lock = FileLock(tmp_path)
    elsewhere = os.dup(lock.descriptor)
    assert not is_free(tmp_path)
    lock.release()
    assert is_free(tmp_path)
    os.close(elsewhere)


def test_a_child_does_not_hold_a_lock_of_its_parent_and_cannot_release_it(tmp_path: Path) -> None:
    def job(part: Callable[[], None]) -> bool:
        with FileLock(tmp_path):
            part()
            return is_free(tmp_path)

    assert split(job) == (False, LEFT)
    lock = FileLock(tmp_path)
    assert answers([lambda: lock.held]) == [False]
    assert lock.held
    lock.release()


def test_a_snapshot_is_completed_while_a_child_forked_in_a_put_lives(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path)
    snapshot_id = cloud.ebs.start_snapshot(1)
    with FileLock(tmp_path / "ebs" / snapshot_id, shared=True):  # as a put does
        child = forked(lambda: threading.Event().wait())
        child.__enter__()
    done = threading.Thread(
        target=cloud.ebs.complete_snapshot, args=(snapshot_id, 0, hashlib.sha256().digest()), daemon=True
    )
    done.start()
    done.join(30)
    child.__exit__(None, None, None)
    assert cloud.ebs.describe_snapshot(snapshot_id).state == "completed"


def test_a_log_is_its_parent_s_until_that_closes_it_and_then_a_child_s(tmp_path: Path) -> None:
    with FileResumeLog(tmp_path / "log") as log:
        log.append(b"one")
        (refusal,) = answers([lambda: log.append(b"two")])
        assert isinstance(refusal, InvalidRequestError)
        assert "in use by another run" in str(refusal)
        assert split(lambda part: leave(log, part)) == ([b"one"], LEFT)
        go, went = os.pipe()

        def child() -> list[bytes]:
            os.read(go, 1)
            log.append(b"two")
            return log.entries()

        with forked(child) as waiting:
            log.close()
            os.write(went, b"x")
            assert waiting.answer() == [b"one", b"two"]
        os.close(go)
        os.close(went)
        assert log.entries() == [b"one", b"two"]


def leave(log: FileResumeLog, part: Callable[[], None]) -> list[bytes]:
    """Let a child leave the block of a log; what the parent's has then, which others still may not use."""
    with FileResumeLog(log.path.with_name("other")) as other:
        other.append(b"one")
        part()
        with pytest.raises(InvalidRequestError, match="in use"):
            FileResumeLog(other.path).entries()
        return other.entries()


def test_a_log_that_is_sent_to_another_process_takes_no_descriptor_with_it(tmp_path: Path) -> None:
    with FileResumeLog(tmp_path / "log") as log:
        log.append(b"one")
        sent = pickle.loads(pickle.dumps(log))
        with pytest.raises(InvalidRequestError, match="in use"):
            sent.entries()
    assert sent.entries() == [b"one"]
    sent.close()


def archive() -> amistore.Archive:
    return amistore.open(io.BytesIO(images.packed([(1, {0: images.block(1)})])))


def memory() -> amistore.MemoryBackend:
    made = amistore.MemoryBackend()
    made.s3.create_bucket(BUCKET)
    return made


# Things with a lock, and what a child does with them.
LOCKS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "retrier": (lambda: Retrier(amistore.RetryPolicy()), lambda r: r, lambda r: r.call("x", int)),
    "container": (archive, lambda a: a._container, lambda a: a.volumes[0].open().read(1)),
    "file": (archive, lambda a: a._container._ranges, lambda a: a.verify().ok),
    "ebs": (memory, lambda c: c.ebs, lambda c: c.ebs.start_snapshot(1)),
    "s3": (memory, lambda c: c.s3, lambda c: c.s3.put_object(BUCKET, "key", [b"x"])),
    "ec2": (memory, lambda c: c.ec2, lambda c: c.ec2.describe_images()),
    "faults": (lambda: FaultyBackend(memory()), lambda f: f, lambda f: f.ec2.describe_images()),
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_that_a_thread_holds_while_the_process_forks_is_free_in_the_child(name: str) -> None:
    make, owner, use = LOCKS[name]
    thing = make()
    with owner(thing)._lock:
        assert answers([lambda: (use(thing), "used")[1]]) == ["used"]
    use(thing)


def test_a_child_that_leaves_a_pool_of_threads_waits_for_none_of_its_locks() -> None:
    entered = worker_pool(1, None)
    pool = entered.__enter__().executor
    assert isinstance(pool, ThreadPoolExecutor)
    pool.submit(int).result()
    with pool._shutdown_lock:
        assert answers([lambda: (entered.__exit__(None, None, None), "left")[1]]) == ["left"]
    entered.__exit__(None, None, None)


def test_children_wait_for_different_times_before_they_try_again() -> None:
    retrier = Retrier(amistore.RetryPolicy())
    retrier._draw()
    assert len({*answers([retrier._draw] * 8), retrier._draw()}) == 9


def test_a_child_s_own_engine_works_beside_its_parent_s_on_one_journal(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    ids = [registered(cloud, f"web-{number}") for number in range(5)]

    def child(image_id: str) -> str:
        with TaskEngine(cloud) as own:
            return own.wait(own.create_store_image_task(image_id=image_id, bucket=BUCKET)).state

    with TaskEngine(cloud) as engine:
        task = engine.create_store_image_task(image_id=ids[0], bucket=BUCKET)  # runs while it forks
        assert answers([lambda each=each: child(each) for each in ids[1:]]) == ["Completed"] * 4
        assert engine.wait(task).state == "Completed"
        assert len(engine.describe_store_image_tasks()) == 5
        for each in ids:
            assert amistore.open(cloud.s3.at(BUCKET, f"{each}.bin")).verify().ok
    with sqlite3.connect(cloud.journal) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_what_a_child_s_engine_writes_outlives_its_parent_s_which_is_closed_first(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    engine = TaskEngine(cloud)
    engine.resume()
    ready, made = os.pipe()
    go, went = os.pipe()

    def child() -> str:
        own = TaskEngine(cloud)
        own.resume()
        os.write(made, b"x")
        os.read(go, 1)
        task = own.create_store_image_task(image_id=image_id, bucket=BUCKET)
        return own.wait(task).task_id  # and it ends without closing the journal

    with forked(child) as own:
        os.read(ready, 1)
        engine.close()  # and would remove the write-ahead log if nobody else had the file
        os.write(went, b"x")
        task_id = own.answer()
    for each in (ready, made, go, went):
        os.close(each)
    with TaskEngine(cloud) as again:
        assert [task.task_id for task in again.describe_store_image_tasks()] == [task_id]


def test_a_child_whose_parent_has_an_engine_forks_in_any_thread(tmp_path: Path) -> None:
    def child() -> list[object]:
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.extend(answers([lambda: "grandchild"])))
        thread.start()
        thread.join()
        return found

    with TaskEngine(DirectoryBackend(tmp_path)):
        assert answers([child]) == [["grandchild"]]


def test_a_fork_in_the_middle_of_another_thread_s_transaction_waits_for_it(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path)
    with TaskEngine(cloud) as engine:
        database = engine._journal._database
        inside = threading.Event()

        def write() -> None:
            with database.using() as connection:
                connection.execute("BEGIN IMMEDIATE")
                inside.set()
                while not forks._paused:  # it forks
                    pass
                connection.execute("COMMIT")

        def child() -> str:
            with TaskEngine(cloud) as own:
                return str(own.resume())

        writing = threading.Thread(target=write)
        writing.start()
        assert inside.wait(60)
        assert answers([child]) == ["()"]
        writing.join()
        assert engine.resume() == ()


@pytest.mark.parametrize("journal", ["file", "memory"])
def test_an_inherited_engine_refuses_every_call_and_leaves_its_parent_s_alone(
    tmp_path: Path, journal: str
) -> None:
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    engine = TaskEngine(cloud, journal=None if journal == "file" else ":memory:")
    calls: list[Callable[[], object]] = [
        lambda: engine.create_store_image_task(image_id=image_id, bucket=BUCKET),
        lambda: engine.create_restore_image_task(bucket=BUCKET, object_key="key"),
        lambda: engine.plan_store(image_id=image_id, bucket=BUCKET),
        lambda: engine.plan_restore(bucket=BUCKET, object_key="key"),
        engine.wait,
        lambda: engine.cancel("store-1"),
        engine.resume,
        engine.sweep,
        engine.describe_store_image_tasks,
        engine.describe_restore_image_tasks,
        engine.describe_images,
        engine.describe_snapshots,
    ]

    def child(call: Callable[[], object]) -> object:
        with engine:
            return call()

    for refusal in answers([lambda call=call: child(call) for call in calls]):
        assert isinstance(refusal, InvalidRequestError)
        assert "this TaskEngine was made in process" in str(refusal)
    with engine:
        assert engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).state


def test_a_child_forked_by_a_task_s_thread_ends_there_and_the_task_goes_on(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)

    def job(part: Callable[[], None]) -> str:
        class Forking(amistore.Backend):  # type: ignore[type-arg]
            def preflight(self, image: amistore.Image) -> None:
                if threading.current_thread() is not threading.main_thread():
                    part()

        with TaskEngine(Forking(ebs=cloud.ebs, s3=cloud.s3, ec2=cloud.ec2), journal=cloud.journal) as engine:
            return engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).state

    def fail() -> None:
        raise amistore.BackendError("of the child")

    for leave_by, code in ((None, LEFT), (fail, 1)):
        assert split(job, leave_by) == ("Completed", code)
        cloud.s3.delete_object(BUCKET, f"{image_id}.bin")
