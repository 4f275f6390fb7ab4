"""Engines that are left: at the end of a block, of a program, by Ctrl-C, in a forked process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from objects import runs
from tasks.accounts import BUCKET
from tasks.processes import Engines
from tasks.sharing import pack_in_parts

from amistore import TaskEngine
from amistore.backends.directory.s3 import DirectoryS3

PROGRAM = """
import os, sys, threading, time
import amistore
from tasks import sharing
from amistore.tasks import store

store.StoreJob = sharing.pack_in_parts
cloud = amistore.DirectoryBackend(sys.argv[1])
send = type(cloud.s3).upload_part
sent = threading.Semaphore(0)

def upload_part(*arguments):
    part = send(*arguments)
    os.write(1, b"sent\\n")
    sent.release()
    return part

type(cloud.s3).upload_part = upload_part
engine = amistore.TaskEngine(cloud, workers=1)
engine.create_store_image_task(image_id=sys.argv[2], bucket="archive")
"""


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    with Engines("store", tmp_path) as made:
        made.finish()
        made.check()
        made.renew()
        yield made


def start(engines: Engines, end: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + end, str(engines.root), engines.image_id],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def parts(engines: Engines) -> int:
    """How many parts of the unfinished task are there."""
    (upload,) = engines.cloud.s3.list_multipart_uploads(BUCKET)
    return len(engines.cloud.s3.list_parts(BUCKET, upload.key, upload.upload_id))


def test_leaving_the_block_stops_at_a_part_and_the_next_engine_sends_the_others(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amistore.tasks.store.StoreJob", pack_in_parts)
    send, first = DirectoryS3.upload_part, threading.Event()

    def upload_part(*arguments: Any) -> Any:
        first.set()
        while not engine._runner._closing:
            pass
        return send(*arguments)

    monkeypatch.setattr(DirectoryS3, "upload_part", upload_part)
    with TaskEngine(engines.cloud, workers=1) as engine:
        engine.create_store_image_task(image_id=engines.image_id, bucket=BUCKET)
        assert first.wait(60)
    assert 1 <= parts(engines) < runs.PARTS
    monkeypatch.setattr(DirectoryS3, "upload_part", send)
    assert not engines.ended()
    engines.finish()
    engines.check()


def test_a_program_that_ends_without_closing_leaves_a_task_that_goes_on(engines: Engines) -> None:
    process = start(engines, "assert sent.acquire(timeout=60)\n")
    _, told = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in told
    engines.finish()
    engines.check()


def test_control_c_while_waiting_ends_the_program_and_leaves_the_task(engines: Engines) -> None:
    process = start(engines, "with engine:\n    engine.wait()\n")
    assert process.stdout is not None
    assert process.stdout.readline() == "sent\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode in (-signal.SIGINT, 0)  # it may have come to its end before
    assert process.returncode == 0 or told.rstrip().endswith("KeyboardInterrupt")
    engines.finish()
    engines.check()


def test_a_forked_process_can_neither_use_nor_close_the_engine_of_its_parent(engines: Engines) -> None:
    program = """
engine.wait()
child = os.fork()
if not child:
    status = 1
    try:
        for call in (engine.resume, engine.wait, engine.sweep, engine.describe_store_image_tasks):
            try:
                call()
            except amistore.InvalidRequestError as error:
                assert "fork" in str(error)
            else:
                raise AssertionError(call)
        engine.close()
        status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
with amistore.TaskEngine(cloud) as other:  # the parent is as alive as before
    assert other._ownership.alive(engine._ownership.owner)
assert engine.describe_store_image_tasks()[0].state == "Completed"
engine.close()
"""
    process = start(engines, program)
    _, told = process.communicate()
    assert process.returncode == 0, told


def test_the_tasks_of_a_killed_process_whose_forked_child_outlives_it_are_free_at_once(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amistore.tasks.store.StoreJob", pack_in_parts)
    program = """
assert sent.acquire(timeout=60)
if not os.fork():
    os.write(1, b"forked\\n")
    os.close(1)
    os.close(2)
    os.read(0, 1)
os._exit(0)
"""
    process = start(engines, program)
    assert process.wait() == 0
    assert process.stdout is not None
    assert "forked\n" in process.stdout  # a child that has not begun to run has let go of nothing yet
    with TaskEngine(engines.cloud) as engine:
        (owner,) = Path(f"{engines.cloud.journal}-engines").glob(f"{process.pid}-*")
        assert not engine._ownership.alive(owner.name)
        assert len(engine.resume()) == 1
        process.communicate()
    engines.finish()
    engines.check()
