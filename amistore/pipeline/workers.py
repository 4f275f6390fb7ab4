"""Threads: an ordered, bounded map over any `concurrent.futures.Executor`."""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

import attrs

from amistore import forks
from amistore.backends.redaction import hide_secrets
from amistore.errors import InvalidRequestError, ResourcesExhaustedError, machine_limits
from amistore.units import MIB

__all__ = [
    "Workers",
    "check_picklable",
    "closing",
    "confined",
    "end_threads",
    "lost_workers",
    "threads_can_begin",
    "waiting",
    "worker_count",
    "worker_pool",
]

T = TypeVar("T")
R = TypeVar("R")
G = TypeVar("G", bound=Generator[Any, None, Any])

_MOST = 48 * MIB  # bytes of the items that are begun, from which on no other is, where they are weighed
_LEAST = 8  # items of 32 MiB at most that are begun all the same, where there are so many workers

_waiting = threading.local()  # `for_threads`: whether who closes an iterator in this thread waits


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Have who closes an iterator in here wait for its threads."""
    before = getattr(_waiting, "for_threads", False)
    _waiting.for_threads = True
    try:
        yield
    finally:
        _waiting.for_threads = before


@attrs.frozen
class closing(Generic[G]):  # noqa: N801 (as contextlib's)
    """Closes an iterator that has threads, and waits for them unless nobody does."""

    iterator: G

    def __enter__(self) -> G:
        return self.iterator

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.nullcontext() if kind is GeneratorExit else waiting():
            self.iterator.close()


def end_threads(kind: type[BaseException] | None, end: Callable[..., object], *arguments: object) -> None:
    """Call what ends threads and waits for them, as a block of code is left.

    An iterator that was dropped is ended wherever its last reference went: in a thread that is waited for,
    or that holds a lock which another one needs; the garbage collector may do so at any line. Nobody waits
    for it, and a thread of its own makes the call.

    Args:
        kind: the class of the error with which the block is left.
        end: what to call.
        arguments: its arguments.
    """
    if kind is not GeneratorExit or getattr(_waiting, "for_threads", False):
        end(*arguments)
        return

    def begin() -> None:  # where no lock is held: to begin a `threading.Thread` takes some
        try:
            threading.Thread(target=end, args=arguments, name="amistore-ending", daemon=False).start()
        except RuntimeError:  # at the interpreter's end
            end(*arguments)

    try:
        _thread.start_new_thread(begin, ())
    except RuntimeError:
        end(*arguments)


@attrs.frozen
class Workers:
    """Threads, or the workers of a caller's executor.

    Attributes:
        executor: the executor.
        count: the number of workers.
    """

    executor: Executor
    count: int

    @property
    def most(self) -> int:
        """The most items that are begun and not taken: two for each worker.

        Results leave in order, so a fast worker needs its next item before a slow one has finished.
        """
        return 2 * self.count

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        weigh: Callable[[T], int] = lambda item: 0,
        *,
        most: int | None = None,
        least: int | None = None,
        stop: Callable[[], object] = lambda: None,
    ) -> Generator[R, None, None]:
        """The results of `function` for each item, in order.

        Items are taken in the caller's thread. On an error, or when closed, waiting items are cancelled and
        running ones are waited for, so that nothing runs afterwards. A forked child can neither continue nor
        end the map.

        Args:
            function: is called in a worker.
            items: the items.
            weigh: gives an item's bytes: no further one is begun while they are more than 48 MiB together.
            most: the most items that are begun and not yet taken; None for two for each worker.
            least: the number of them that are begun whatever they weigh; None for one for each worker, up to
                eight.
            stop: is called before running items are waited for, to let go of those that wait for something.

        Raises:
            InvalidRequestError: the caller is a forked child.
        """
        process = os.getpid()
        most = self.most if most is None else most
        least = min(self.count, _LEAST) if least is None else least
        pending: deque[Future[R]] = deque()
        weights: deque[int] = deque()
        try:
            for item in items:
                forks.check_owner(process, "this iterator")
                pending.append(self.executor.submit(confined, function, item))
                weights.append(weigh(item))
                del item  # may hold a whole segment
                while len(pending) >= most or (len(pending) >= least and sum(weights) > _MOST):
                    yield _first(pending)
                    weights.popleft()
                    forks.check_owner(process, "this iterator")
            while pending:
                yield _first(pending)
                forks.check_owner(process, "this iterator")
        except BaseException as error:
            if os.getpid() == process:
                end_threads(type(error), _end, stop, pending)
            raise


@contextlib.contextmanager
def worker_pool(workers: int | None, executor: Executor | None, *, requests: int = 0) -> Iterator[Workers]:
    """The workers to use. A caller's executor is left running.

    Args:
        workers: the number of threads, or of a caller's executor's workers; None for the number of CPUs.
        executor: the caller's executor; None for threads of our own, ended at exit.
        requests: the least number of threads, where they do little but wait for requests.

    Raises:
        ResourcesExhaustedError: the body or a worker ran out of memory or threads.
    """
    count = max(worker_count(workers), requests)
    if executor is not None:
        try:
            with machine_limits():
                yield Workers(executor, count)
        except BrokenExecutor as error:
            raise lost_workers(error) from error
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="amistore")
    process = os.getpid()
    kind: type[BaseException] | None = None
    try:
        with machine_limits():
            yield Workers(pool, count)
    except BaseException as error:
        kind = type(error)
        raise
    finally:
        if os.getpid() == process:  # in a forked child there are no threads to end, and locks that they held
            end_threads(kind, functools.partial(pool.shutdown, cancel_futures=True))


def lost_workers(error: BaseException) -> ResourcesExhaustedError:
    """The error of an executor that takes no work any more, such as a pool that has lost a process."""
    text = hide_secrets(f"{type(error).__name__}: {error}")
    return ResourcesExhaustedError(
        f"the executor has lost its workers ({text:.200}): killed, out of memory, or a script has "
        'no `if __name__ == "__main__":`; a run with a log goes on with another executor'
    )


def worker_count(workers: int | None) -> int:
    """The requested number of workers; the number of CPUs for None."""
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
    """Whether threads can be started: not at the interpreter's end, nor where the system has no more."""
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(int)
        except RuntimeError:
            return False
    return True


def _end(stop: Callable[[], object], pending: deque[Future[R]]) -> None:
    """Let go of all of them: one that failed holds an error whose traceback holds `pending`, a cycle."""
    stop()
    # Not for those that are cancelled: where the pool was ended before, nobody tells those who wait for them.
    wait([future for future in pending if not future.cancel()])
    pending.clear()


def confined(function: Callable[..., R], /, *arguments: Any) -> R:
    """Call a function in a thread of a pool; a child that a user's backend forks there ends as it returns."""
    with forks.confined():
        return function(*arguments)


def _first(pending: deque[Future[R]]) -> R:
    """Wait for the first result, which stays in `pending` meanwhile: an interrupt must not lose it."""
    result = pending[0].result()
    pending.popleft()
    return result


def check_picklable(executor: Executor | None, backend: object, role: str) -> None:
    """Refuse a process pool for a backend that cannot be pickled."""
    if not isinstance(executor, ProcessPoolExecutor):
        return
    try:
        pickle.dumps(backend)
    except Exception as error:
        raise InvalidRequestError(
            f"the {role} {type(backend).__name__} cannot be sent to another process ({error}): "
            "use threads, or a backend that can be pickled"
        ) from error
