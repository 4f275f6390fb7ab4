"""An object that is swapped for another is neither restored nor told as what was stored."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import images
import pytest
from objects.runs import Calls, Log
from objects.swaps import BUCKET, GOOD, KEY, Swap, put_in_place, registered, twin

import amistore
from amistore.backends import Backend
from amistore.errors import JournalError

Operation = Callable[[Backend, str], str]
"""Stores an AMI, restored or not, and gives the content id that it is told."""


def account(kind: str, folder: Path) -> Backend:
    cloud = amistore.MemoryBackend() if kind == "memory" else amistore.DirectoryBackend(folder)
    cloud.s3.create_bucket(BUCKET)
    return cloud


def transfer(cloud: Backend, image_id: str) -> str:
    moved = amistore.transfer(
        image_id, source=cloud, destination=cloud, name="moved", keep=cloud.s3.at(BUCKET, KEY), workers=1
    )
    assert moved.kept is not None
    assert moved.kept.content_id == moved.content_id
    return moved.content_id


def transfer_again(cloud: Backend, image_id: str) -> str:
    """As a run does that goes on where another ended before it registered the image."""
    log = Log()
    register = cloud.ec2.register_image

    def cut(*_: object, **__: object) -> None:
        raise amistore.BackendError("cut")

    put_in_place(cloud.ec2, "register_image", cut)
    for _ in range(2):
        try:
            return amistore.transfer(
                image_id,
                source=cloud,
                destination=cloud,
                name="moved",
                keep=cloud.s3.at(BUCKET, KEY),
                log=log,
                workers=1,
            ).content_id
        except amistore.BackendError as error:
            if error.message != "cut":
                raise
            put_in_place(cloud.ec2, "register_image", register)
    raise AssertionError


def store(cloud: Backend, image_id: str, log: Log | None = None) -> str:
    image = cloud.ec2.describe_image(image_id)
    return amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, KEY), log=log, workers=1).content_id


def store_with_log(cloud: Backend, image_id: str) -> str:
    return store(cloud, image_id, Log())


def store_again(cloud: Backend, image_id: str) -> str:
    """As a run does that goes on where another was killed once the object was there."""
    log = Log()
    Calls(log).fail("clear", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store(cloud, image_id, log)
    return store(cloud, image_id, log)


def task(cloud: Backend, image_id: str) -> str:
    with amistore.TaskEngine(cloud, workers=1, journal=":memory:") as engine:
        stored = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        return str(stored.content_id)


def task_again(cloud: Backend, image_id: str) -> str:
    """As another engine does, where the first one could not note that the task is completed."""
    with amistore.TaskEngine(cloud, workers=1) as engine:

        def full(*_: object, **__: object) -> None:
            raise JournalError("no room")

        engine._journal.complete = full  # type: ignore[method-assign]
        created = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.AmistoreError):
            engine.wait(created)
    with amistore.TaskEngine(cloud, workers=1) as engine:
        engine.resume()
        stored = engine.wait(created)
        return str(stored.content_id)


OPERATIONS = [transfer, transfer_again, store, store_with_log, store_again, task, task_again]


@pytest.mark.parametrize(
    ("operation", "kind", "copied"),
    [
        *((each, "memory", copied) for each in OPERATIONS for copied in (False, True)),
        *((each, "directory", True) for each in (transfer, store_again, task)),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)),
)
def test_an_object_that_is_swapped_at_any_call_is_neither_restored_nor_told(
    operation: Operation, kind: str, copied: bool, tmp_path: Path
) -> None:
    refused = at = 0
    while True:
        cloud = account(kind, tmp_path / str(at))
        image_id = registered(cloud)
        before = set(cloud.ec2.describe_image(image_id).snapshot_ids)
        good, evil = twin(cloud, image_id)
        key = f"{image_id}.bin" if "task" in operation.__name__ else KEY
        swap = Swap(cloud.s3, evil, at, copied, key)
        with amistore.open(io.BytesIO(good)) as archive:
            right = archive.content_id
        try:
            assert operation(cloud, image_id) == right
        except amistore.AmistoreError:
            refused += 1
        for image in cloud.ec2.describe_images():
            for snapshot_id in set(image.snapshot_ids) - before:
                assert images.contents(cloud.ebs, snapshot_id) == (1, GOOD)
        if operation in (transfer, store, store_with_log, task):  # one run: all it reads is pinned
            assert swap.pins <= {swap.etag}
        assert swap.calls is not None
        if swap.calls < at:
            break
        at += 1
    assert at >= 1
    assert refused
