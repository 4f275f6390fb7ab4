"""An iterator that the garbage collector ends waits for nobody: it runs in any thread, at any line."""

from __future__ import annotations

import _thread
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import images
import pytest

import amistore
from amistore.backends import SnapshotBlock
from amistore.container.layout import Layout
from amistore.pipeline import workers

BLOCKS = {i: images.block(i % 7 + 1) for i in range(96)}
OPTIONS = amistore.PackOptions(layout=Layout(blocks_per_frame=2, blocks_per_segment=8))
SECONDS = 20  # until what does not end is missed


class Held(images.Volumes):
    """A source whose answers, from the third segment on, need what the thread that collects holds."""

    def __init__(self, requests: int) -> None:
        super().__init__([(1, BLOCKS)])
        self.requests = requests
        self.free = threading.Event()
        self.waits = threading.Event()

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        if block_index >= 16 and not self.free.is_set():
            self.waits.set()
            self.free.wait()
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


class Begun(Held):
    """Such a source that begins its calls by itself."""

    def __init__(self, requests: int) -> None:
        super().__init__(requests)
        self.pool = ThreadPoolExecutor(requests)

    def begin_get(self, snapshot_id: str, block_index: int, block_token: str) -> Future[SnapshotBlock]:
        return self.pool.submit(super().get_snapshot_block, snapshot_id, block_index, block_token)

    # Beside `begin_get`, which counts where it stands beside the method or below it.
    get_snapshot_block = Held.get_snapshot_block


class Endings:
    """The threads that begin to end others, of which `threading` does not know at first."""

    def __init__(self) -> None:
        self._ran: list[threading.Event] = []

    def start_new_thread(self, function: Callable[[], None], arguments: tuple[()]) -> int:
        ran = threading.Event()
        self._ran.append(ran)

        def run() -> None:
            function()
            ran.set()

        return _thread.start_new_thread(run, arguments)

    def over(self, before: set[threading.Thread]) -> bool:
        """Whether all threads end that began since; one may begin another."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            begun = list(self._ran)
            known = all(ran.is_set() for ran in begun)
            left = set(threading.enumerate()) - before
            if known and not left and begun == self._ran:
                return True
            for ran in begun:
                ran.wait(SECONDS)
            for thread in left:
                with contextlib.suppress(RuntimeError):  # it is just beginning
                    thread.join(SECONDS)
        return False


@pytest.fixture
def endings(monkeypatch: pytest.MonkeyPatch) -> Endings:
    made = Endings()
    monkeypatch.setattr(workers, "_thread", made)
    return made


def cyclic(source: Held) -> list[Any]:
    """An iterator in a cycle."""
    cycle: list[Any] = [amistore.pack(images.image(source.volumes), source, options=OPTIONS, workers=2)]
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize("made", [lambda: Held(0), lambda: Held(16), lambda: Begun(16)])
def test_a_dropped_iterator_in_a_cycle_lets_the_collector_go_on_and_ends_its_threads(
    made: Callable[[], Held], endings: Endings
) -> None:
    before = set(threading.enumerate())
    source = made()
    free, pool = source.free, getattr(source, "pool", None)
    rescue = threading.Timer(SECONDS, free.set)
    gc.disable()
    try:
        cycle = cyclic(source)
        for _ in range(6):  # into the first segment
            next(cycle[0])
        assert source.waits.wait(SECONDS)
        rescue.start()
        del cycle
        gc.collect()
        assert not free.is_set(), "the collector waited"
    finally:
        gc.enable()
        free.set()
        rescue.cancel()
        if pool is not None:
            pool.shutdown()
    assert endings.over(before)


@pytest.mark.parametrize("requests", [0, 16])
def test_a_worker_may_drop_the_last_reference_to_its_own_iterator(requests: int, endings: Endings) -> None:
    before = set(threading.enumerate())
    kept: list[Any] = []
    dropped = threading.Event()

    class Dropping(Held):
        def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
            if block_index >= 16 and self.waits.wait(SECONDS) and kept:
                kept.clear()
                dropped.set()
            return super().get_snapshot_block(snapshot_id, block_index, block_token)

    source = Dropping(requests)
    source.free.set()
    kept.append(amistore.pack(images.image(source.volumes), source, options=OPTIONS, workers=2))
    for _ in range(6):  # into the first segment
        next(kept[0])
    source.waits.set()  # nobody takes from it any more
    assert dropped.wait(SECONDS)
    assert endings.over(before)


def test_who_closes_it_waits_for_its_threads_also_where_another_iterator_is_dropped() -> None:
    before = set(threading.enumerate())
    source = Held(16)
    source.free.set()
    with amistore.pack(images.image(source.volumes), source, options=OPTIONS, workers=2) as iterator:
        next(iterator)
    assert set(threading.enumerate()) <= before

    def pieces() -> Iterator[bytes]:
        with amistore.pack(images.image(source.volumes), source, options=OPTIONS, workers=2) as inner:
            yield from inner

    outer = pieces()
    for _ in range(8):
        next(outer)
    del outer  # whose `with` block is left by GeneratorExit, and closes the iterator
    assert set(threading.enumerate()) <= before


def test_no_collection_calls_python_code_of_ours_in_which_a_signal_would_be_lost() -> None:
    assert [each for each in gc.callbacks if getattr(each, "__module__", "").startswith("amistore")] == []


def test_collections_at_any_line_end_dropped_iterators(endings: Endings) -> None:
    before = set(threading.enumerate())
    thresholds = gc.get_threshold()
    gc.set_threshold(100, 5, 5)
    try:
        for _ in range(20):
            source = Begun(16)
            source.free.set()
            cycle = cyclic(source)
            for _ in range(8):
                next(cycle[0])
            source.pool.shutdown(wait=False)
    finally:
        gc.set_threshold(*thresholds)
    del cycle
    gc.collect()
    assert endings.over(before)
