"""A run that is stopped waits for the orders that are out: what they made is in its log."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import images
import pytest

import amistore
from amistore.pipeline.progress import Phase

LAYOUT = amistore.Layout(blocks_per_frame=2, blocks_per_segment=4, segments_per_shard=4)
"""Shards of 8 MiB, each an order of a part."""


class Together(ThreadPoolExecutor):
    """Begins no order before `count` were given."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._barrier = threading.Barrier(count)

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        def begin() -> Any:
            self._barrier.wait(30)
            return function(*arguments, **options)

        return super().submit(begin)


def test_orders_that_end_after_a_run_was_stopped_are_not_made_again(tmp_path: Path) -> None:
    source = images.Volumes([(1, {index: images.noise(index) for index in range(48)})])
    image = images.image(source.volumes)
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket("archive")
    to = cloud.s3.at("archive", "ami.bin")
    options = amistore.PackOptions(layout=LAYOUT)

    def store(executor: Executor, **given: Any) -> amistore.StoredArchive:
        return amistore.store(
            image,
            source,
            to,
            log=tmp_path / "store.log",
            options=options,
            executor=executor,
            workers=3,
            **given,
        )

    def stop(event: amistore.Progress) -> None:
        if event.phase is Phase.PACK:
            raise KeyboardInterrupt

    with Together(3) as executor, pytest.raises(KeyboardInterrupt):
        store(executor, progress=stop)
    source.get_snapshot_block = refuse  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as executor:
        store(executor)
    with amistore.open(to) as archive:
        assert archive.verify().ok


def refuse(*arguments: object) -> amistore.backends.SnapshotBlock:
    raise AssertionError("a block is read again")


class Leaving(images.Volumes):
    """A source that ends its process as a block is read."""

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        if block_index == 20:
            sys.exit(3)
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


class Shutting(images.Volumes):
    """A source that shuts its executor down, and what waits there."""

    executor: ThreadPoolExecutor

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        if block_index == 20:
            self.executor.shutdown(wait=False, cancel_futures=True)
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


def stored_by(source: images.Volumes, executor: Executor, workers: int) -> amistore.MemoryBackend:
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket("archive")
    try:
        amistore.store(
            images.image(source.volumes),
            source,
            cloud.s3.at("archive", "ami.bin"),
            options=amistore.PackOptions(layout=LAYOUT),
            executor=executor,
            workers=workers,
        )
    finally:
        assert cloud.s3.list_multipart_uploads("archive") == []
    return cloud


BLOCKS = [(1, {index: images.noise(index) for index in range(64)})]


def test_a_worker_that_leaves_does_not_end_who_gave_the_order() -> None:
    with ThreadPoolExecutor(2) as executor, pytest.raises(amistore.BackendError, match="SystemExit in a"):
        stored_by(Leaving(BLOCKS), executor, 2)


def test_an_executor_that_is_shut_down_while_orders_wait_in_it_is_a_typed_error() -> None:
    source = Shutting(BLOCKS)
    lost = pytest.raises(amistore.ResourcesExhaustedError, match="the executor has lost its workers")
    with ThreadPoolExecutor(1) as source.executor, lost:
        stored_by(source, source.executor, 4)
