"""Orders: pieces of a job for the workers of any executor, which may be other machines.

An order is one argument, and what a worker answers is a value: a result, or a `Refusal`. No future of a
caller's executor is ever cancelled, for Dask says that it is while the order works on, and a future whose
cancellation meets its end may never end. So no order is given any more, those that work are waited for, and
then the run is undone.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import logging
import pickle
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any, Final, Generic, TypeVar

import attrs
import zstandard
from typing_extensions import Self

from amistore import forks
from amistore.backends.redaction import hide_secrets
from amistore.backends.retries import Retrier
from amistore.errors import (
    AmistoreError,
    BackendError,
    InvalidRequestError,
    InvalidTokenError,
    ResourcesExhaustedError,
    foreign_errors,
    machine_limits,
)
from amistore.pipeline.workers import worker_count, worker_pool

__all__ = ["Cluster", "Order", "Orders", "Shared", "given_cluster", "sharing", "using_cluster"]

_logger = logging.getLogger("amistore")

T = TypeVar("T")
R = TypeVar("R")

_ATTEMPTS: Final = 4  # of an order whose worker is lost, or whose error may pass
_KEPT: Final = 8  # backends and archives that a worker's process keeps

VERSIONS: Final = {"amistore": 1, "libzstd": ".".join(map(str, zstandard.ZSTD_VERSION))}
"""What must be equal here and in a worker: the form of orders, and what makes an archive's bytes."""


class Shared(Generic[T]):
    """A value that goes with many orders, such as a backend: a worker's process opens and keeps it once.

    Args:
        value: the value; picklable, where the workers are other processes.
    """

    def __init__(self, value: T) -> None:
        self.value = value
        self._pickled: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self._pickled is None:
            self._pickled = _dumps(self.value)
        return _kept, (self._pickled,)


def _dumps(value: object) -> bytes:
    """A pickle; Dask's cloudpickle also takes classes of a notebook."""
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(value)
    pickled: bytes = cloudpickle.dumps(value)
    return pickled


_values: OrderedDict[bytes, Shared[Any]] = OrderedDict()
_values_lock = threading.Lock()


def _kept(pickled: bytes) -> Shared[Any]:
    """The value of a pickle, which this process opens once."""
    digest = hashlib.sha256(pickled).digest()
    with _values_lock:
        if digest not in _values:
            _values[digest] = Shared(pickle.loads(pickled))  # noqa: S301 (of a pickle that was an order's already)
        _values.move_to_end(digest)
        while len(_values) > _KEPT:
            _values.popitem(last=False)
        return _values[digest]


def _renew_lock(_: object) -> None:
    global _values_lock
    _values_lock = threading.Lock()
    _values.clear()  # of the parent


forks.register(Shared, _renew_lock)


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


def _work(order: Order[R]) -> R | Refusal:
    """Runs in a worker. An exception would be kept by the executor, with all that its traceback holds."""
    with forks.confined():
        try:
            with foreign_errors("order"), machine_limits():
                for name, version in order.versions.items():
                    if VERSIONS[name] != version:
                        raise InvalidRequestError(
                            f"a worker has {name} {VERSIONS[name]}, and the run {version}: install the same"
                        )
                return order.work()
        except AmistoreError as error:
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return Refusal(error)


def sharing(service: object, snapshot_id: str, rate: float | None) -> AbstractContextManager[None]:
    """Have a worker's calls for a snapshot's blocks keep to its share, where the service makes retries."""
    retrier = getattr(service, "retrier", None)
    return retrier.sharing(snapshot_id, rate) if isinstance(retrier, Retrier) else contextlib.nullcontext()


class Cluster:
    """An executor whose workers do orders: those of one run, or of all tasks of an engine.

    Args:
        executor: the executor.
        workers: the most orders that are out at once.
    """

    def __init__(self, executor: Executor, workers: int) -> None:
        self.executor = executor
        self.workers = workers
        self.slots = threading.Semaphore(workers)

    def share(self, rate: float | None) -> float | None:
        """An order's share of the calls a second that all orders may make; None for any number.

        A call less, where that is few: as orders come and go, each worker may round up once a second.
        """
        if rate is None:
            return None
        each = rate / self.workers
        return max(each - 1, each / 2)


def given_cluster(executor: object, workers: int | None, **backends: object) -> Cluster | None:
    """The cluster of a caller's executor; None where none is given.

    Args:
        executor: the executor.
        workers: the number of orders out at once.
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
                _dumps(backend)
            except Exception as error:
                raise InvalidRequestError(
                    f"the {role} {type(backend).__name__} cannot be sent to another process ({error}): use "
                    "threads, or a backend that can be pickled"
                ) from error
    return Cluster(executor, workers)


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
        refused: takes an order whose block tokens were refused, to give it again later.
        late: takes an order that ended after the run was left, with its result; it may raise what it likes.

    Attributes:
        workers: the most orders that are out at once.
    """

    def __init__(
        self,
        cluster: Cluster,
        refused: Callable[[Order[R], InvalidTokenError], None] | None = None,
        late: Callable[[Order[R], R], None] | None = None,
    ) -> None:
        self._cluster = cluster
        self._refused = refused
        self._late = late
        self.workers = cluster.workers
        self._out: dict[Future[R | Refusal], Order[R]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        wait(self._out)
        out, self._out = self._out, {}
        for _ in out:
            self._cluster.slots.release()
        for future, order in out.items() if self._late is not None else ():
            with contextlib.suppress(Exception):  # what is not noted is done again
                answer = future.result()
                if self._late is not None and not isinstance(answer, Refusal):
                    self._late(order, answer)

    def __len__(self) -> int:
        return len(self._out)

    def give(self, order: Order[R]) -> bool:
        """Give an order, unless all workers have one; return whether it was given.

        Raises:
            ResourcesExhaustedError: the executor takes no orders any more.
        """
        # Whoever has none out waits for another run's to end, so each run goes on.
        if not self._cluster.slots.acquire(blocking=not self._out):
            return False
        self._submit(order)
        return True

    def _submit(self, order: Order[R]) -> None:
        try:
            self._out[self._cluster.executor.submit(_work, order)] = order
        except BaseException as error:
            self._cluster.slots.release()
            if isinstance(error, RuntimeError):  # it was shut down, or its processes are gone
                raise _gone(error) from error
            raise

    def ended(self) -> tuple[Order[R], R] | None:
        """Wait for an order to end, and return it with its result; None where its tokens were refused.

        An order whose worker was lost, or whose error may pass, is given again.

        Raises:
            ResourcesExhaustedError: the executor has lost its workers.
            AmistoreError: an order's error.
        """
        while True:
            done = next(iter(wait(self._out, return_when=FIRST_COMPLETED).done))
            order = self._out[done]
            answer = _answer(done, order)
            error = answer.error if isinstance(answer, Refusal) else None
            untaken = isinstance(error, InvalidTokenError) and self._refused is not None
            follower = None if error is None or untaken else _follower(order, error)
            del self._out[done]
            if follower is not None:
                self._submit(follower)
                continue
            self._cluster.slots.release()
            if not isinstance(answer, Refusal):
                return order, answer
            if self._refused is not None and isinstance(error, InvalidTokenError):
                self._refused(attrs.evolve(order, attempt=order.attempt + 1), error)
            return None

    def map(self, orders: Iterable[Order[R]]) -> Generator[tuple[Order[R], R], None, None]:
        """Each order with its result, in order; two for each worker are begun and not taken at most."""
        waiting: dict[int, tuple[Order[R], R]] = {}
        numbers: list[int] = []
        rest = iter(orders)
        following = next(rest, None)
        while following is not None or numbers:
            while following is not None and len(numbers) < 2 * self._cluster.workers and self.give(following):
                numbers.append(following.number)
                following = next(rest, None)
            if numbers and numbers[0] in waiting:
                yield waiting.pop(numbers.pop(0))
                continue
            if (done := self.ended()) is not None:
                waiting[done[0].number] = done


def _follower(order: Order[R], error: AmistoreError) -> Order[R]:
    """What is given in place of an order that was refused."""
    if not getattr(error, "retryable", False) or order.attempt + 1 >= _ATTEMPTS:
        raise error
    _logger.info("order %d is given again: %s", order.number, hide_secrets(str(error)))
    return attrs.evolve(order, attempt=order.attempt + 1)


def _answer(future: Future[R | Refusal], order: Order[R]) -> R | Refusal:
    """What a worker answered; a lost worker's order is refused, too."""
    try:
        return future.result()
    except BrokenExecutor as error:
        raise _gone(error) from error
    except Exception as error:
        text = hide_secrets(f"{type(error).__name__}: {error}")
        lost = f"the worker of order {order.number} was lost: {text:.500}"
        return Refusal(BackendError(lost, operation="order", retryable=True))


def _gone(error: BaseException) -> ResourcesExhaustedError:
    return ResourcesExhaustedError(
        f"the executor has lost its workers ({type(error).__name__}: {hide_secrets(str(error)):.200}): a run "
        "with a log goes on with another executor"
    )
