"""Processes that die or stop where they are told to, or are killed at any moment, and others after them.

A module that is run as ``python -m`` calls `serve`: it reads commands, and does each in a process
forked from it, so that hundreds need not import anything. A test starts it as `Processes`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import amistore

__all__ = ["Processes", "Words", "serve"]

Words = list[str]

# Which part or block a call is of: behind bucket, key and upload, or snapshot.
_TOLD = {"upload_part": slice(4, 5), "put_snapshot_block": slice(1, 3)}


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class _Death:
    """Where the process ends, without any clean-up, or stops: before or after the Nth call of a verb."""

    def __init__(
        self, services: Mapping[type, Sequence[str]], between: AbstractContextManager[object]
    ) -> None:
        self._between = between
        self.place: list[object] | None = None
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        for service, verbs in services.items():
            for verb in verbs:
                setattr(service, verb, self._watched(verb, getattr(service, verb)))

    def _watched(self, verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self._calls[verb] += 1
                number = self._calls[verb]
            what = arguments[_TOLD.get(verb, slice(0))]
            _say("begin", verb, *what)
            self._die("before", verb, number)
            result = call(*arguments, **options)
            self._die("after", verb, number)
            _say("done", verb, *what)
            return result

        return watched

    def _die(self, *place: object) -> None:
        if self.place == list(place):
            os._exit(9)
        if self.place == ["stop", *place]:
            with self._between:
                # To this thread, which goes no step further; one to the process may stop another first.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def serve(
    work: Callable[..., None],
    services: Mapping[type, Sequence[str]],
    between: AbstractContextManager[object] = nullcontext(),  # noqa: B008 - it has no state
) -> None:
    """Do what the lines of the standard input say: arguments of `work`, and a place to die.

    On the standard output it is told, line by line, what each process does, and how it ended.

    Args:
        work: is called in a process of its own.
        services: verbs of classes, whose calls are told, and at which to die.
        between: is held while a process is stopped, so that its other threads are not in what holds it.
    """
    death = _Death(services, between)
    child = 0
    for line in sys.stdin:
        if child:
            os.waitpid(child, 0)
        arguments, death.place = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                work(*arguments)
                status = 0
            except amistore.AmistoreError as error:
                _say("error", type(error).__name__, error)
            finally:
                os._exit(status)
        _say("process", child)
        # Who kills it may not have read yet that it has ended: its number is its own until the next one.
        while (ended := os.waitid(os.P_PID, child, os.WEXITED | os.WSTOPPED | os.WNOWAIT)) is not None:
            if ended.si_code != os.CLD_STOPPED:
                break
            os.waitid(os.P_PID, child, os.WSTOPPED)  # or it is told again
            _say("stopped")  # not by the process, which could be continued before it has stopped
        assert ended is not None
        _say("ended", ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)


class Processes:
    """A module that serves, and its processes, one after the other."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
        self._child = 0
        self._lines: list[Words] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def run(
        self, *arguments: object, die: list[object] | None = None, kill: tuple[int, int] | None = None
    ) -> tuple[int, list[Words]]:
        """Work in a process; die at a place, or be killed after so many lines and turns of a loop.

        Returns:
            The exit code, and what the process told.
        """
        self._begin(arguments, die)
        while (code := self._hear()) is None:
            if self._child and kill is not None and len(self._lines) >= kill[0]:
                for _ in range(kill[1]):
                    pass
                os.kill(self._child, signal.SIGKILL)  # a zombie at worst: it is waited for at the next run
                kill = None
        return code, self._lines

    def run_until(self, *arguments: object, stop: list[object]) -> bool:
        """Work in a process, which is stopped at a place; whether it came there. `go_on` is next, if so."""
        self._begin(arguments, ["stop", *stop])
        while (code := self._hear()) is None:
            if self._lines and self._lines[-1] == ["stopped"]:
                return True
        assert code == 0
        return False

    def go_on(self) -> tuple[int, list[Words]]:
        """Continue the stopped process; as `run`."""
        os.kill(self._child, signal.SIGCONT)
        while (code := self._hear()) is None:
            pass
        return code, self._lines

    def _begin(self, arguments: tuple[object, ...], place: list[object] | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([arguments, place]) + "\n")
        self._process.stdin.flush()
        self._child, self._lines = 0, []

    def _hear(self) -> int | None:
        """Note what is told next; gives the exit code at the process's end."""
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if words[0] == "ended":
            return int(words[1])
        if words[0] == "process":
            self._child = int(words[1])
        else:
            self._lines.append(words)
        return None
