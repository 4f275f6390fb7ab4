"""`Shared`: what goes with many orders, and is opened once in each process that works."""

from __future__ import annotations

import hashlib
import pickle
import secrets
import threading
from collections import OrderedDict
from typing import Any, Final, Generic, TypeVar

from amistore import forks

__all__ = ["Shared", "pickled"]

T = TypeVar("T")

_KEPT: Final = 8  # backends and archives that a worker's process keeps


class Shared(Generic[T]):
    """A value that goes with many orders, such as a backend: a worker's process opens and keeps it once.

    Args:
        value: the value; picklable, where the workers are other processes.
    """

    def __init__(self, value: T) -> None:
        self.value = value
        self._pickled: bytes | None = None
        self._nonce = secrets.token_bytes(8)  # a path may be another file in the next run

    def __reduce__(self) -> tuple[Any, ...]:
        if self._pickled is None:
            self._pickled = pickled(self.value)
        return _kept, (self._pickled, self._nonce)


def pickled(value: object) -> bytes:
    """A pickle; Dask's cloudpickle also takes classes of a notebook."""
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(value)
    content: bytes = cloudpickle.dumps(value)
    return content


_values: OrderedDict[bytes, Shared[Any]] = OrderedDict()
_values_lock = threading.Lock()


def _kept(content: bytes, nonce: bytes) -> Shared[Any]:
    """The value of a pickle, which this process opens once for a run."""
    digest = hashlib.sha256(nonce + content).digest()
    with _values_lock:
        if digest not in _values:
            _values[digest] = Shared(pickle.loads(content))  # noqa: S301 (it came with an order)
        _values.move_to_end(digest)
        while len(_values) > _KEPT:
            _values.popitem(last=False)
        return _values[digest]


def _renew_lock(_: object) -> None:
    global _values_lock
    _values_lock = threading.Lock()
    _values.clear()  # of the parent


forks.register(Shared, _renew_lock)
