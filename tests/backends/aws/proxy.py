"""`FaultProxy`: an HTTP proxy on loopback that misbehaves when it is told to.

    with fault_proxy("http://127.0.0.1:8080") as proxy:
        connect(proxy.url)  # instead of the server's own URL
        proxy.fail("upload_part", Fault.RESET_AFTER, nth=2)  # the second one from now on
        proxy.fail("get_object", Answer(status=206, headers={...}, body=b"..."))
        ...
        assert proxy.requests["upload_part"] == 3

Each `fail` hits one request (``times=`` more in a row), counted from when it is called. An `Answer`
is given without asking the server, so a proxy of which all requests are answered so needs none:
``fault_proxy(None)``. For another service than S3, ``operation=`` names the requests.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import http.client
import http.server
import socket
import ssl
import struct
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from amistore.backends.connections import no_fork

ALWAYS = 10**6
"""Times that no test reaches."""

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class Fault(enum.Enum):
    """What happens to a request."""

    INTERNAL_ERROR = "500, not sent on"
    SLOW_DOWN = "503 SlowDown, not sent on"
    RESET_BEFORE = "connection reset, not sent on"
    RESET_AFTER = "carried out, then the connection is reset"
    LOST_REPLY = "carried out, then the connection is closed without an answer"
    SILENT = "carried out, then no answer until `FaultProxy.release` is set"
    SHORT_BODY = "the answer breaks off in the middle"
    FLIPPED_REQUEST = "a bit of the request's body is flipped on its way"
    FLIPPED_ANSWER = "a bit of the answer's body is flipped on its way"
    ERROR_IN_200 = "200 with an error document, not sent on"


@attrs.frozen(kw_only=True)
class Answer:
    """An answer that the server did not give."""

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    size: int | None = None  # Content-Length, where the body's own is not it


@attrs.frozen(kw_only=True)
class Asked:
    """A request."""

    operation: str
    method: str
    target: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes


class Rules:
    """What a service does otherwise than the server behind the proxy. Its methods run in several threads."""

    def path_style(self, target: str, host: str) -> str:
        """The target of a request with the bucket's name in it."""
        return target

    def refusal(self, asked: Asked) -> Answer | None:
        """The answer to a request that is not sent on."""
        return None

    def answered(self, asked: Asked, answer: Answer) -> Answer:
        """What becomes of the server's answer."""
        return answer


def error_answer(status: int, code: str, message: str = "a fault") -> Answer:
    """An error as S3 writes it (API reference, "Error responses")."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status=status, headers={"Content-Type": "application/xml"}, body=text.encode())


def s3_operation(method: str, target: str) -> str:
    """Our verb of a request in path style."""
    parts = urllib.parse.urlsplit(target)
    query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
    if "uploadId" in query:
        return {
            "PUT": "upload_part",
            "GET": "list_parts",
            "POST": "complete_multipart_upload",
            "DELETE": "abort_multipart_upload",
        }[method]
    if "uploads" in query:
        return "create_multipart_upload" if method == "POST" else "list_multipart_uploads"
    if "list-type" in query:
        return "list_objects"
    for name in ("restore", "publicAccessBlock", "encryption", "tagging"):
        if name in query:
            return f"{method.lower()}_{name}"
    return f"{method.lower()}_{'object' if parts.path.strip('/').count('/') else 'bucket'}"


@attrs.define(eq=False)
class FaultProxy:
    """Counts and faults; made by `fault_proxy`.

    Attributes:
        upstream: the server's URL.
        operation: names a request, from its method and target.
        url: the proxy's own.
        requests: how many of each operation came.
        connections: how many were opened to the proxy.
        headers: of the last request of each operation.
        release: set it to let silent answers go.
        change: makes another of what the server answers to an operation.
        rules: what the service does otherwise than the server.
    """

    upstream: str | None
    operation: Callable[[str, str], str]
    url: str = ""
    requests: collections.Counter[str] = attrs.field(factory=collections.Counter)
    connections: int = 0
    headers: dict[str, dict[str, str]] = attrs.field(factory=dict)
    release: threading.Event = attrs.field(factory=threading.Event)
    change: Callable[[str, Answer], Answer] = lambda operation, answer: answer
    rules: Rules = attrs.field(factory=Rules)
    _faults: dict[tuple[str, int], Fault | Answer] = attrs.field(factory=dict)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def fail(self, operation: str, fault: Fault | Answer, *, nth: int = 1, times: int = 1) -> None:
        """Let the nth request of an operation from now on, and the ones after it, go wrong."""
        with self._lock:
            first = self.requests[operation] + nth
            for number in range(first, first + times):
                self._faults[operation, number] = fault

    def count_connection(self) -> None:
        with self._lock:
            self.connections += 1

    def take(self, operation: str, headers: Mapping[str, str]) -> Fault | Answer | None:
        """Count a request, and say what happens to it."""
        with self._lock:
            self.requests[operation] += 1
            self.headers[operation] = {name.lower(): value for name, value in headers.items()}
            return self._faults.pop((operation, self.requests[operation]), None)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def setup(self) -> None:
        super().setup()
        self.proxy.count_connection()

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client died
            self.close_connection = True
            return
        target = self.proxy.rules.path_style(self.path, self.headers.get("Host", ""))
        operation = self.proxy.operation(self.command, target)
        fault = self.proxy.take(operation, self.headers)
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(operation=operation, method=self.command, target=target, headers=headers, body=body)
        if isinstance(fault, Answer):
            self._give(fault)
        elif refusal := self.proxy.rules.refusal(asked):
            self._give(refusal)
        elif fault is Fault.INTERNAL_ERROR:
            self._give(error_answer(500, "InternalError"))
        elif fault is Fault.SLOW_DOWN:
            self._give(error_answer(503, "SlowDown"))
        elif fault is Fault.ERROR_IN_200:
            self._give(error_answer(200, "InternalError"))
        elif fault is Fault.RESET_BEFORE:
            self._reset()
        else:
            answer = self._ask(_flipped(body) if fault is Fault.FLIPPED_REQUEST else body)
            answer = self.proxy.rules.answered(asked, answer)
            self._give_with(fault, self.proxy.change(operation, answer))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET

    def _give_with(self, fault: Fault | None, answer: Answer) -> None:
        if fault is Fault.RESET_AFTER:
            self._reset()
        elif fault is Fault.LOST_REPLY or (fault is Fault.SHORT_BODY and not answer.body):
            self.close_connection = True
        elif fault is Fault.SILENT:
            self.proxy.release.wait()
            self.close_connection = True
        elif fault is Fault.SHORT_BODY:
            short = answer.body[: len(answer.body) // 2]
            self._give(attrs.evolve(answer, body=short, size=len(answer.body)))
        elif fault is Fault.FLIPPED_ANSWER:
            self._give(attrs.evolve(answer, body=_flipped(answer.body)))
        else:
            self._give(answer)

    def _ask(self, body: bytes) -> Answer:
        if self.proxy.upstream is None:
            return error_answer(501, "NotImplemented", f"{self.command} {self.path} was not foreseen")
        parts = urllib.parse.urlsplit(self.proxy.upstream)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            size = response.headers.get("Content-Length")
            return Answer(
                status=response.status,
                headers={
                    name: value
                    for name, value in response.getheaders()
                    if name.lower() not in {*HOP_BY_HOP, "content-length", "date", "server"}
                },
                body=response.read(),
                size=int(size) if size and self.command == "HEAD" else None,
            )

    def _give(self, answer: Answer) -> None:
        size = len(answer.body) if answer.size is None else answer.size
        with contextlib.suppress(ConnectionError):  # of a client that had enough
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(size))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
                self.close_connection = self.close_connection or size != len(answer.body)

    def _reset(self) -> None:
        """RST, not FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is none of a test's business."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if isinstance(request, ssl.SSLSocket):
            with contextlib.suppress(OSError), no_fork():
                request.do_handshake()
        super().process_request_thread(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        # Without shutdown(), which would send FIN where a reset is wanted.
        self.close_request(request)


@contextlib.contextmanager
def fault_proxy(
    upstream: str | None,
    *,
    operation: Callable[[str, str], str] = s3_operation,
    certificate: Path | None = None,
) -> Iterator[FaultProxy]:
    """A proxy in front of a server.

    Args:
        upstream: the server's URL, or None where each request gets an `Answer`.
        operation: names a request.
        certificate: a PEM file with key and certificate, to speak TLS to clients.
    """
    proxy = FaultProxy(upstream, operation)
    server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"proxy": proxy}))
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        proxy.url = proxy.url.replace("http:", "https:")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release.set()
        server.shutdown()
        thread.join()
        server.server_close()
