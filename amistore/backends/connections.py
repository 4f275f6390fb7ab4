"""HTTP connections that a forked child has inherited: closed there, and nothing is sent on them.

A connection has one stream, and two processes that write to it, or read from it, get each other's
answers, or break its TLS. urllib3 leaves this to its callers (urllib3 850).
"""

from __future__ import annotations

import os
import queue
import threading
from typing import Any

__all__ = ["let_go", "let_pools_go"]


def let_go(connection: Any) -> None:
    """Close the child's copy of the descriptor of an `http.client` connection, or of urllib3's.

    Nothing of the socket's own way to close is used: no shutdown, which ends the parent's stream too,
    and no word of TLS's.
    """
    sock = connection.sock
    while sock is not None and not hasattr(sock, "detach"):  # urllib3's TLS within TLS, through a proxy
        sock = getattr(sock, "socket", None)
    if sock is not None and (descriptor := sock.detach()) >= 0:
        os.close(descriptor)


def let_pools_go(manager: Any) -> None:
    """Empty a `urllib3.PoolManager`, in a forked child; it works on, with connections of its own.

    Its locks are made anew: a thread of the parent may have held them. The pools' finalizers take
    them as well, at the latest when the child ends.
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
