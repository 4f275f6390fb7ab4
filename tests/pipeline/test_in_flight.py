"""Blocks are asked for and put many at a time, in any order of the answers, with the same result."""

from __future__ import annotations

import collections
import contextlib
import gc
import hashlib
import io
import logging
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, ClassVar

import images
import pytest

import amistore
from amistore.backends.retries import Attempts, Retrier
from amistore.container.layout import Layout
from amistore.pipeline import requests as pipeline_requests
from amistore.pipeline.gets import BlockGets
from amistore.pipeline.workers import worker_pool

COUNT = 96
BLOCKS = {i: images.block(i % 7 + 1) for i in range(COUNT)}
FORM = Layout(blocks_per_frame=2, blocks_per_segment=32)
OPTIONS = amistore.PackOptions(layout=FORM)
EXPECTED = images.packed([(1, BLOCKS)], FORM)
SECONDS = 20  # until what does not come is missed


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


class Together(images.Volumes):
    """A source that answers once so many blocks are asked for, or the last of them are."""

    def __init__(self, together: int, count: int = COUNT) -> None:
        super().__init__([(1, {i: BLOCKS[i % COUNT] for i in range(count)})])
        self.requests = together
        self.together = together
        self.asked: list[int] = []
        self.changed = threading.Condition()
        self.released = 0

    def get_snapshot_block(
        self, snapshot_id: str, block_index: int, block_token: str
    ) -> amistore.backends.SnapshotBlock:
        with self.changed:
            self.asked.append(block_index)
            if len(self.asked) % self.together == 0:
                self.released = len(self.asked)
            self.changed.notify_all()
            place = len(self.asked)
            assert self.changed.wait_for(lambda: self.released >= place, SECONDS)
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


def packing(source: amistore.backends.BlockSource, **options: Any) -> amistore.ArchiveBytes:
    volumes = getattr(source, "volumes", ["snap-00000000000000000"])
    return amistore.pack(images.image(volumes), source, options=OPTIONS, **options)


@pytest.mark.parametrize("together", [1, 8, 32])
def test_a_source_is_asked_for_as_many_blocks_at_once_as_it_states_and_for_each_once(together: int) -> None:
    source = Together(together)
    assert b"".join(packing(source, workers=2)) == EXPECTED
    assert sorted(source.asked) == list(range(COUNT))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_executor_of_the_caller_gets_its_blocks_in_flight_too(workers: int) -> None:
    source = Together(32)
    with ThreadPoolExecutor(1) as pool:
        assert b"".join(packing(source, workers=workers, executor=pool)) == EXPECTED


def test_workers_that_are_other_processes_ask_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    source = images.Volumes([(1, BLOCKS)])
    source.requests = 64
    caplog.set_level(logging.INFO, "amistore")
    with ProcessPoolExecutor(2) as pool:
        assert b"".join(packing(source, executor=pool)) == EXPECTED
    assert "one by one: threads would have 64 at once" in caplog.text


@pytest.mark.parametrize("held", [1, 3])
def test_a_budget_smaller_than_a_segment_lets_everything_through(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_requests, "HELD", held)
    monkeypatch.setattr("amistore.pipeline.gets._LEVEL", 1)
    source = Together(1)
    source.requests = 64
    assert b"".join(packing(source, workers=2)) == EXPECTED
    backend = restored(EXPECTED, requests=8)
    assert images.contents(backend.ebs, images.leftovers(backend)[0]) == (1, BLOCKS)


class AtOnce(images.Volumes):
    """A source whose calls end as they are begun."""

    requests = 64

    def __init__(self) -> None:
        super().__init__([(1, BLOCKS)])
        self.begun: list[int] = []

    def begin_get(self, snapshot_id: str, block_index: int, block_token: str) -> Future[Any]:
        self.begun.append(block_index)
        future: Future[Any] = Future()
        future.set_result(amistore.backends.SnapshotBlock(BLOCKS[block_index % COUNT]))
        return future


SNAPSHOT = "snap-00000000000000000"


def ended(function: Callable[[], object]) -> list[object]:
    """What a function gives, or its error, from a thread that must end."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()
    return found


def test_no_more_blocks_are_got_ahead_than_the_budget() -> None:
    source = AtOnce()
    with BlockGets(source, None, segments=4) as gets:
        segments = [gets.segment(SNAPSHOT, range(at, at + 64), [""] * 64) for at in range(0, 256, 64)]
        gets.take(segments[0], 0)
        assert source.begun == list(range(pipeline_requests.HELD + 1))  # and the one that was taken


def test_a_block_that_a_worker_waits_for_passes_a_budget_that_another_segment_has_used_up() -> None:
    source = AtOnce()
    with BlockGets(source, None, segments=4) as gets:
        first = gets.segment(SNAPSHOT, range(64), [""] * 64)
        second = gets.segment(SNAPSHOT, range(64, 264), [""] * 200)
        gets.take(second, 0)
        assert len(source.begun) == pipeline_requests.HELD + 1
        [got] = ended(lambda: gets.take(first, 0))
        assert isinstance(got, amistore.backends.SnapshotBlock)
        assert 0 in source.begun


def test_a_worker_that_waits_for_a_block_that_nobody_will_ask_for_any_more_is_let_go() -> None:
    source = AtOnce()
    with BlockGets(source, None, segments=4) as gets:
        segment = gets.segment(SNAPSHOT, range(64), [""] * 64)
    [error] = ended(lambda: gets.take(segment, 0))
    assert isinstance(error, Exception)
    assert source.begun == []


class Scrambled(images.Volumes):
    """A source that begins calls by itself: some end at once, the others in any order, by another thread."""

    requests = 16

    def __init__(self, seed: int) -> None:
        super().__init__([(1, BLOCKS)])
        self.random = random.Random(seed)
        self.changed = threading.Condition()
        self.waiting: list[tuple[Future[Any], int]] = []
        self.begun: list[int] = []
        self.most = 0
        self.over = False

    def begin_get(self, snapshot_id: str, block_index: int, block_token: str) -> Future[Any]:
        future: Future[Any] = Future()
        with self.changed:
            self.begun.append(block_index)
            later = self.random.random() < 0.8
            if later:
                self.waiting.append((future, block_index))
                self.most = max(self.most, len(self.waiting))
                self.changed.notify_all()
        if not later:
            future.set_result(amistore.backends.SnapshotBlock(BLOCKS[block_index]))
        return future

    def answer(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.over)
                if not self.waiting:
                    return
                future, index = self.waiting.pop(self.random.randrange(len(self.waiting)))
            future.set_result(amistore.backends.SnapshotBlock(BLOCKS[index]))

    def end(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        raise AssertionError("called beside begin_get")


@pytest.mark.parametrize("seed", range(8))
def test_answers_in_any_order_give_the_same_bytes(seed: int) -> None:
    source = Scrambled(seed)
    answering = threading.Thread(target=source.answer)
    answering.start()
    try:
        assert b"".join(packing(source, workers=seed % 3 + 1)) == EXPECTED
    finally:
        source.end()
        answering.join()
    assert sorted(source.begun) == list(range(COUNT))
    assert source.most <= 16


class Damaging(images.Volumes):
    """A source of begun gets with attempts; the first so many answers for each third block are damaged."""

    requests = 16

    def __init__(self, damaged: int) -> None:
        super().__init__([(1, BLOCKS)])
        self.damaged = damaged
        self.retrier = Retrier(amistore.RetryPolicy(base_delay=0, attempts=3))
        self.asked: collections.Counter[int] = collections.Counter()

    def attempts(self, snapshot_id: str) -> Attempts:
        return self.retrier.attempts(snapshot_id)

    def begin_get(
        self, snapshot_id: str, block_index: int, block_token: str, attempts: Attempts
    ) -> Future[Any]:
        attempts.turn()
        self.asked[block_index] += 1
        right = BLOCKS[block_index]
        damaged = block_index % 3 == 0 and self.asked[block_index] <= self.damaged
        content = bytes([right[0] ^ 1]) + right[1:] if damaged else right
        future: Future[Any] = Future()
        future.set_result(amistore.backends.SnapshotBlock(content, hashlib.sha256(right).digest()))
        return future


def test_blocks_that_are_begun_and_come_damaged_are_got_again_with_their_attempts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "amistore")
    source = Damaging(2)
    assert b"".join(packing(source)) == EXPECTED
    assert source.asked == {index: 3 if index % 3 == 0 else 1 for index in BLOCKS}
    assert sum("ChecksumMismatchError" in each.getMessage() for each in caplog.records) == 2 * COUNT // 3
    source = Damaging(3)
    with pytest.raises(amistore.ChecksumMismatchError, match="does not have the SHA-256") as raised:
        list(packing(source))
    assert (raised.value.attempts, max(source.asked.values())) == (3, 3)


class Failing(images.Volumes):
    requests = 16

    def __init__(self, failing: frozenset[int]) -> None:
        super().__init__([(1, BLOCKS)])
        self.failing = failing

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        if block_index in self.failing:
            raise amistore.NotFoundError("gone", block_index=block_index)
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


@pytest.mark.parametrize("failing", [{0, 1}, {9, 8, 95}, {50}, {95}])
def test_the_error_is_that_of_the_first_block_that_failed(failing: set[int]) -> None:
    for _ in range(5):
        with pytest.raises(amistore.NotFoundError, match="gone") as caught:
            list(packing(Failing(frozenset(failing)), workers=3))
        assert caught.value.block_index == min(failing)


@pytest.mark.parametrize("take", [0, 1, 5])
def test_closing_begins_no_further_get_and_ends_the_threads(take: int) -> None:
    source = Together(1, count=1024)
    source.requests = 32
    pieces = packing(source, workers=2)
    for _ in range(take):
        next(pieces)
    pieces.close()
    asked = len(source.asked)
    assert asked < 1024
    assert not [each for each in threading.enumerate() if each.name.startswith("amistore")]
    assert len(source.asked) == asked


def test_a_run_that_fails_waits_for_what_is_in_flight() -> None:
    one_segment = {index: BLOCKS[index] for index in range(32)}  # so that no worker waits beside the run
    asked = threading.Event()  # to cancel what cannot be cancelled any more
    over = threading.Event()  # the run, which must not be before the answers

    class Sent(Future[Any]):
        def cancel(self) -> bool:
            asked.set()
            return False

    class Silent(images.Volumes):
        requests = 8
        sent: ClassVar[list[Sent]] = []

        def begin_get(self, snapshot_id: str, block_index: int, block_token: str) -> Future[Any]:
            future = Sent()
            if block_index == 0:
                future.set_exception(amistore.NotFoundError("gone"))
            else:
                self.sent.append(future)
            return future

    def run() -> None:
        with pytest.raises(amistore.NotFoundError, match="gone"):
            list(packing(Silent([(1, one_segment)]), workers=1))
        over.set()

    def answer() -> bool:
        asked.wait(SECONDS)
        early = over.wait(0.2)  # a run that does not wait is over by then
        for future in Silent.sent:
            future.set_result(amistore.backends.SnapshotBlock(BLOCKS[1]))
        return early

    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(answer)
        ended(run)
        assert not early.result()
    assert over.is_set()
    assert Silent.sent


def restored(
    container: bytes, *, requests: int, put: Callable[..., None] | None = None, **options: Any
) -> Any:
    """The backend that a container was unpacked to, with so many puts in flight."""
    backend = amistore.MemoryBackend()
    backend.ebs.requests = requests
    if put is not None:
        inner = backend.ebs.put_snapshot_block
        backend.ebs.put_snapshot_block = lambda *given: put(inner, *given)  # type: ignore[method-assign]
    amistore.unpack(io.BytesIO(container), backend.ebs, **options)
    return backend


class Gathering:
    """A put that returns once so many are under way."""

    def __init__(self, together: int) -> None:
        self.together = together
        self.changed = threading.Condition()
        self.begun = self.released = 0

    def __call__(self, inner: Callable[..., None], *given: Any) -> None:
        with self.changed:
            self.begun += 1
            place = self.begun
            if self.begun % self.together == 0:
                self.released = self.begun
                self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.released >= place, SECONDS)
        inner(*given)


@pytest.mark.parametrize("together", [1, 8, 32])
def test_a_sink_gets_as_many_blocks_at_once_as_it_states(together: int) -> None:
    gathering = Gathering(together)
    backend = restored(EXPECTED, requests=together, put=gathering, workers=2)
    assert gathering.begun == COUNT
    assert images.contents(backend.ebs, images.leftovers(backend)[0]) == (1, BLOCKS)


def test_holes_are_filled_as_many_at_once_as_the_sink_states() -> None:
    gathering = Gathering(32)
    restored(EXPECTED, requests=32, put=gathering, fill_holes=True)
    assert gathering.begun == 2048


@pytest.mark.parametrize("failing", [{0, 1}, {9, 8, 95}, {50}, {95}])
def test_the_error_of_a_put_is_that_of_the_first_block_that_failed(failing: set[int]) -> None:
    def put(inner: Callable[..., None], snapshot_id: str, index: int, *given: Any) -> None:
        if index in failing:
            raise amistore.BackendError("disk full", block_index=index)
        inner(snapshot_id, index, *given)

    backend = amistore.MemoryBackend()
    backend.ebs.requests = 16
    inner = backend.ebs.put_snapshot_block
    backend.ebs.put_snapshot_block = lambda *given: put(inner, *given)  # type: ignore[method-assign]
    with pytest.raises(amistore.BackendError, match="disk full") as caught:
        amistore.unpack(io.BytesIO(EXPECTED), backend.ebs, workers=1)
    assert caught.value.block_index == min(failing)
    assert images.leftovers(backend) == []


def test_no_snapshot_is_completed_before_every_put_has_ended() -> None:
    """Its last put fails once all others are through: the snapshot is deleted, and not completed."""
    backend = amistore.MemoryBackend()
    backend.ebs.requests = 16
    inner = backend.ebs.put_snapshot_block
    others = threading.Semaphore(0)

    def put(snapshot_id: str, index: int, *given: Any) -> None:
        if index == COUNT - 1:
            for _ in range(COUNT - 1):
                assert others.acquire(timeout=SECONDS)
            raise amistore.BackendError("disk full")
        inner(snapshot_id, index, *given)
        others.release()

    backend.ebs.put_snapshot_block = put  # type: ignore[method-assign]
    with pytest.raises(amistore.BackendError, match="disk full"):
        amistore.unpack(io.BytesIO(EXPECTED), backend.ebs)
    assert images.leftovers(backend) == []


def test_the_time_in_which_only_the_last_puts_are_waited_for_counts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "amistore")
    last = threading.Event()

    def put(inner: Callable[..., None], *given: Any) -> None:
        assert last.wait(SECONDS)
        inner(*given)

    release = threading.Timer(0.5, last.set)
    release.start()
    few = images.packed([(1, {index: BLOCKS[index] for index in range(8)})], FORM)
    restored(few, requests=8, put=put, workers=1)
    (told,) = (each.getMessage() for each in caplog.records if "put 8 blocks" in each.getMessage())
    assert "bounded by the network" in told


@pytest.mark.parametrize("value", [-1, 2.5, "64", True, 5000])
def test_a_figure_that_is_none_is_refused(value: Any) -> None:
    source = images.Volumes([(1, BLOCKS)])
    source.requests = value
    with pytest.raises(amistore.InvalidRequestError, match="requests must be a whole number from 0 to 1024"):
        list(packing(source))


def test_the_log_says_how_many_were_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "amistore")
    list(packing(Together(32)))
    restored(EXPECTED, requests=8, put=Gathering(8))
    told = [record.getMessage() for record in caplog.records]
    assert any(
        re.match(r"got 96 blocks in .* s, 32 at once at most; .* bounded by", each) for each in told
    ), told
    assert any(re.match(r"put 96 blocks in .* s, 8 at once at most; .* bounded by", each) for each in told), (
        told
    )


@pytest.mark.parametrize(
    ("refused", "requests", "held", "waited", "busy", "bound"),
    [
        (0, 8, 96, 0.3, 0.7, "the network"),
        (2, 8, 96, 0.3, 0.7, "the service, which refused 2 calls as too many"),
        (0, 64, 16, 0.3, 0.7, r"the memory for \d+ blocks at once"),
        (2, 8, 96, 0.2, 0.7, "the number of workers, or the other side"),
        (2, 64, 16, 0.3, 0.8, "the CPUs"),
    ],
)
def test_the_log_says_what_bounded_a_run(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    refused: int,
    requests: int,
    held: int,
    waited: float,
    busy: float,
    bound: str,
) -> None:
    cloud = amistore.MemoryBackend()
    snapshot_id = images.snapshot(cloud.ebs, 1, BLOCKS)
    get, refusals = cloud.ebs.get_snapshot_block, list(range(refused))

    def refusing(*arguments: Any) -> Any:
        with contextlib.suppress(IndexError):
            raise amistore.ThrottledError(f"slow down, {refusals.pop()}", retryable=True)
        return get(*arguments)

    monkeypatch.setattr(cloud.ebs, "get_snapshot_block", refusing)
    monkeypatch.setattr(cloud.ebs, "requests", requests)
    monkeypatch.setattr(pipeline_requests, "HELD", held)
    found = pipeline_requests.InFlight._bound
    monkeypatch.setattr(pipeline_requests.InFlight, "_bound", lambda self, *_: found(self, waited, busy))
    caplog.set_level(logging.INFO, "amistore")
    source = amistore.RetryingBackend(cloud, amistore.RetryPolicy(base_delay=0, max_delay=0)).ebs
    assert len(list(amistore.pack(images.image([snapshot_id]), source, options=OPTIONS, workers=2)))
    (told,) = (record.getMessage() for record in caplog.records if "bounded" in record.getMessage())
    assert re.search(rf"the run was bounded by {bound}$", told), told


@pytest.mark.parametrize(("least", "begun"), [(1, 3), (2, 3), (5, 5), (8, 8)])
def test_items_that_weigh_more_than_the_budget_are_begun_for_each_worker_all_the_same(
    least: int, begun: int
) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with worker_pool(2, None) as pool:
        weigh = 17 << 20  # bytes of an item; the budget is 48 MiB
        found = pool.map(int, items(), lambda _: weigh, most=8, least=least)
        assert next(found) == 0
        assert len(taken) == begun
        assert list(found) == list(range(1, 20))


def test_a_segment_whose_worker_failed_holds_up_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_requests, "HELD", 4)
    source = Together(1)
    got: list[int] = []
    with BlockGets(source, None, segments=1) as gets:
        failed, other = (
            gets.segment("snap-00000000000000000", range(at, at + 32), [""] * 32) for at in (0, 32)
        )

        def work() -> None:
            got.extend(len(block.content) for block in other)

        with failed:
            next(iter(failed))  # and more of it is asked for, up to the budget
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(SECONDS)
        assert got == [amistore.BLOCK_SIZE] * 32


LEAVING = """
import signal, sys, threading, _thread
signal.signal(signal.SIGINT, signal.default_int_handler)  # who was started in the background ignores it
sys.path[:0] = {path!r}
import amistore, images

class Endless(images.Volumes):
    requests = 16
    asked = 0

    def get_snapshot_block(self, *given):
        Endless.asked += 1
        if Endless.asked == 40:
            {leave}
        return super().get_snapshot_block(*given)

source = Endless([(1, {{i: images.block(i % 7) for i in range(2048)}})])
pieces = amistore.pack(images.image(source.volumes), source, workers=2)
next(pieces)
{then}
"""


@pytest.mark.parametrize(
    ("leave", "then", "code"),
    [
        ("pass", "print('left')", 0),  # the interpreter ends with the iterator open
        ("_thread.interrupt_main()", "[None for _ in pieces]", 1),  # Ctrl-C
    ],
    ids=["end", "Ctrl-C"],
)
def test_an_interpreter_ends_with_gets_in_flight(leave: str, then: str, code: int) -> None:
    script = LEAVING.format(path=sys.path, leave=leave, then=then)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (ended.returncode != 0) == bool(code), ended.stderr
    assert ("KeyboardInterrupt" in ended.stderr) == bool(code), ended.stderr
