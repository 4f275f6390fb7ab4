"""Waiting for a task, and taking it, when who has it does not go on with it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
from tasks.accounts import BUCKET, account, elsewhere, held, registered, stored

import amistore
from amistore import DirectoryBackend, TaskEngine
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.tasks import runner
from amistore.tasks.journal import Journal

ENDING = """
import concurrent.futures, contextlib, logging, threading
from amistore.backends.directory.ebs import DirectoryEBS
from tasks.accounts import BUCKET, held

ended = threading.Event()
logging.getLogger("amistore").setLevel(logging.INFO)
logging.getLogger("amistore").addFilter(
    lambda record: getattr(record, "task_state", "") in ("stopped", "failed", "completed") and ended.set()
)
pool = concurrent.futures.ThreadPoolExecutor(2)

def still_at_work():
    try:
        while True:
            pool.submit(int).result()
    except RuntimeError:  # the interpreter ends
        opened.close()
    ended.wait()
    try:
        engine.wait(task)
    except amistore.AmistoreError as error:
        print(error)

engine = amistore.TaskEngine(amistore.DirectoryBackend(sys.argv[1]))
opened = contextlib.ExitStack()
if sys.argv[2] == "store":
    reached = opened.enter_context(held(DirectoryEBS, "get_snapshot_block"))
    task = engine.create_store_image_task(image_id=sys.argv[3], bucket=BUCKET)
else:
    reached = opened.enter_context(held(DirectoryEBS, "start_snapshot"))
    task = engine.create_restore_image_task(bucket=BUCKET, object_key=sys.argv[3], name="web-2")
reached.wait()
pool.submit(still_at_work)
"""


@pytest.mark.parametrize("kind", ["store", "restore"])
def test_a_task_goes_on_after_a_program_whose_threads_outlived_its_end(kind: str, tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    given = image_id if kind == "store" else stored(cloud, image_id)
    assert "no thread can be begun" in elsewhere(ENDING, cloud.path, kind, given)
    with TaskEngine(cloud) as engine:
        (task,) = engine.resume()
        assert engine.wait(task).state == "Completed"


def test_who_waits_for_several_tasks_is_told_of_each_that_is_worked_on() -> None:
    cloud, image_id = account()
    cloud.s3.create_bucket("other")
    told: list[tuple[str, str]] = []
    with TaskEngine(cloud) as engine, contextlib.ExitStack() as first_is_held:
        reached = first_is_held.enter_context(held(cloud.s3, "complete_multipart_upload", of=BUCKET))
        first = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert reached.wait(60)
        second = engine.create_store_image_task(image_id=registered(cloud, "other"), bucket="other")

        def tell(task: amistore.StoreImageTask) -> None:
            told.append((task.task_id, task.state))
            if (second.task_id, "Completed") in told:
                first_is_held.close()

        assert [task.task_id for task in engine.wait(progress=tell)] == [first.task_id, second.task_id]
    assert told.index((second.task_id, "Completed")) < told.index((first.task_id, "Completed"))


def test_the_lease_of_a_task_that_is_worked_on_is_renewed_and_that_of_one_left_unfinished_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else nobody could go on with it while its engine lives."""
    monkeypatch.setattr(runner, "_HEARTBEAT", 0.01)
    renewed, renew = threading.Semaphore(0), Journal.renew

    def told(*arguments: Any) -> Any:
        found = renew(*arguments)
        renewed.release()
        return found

    def lease(engine: TaskEngine, task: amistore.StoreImageTask) -> float:
        while renewed.acquire(blocking=False):
            pass
        for _ in range(2):  # the first may have begun before
            assert renewed.acquire(timeout=60)
        return engine._journal.task(task.task_id).lease_until

    monkeypatch.setattr(Journal, "renew", told)
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            assert lease(engine, task) < lease(engine, task)
            cloud.s3.head_object = refused  # type: ignore[method-assign]
            engine.cancel(task)
        with pytest.raises(amistore.AccessDeniedError):
            engine.wait(task)
        assert lease(engine, task) == lease(engine, task)


def refused(bucket: str, key: str) -> amistore.backends.ObjectInfo:
    raise amistore.AccessDeniedError("refused")


class PanicError(BaseException):
    """As extensions in Rust raise it, which `except Exception` does not meet."""


def test_a_panic_in_a_backend_ends_one_run_and_the_engine_works_on() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud, concurrency=1) as engine:
        inner = cloud.ebs.get_snapshot_block
        cloud.ebs.get_snapshot_block = panic  # type: ignore[method-assign]
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.AmistoreError, match="PanicError: out of luck"):
            engine.wait(task)
        cloud.ebs.get_snapshot_block = inner  # type: ignore[method-assign]
        engine.resume()
        assert engine.wait(task).state == "Completed"


def panic(*arguments: object) -> bytes:
    raise PanicError("out of luck")


def test_an_engine_whose_closing_is_interrupted_leaves_its_tasks_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    engine = TaskEngine(cloud)
    with held(DirectoryEBS, "get_snapshot_block") as reached:
        task = engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
        assert reached.wait(60)
        with monkeypatch.context() as interrupted:
            interrupted.setattr(threading.Thread, "join", interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.close()
        with TaskEngine(cloud) as other:
            assert [each.task_id for each in other.resume()] == [task.task_id]
    for thread in engine._runner._threads:
        thread.join()


def interrupt(thread: threading.Thread) -> None:
    raise KeyboardInterrupt
