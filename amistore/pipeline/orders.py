"""Orders: pieces of a job for the workers of any executor, which may be other machines.

An order is one argument, and what a worker answers is a value: a result, or a `Refusal`. No future of a
caller's executor is ever cancelled, for Dask says that it is while the order works on, and a future whose
cancellation meets its end may never end. So no order is given any more, those that work are waited for, and
then the run is undone.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import logging
import pickle
import secrets
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Generic, TypeVar

import attrs
import zstandard
from typing_extensions import Self

from amistore import forks
from amistore.backends import BlockSink, BlockSource
from amistore.backends.redaction import hide_secrets
from amistore.errors import (
    AmistoreError,
    BackendError,
    InvalidRequestError,
    InvalidTokenError,
    foreign_errors,
    machine_limits,
)
from amistore.pipeline.shared import pickled
from amistore.pipeline.workers import lost_workers, worker_count, worker_pool
from amistore.units import BLOCK_SIZE, MIB

__all__ = [
    "ORDER_BLOCKS",
    "Cluster",
    "Order",
    "Orders",
    "given_cluster",
    "limited",
    "order_length",
    "order_ranges",
    "using_cluster",
]

_logger = logging.getLogger("amistore")

T = TypeVar("T")
R = TypeVar("R")

ORDER_BLOCKS: Final = 512 * MIB // BLOCK_SIZE
"""Blocks of an order: what a lost worker costs."""

_LOOK: Final = 1.0  # seconds, after which futures are looked at that were cancelled
_ATTEMPTS: Final = 4  # of an order whose worker is lost

VERSIONS: Final = {"form of orders": 1, "libzstd": ".".join(map(str, zstandard.ZSTD_VERSION))}
"""What must be equal here and in a worker: the form of orders, and what makes an archive's bytes."""


def order_length(blocks_per_segment: int) -> int:
    """The number of segments of an order."""
    return max(1, ORDER_BLOCKS // blocks_per_segment)


def order_ranges(sequences: range, length: int) -> Iterator[range]:
    """The numbers of a volume's segments, order by order, for orders of so many segments."""
    for start in sequences[::length]:
        yield range(start, min(start + length, sequences.stop))


@attrs.frozen(kw_only=True, eq=False)
class Order(abc.ABC, Generic[R]):
    """A piece of a job.

    Attributes:
        number: the order's number in its job.
        attempt: how often it was given before.
        versions: what must be equal here and in the worker.
        nonce: what no other order has: Dask does not run an order again that equals one that failed.
    """

    number: int
    attempt: int = 0
    versions: dict[str, Any] = attrs.field(factory=lambda: VERSIONS, repr=False)
    nonce: str = attrs.field(factory=lambda: secrets.token_hex(8), repr=False)

    @abc.abstractmethod
    def work(self) -> R:
        """Do the piece, in a worker."""

    def __dask_tokenize__(self) -> tuple[str, int]:
        return self.nonce, self.attempt


@attrs.frozen
class Refusal:
    """Why a worker did not do an order."""

    error: AmistoreError

    def __reduce__(self) -> tuple[Any, ...]:
        return Refusal, (_portable(self.error),)


def _portable(error: AmistoreError) -> AmistoreError:
    """The error, or one of ours that it is a kind of: what cannot be unpickled ends a pool of processes."""
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))  # noqa: S301 (of our own)
        return error
    ours = next(kind for kind in type(error).__mro__ if kind.__module__ == AmistoreError.__module__)
    plain: AmistoreError = ours(f"{type(error).__name__}: {error.message}")
    for name in vars(plain).keys() - {"message"}:
        value = getattr(error, name, None)
        if isinstance(value, (str, int, float)):
            setattr(plain, name, value)
    return plain


def _work(order: Order[R]) -> R | Refusal:
    """Runs in a worker. An exception would be kept by the executor, with all that its traceback holds."""
    with forks.confined():
        try:
            with foreign_errors("order"), machine_limits():
                for name, version in order.versions.items():
                    own = VERSIONS.get(name)
                    if own != version:
                        raise InvalidRequestError(
                            f"a worker has another {name} than the run, {own} and not {version}: install "
                            "the same amistore and zstandard"
                        )
                return order.work()
        except AmistoreError as error:
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return Refusal(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit, which must not end who gave the order
            return Refusal(BackendError(f"{type(error).__name__} in a worker", operation="order"))


def limited(service: T, rate: float | None) -> T:
    """A worker's source or sink, whose calls keep to an order's share, where the service makes retries."""
    keep = getattr(service, "limited", None)
    if rate is None or keep is None:
        return service
    kept: T = keep(rate)
    return kept


class Cluster:
    """An executor whose workers do orders: those of one run, or of all tasks of an engine.

    Args:
        executor: the executor.
        workers: the most orders that are out at once.
        shared: whether several runs share it.
    """

    def __init__(self, executor: Executor, workers: int, *, shared: bool = False) -> None:
        self.executor = executor
        self.workers = workers
        self.slots = threading.Semaphore(workers)
        self._shared = shared

    def share(self, service: BlockSource | BlockSink, orders: int | None = None) -> float | None:
        """An order's share of the calls a second that all orders may make; None for any number.

        A run goes from snapshot to snapshot, so all its orders may be of one. Runs that share the executor
        have snapshots of their own: the rate is for all of them, and each has so many orders out at most
        as one snapshot allows.

        A whole number, so that no order rounds up in any second.

        Args:
            service: the source or sink, whose rates count.
            orders: how many orders the run has; None where that is not known.
        """
        rates = [rate for rate in (service.rate, service.snapshot_rate) if rate is not None]
        if not rates:
            return None
        if self._shared:
            each = min(rates[0] / self.workers, *rates)
        else:
            each = min(rates) / (self.workers if orders is None else min(self.workers, max(orders, 1)))
        return each // 1 or each

    def most_out(self, *services: BlockSource | BlockSink) -> int:
        """How many of a run's orders may be out at once, each with its share of these services' rates."""
        most = self.workers
        for service in services:
            share = self.share(service)
            if self._shared and share is not None and service.snapshot_rate is not None:
                most = min(most, max(1, int(service.snapshot_rate / share)))
        return most


def given_cluster(
    executor: object, workers: int | None, *, shared: bool = False, **backends: object
) -> Cluster | None:
    """The cluster of a caller's executor; None where none is given.

    Args:
        executor: the executor.
        workers: the number of orders out at once.
        shared: whether several runs share the executor.
        backends: what the workers use, by its role.

    Raises:
        InvalidRequestError: this is no executor, `workers` is missing, or a backend cannot be sent.
    """
    if executor is None:
        return None
    if not isinstance(executor, Executor):
        raise InvalidRequestError(
            f"executor must be a concurrent.futures.Executor, not {type(executor).__name__}: give Dask's "
            "client.get_executor()"
        )
    if workers is None:
        raise InvalidRequestError("executor= needs workers=, the number of orders that are out at once")
    worker_count(workers)
    if not isinstance(executor, ThreadPoolExecutor):
        for role, backend in backends.items():
            try:
                pickled(backend)
            except Exception as error:
                raise InvalidRequestError(
                    f"the {role} {type(backend).__name__} cannot be sent to another process ({error}): use "
                    "threads, or a backend that can be pickled"
                ) from error
    return Cluster(executor, workers, shared=shared)


@contextlib.contextmanager
def using_cluster(cluster: Cluster | None, workers: int | None) -> Iterator[Cluster]:
    """The cluster, or threads of this process."""
    if cluster is not None:
        yield cluster
        return
    with worker_pool(workers, None) as pool:
        yield Cluster(pool.executor, pool.count)


class Orders(Generic[R]):
    """The orders of one run that are out. A context, which waits for them as it is left.

    Args:
        cluster: who does them.
        services: the sources and sinks whose rates the orders share.
        refused: takes an order whose block tokens were refused, to give it again later.
        late: takes an order and its result where that comes after another one's error, or an interrupt.
    """

    def __init__(
        self,
        cluster: Cluster,
        *services: BlockSource | BlockSink,
        refused: Callable[[Order[R], InvalidTokenError], None] | None = None,
        late: Callable[[Order[R], R], None] | None = None,
    ) -> None:
        self._cluster = cluster
        self._most = cluster.most_out(*services)
        self._refused = refused
        self._late = late
        self._out: dict[Future[R | Refusal], Order[R]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while not all(future.done() for future in self._out):
            wait(self._out, timeout=_LOOK)
        out, self._out = self._out, {}
        for _ in out:
            self._cluster.slots.release()
        for done, order in out.items():
            with contextlib.suppress(Exception):  # the first error is the one to tell
                if self._late is None or done.exception() is not None:
                    continue
                answer = done.result()
                if not isinstance(answer, Refusal):
                    self._late(order, answer)

    def __len__(self) -> int:
        return len(self._out)

    def give(self, make: Callable[[], Order[R]]) -> bool:
        """Give an order, unless all workers that the run may have do one; return whether it was given.

        Args:
            make: makes the order, once there is a worker for it.

        Raises:
            ResourcesExhaustedError: the executor takes no orders any more.
        """
        if len(self._out) >= self._most:
            return False
        # Whoever has none out waits for another run's to end, so each run goes on.
        if not self._cluster.slots.acquire(blocking=not self._out):
            return False
        self._submit(make)
        return True

    def _submit(self, make: Callable[[], Order[R]]) -> None:
        """Give an order to a worker who is held for it."""
        try:
            order = make()
            try:
                self._out[self._cluster.executor.submit(_work, order)] = order
            except RuntimeError as error:  # it was shut down, or its processes are gone
                raise lost_workers(error) from error
        except BaseException:
            self._cluster.slots.release()
            raise

    def ended(self) -> tuple[Order[R], R] | None:
        """Wait for an order to end, and return it with its result; None where its tokens were refused.

        An order whose worker was lost is given again. One that ended in an error is not, even if that may
        pass: the worker's backend has made all attempts.

        Raises:
            ResourcesExhaustedError: the executor has lost its workers.
            AmistoreError: an order's error.
        """
        while True:
            done = _first_done(self._out)
            order = self._out[done]
            answer = _answer(done, order)
            del self._out[done]
            if isinstance(answer, _Lost):
                self._submit(functools.partial(_same, attrs.evolve(order, attempt=order.attempt + 1)))
                continue
            self._cluster.slots.release()
            if not isinstance(answer, Refusal):
                return order, answer
            if self._refused is None or not isinstance(answer.error, InvalidTokenError):
                raise answer.error
            self._refused(attrs.evolve(order, attempt=order.attempt + 1), answer.error)
            return None

    def map(self, orders: Iterable[Order[R]]) -> Generator[tuple[Order[R], R], None, None]:
        """Each order with its result, in order; two for each worker are begun and not taken at most."""
        waiting: dict[int, tuple[Order[R], R]] = {}
        numbers: list[int] = []
        rest = iter(orders)
        following = next(rest, None)
        while following is not None or numbers:
            while (
                following is not None
                and len(numbers) < 2 * self._cluster.workers
                and self.give(functools.partial(_same, following))
            ):
                numbers.append(following.number)
                following = next(rest, None)
            if numbers and numbers[0] in waiting:
                yield waiting.pop(numbers.pop(0))
                continue
            if (done := self.ended()) is not None:
                waiting[done[0].number] = done


def _same(order: Order[R]) -> Order[R]:
    return order


def _first_done(out: Collection[Future[R | Refusal]]) -> Future[R | Refusal]:
    """Wait for a future; one that an executor cancelled as it was shut down wakes nobody who waits."""
    while True:
        for future in out:
            if future.done():
                return future
        wait(out, timeout=_LOOK, return_when=FIRST_COMPLETED)


class _Lost:
    """Instead of the answer of a worker that was lost."""


def _answer(future: Future[R | Refusal], order: Order[R]) -> R | Refusal | _Lost:
    """What a worker answered.

    Raises:
        ResourcesExhaustedError: the executor has lost its workers.
        BackendError: the order's workers were lost so often that it may be the reason.
    """
    try:
        return future.result()
    except BrokenExecutor as error:
        raise lost_workers(error) from error
    except Exception as error:
        text = hide_secrets(f"{type(error).__name__}: {error}")
        lost = f"the worker of order {order.number} was lost: {text:.500}"
        if order.attempt + 1 >= _ATTEMPTS:
            raise BackendError(lost, operation="order", retryable=True) from None
        _logger.info("%s: the order is given again", lost)
        return _Lost()
