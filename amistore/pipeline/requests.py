"""Requests in flight: blocks that are got ahead of the workers, and put behind them.

CPUs decide how many segments are compressed at once, latency how many blocks are asked for at once. A source
or a sink states the second as its `requests` (docs/decisions/0024). Where it states none, or the workers are
other processes, each worker makes its own calls, one by one. Next: `packing.py` gets, `snapshots.py` puts.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Generic, TypeVar

import attrs
from typing_extensions import Buffer, Self

from amistore.backends import BlockSink, BlockSource, SnapshotBlock
from amistore.backends.blocks import beginner, check_answer
from amistore.errors import InvalidRequestError
from amistore.pipeline.workers import confined

__all__ = ["BlockGets", "BlockPuts", "PutBatch", "Reads", "SegmentGets", "requests_of"]

_logger = logging.getLogger("amistore")

HELD: Final = 96  # blocks (48 MiB) that are asked for, or got, and that no worker has taken yet; so of puts
_WAITING: Final = 0.25  # of the workers' time, from which on what they wait for is what bounds them
_LEVEL: Final = 16  # blocks that each segment in work has ahead before another one gets more

T = TypeVar("T")

Begin = Callable[..., "Future[Any]"]


class _Stopped(Exception):
    """The run has ended: nobody takes this result any more."""


class _Threads:
    """Threads for so many calls at once; they begin with the first one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin a call."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="amistore-requests")
        return self._pool.submit(confined, function, *arguments)

    def end(self) -> None:
        """Begin no further call, and wait for those that run."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class _Calls:
    """A service's call, begun without waiting for it: by the service itself, or by a thread for each.

    Args:
        service: the source or the sink.
        executor: the executor of the workers; None for threads of our own.
        begin: the name of the service's own method that begins a call.
        call: the name of the method to call in a thread.

    Attributes:
        requests: how many are in flight at most; 0 for none but the workers' own calls.
    """

    def __init__(self, service: Any, executor: Executor | None, begin: str, call: str) -> None:
        shared = executor is None or isinstance(executor, ThreadPoolExecutor)
        self.requests = requests_of(service) if shared else 0
        self._own: Begin | None = beginner(service, begin, call)
        self._call = getattr(service, call)
        self._threads = _Threads(self.requests)

    def begin(self, *arguments: Any) -> Future[Any]:
        """Begin a call; an error of beginning is the call's error."""
        try:
            if self._own is not None:
                return self._own(*arguments)
            return self._threads.begin(self._call, *arguments)
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def end(self) -> None:
        self._threads.end()


def requests_of(service: object) -> int:
    """The number of requests that a service wants in flight."""
    requests = getattr(service, "requests", 0)
    if type(requests) is not int or not 0 <= requests <= 1024:
        raise InvalidRequestError(
            f"{type(service).__name__}.requests must be a whole number from 0 to 1024, not {requests!r}"
        )
    return requests


class _InFlight:
    """What gets and puts share: the calls, their end, and what the log says of them.

    A context: leaving it begins no further call, cancels those that wait, and waits for those that run.
    """

    _verb = ""

    def __init__(self, service: object, executor: Executor | None, begin: str, call: str) -> None:
        self._calls = _Calls(service, executor, begin, call)
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._running: set[Future[Any]] = set()
        self._stopped = False
        self._in_flight = self._most = self._count = 0
        self._began = 0.0
        self._waited = 0.0  # seconds, of all workers
        self._workers: set[int] = set()

    @property
    def requests(self) -> int:
        """How many are in flight at most; 0 where each worker calls by itself."""
        return self._calls.requests

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if os.getpid() != self._process:  # a forked child, which has none of the threads
            return
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            running = list(self._running)
        for future in running:
            future.cancel()
        self._release()
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight)
        self._calls.end()
        if self._count:
            seconds = time.monotonic() - self._began
            share = self._waited / max(seconds * len(self._workers), 1e-9)
            _logger.info(
                "%s %d blocks in %.1f s, %d at once at most; workers waited for them %.0f %% of the time: "
                "the run was bounded by %s",
                self._verb,
                self._count,
                seconds,
                min(self._most, self.requests),
                100 * share,
                "the network or the service's limit" if share > _WAITING else "the CPUs or the other side",
            )

    def _release(self) -> None:
        """Wake who waits for a call that is not begun any more."""

    def _enter(self) -> None:
        """Count a call that is to be begun; the caller has the lock."""
        self._began = self._began or time.monotonic()
        self._in_flight += 1
        self._count += 1
        self._most = max(self._most, self._in_flight)

    def _begin(self, landed: Callable[[Future[Any]], None], *arguments: Any) -> None:
        """Begin a call that was counted; `landed` gets it once it has ended, in any thread."""
        future = self._calls.begin(*arguments)
        with self._changed:
            self._running.add(future)
            if self._stopped:
                future.cancel()

        def done(future: Future[Any]) -> None:
            with self._changed:
                self._running.discard(future)
                self._in_flight -= 1
                self._changed.notify_all()
            landed(future)

        future.add_done_callback(done)


def _error_of(future: Future[Any]) -> BaseException | None:
    return _Stopped() if future.cancelled() else future.exception()


class BlockGets(_InFlight):
    """Gets a source's blocks ahead of the workers that need them, within a budget of bytes.

    The block that is needed soonest is asked for next: of the segments in work the one with the fewest blocks
    ahead, then of those that wait for a worker. A full budget does not hold up a block that a worker waits
    for, so nothing can stand still.

    Args:
        source: the source of the blocks.
        executor: the executor of the workers; None for threads of our own.
        segments: the most segments that are begun at once.
    """

    _verb = "got"

    def __init__(self, source: BlockSource, executor: Executor | None, segments: int) -> None:
        super().__init__(source, executor, "begin_get", "get_snapshot_block")
        self._source = source
        self._budget = max(HELD, _LEVEL // 2 * segments)
        self._open: list[SegmentGets] = []
        self._held = 0  # blocks asked for and not taken
        self._thread = threading.local()

    def segment(self, snapshot_id: str, indexes: Iterable[int], tokens: Sequence[str]) -> SegmentGets:
        """The blocks of a segment, for the worker that makes it; segments come in order.

        It begins no get: an interrupt of the caller must not fall between counting and asking.
        """
        made = SegmentGets(self._source, snapshot_id, tuple(indexes), tuple(tokens))
        if self.requests and tokens:
            made.gets = self
            made.answers = [Future() for _ in tokens]
            with self._changed:
                self._open.append(made)
        return made

    def _ask(self) -> None:
        """Begin gets while there is room for them."""
        if getattr(self._thread, "asking", False):  # a call that ends as it is begun: the loop below goes on
            return
        self._thread.asking = True
        try:
            while (chosen := self._choose()) is not None:
                segment, at = chosen
                landed = functools.partial(self._land, segment, at)
                self._begin(landed, segment.snapshot_id, segment.indexes[at], segment.tokens[at])
        finally:
            self._thread.asking = False

    def _choose(self) -> tuple[SegmentGets, int] | None:
        with self._changed:
            if self._stopped or self._in_flight >= self.requests:
                return None
            segment = min(
                (each for each in self._open if each.asked < len(each.tokens)),
                key=SegmentGets.ahead,
                default=None,
            )
            if segment is None or (self._held >= self._budget and segment.asked > segment.taken):
                return None
            self._enter()
            self._held += 1
            segment.asked += 1
            return segment, segment.asked - 1

    def _land(self, segment: SegmentGets, at: int, future: Future[SnapshotBlock]) -> None:
        error = _error_of(future)
        if error is None:
            segment.answers[at].set_result(future.result())
        else:
            segment.answers[at].set_exception(error)
        self._ask()

    def take(self, segment: SegmentGets, at: int) -> SnapshotBlock:
        """A block of a segment, in a worker; waits for it."""
        answer = segment.answers[at]
        with self._changed:
            self._workers.add(threading.get_ident())
            segment.taken = at
        self._ask()
        if not answer.done():
            begun = time.monotonic()
            wait([answer])
            with self._changed:
                self._waited += time.monotonic() - begun
        segment.answers[at] = _TAKEN
        with self._changed:
            self._held -= 1
            if at + 1 == len(segment.tokens) and segment in self._open:
                self._open.remove(segment)
        self._ask()
        return answer.result()

    def _release(self) -> None:
        with self._changed:
            waiting = [answer for each in self._open for answer in each.answers[each.asked :]]
            self._open.clear()
        for answer in waiting:
            answer.set_exception(_Stopped())


_TAKEN: Final[Future[Any]] = Future()


@attrs.define(eq=False)
class SegmentGets:
    """A segment's blocks, in order, got in the worker or ahead of it.

    Picklable where the worker gets them.
    """

    source: BlockSource
    snapshot_id: str
    indexes: tuple[int, ...]
    tokens: tuple[str, ...]
    gets: BlockGets | None = None
    answers: list[Future[SnapshotBlock]] = attrs.field(factory=list, repr=False)
    asked: int = 0
    taken: int = -1
    """The block that the worker takes; -1 before there is a worker."""

    def ahead(self) -> tuple[bool, int]:
        """The order in which segments get further blocks: those in work first, levelled."""
        return self.taken < 0, (self.asked - self.taken) // _LEVEL if self.taken >= 0 else 0

    def __iter__(self) -> Iterator[SnapshotBlock]:
        for at, (index, token) in enumerate(zip(self.indexes, self.tokens, strict=True)):
            if self.gets is None:
                answer = self.source.get_snapshot_block(self.snapshot_id, index, token)
            else:
                answer = self.gets.take(self, at)
            yield check_answer(answer, self.snapshot_id, index)


class BlockPuts(_InFlight):
    """Puts blocks behind the workers that decode them, within a budget of bytes.

    Args:
        sink: the sink of the blocks.
        executor: the executor of the workers; None for threads of our own.
    """

    _verb = "put"

    def __init__(self, sink: BlockSink, executor: Executor | None) -> None:
        super().__init__(sink, executor, "begin_put", "put_snapshot_block")
        self._batches: deque[PutBatch] = deque()

    def batch(self) -> PutBatch | None:
        """For a worker's next item, in the items' order; None where the worker calls the sink."""
        if not self.requests:
            return None
        self._batches.append(PutBatch(self))
        return self._batches[-1]

    def landed(self) -> None:
        """Wait for the next batch in order, once its worker has ended.

        Raises:
            BackendError: the error of its first block that could not be put.
        """
        if self._batches:
            self._batches.popleft().wait()

    def put(self, batch: PutBatch, snapshot_id: str, index: int, content: Buffer, digest: bytes) -> None:
        """Begin to put a block, once there is room for it."""
        begun = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._in_flight < HELD)
            self._waited += time.monotonic() - begun
            self._workers.add(threading.get_ident())
            if self._stopped:
                raise _Stopped
            self._enter()
            batch.left += 1
            at = batch.begun
            batch.begun += 1
        self._begin(functools.partial(self._land, batch, at), snapshot_id, index, content, digest)

    def _land(self, batch: PutBatch, at: int, future: Future[None]) -> None:
        error = _error_of(future)
        with self._changed:
            batch.left -= 1
            if error is not None:
                batch.errors[at] = error
            self._changed.notify_all()

    def wait(self, batch: PutBatch) -> None:
        """Wait for all that a batch has begun."""
        with self._changed:
            self._changed.wait_for(lambda: not batch.left)


@attrs.define(eq=False)
class PutBatch:
    """The blocks that one worker's item puts."""

    puts: BlockPuts
    begun: int = 0
    left: int = 0
    errors: dict[int, BaseException] = attrs.field(factory=dict)

    def put(self, snapshot_id: str, index: int, content: Buffer, digest: bytes) -> None:
        """As the sink's `put_snapshot_block`; `content` must stay as it is until it is put."""
        if self.errors:
            self.wait()
        self.puts.put(self, snapshot_id, index, content, digest)

    def wait(self) -> None:
        """Wait until all that was begun has ended.

        Raises:
            BackendError: the error of the first block that could not be put.
        """
        self.puts.wait(self)
        if self.errors:
            raise self.errors[min(self.errors)]


class Reads(Generic[T]):
    """Reads ahead of the workers that need what is read, in their items' order. A context.

    Args:
        read: the function that reads.
        requests: how many reads are in flight at most; 0 for none but the workers' own.
    """

    def __init__(self, read: Callable[..., T], requests: int) -> None:
        self._read = read
        self._requests = requests
        self._process = os.getpid()
        self._threads = _Threads(requests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if os.getpid() == self._process:
            self._threads.end()

    def begin(self, *arguments: Any) -> Callable[[], T]:
        """Begin to read; a worker gets the result from what this returns."""
        if not self._requests:
            return functools.partial(self._read, *arguments)
        return self._threads.begin(self._read, *arguments).result

    def limit(self, limit: int) -> int:
        """The most items that are begun at once, for workers that would have `limit` of them."""
        return max(limit, self._requests + limit // 2)
