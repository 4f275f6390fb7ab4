"""A night's work: what waits for room in a quota, and what is not stored again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tasks.accounts import BUCKET, account, held, registered, stored

import amistore
from amistore import DirectoryBackend, Quotas, TaskEngine
from amistore.tasks import runner

FULL = Quotas(store_in_progress=1, restore_in_progress=1)  # of one task at a time


@contextlib.contextmanager
def waiting(engine: TaskEngine, **asked: Any) -> Iterator[Future[Any]]:
    """A create in another thread, from when it waits for room."""
    waits = threading.Event()
    inner = engine._runner._wait_for_change

    def wait(*arguments: Any) -> None:
        waits.set()
        inner(*arguments)

    engine._runner._wait_for_change = wait  # type: ignore[method-assign]
    create = engine.create_store_image_task if "image_id" in asked else engine.create_restore_image_task
    with ThreadPoolExecutor(1) as pool:
        created = pool.submit(create, **asked)
        assert waits.wait(60)
        yield created


def count(engine: TaskEngine) -> int:
    return len(engine.describe_store_image_tasks()) + len(engine.describe_restore_image_tasks())


@pytest.mark.parametrize("kind", ["store", "restore"])
def test_a_task_waits_for_room_in_its_quota_and_is_not_durable_before(kind: str) -> None:
    cloud, image_id = account()
    other = registered(cloud, "other")
    key = stored(cloud, other)
    cloud.s3.delete_object(BUCKET, stored(cloud, image_id))
    asked: Any = {"image_id": image_id, "bucket": BUCKET}
    first: Any = {"image_id": other, "bucket": f"{BUCKET}/again"}
    if kind == "restore":
        asked, first = ({"bucket": BUCKET, "object_key": key, "name": name} for name in ("web-2", "web-3"))
    with TaskEngine(cloud, quotas=FULL) as engine, contextlib.ExitStack() as opened:
        opened.enter_context(held(cloud.s3, "create_multipart_upload"))
        opened.enter_context(held(cloud.ebs, "start_snapshot"))
        before = count(engine)
        getattr(engine, f"create_{kind}_image_task")(**first)
        with waiting(engine, **asked) as created:
            assert count(engine) == before + 1
            opened.close()
            task = created.result(60)
        assert engine.wait(task).state == "Completed"


def test_what_was_asked_for_is_checked_again_after_waiting() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud, quotas=FULL) as engine, contextlib.ExitStack() as opened:
        opened.enter_context(held(cloud.s3, "create_multipart_upload"))
        first = engine.create_store_image_task(image_id=registered(cloud, "first"), bucket=BUCKET)
        with waiting(engine, image_id=image_id, bucket=BUCKET) as created:
            cloud.ec2.deregister_image(image_id)
            opened.close()
            with pytest.raises(amistore.NotFoundError):
                created.result(60)
        assert [task.task_id for task in engine.describe_store_image_tasks()] == [first.task_id]


def test_closing_the_engine_ends_the_waiting() -> None:
    cloud, image_id = account()
    engine = TaskEngine(cloud, quotas=FULL)
    with contextlib.ExitStack() as opened:
        reached = opened.enter_context(held(cloud.s3, "create_multipart_upload"))
        engine.create_store_image_task(image_id=registered(cloud, "first"), bucket=BUCKET)
        assert reached.wait(60)
        with waiting(engine, image_id=image_id, bucket=BUCKET) as created, ThreadPoolExecutor(1) as pool:
            closed = pool.submit(engine.close)
            with pytest.raises(amistore.InvalidRequestError, match="the engine is closed"):
                created.result(60)
            opened.close()
            closed.result(60)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """As at a terminal: a run that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_ends_the_waiting_and_the_engine_works_on() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud, quotas=FULL) as engine:
        with held(cloud.s3, "create_multipart_upload"):
            engine.create_store_image_task(image_id=registered(cloud, "first"), bucket=BUCKET)
            inner = engine._runner._wait_for_change

            def wait(*arguments: Any) -> None:
                engine._runner._wait_for_change = inner  # type: ignore[method-assign]
                threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
                inner(*arguments)

            engine._runner._wait_for_change = wait  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert count(engine) == 1
        engine.wait()
        engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert [task.state for task in engine.wait()] == ["Completed", "Completed"]


BESIDE = """
import sys, amistore
from amistore.backends.directory.s3 import DirectoryS3
from tasks.accounts import BUCKET, held

with amistore.TaskEngine(amistore.DirectoryBackend(sys.argv[1])) as engine:
    with held(DirectoryS3, "create_multipart_upload") as reached:
        engine.create_store_image_task(image_id=sys.argv[2], bucket=BUCKET)
        assert reached.wait(60)
        print("begun", flush=True)
        input()
    engine.wait()
    engine.close()
    print("ended", flush=True)
"""


@pytest.mark.parametrize("end", ["completed", "killed"])
def test_a_task_waits_for_one_of_another_process_while_that_lives(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_HEARTBEAT", 0.05)
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    program = subprocess.Popen(
        [sys.executable, "-c", BESIDE, str(cloud.path), registered(cloud, "other")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program, TaskEngine(cloud, quotas=FULL) as engine:
        assert program.stdin and program.stdout
        assert program.stdout.readline() == "begun\n"
        with waiting(engine, image_id=image_id, bucket=BUCKET) as created:
            if end == "completed":
                program.stdin.write("\n")
                program.stdin.flush()
                assert engine.wait(created.result(60)).state == "Completed"
            else:
                program.kill()
                with pytest.raises(amistore.InvalidRequestError, match=r"resume\(\) continues tasks that no"):
                    created.result(60)


def test_a_quota_that_unfinished_tasks_use_up_is_not_waited_for() -> None:
    cloud, image_id = account()
    key, start = stored(cloud, image_id), cloud.ebs.start_snapshot
    asked: Any = {"bucket": BUCKET, "object_key": key}
    with TaskEngine(cloud, quotas=FULL) as engine:
        cloud.ebs.start_snapshot = refused  # type: ignore[method-assign]
        task = engine.create_restore_image_task(**asked, name="web-2")
        with pytest.raises(amistore.AccessDeniedError):
            engine.wait(task)
        with pytest.raises(amistore.InvalidRequestError) as caught:
            engine.create_restore_image_task(**asked, name="web-3")
        assert caught.value.code == "ResourceLimitExceeded"
        cloud.ebs.start_snapshot = start  # type: ignore[method-assign]
        engine.resume()
        engine.create_restore_image_task(**asked, name="web-3")
        assert [task.state for task in engine.wait()] == ["Completed", "Completed"]


def refused(*arguments: object, **options: object) -> str:
    raise amistore.AccessDeniedError("refused")


def test_a_dry_run_waits_for_nothing_and_ec2s_names_keep_its_refusal() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud, quotas=FULL) as engine:
        with held(cloud.s3, "create_multipart_upload"):
            engine.create_store_image_task(image_id=registered(cloud, "first"), bucket=BUCKET)
            ask: Any = {"image_id": image_id, "bucket": BUCKET, "dry_run": True}
            codes = []
            for asked in (ask, {**ask, "on_quota": "refuse"}):
                with pytest.raises(amistore.InvalidRequestError) as caught:
                    engine.create_store_image_task(**asked)
                codes.append(caught.value.code)
            client = amistore.ec2.EC2Client(engine)
            with pytest.raises(client.exceptions.ClientError) as answered:
                client.create_store_image_task(ImageId=image_id, Bucket=BUCKET)
            codes.append(answered.value.response["Error"]["Code"])
            assert codes == ["DryRunOperation", "ResourceLimitExceeded", "ResourceLimitExceeded"]
        engine.wait()


@pytest.mark.parametrize("options", [{"on_quota": "sleep"}, {"on_quota": None}, {"if_exists": "overwrite"}])
def test_a_choice_that_is_none_is_refused(options: Any) -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine, pytest.raises(amistore.InvalidRequestError, match=next(iter(options))):
        engine.create_store_image_task(image_id=image_id, bucket=BUCKET, **options)


def test_a_night_stores_what_is_not_stored_yet_and_no_more_at_once_than_the_quota() -> None:
    cloud, image_id = account()
    images = [image_id, *(registered(cloud, name) for name in ("two", "three"))]
    stored(cloud, images[1])
    etag = cloud.s3.head_object(BUCKET, f"{images[1]}.bin").etag
    with TaskEngine(cloud, quotas=FULL) as engine:
        made = [
            engine.create_store_image_task(image_id=each, bucket=BUCKET, if_exists="skip") for each in images
        ]
        assert [None if task is None else task.ami_id for task in made] == [images[0], None, images[2]]
        assert len(engine.wait()) == 2
    assert cloud.s3.head_object(BUCKET, f"{images[1]}.bin").etag == etag


def test_a_task_that_makes_the_object_is_given_instead_and_resumed_where_nobody_works_on_it(
    tmp_path: Path,
) -> None:
    cloud, image_id = account()
    asked: Any = {"image_id": image_id, "bucket": BUCKET, "if_exists": "skip"}
    journal = tmp_path / "tasks.db"
    with contextlib.ExitStack() as opened:
        engine = TaskEngine(cloud, journal=journal)
        reached = opened.enter_context(held(cloud.s3, "create_multipart_upload"))
        task = engine.create_store_image_task(**asked)
        assert reached.wait(60)
        again = engine.create_store_image_task(**asked)
        assert (again.task_id, len(engine.describe_store_image_tasks())) == (task.task_id, 1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        while not engine._runner._closing:
            pass
        opened.close()
        closing.join()
    with TaskEngine(cloud, journal=journal) as engine:
        again = engine.create_store_image_task(**asked)
        assert again.task_id == task.task_id
        assert [each.state for each in engine.wait()] == ["Completed"]
        assert engine.create_store_image_task(**asked) is None


def test_an_object_that_amistore_has_not_stored_is_not_skipped() -> None:
    cloud, image_id = account()
    cloud.s3.put_object(BUCKET, f"{image_id}.bin", [b"of another program"])
    with (
        TaskEngine(cloud) as engine,
        pytest.raises(amistore.AlreadyExistsError, match="amistore did not store it"),
    ):
        engine.create_store_image_task(image_id=image_id, bucket=BUCKET, if_exists="skip")
