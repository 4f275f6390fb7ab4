"""Servers on loopback that know no HTTP but what a test makes them say, and a proxy as companies have."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator

import attrs


@attrs.define
class Script:
    """A server that does what it is told with each connection.

    Attributes:
        url: its own.
        connections: how many were made.
        closed: is released once for each connection that was closed.
    """

    url: str = ""
    connections: int = 0
    closed: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(0))


@contextlib.contextmanager
def scripted(play: Callable[[socket.socket], None]) -> Iterator[Script]:
    """Serve; each connection is closed when `play` has returned."""
    script = Script()
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        script.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        threads: list[threading.Thread] = []

        opened: list[socket.socket] = []

        def connected(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                play(connection)
            script.closed.release()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    script.connections += 1
                    opened.append(connection)
                    threads.append(threading.Thread(target=connected, args=(connection,)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield script
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in opened:
                with contextlib.suppress(OSError):  # most are closed
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def read_head(connection: socket.socket) -> bytes:
    """All that comes up to the end of a request's head; nothing where the client is gone."""
    head = b""
    while b"\r\n\r\n" not in head and (piece := connection.recv(65_536)):
        head += piece
    return head


@contextlib.contextmanager
def forward_proxy(*, refuse: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that tunnels CONNECT and passes the first request of other connections on.

    Yields:
        Its URL, and the heads of the requests to itself.
    """
    heads: list[bytes] = []

    def play(client: socket.socket) -> None:
        head = read_head(client)
        if not head:
            return
        heads.append(head)
        method, target, _ = head.split(b"\r\n")[0].decode().split()
        if refuse:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        place = urllib.parse.urlsplit(target if method != "CONNECT" else f"//{target}")
        with socket.create_connection((place.hostname, place.port)) as server:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                origin = target.partition(place.netloc)[2]
                server.sendall(head.replace(target.encode(), origin.encode(), 1))
            back = threading.Thread(target=_pass_on, args=(server, client))
            back.start()
            _pass_on(client, server)
            back.join()

    with scripted(play) as script:
        yield script.url, heads


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
