"""Ends what a run of the tests leaves behind, however it ended: servers, and children that hang.

A process of the run itself cannot: it may have been killed. So this one is started beside it, and kills
each process that carries the run's mark when the run is over. Needs Linux's ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["watch"]

_MARK = "AMISTORE_TEST_RUN"


def watch() -> None:
    """Mark this process's children from now on, and let none outlive it.

    Programs that it starts have the mark in their environment, and so have theirs. Its own forks do not,
    whose environment is that of its beginning; they have the open file that is named after the mark.
    """
    if not hasattr(os, "pidfd_open") or not Path("/proc/self/environ").exists():
        return
    mark = secrets.token_hex(16)
    os.environ[_MARK] = mark
    os.memfd_create(mark)
    # Of an environment without marks, or the reaper of a run in which this one is a test would end it first.
    subprocess.Popen(
        [sys.executable, "-IS", __file__, str(os.getpid()), mark],
        env={},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode = 0  # it is not waited for: it ends after this process


def _marked(mark: str) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        # What has ended meanwhile, and what belongs to others.
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and (
                f"{_MARK}={mark}".encode() in (process / "environ").read_bytes()
                or any(mark in os.readlink(file) for file in (process / "fd").iterdir())
            ):
                yield int(process.name)


def _main(parent: int, mark: str) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(parent)], [], [])
    while left := list(_marked(mark)):  # until none is there that began meanwhile
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
