"""Processes that die where they are told to, or are killed at any moment, and others that go on after them.

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
from typing import Any

import amistore

__all__ = ["Processes", "Words", "serve"]

Words = list[str]

# Which part or block a call is of: behind bucket, key and upload, or snapshot.
_TOLD = {"upload_part": slice(4, 5), "put_snapshot_block": slice(1, 3)}


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class _Death:
    """Where the process ends, without any clean-up: before or after the Nth call of a verb."""

    def __init__(self, services: Mapping[type, Sequence[str]]) -> None:
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


def serve(work: Callable[..., None], services: Mapping[type, Sequence[str]]) -> None:
    """Do what the lines of the standard input say: arguments of `work`, and a place to die.

    On the standard output it is told, line by line, what each process does, and how it ended.

    Args:
        work: is called in a process of its own.
        services: verbs of classes, whose calls are told, and at which to die.
    """
    death = _Death(services)
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
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
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
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([arguments, die]) + "\n")
        stdin.flush()
        lines: list[Words] = []
        child = 0
        while True:
            words = stdout.readline().split()
            if words[0] == "process":
                child = int(words[1])
            elif words[0] == "ended":
                return int(words[1]), lines
            else:
                lines.append(words)
            if child and kill is not None and len(lines) >= kill[0]:
                for _ in range(kill[1]):
                    pass
                os.kill(child, signal.SIGKILL)  # a zombie at worst: it is waited for at the next run
                kill = None
