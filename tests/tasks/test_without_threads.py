"""Tasks where the system starts no more threads: none is made that would wait for one for ever."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tasks.accounts import BUCKET, account, elsewhere, held, registered

import amistore
from amistore import TaskEngine

DYING = """
from amistore.backends.directory.ebs import DirectoryEBS
from tasks.accounts import BUCKET, held

engine = amistore.TaskEngine(amistore.DirectoryBackend(sys.argv[1]))
with held(DirectoryEBS, "get_snapshot_block") as reached:
    engine.create_store_image_task(image_id=sys.argv[2], bucket=BUCKET)
    reached.wait()
    os._exit(0)
"""


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """Threads want a stack that cannot be had."""
    before = threading.stack_size(1 << 47)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_without_a_thread_no_task_is_made_and_the_next_call_makes_one() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with no_threads(), pytest.raises(amistore.ResourcesExhaustedError, match="no more threads"):
            engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert list(engine.describe_store_image_tasks()) == []
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert engine.wait(task).state == "Completed"


def test_without_a_thread_no_task_is_taken_over(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    elsewhere(DYING, cloud.path, registered(cloud))
    with TaskEngine(cloud) as engine:
        with no_threads(), pytest.raises(amistore.ResourcesExhaustedError):
            engine.resume()
        (task,) = engine.resume()
        assert engine.wait(task).state == "Completed"


def test_a_task_that_waits_is_cancelled_in_its_turn_where_no_thread_begins_for_that() -> None:
    cloud, image_id = account()
    # With one worker the task that runs begins no thread either, while none can begin.
    with TaskEngine(cloud, concurrency=1, workers=1) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            first = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            other = registered(cloud, "other")
            second = engine.create_store_image_task(image_id=other, bucket=BUCKET)
            with no_threads():
                engine.cancel(second)
        with pytest.raises(amistore.TaskFailedError, match="cancelled"):
            engine.wait()
        assert engine.wait(first).state == "Completed"
