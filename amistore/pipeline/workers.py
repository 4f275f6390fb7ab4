"""Threads: an ordered, bounded map over any `concurrent.futures.Executor`."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import TypeVar

from amistore import forks
from amistore.errors import InvalidRequestError, machine_limits

__all__ = ["check_picklable", "ordered_map", "threads_can_begin", "worker_count", "worker_pool"]

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def worker_pool(workers: int | None, executor: Executor | None) -> Iterator[tuple[Executor, int]]:
    """The executor to use, and how many tasks it may hold at once.

    Twice the workers: results leave in order, so a worker that is ahead needs the next task
    while a slower one is waited for. An executor of the caller's is left running.

    Args:
        workers: threads, or what the caller's executor runs at once; None for the CPUs.
        executor: the caller's, or None for threads of our own, ended at exit.

    Raises:
        ResourcesExhaustedError: in the body or a worker memory or threads ran out.
    """
    count = worker_count(workers)
    if executor is not None:
        with machine_limits():
            yield executor, 2 * count
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="amistore")
    process = os.getpid()
    try:
        with machine_limits():
            yield pool, 2 * count
    finally:
        if os.getpid() == process:  # in a forked child there are no threads to end, and locks that they held
            pool.shutdown(wait=True, cancel_futures=True)


def worker_count(workers: int | None) -> int:
    """How many workers were asked for; the number of CPUs for None."""
    count = _cpus() if workers is None else workers
    if type(count) is not int or count < 1:
        raise InvalidRequestError(f"workers must be a whole number from 1 on, not {workers!r}")
    return count


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def threads_can_begin() -> bool:
    """Not when the interpreter ends, while other threads still run, and where the system has no more."""
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(int)
        except RuntimeError:
            return False
    return True


def ordered_map(
    executor: Executor, function: Callable[[T], R], items: Iterable[T], limit: int
) -> Generator[R, None, None]:
    """`function` of each item, in the items' order, at most `limit` of them begun and not taken.

    Items are taken in the caller's thread. On an error, or when closed, what has not begun
    is cancelled and what has is waited for: afterwards nothing runs any more. A forked child neither
    goes on with it nor ends it.

    Raises:
        InvalidRequestError: this is such a child.
    """
    process = os.getpid()
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            forks.check_owner(process, "this iterator")
            pending.append(executor.submit(_confined, function, item))
            del item  # may hold a whole segment
            if len(pending) >= limit:
                yield _first(pending)
                forks.check_owner(process, "this iterator")
        while pending:
            yield _first(pending)
            forks.check_owner(process, "this iterator")
    finally:
        if os.getpid() == process:
            for future in pending:
                future.cancel()
            wait(pending)


def _confined(function: Callable[[T], R], item: T) -> R:
    """Runs in a worker, whose next tasks are not for a child that a backend of the user's may fork there."""
    with forks.confined():
        return function(item)


def _first(pending: deque[Future[R]]) -> R:
    """The first result, kept in `pending` while it is waited for: an interrupt must not lose it."""
    result = pending[0].result()
    pending.popleft()
    return result


def check_picklable(executor: Executor | None, backend: object, role: str) -> None:
    """Refuse a process pool for a backend that cannot follow it there."""
    if not isinstance(executor, ProcessPoolExecutor):
        return
    try:
        pickle.dumps(backend)
    except Exception as error:
        raise InvalidRequestError(
            f"the {role} {type(backend).__name__} cannot be sent to another process ({error}): "
            "use threads, or a backend that can be pickled"
        ) from error
