"""Servers on loopback: one of ours that misbehaves on purpose, and processes of others'."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@attrs.define
class Resource:
    """What the server has to give, and how it misbehaves.

    `faults` are taken one by one, each for one request: a status, ``short`` (the body breaks
    off), ``unannounced`` (it does, and nobody said how long it is), ``close`` (no answer at all),
    ``odd-header`` (503 with a header that is none), ``elsewhere`` (another range than the one asked for) or
    ``flipped`` (a bit of the body is changed).
    """

    content: bytes
    etag: str | None = '"one"'
    changed: str | None = None
    ranges: bool = True
    encoding: str | None = None  # that its bytes are said to have
    key: str | None = None  # that the query must hold, as a presigned URL's does
    token: str | None = None  # that Authorization must be
    location: str = "/ami.bin"  # where /moved leads
    retry_after: str = "0"  # that a fault says
    headers: list[dict[str, str]] = attrs.field(factory=list)  # of each request
    faults: list[int | str] = attrs.field(factory=list)
    requests: list[str] = attrs.field(factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    resource: Resource

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        resource = self.resource
        resource.requests.append(f"{self.path} {self.headers.get('Range')}")
        resource.headers.append(dict(self.headers))
        fault = resource.faults.pop(0) if resource.faults else None
        if fault == "close":
            self.close_connection = True
        elif fault == "odd-header":
            self.wfile.write(b"HTTP/1.1 503 Busy\r\nno colon here\r\nContent-Length: 0\r\n\r\n")
        elif isinstance(fault, int):
            self._answer(fault, {"Retry-After": resource.retry_after})
        elif self.path.startswith("/moved"):
            self._answer(302, {"Location": resource.location})
        elif not self.path.startswith(("/ami.bin", "/bucket/ami")):
            self._answer(404)
        elif (resource.key and f"signature={resource.key}" not in self.path) or (
            resource.token and self.headers.get("Authorization") != resource.token
        ):
            self._answer(403)
        elif self.headers.get("If-Match") not in (None, resource.etag) or (
            self.headers.get("If-Unmodified-Since") not in (None, resource.changed)
        ):
            self._answer(412)
        else:
            short = fault in ("short", "unannounced")
            self._give(
                short=short,
                announced=fault != "unannounced",
                shift=int(fault == "elsewhere"),
                flip=int(fault == "flipped"),
            )

    def do_HEAD(self) -> None:
        """As object stores are asked; browsers and presigned URLs are not."""
        if not self.path.startswith("/bucket/ami"):
            self._answer(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.resource.content)))
        self.send_header("ETag", self.resource.etag or "")
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 01:02:03 GMT")
        self.end_headers()

    def _give(self, *, short: bool, announced: bool, shift: int, flip: int) -> None:
        content = self.resource.content
        found = RANGE.fullmatch(self.headers.get("Range", ""))
        if not self.resource.ranges or found is None:
            self._answer(200, body=content)
            return
        if found[1]:
            first, last = int(found[1]) + shift, min(int(found[2] or 2**62) + shift, len(content) - 1)
        else:
            first, last = max(0, len(content) - int(found[2])), len(content) - 1
        if first > last:
            self._answer(416)
            return
        members = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        for name, value in (
            ("ETag", self.resource.etag),
            ("Last-Modified", self.resource.changed),
            ("Content-Encoding", self.resource.encoding),
        ):
            if value:
                members[name] = value
        body = bytearray(content[first : last + 1])
        body[len(body) // 2] ^= flip
        self._answer(206, members, bytes(body), short=short, announced=announced)

    def _answer(
        self,
        status: int,
        members: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        short: bool = False,
        announced: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in (members or {}).items():
            self.send_header(name, value)
        if announced:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # of a client that had enough
            self.wfile.write(body[: len(body) // 2] if short else body)
        self.close_connection = short


@contextlib.contextmanager
def serving(resource: Resource) -> Iterator[str]:
    """The URL of a server that has this resource at ``/ami.bin``, and redirects ``/moved`` there."""
    handler = type("Handler", (Handler,), {"resource": resource})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/ami.bin"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str) -> str | None:
    """Where a program is: beside this Python, or on the PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@contextlib.contextmanager
def running(
    command: Sequence[Any],
    port: int,
    *,
    environment: Mapping[str, str] | None = None,
    ended_by: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """A server process, once it accepts connections on this port.

    Args:
        command: the program and its words.
        port: the port that it serves.
        environment: variables that it gets beside this process's.
        ended_by: the signal that ends it at once.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve: exit status {process.poll()}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(ended_by)
        process.wait()
