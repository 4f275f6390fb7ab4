"""Engines in processes that die: `python -m tasks.killable`."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import deaths
from objects import runs

import amistore
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.ec2 import DirectoryEC2
from amistore.backends.directory.s3 import DirectoryS3
from amistore.objects.store import StoreJob
from amistore.tasks import run, runner, store
from amistore.tasks.journal import Journal

NAME = "restored"
CANCEL_AT = 2
"""The part or block at which a cancelled task is cancelled."""

SERVICES: dict[type, list[str]] = {
    DirectoryS3: [
        "head_bucket",
        "head_object",
        "get_object_range",
        "create_multipart_upload",
        "upload_part",
        "list_parts",
        "complete_multipart_upload",
        "abort_multipart_upload",
    ],
    DirectoryEBS: [
        "list_snapshot_blocks",
        "get_snapshot_block",
        "start_snapshot",
        "put_snapshot_block",
        "complete_snapshot",
        "describe_snapshot",
        "delete_snapshot",
    ],
    DirectoryEC2: ["describe_image", "describe_images", "find_images", "register_image"],
    Journal: [
        "add",
        "take",
        "begin",
        "advance",
        "append",
        "clear",
        "complete",
        "cancel",
        "fail",
        "undone",
        "release",
    ],
}


def go_on(what: str, root: str, image_id: str, lease: float | None = None) -> None:
    """Create the task, or go on with the one that is there, until it has ended.

    With a `lease`, in seconds, only as long as it is this process's, and with one worker: a process that
    is stopped while another of its threads holds a snapshot's folder would lock the next owner out.
    """
    if lease is not None:
        runner.LEASE = lease  # type: ignore[misc]
    cloud = amistore.DirectoryBackend(root)
    kind, _, manner = what.partition("-")
    workers = 2 if lease is None else 1
    with amistore.TaskEngine(cloud, workers=workers, concurrency=1) as engine:
        if manner == "cancelled":
            verb = (DirectoryS3, "upload_part") if kind == "store" else (DirectoryEBS, "put_snapshot_block")
            cancel_at(engine, *verb)
        describe = getattr(engine, f"describe_{kind}_image_tasks")
        if describe():
            engine.resume()
        elif kind == "store":
            engine.create_store_image_task(image_id=image_id, bucket=runs.BUCKET)
        else:
            place = {"bucket": runs.BUCKET, "object_key": runs.KEY}
            engine.create_restore_image_task(**place, name=NAME, fill_holes=manner == "filled")
        if lease is None:
            engine.wait()
        with engine._runner.changed:
            while engine._runner._queue or engine._runner._active:
                engine._runner.changed.wait()


def locked_writing() -> threading.RLock:
    """A lock that every transaction holds: who was stopped in one would lock out all others."""
    lock, writing = threading.RLock(), Journal._writing

    @contextlib.contextmanager
    def locked(*arguments: Any) -> Iterator[Any]:
        with lock, writing(*arguments) as database:
            yield database

    Journal._writing = locked  # type: ignore[method-assign]
    return lock


def cancel_at(engine: amistore.TaskEngine, service: type, verb: str) -> None:
    """Cancel the task in the middle of one of its calls."""
    lock = threading.Lock()
    calls = 0
    inner = getattr(service, verb)

    def cancelling(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            now = calls == CANCEL_AT
        if now:
            for task in (*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()):
                engine.cancel(task)
        return inner(*arguments, **options)

    setattr(service, verb, cancelling)


if __name__ == "__main__":
    store.StoreJob = functools.partial(  # type: ignore[assignment,misc]
        StoreJob, options=runs.PACKING
    )
    run._REPORT = 0.0  # type: ignore[misc]
    os.environ["AMISTORE_STATE_DIR"] = os.devnull  # nothing is to lie there
    deaths.serve(go_on, SERVICES, locked_writing())
