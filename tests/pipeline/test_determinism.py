"""The same image gives the same bytes, whoever works on it and in whatever order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import images
import pytest

import amistore

BLOCKS = {i: images.block(i) for i in range(60)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[amistore.Image, amistore.DirectoryBackend]:
    cloud = amistore.DirectoryBackend(tmp_path_factory.mktemp("cloud"))
    ids = [images.snapshot(cloud.ebs, 1, BLOCKS), images.snapshot(cloud.ebs, 2, {7: images.noise(1)})]
    return images.image(sorted(ids)), cloud


@pytest.fixture(scope="module")
def expected(stored: tuple[amistore.Image, amistore.DirectoryBackend]) -> bytes:
    image, cloud = stored
    return b"".join(
        amistore.pack(image, cloud.ebs, workers=1, options=amistore.PackOptions(layout=images.SMALL))
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor, ProcessPoolExecutor])
def test_bytes_are_the_same_for_any_number_of_threads_or_processes(
    stored: tuple[amistore.Image, amistore.DirectoryBackend],
    expected: bytes,
    workers: int,
    pool: Callable[[int], Executor] | None,
) -> None:
    image, cloud = stored
    if pool is None:
        assert (
            b"".join(
                amistore.pack(
                    image, cloud.ebs, workers=workers, options=amistore.PackOptions(layout=images.SMALL)
                )
            )
            == expected
        )
        return
    with pool(workers) as executor:
        container = amistore.pack(
            image,
            cloud.ebs,
            workers=workers,
            executor=executor,
            options=amistore.PackOptions(layout=images.SMALL),
        )
        assert b"".join(container) == expected


class Shuffling(Executor):
    """Runs tasks in threads and lets each finish only when a seeded choice picks it."""

    def __init__(self, seed: int, width: int) -> None:
        self._random = random.Random(seed)
        self._width = width
        self._lock = threading.Lock()
        self._waiting: list[tuple[Future[Any], Callable[[], Any], int]] = []
        self._count = 0
        self.completed: list[int] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, lambda: function(*args, **kwargs), self._count))
        self._count += 1
        if len(self._waiting) >= self._width:
            self.release()
        return future

    def release(self) -> None:
        self._random.shuffle(self._waiting)
        for future, run, number in self._waiting:
            if future.set_running_or_notify_cancel():
                self.completed.append(number)
                future.set_result(run())
        self._waiting.clear()


def test_bytes_do_not_depend_on_the_order_in_which_workers_finish(
    stored: tuple[amistore.Image, amistore.DirectoryBackend], expected: bytes
) -> None:
    image, cloud = stored
    orders = set()
    for seed in range(3):
        # A width that divides the number of segments (16), so that none waits for ever.
        executor = Shuffling(seed, 4)
        container = amistore.pack(
            image, cloud.ebs, workers=2, executor=executor, options=amistore.PackOptions(layout=images.SMALL)
        )
        assert b"".join(container) == expected
        assert executor.completed != sorted(executor.completed)
        orders.add(tuple(executor.completed))
    assert len(orders) == 3


def test_a_source_that_cannot_leave_its_process_is_refused_for_a_process_pool() -> None:
    backend = amistore.MemoryBackend()
    image = images.image([images.snapshot(backend.ebs, 1, {0: images.block(1)})])
    with ProcessPoolExecutor(1) as executor, pytest.raises(amistore.InvalidRequestError, match="threads"):
        amistore.pack(image, backend.ebs, executor=executor)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_unpacking_works_in_a_pool_of_the_callers(
    tmp_path: Path, expected: bytes, pool: Callable[[int], Executor]
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(expected)
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    with pool(2) as executor, path.open("rb") as file:
        image = amistore.unpack(file, cloud.ebs, workers=2, executor=executor)
    restored = [images.contents(cloud.ebs, each) for each in image.snapshot_ids]
    assert sorted(map(len, (blocks for _, blocks in restored))) == [1, 60]
    assert (1, BLOCKS) in restored
