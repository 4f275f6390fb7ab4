"""Waiting for a task, and taking it, when who has it does not go on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tasks.accounts import BUCKET, elsewhere, registered, stored

from amistore import DirectoryBackend, TaskEngine

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
