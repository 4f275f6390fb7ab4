"""Forks: what a process lets go of that was forked while its parent worked. Imports only the errors.

A forked child has its parent's memory, descriptors and locks, and none of its threads. So each thing
with a connection, a thread, a file lock or work under way remembers `os.getpid()` of the process that
made it, and two rules keep it right:

- at its doors it compares: it makes its own means anew where that is right, or `check_owner` refuses;
- what a child must let go of without being asked is said with `register`.

There is one hook for all, and no lock: each change is one step of a dict, which no fork can divide.
A process id is enough, though the kernel gives them out again: a grandchild could have it only after
the process that made the thing is gone, and its children have let go of what was registered.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from amistore.errors import InvalidRequestError

__all__ = ["check_owner", "register"]

T = TypeVar("T")

_numbers = itertools.count()
_registered: dict[int, tuple[weakref.ref[Any], Callable[[Any], None]]] = {}


def register(thing: T, release: Callable[[T], None]) -> None:
    """Have `release(thing)` called in each forked child where the thing still exists.

    It is called before other code runs there, with the parent's other threads gone: every lock may be
    held for ever, so it takes none, logs nothing, and only lets go (closes a descriptor, makes a lock
    anew). A descriptor that it closes must be the thing's own until the very end: one that the parent
    has closed may be another file's by then.

    Args:
        thing: is kept weakly, and by identity.
        release: must not hold the thing, as a bound method does: give ``Class.method``.
    """
    number = next(_numbers)

    def forget(_: weakref.ref[Any]) -> None:
        _registered.pop(number, None)

    _registered[number] = weakref.ref(thing, forget), release


def check_owner(pid: int, what: str) -> None:
    """Refuse to use in a forked child what only works in the process that made it.

    Args:
        pid: `os.getpid()` when it was made.
        what: a noun phrase, such as ``"this TaskEngine"``.

    Raises:
        InvalidRequestError: this is another process.
    """
    if pid != os.getpid():
        raise InvalidRequestError(
            f"{what} was made in process {pid} and works only there; this is process {os.getpid()}, "
            "forked from it: make another one in this process"
        )


def _release_all() -> None:
    failed: Exception | None = None
    for reference, release in list(_registered.values()):
        thing = reference()
        if thing is None:
            continue
        try:
            release(thing)
        except Exception as error:  # the others are let go of all the same
            failed = failed or error
    if failed is not None:
        raise failed  # Python prints it, as it does for every hook of this kind


os.register_at_fork(after_in_child=_release_all)
