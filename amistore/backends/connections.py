"""HTTP connections that a forked child inherits: they are closed there, and nothing is sent on them.

Two processes on one connection would get each other's answers, or break its TLS. urllib3 leaves this to its
callers (urllib3 850).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from amistore import forks

__all__ = ["let_go", "let_pools_go", "no_fork"]

_PATIENCE: Final = 2.0  # seconds; a fork is not to wait for who does not answer
_ENDING: Final = 0.5  # seconds; a thread of another library's does not end


class _Handshakes:
    """TLS handshakes: a fork waits for those under way, and others begin after it.

    OpenSSL takes locks of the whole process (of its "ex data", for one) in a handshake, while other threads
    run. A lock that is held at a fork is held in the child for ever, and no TLS works there. A thread that
    has used OpenSSL takes one at its very end, which Python's `join` does not wait for: a fork waits for
    that, too.
    """

    def __init__(self) -> None:
        self._begin_anew()
        forks.register(self, _Handshakes._begin_anew, before=_Handshakes._pause, after=_Handshakes._go_on)

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._foreign: set[int] = set()

    def _pause(self) -> None:
        self._changed.acquire()
        with forks.undoing(lambda _: self._go_on()):
            self._changed.wait_for(lambda: not self._under_way, _PATIENCE)
            end = time.monotonic() + _ENDING
            while (unknown := _unknown_threads()) - self._foreign and time.monotonic() < end:
                time.sleep(0.001)
            self._foreign = unknown

    def _go_on(self) -> None:
        self._changed.release()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        changed = self._changed
        with changed:
            self._under_way += 1
        try:
            yield
        finally:
            with changed:
                self._under_way -= 1
                changed.notify_all()


def _unknown_threads() -> set[int]:
    """The threads that Python does not know: those just ending or beginning, and other libraries'."""
    try:
        running = {int(task.name) for task in Path("/proc/self/task").iterdir()}
    except OSError:  # not on macOS
        return set()
    return running - {thread.native_id for thread in threading.enumerate()}


no_fork: Final = _Handshakes().one
"""A block in which no other thread forks; for handshakes of TLS."""


def let_go(connection: Any) -> None:
    """Close a child's copy of the descriptor of a connection of `http.client` or urllib3.

    The socket's own way to close is not used: a shutdown would end the parent's stream too, and so would
    TLS's closing message.
    """
    sock = connection.sock
    while sock is not None and not hasattr(sock, "detach"):  # urllib3's TLS within TLS, through a proxy
        sock = getattr(sock, "socket", None)
    if sock is not None and (descriptor := sock.detach()) >= 0:
        os.close(descriptor)


def let_pools_go(manager: Any) -> None:
    """Empty a `urllib3.PoolManager` in a forked child; from then on it has connections of its own.

    Its locks are made anew, since a thread of the parent may have held them. The pools' finalizers take them
    as well, at the latest when the child ends.
    """
    manager.pools.lock = threading.RLock()
    for pool in list(manager.pools._container.values()):
        kept = pool.pool
        if kept is None:  # a pool that is closed
            continue
        for connection in list(kept.queue):
            if connection is not None:
                let_go(connection)
        queue.LifoQueue.__init__(kept, kept.maxsize)
