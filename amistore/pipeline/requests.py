"""Requests in flight: what gets ahead of the workers, puts behind them and reads have in common.

CPUs decide how many segments are compressed at once, latency how many blocks are asked for at once. A source
or a sink states the second as its `requests` (docs/decisions/0024). Where it states none, or the workers are
other processes, each worker makes its own calls, one by one. Next: `gets.py`, `puts.py`.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

from typing_extensions import Self

from amistore.backends.blocks import beginner
from amistore.errors import InvalidRequestError
from amistore.pipeline.workers import confined, end_threads, worker_count

__all__ = ["HELD", "InFlight", "Reads", "Stopped", "error_of", "requests_of"]

_logger = logging.getLogger("amistore")

HELD: Final = 96  # blocks (48 MiB) that are asked for, or got, and that no worker has taken yet; so of puts
_WAITING: Final = 0.25  # of the workers' time, from which on what they wait for is what bounds them
_BUSY: Final = 0.8  # of the CPUs' time, from which on they are what bounds a run
_ROOM: Final = 16  # calls that must have ended before who waits for room goes on, with that many

T = TypeVar("T")

Begin = Callable[..., "Future[Any]"]


class Stopped(Exception):
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
        wanted = requests_of(service)
        self.requests = wanted if shared else 0
        if wanted > self.requests:
            _logger.info("workers in other processes ask one by one: threads would have %d at once", wanted)
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

    @property
    def begun_by_service(self) -> bool:
        """Whether the service's own method begins the calls."""
        return self._own is not None

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


def _throttled(service: object) -> int:
    """How many calls a service has refused as too many, where somebody counts them."""
    throttled = getattr(service, "throttled", 0)
    return throttled if type(throttled) is int else 0


class InFlight:
    """What gets and puts share: the calls, their end, and what the log says of them.

    A context: leaving it begins no further call, cancels those that wait, and waits for those that run.
    """

    _verb = ""

    def __init__(self, service: object, executor: Executor | None, begin: str, call: str) -> None:
        self._calls = _Calls(service, executor, begin, call)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)  # for who waits until calls have ended
        self._room = threading.Condition(self._lock)  # for who waits until there is room for calls
        self._budget = HELD
        self._full = False  # whether the budget has held up a call
        self._running: set[Future[Any]] = set()
        self._stopped = False
        self._in_flight = self._most = self._count = 0
        self._began = self._cpu = 0.0
        self._waited = 0.0  # seconds, of all workers
        self._workers: set[int] = set()
        self._service = service
        self._throttled = _throttled(service)

    @property
    def requests(self) -> int:
        """How many are in flight at most; 0 where each worker calls by itself."""
        return self._calls.requests

    def __enter__(self) -> Self:
        return self

    def _end(self) -> None:
        self.stop()
        with self._lock:
            self._ended.wait_for(lambda: not self._in_flight)
        self._calls.end()

    def stop(self) -> None:
        """Begin no further call, cancel those that wait, and let go of workers that wait for one."""
        if os.getpid() != self._process:  # a forked child, which has none of the threads
            return
        with self._lock:
            self._stopped = True
            self._room.notify_all()
            running = list(self._running)
        for future in running:
            future.cancel()
        self._release()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if os.getpid() != self._process:
            return
        end_threads(kind, self._end)
        if self._count and kind is None:
            seconds = time.monotonic() - self._began
            share = self._waited / max(seconds * len(self._workers), 1e-9)
            busy = (time.process_time() - self._cpu) / max(seconds * worker_count(None), 1e-9)
            _logger.info(
                "%s %d blocks in %.1f s, %d at once at most; workers waited for them %.0f %% of the time: "
                "the run was bounded by %s",
                self._verb,
                self._count,
                seconds,
                min(self._most, self.requests),
                100 * min(share, 1.0),
                self._bound(share, busy),
            )

    def _bound(self, share: float, busy: float) -> str:
        """What bounded the run, given the shares of time that workers waited and that CPUs were busy."""
        refused = _throttled(self._service) - self._throttled
        if busy >= _BUSY:
            return "the CPUs"
        if share <= _WAITING:
            return "the number of workers, or the other side"
        if refused * 100 > self._count:
            return f"the service, which refused {refused} calls as too many"
        if self._full and self._most < self.requests:
            return f"the memory for {self._budget} blocks at once"
        return "the network"

    def _release(self) -> None:
        """Wake who waits for a call that is not begun any more."""

    def _enter(self) -> None:
        """Count a call that is to be begun; the caller has the lock."""
        if not self._began:
            self._began, self._cpu = time.monotonic(), time.process_time()
        self._in_flight += 1
        self._count += 1
        self._most = max(self._most, self._in_flight)

    def _begin(self, landed: Callable[[Future[Any]], None], *arguments: Any) -> None:
        """Begin a call that was counted; `landed` gets it once it has ended, in any thread."""
        future = self._calls.begin(*arguments)
        with self._lock:
            self._running.add(future)
            if self._stopped:
                future.cancel()

        def done(future: Future[Any]) -> None:
            with self._lock:
                self._running.discard(future)
                self._in_flight -= 1
                if self._in_flight == max(self._budget - _ROOM, 0):
                    self._room.notify_all()
                if self._stopped and not self._in_flight:
                    self._ended.notify_all()
            landed(future)

        future.add_done_callback(done)


def error_of(future: Future[Any]) -> BaseException | None:
    """The error of a call that has ended; `Stopped` where it was cancelled."""
    return Stopped() if future.cancelled() else future.exception()


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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if os.getpid() == self._process:
            end_threads(kind, self._threads.end)

    def begin(self, *arguments: Any) -> Callable[[], T]:
        """Begin to read; a worker gets the result from what this returns."""
        if not self._requests:
            return functools.partial(self._read, *arguments)
        return self._threads.begin(self._read, *arguments).result

    def most(self, workers: int) -> int:
        """The most items that are begun at once, for so many workers."""
        return workers + max(workers, self._requests)
