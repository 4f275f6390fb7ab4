"""Forks: what belongs to the process that made it, and what its children let go of. Imports only the errors.

A forked child has its parent's memory, descriptors and locks, and none of its threads. So each thing
with a connection, a thread, a file lock or work under way remembers `os.getpid()` of the process that
made it, and these rules keep it right:

- at its doors it compares: it makes its own means anew where that is right, or `check_owner` refuses;
- what a child must let go of without being asked is said with `register`;
- who leaves our frames in a child, by an error or by `sys.exit`, undoes nothing: `undoing`. In a thread of
  ours the child has no caller that it could come back to, and ends: `confined`.

There is one hook for all, and no lock: each change is one step of a dict, which no fork can divide.
A process id is enough, though the kernel gives them out again: a grandchild could have it only after
the process that made the thing is gone, and its children have let go of what was registered.
"""

from __future__ import annotations

# Before our hook: its own takes a lock, and of those before a fork the one that was registered last is first.
import concurrent.futures.thread  # noqa: F401
import contextlib
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from amistore.errors import InvalidRequestError

__all__ = ["check_owner", "confined", "register", "undoing"]

T = TypeVar("T")

_Call = Callable[[Any], None]

_numbers = itertools.count()
# By number: a thing, and what is called in a child, before a fork, and after it in the parent.
_registered: dict[int, tuple[weakref.ref[Any], _Call, _Call | None, _Call | None]] = {}
# By the thread that is forking, of each of its forks: what was called before it. A signal's handler may fork
# while another fork waits.
_paused: dict[int, list[list[tuple[Any, _Call | None]]]] = {}


def register(
    thing: T,
    release: Callable[[T], None],
    *,
    before: Callable[[T], None] | None = None,
    after: Callable[[T], None] | None = None,
) -> None:
    """Have `release(thing)` called in each forked child where the thing still exists.

    It is called before other code runs there, with the parent's other threads gone: every lock may be
    held for ever, so it takes none, logs nothing, and only lets go (closes a descriptor, makes a lock
    anew). A descriptor that it closes must be the thing's own until the very end: one that the parent
    has closed may be another file's by then.

    Args:
        thing: is kept weakly, and by identity.
        release: must not hold the thing, as a bound method does: give ``Class.method``.
        before: called before each fork, by the thread that forks; it may wait for others of the thing's.
            Where it raises, it has undone what it did: an interrupt ends a wait, and not the fork.
        after: called after it in the parent, by the same thread, where `before` has returned.
    """
    number = next(_numbers)

    def forget(_: weakref.ref[Any]) -> None:
        _registered.pop(number, None)

    _registered[number] = weakref.ref(thing, forget), release, before, after


def check_owner(process: int, what: str, remedy: str = "make another one in this process") -> None:
    """Refuse to use an object in a forked child if it only works in the process that made it.

    Args:
        process: the id of the process that made the object.
        what: the object as a noun phrase, such as ``"this TaskEngine"``.
        remedy: the advice what to do instead.

    Raises:
        InvalidRequestError: the caller is another process.
    """
    if process != os.getpid():
        raise InvalidRequestError(
            f"{what} was made in process {process} and works only there; this is process {os.getpid()}, "
            f"forked from it: {remedy}"
        )


@contextlib.contextmanager
def undoing(undo: Callable[[BaseException], object]) -> Iterator[None]:
    """Undo the block's work if an error or an interrupt leaves it, but not in a child that was forked in it.

    Args:
        undo: a function that is called with the error, which then passes on.
    """
    process = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() == process:
            undo(error)
        raise


@contextlib.contextmanager
def confined() -> Iterator[None]:
    """End a child that was forked in the block as it leaves it: the thread's other work is its parent's."""
    process = os.getpid()
    error: BaseException | None = None
    try:
        yield
    except BaseException as left:
        error = left
        raise
    finally:
        if os.getpid() != process:
            _end(error)


def _end(error: BaseException | None) -> NoReturn:
    """As the interpreter would for an error that nobody catches, without its clean-up."""
    code: object = 0
    if isinstance(error, SystemExit):
        code = error.code or 0
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


def _before() -> None:
    paused: list[tuple[Any, _Call | None]] = []
    _paused.setdefault(threading.get_ident(), []).append(paused)
    errors: list[BaseException] = []
    for reference, _, before, after in list(_registered.values()):
        thing = reference()
        if thing is not None and before is not None:
            try:
                before(thing)
                paused.append((thing, after))
            except BaseException as error:  # Ctrl-C while it waits: the fork comes, and the others still wait
                errors.append(error)
    _raise(errors)


def _after_in_parent() -> None:
    errors: list[BaseException] = []
    thread = threading.get_ident()
    paused = _paused.get(thread)  # none in a child that was forked while this fork waited
    for thing, after in paused.pop() if paused else ():
        try:
            if after is not None:
                after(thing)
        except BaseException as error:
            errors.append(error)
    if not paused:
        _paused.pop(thread, None)
    _raise(errors)


def _after_in_child() -> None:
    _paused.clear()
    errors: list[BaseException] = []
    for reference, release, *_ in list(_registered.values()):
        thing = reference()
        try:
            if thing is not None:
                release(thing)
        except BaseException as error:
            errors.append(error)
    _raise(errors)


def _raise(errors: list[BaseException]) -> None:
    """Once all others were called; Python prints it, as it does for every hook of this kind."""
    del errors[1:]
    if errors:
        raise errors.pop()  # in no frame any more, which it would keep alive together with the things there


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
