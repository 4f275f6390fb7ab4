"""Forked children of a test: what each answers, and none outlives the test."""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import attrs

__all__ = ["LEFT", "Child", "answers", "fork", "forked", "split"]

R = TypeVar("R")

SECONDS = 60  # a child that answers nothing until then hangs
LEFT = 3
"""The exit code of a child that leaves."""


def fork() -> int:
    """As `os.fork`; Python 3.12 warns of threads there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@attrs.frozen
class Child:
    """A forked child, and the pipe that it answers through."""

    pid: int
    pipe: int

    def answer(self, seconds: float = SECONDS) -> Any:
        """What its function gave; an exception that left it is given, not raised.

        Raises:
            TimeoutError: it hangs.
            EOFError: it died without an answer.
        """
        content = b""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self.pipe, selectors.EVENT_READ)
            while ready.select(max(0.0, deadline - time.monotonic())):
                piece = os.read(self.pipe, 1 << 16)
                if not piece:
                    if not content:
                        raise EOFError(f"child {self.pid} died without an answer")
                    return pickle.loads(content)
                content += piece
        raise TimeoutError(f"child {self.pid} hangs")


@contextlib.contextmanager
def forked(function: Callable[[], Any]) -> Iterator[Child]:
    """A child that runs the function from here on; it is killed at the end, whatever it does."""
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:
        _run(function, reading, writing)
    os.close(writing)
    try:
        yield Child(pid, reading)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run(function: Callable[[], Any], reading: int, writing: int) -> None:
    try:
        os.close(reading)
        try:
            answer = function()
        except BaseException as error:
            answer = error
        try:
            content = pickle.dumps(answer)
        except Exception:
            content = pickle.dumps(RuntimeError(repr(answer)))
        with open(writing, "wb", closefd=False) as file:
            file.write(content)
        # The pipe's end comes with the process's: what it leaves open would delay that.
        os.close(writing)
    finally:
        os._exit(0)


def answers(functions: list[Callable[[], Any]], *, at_once: int = 4) -> list[Any]:
    """What each function answers in a child of its own, some at once, in order."""
    found = []
    for first in range(0, len(functions), at_once):
        with contextlib.ExitStack() as children:
            some = [
                children.enter_context(forked(function)) for function in functions[first : first + at_once]
            ]
            found += [child.answer() for child in some]
    return found


def split(job: Callable[[Callable[[], None]], R], leave: Callable[[], None] | None = None) -> tuple[R, int]:
    """Do a job that calls what it is given: there a child is forked, which leaves the job's frames.

    Args:
        job: what to do; the parent goes on with it when the child has ended.
        leave: what the child does there; None for ``sys.exit(LEFT)``.

    Returns:
        What the parent's job gave, and the child's exit code: `LEFT`, 0 where it came to the job's end,
        1 where an error of ours left it, 2 where another did. It is killed after a minute: -9.
    """
    parent = os.getpid()
    codes: list[int] = []
    once = threading.Lock()

    def part() -> None:
        if not once.acquire(blocking=False):
            return
        pid = fork()
        if pid:
            codes.append(_ended(pid))
        elif leave is None:
            raise SystemExit(LEFT)
        else:
            leave()

    code = 0
    try:
        made = job(part)
    except BaseException as error:
        if os.getpid() == parent:
            raise
        code = error.code if isinstance(error, SystemExit) else 1 if _is_ours(error) else 2  # type: ignore[assignment]
    if os.getpid() != parent:
        os._exit(code)
    (ended,) = codes
    return made, ended


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__ == "amistore.errors"


def _ended(pid: int) -> int:
    with selectors.DefaultSelector() as ready:
        descriptor = os.pidfd_open(pid)
        ready.register(descriptor, selectors.EVENT_READ)
        if not ready.select(SECONDS):
            os.kill(pid, signal.SIGKILL)
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
