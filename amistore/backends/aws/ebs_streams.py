"""Connections for requests in flight: opened, used and kept without waiting, in a loop's thread.

They follow the same configuration as `ebs_connections.py`, which has the proxies.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import urllib3.util
import urllib3.util.connection
from typing_extensions import Buffer

from amistore.backends.aws.ebs_connections import Pool, TimeLimits
from amistore.backends.aws.ebs_loop import READ, WRITE, Loop, Places, Watch
from amistore.backends.connections import let_go, no_fork

__all__ = ["Stream", "Streams"]

_FRESH = 10.0  # seconds for which a name's addresses are used


class Stream:
    """A connection to the service, on which one task at a time sends and receives.

    Attributes:
        sock: the socket, which does not block.
    """

    def __init__(self, loop: Loop, sock: Any) -> None:
        self.sock = sock
        self._watch = Watch(loop, sock)
        # Of TLS's, send and recv_into ask more than they need to, at each record.
        self._send: Callable[[memoryview], int] = sock.send
        self._receive: Callable[[int, memoryview], Any] = lambda size, buffer: sock.recv_into(buffer)
        if isinstance(sock, ssl.SSLSocket):
            self._send, self._receive = sock.write, sock.read

    async def connect(self, address: Any, until: float) -> None:
        try:
            self.sock.connect(address)
        except BlockingIOError:
            await self._watch.ready(WRITE, until)
            if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code)) from None  # of the class that belongs to it

    async def shake_hands(self, limit: float) -> None:
        """TLS's beginning; the limit is for each of its steps."""
        while True:
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                await self._watch.ready(READ, time.monotonic() + limit)
            except ssl.SSLWantWriteError:
                await self._watch.ready(WRITE, time.monotonic() + limit)
            else:
                return

    async def send(self, content: Buffer, until: float) -> None:
        with memoryview(content).cast("B") as view:
            sent, size = 0, len(view)
            send = self._send
            while sent < size:
                try:
                    while sent < size:
                        sent += send(view[sent:])
                except (BlockingIOError, ssl.SSLWantWriteError):
                    await self._watch.ready(WRITE, until)
                except ssl.SSLWantReadError:
                    await self._watch.ready(READ, until)

    async def receive(self, buffer: memoryview, limit: float, end: float, *, whole: bool = False) -> int:
        """Receive what there is, and return how many bytes; fewer than `whole` wants at the stream's end.

        Args:
            buffer: where to.
            limit: the most seconds of silence.
            end: when it must be there, by the monotonic clock.
            whole: receive until the buffer is full, or the stream ends.
        """
        there, size = 0, len(buffer)
        receive = self._receive
        while True:
            try:
                while there < size:  # TLS gives a record of 16 KiB at once
                    received: int = receive(size - there, buffer[there:])
                    there += received
                    if not whole or not received:
                        break
                return there
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._watch.ready(READ, min(time.monotonic() + limit, end))
            except ssl.SSLWantWriteError:
                await self._watch.ready(WRITE, min(time.monotonic() + limit, end))

    def rest(self) -> None:
        """Watch it no more; another thread may use the socket, or another task the stream."""
        self._watch.rest()

    def close(self) -> None:
        self.rest()
        self.sock.close()


class Streams:
    """Connections of one loop to one endpoint.

    Args:
        loop: the loop.
        pool: the connections of threads to the same endpoint, for their configuration.
        limits: the time limits.
    """

    def __init__(self, loop: Loop, pool: Pool, limits: TimeLimits) -> None:
        self._loop = loop
        self._pool = pool
        self._limits = limits
        self._idle: list[Stream] = []
        weakref.finalize(self, _close, self._idle)
        self._open: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._context: ssl.SSLContext | None = None
        self._asking = Places(loop, 1)
        self._found: list[Any] = []
        self._found_at = 0.0
        self._asked = 0
        self._failure: OSError | None = None  # of the last time

    def let_go(self) -> None:
        """In a forked child, close its copies of the parent's connections."""
        for stream in list(self._open):
            let_go(stream)
        self._idle.clear()

    async def take(self) -> Stream:
        """A connection: a kept one that is not known to be dead, or a new one.

        Raises:
            OSError: the connection cannot be opened.
        """
        while self._idle:
            stream = self._idle.pop()
            # The server may have closed it meanwhile: then there is something to read, the end.
            if not urllib3.util.wait_for_read(stream.sock, timeout=0.0):
                return stream
            stream.close()
        error: OSError | None = None
        await self._prepare()
        for family, kind, protocol, _, address in self._found:
            try:
                return await self._connected(socket.socket(family, kind, protocol), address)
            except OSError as failed:
                error = failed
        raise error or OSError("the host has no address")

    def give(self, stream: Stream) -> None:
        """Keep a connection, whose last answer was read to its end, for reuse."""
        stream.rest()
        self._idle.append(stream)

    async def _connected(self, sock: socket.socket, address: Any) -> Stream:
        limit = self._limits.connect
        with self._closed_on_error(sock) as stream:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await stream.connect(address, time.monotonic() + limit)
            stream.rest()
        if self._context is None:
            return stream
        with no_fork():
            with self._closed_on_error(sock):
                host = self._pool.host.rstrip(".")
                tls = self._context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            with self._closed_on_error(tls) as stream:
                await stream.shake_hands(limit)
        return stream

    @contextlib.contextmanager
    def _closed_on_error(self, sock: Any) -> Iterator[Stream]:
        stream = Stream(self._loop, sock)
        self._open.add(stream)
        try:
            yield stream
        except BaseException:
            stream.close()
            raise

    async def _prepare(self) -> None:
        """Have the host's addresses, which are kept for a while, and certificates: one asks, for all."""
        asked = self._asked
        async with self._asking:
            if self._pool.secure and self._context is None:
                self._context = await self._loop.in_thread(self._pool.context)
            if self._found and time.monotonic() <= self._found_at + _FRESH:
                return
            if self._failure is not None and asked != self._asked:  # a silent name server takes its time once
                raise copy.copy(self._failure)
            self._failure = None
            try:
                self._found = await self._addresses()
                self._found_at = time.monotonic()
            except OSError as failure:
                self._failure = failure.with_traceback(None)
                raise
            finally:
                self._asked += 1

    async def _addresses(self) -> list[Any]:
        family = urllib3.util.connection.allowed_gai_family()
        host, port = self._pool.host, self._pool.port
        return await self._loop.in_thread(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)


def _close(streams: list[Stream]) -> None:
    while streams:
        streams.pop().sock.close()
