"""HTTP/1.1 on loopback, as far as the services need it, and the faults that happen there."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http
import os
import selectors
import socket
import socketserver
import ssl
import struct
import threading
import uuid
from typing import Any

import attrs

from amistore import forks
from amistore.backends.connections import no_fork
from amistore.testing.aws.calls import CallLog
from amistore.testing.aws.faults import FaultRule, Faults
from amistore.testing.aws.services import Services, identified
from amistore.testing.aws.throttling import throttled
from amistore.wire.answers import error_answer
from amistore.wire.calls import Answer, Call
from amistore.wire.errors import ServiceError, invalid
from amistore.wire.query import with_form
from amistore.wire.signature import skewed

__all__ = ["Server"]

LINE = 65_536
BODY = 8 << 20
DRIP = 64
"""Bytes of a body that drips before the rest is held."""
RESET = struct.pack("ii", 1, 0)


class BadRequest(Exception):
    """What came is not HTTP as the services take it."""


class GivenUpError(Exception):
    """The connection is to be closed; with a reset where `reset` is true."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Listen on a free port of loopback, with a thread for each connection.

    Args:
        services: answer.
        faults: happen on the way.
        log: of requests.
        tls: to speak TLS, or None for plain HTTP.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, services: Services, faults: Faults, log: CallLog, tls: ssl.SSLContext | None) -> None:
        self.services = services
        self.faults = faults
        self.log = log
        self._tls = tls
        self.closing = threading.Event()
        self._serving: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Connection)
        forks.register(self, Server._let_go)
        self._accepting = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[Any, Any]:
        request, client_address = super().get_request()
        if self._tls is not None:
            # Its thread shakes hands: here that would keep others from being accepted.
            request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, client_address

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self._connected, args=(request, client_address), daemon=True)
        with self._lock:
            self._serving[request] = thread
        self.log.connected()
        thread.start()

    def _connected(self, request: Any, client_address: Any) -> None:
        try:
            if self._tls is not None:
                with contextlib.suppress(OSError), no_fork():  # what fails here fails again at the first read
                    request.do_handshake()
            self.process_request_thread(request, client_address)
        finally:
            with self._lock:
                del self._serving[request]

    def close(self) -> None:
        """Stop listening, break off all connections, and wait for their threads."""
        self.shutdown()
        self._accepting.join()
        self.closing.set()
        with self._lock:
            serving = dict(self._serving)
        for connection in serving:
            with contextlib.suppress(OSError):
                # Not TLS's own, which would take the stream away from under the thread that reads it.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in serving.values():
            thread.join()
        self.server_close()

    def _let_go(self) -> None:
        """In a forked child: nobody accepts or answers there, and a connection that the parent ends, ends."""
        for inherited in (self.socket, *self._serving):
            with contextlib.suppress(OSError):  # closed by the parent already
                os.close(inherited.detach())


class Connection(socketserver.StreamRequestHandler):
    """One client's requests, one after the other."""

    disable_nagle_algorithm = True
    rbufsize = 65_536

    def setup(self) -> None:
        super().setup()
        assert isinstance(self.server, Server)  # noqa: S101 - for the type alone
        self._host = self.server
        self._call: Call | None = None
        self._fault: FaultRule | None = None
        self._open = False

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            try:
                while not self._host.closing.is_set() and self._serve():
                    pass
            except GivenUpError as end:
                if end.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    # Without this, shutdown() would say goodbye before close() can reset.
                    self.connection.close()

    def _serve(self) -> bool:
        """Serve one request; whether there may be another."""
        line = self.rfile.readline(LINE)
        if not line.strip():
            return False
        self._host.log.began()
        self._call, self._fault, self._open = None, None, True
        try:
            call = identified(self._head(line))
            if call.service == "ebs":
                self._known(call)
                if self._fault is not None and self._fault.kind == "reset-before-body":
                    raise GivenUpError(reset=True)
            call = attrs.evolve(call, body=self._body(call))
            if call.service != "ebs":
                call = with_form(call)
                self._known(call)
            self._send(self._answer(call))
            return call.headers.get("connection", "").lower() != "close"
        except BadRequest as error:
            self._fault = None
            self._send(Answer(status=400, body=str(error).encode(), headers={"Connection": "close"}))
            return False
        finally:
            self._ended(None)

    def _known(self, call: Call) -> None:
        self._host.log.counted(call)
        self._call, self._fault = call, self._host.faults.pick(call)

    def _ended(self, status: int | None) -> None:
        """Log the request, once: before the client can know that it has its answer."""
        if self._open:
            self._open = False
            self._host.log.ended(self._call, status, self._fault.kind if self._fault else None)

    def _head(self, line: bytes) -> Call:
        parts = line.decode("latin-1").split()
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise BadRequest("the request line is malformed")
        path, _, query = parts[1].partition("?")
        headers: dict[str, str] = {}
        while (line := self.rfile.readline(LINE)).strip():
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or len(headers) > 100:
                raise BadRequest("a header is malformed")
            headers[name.strip().lower()] = value.strip()
        identifier = str(uuid.uuid4())
        return Call(method=parts[0], path=path, query=query, headers=headers, request_id=identifier)

    def _body(self, call: Call) -> bytes:
        text = call.headers.get("content-length", "0")
        if "transfer-encoding" in call.headers or not text.isdecimal() or int(text[:18]) > BODY:
            raise BadRequest("a body needs a Content-Length that is not too large")
        if call.headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            raise GivenUpError(reset=False)
        return body

    def _answer(self, call: Call) -> Answer:
        """What is to be sent; the effect of the call, if it has one, is done."""
        fault = self._fault
        kind = fault.kind if fault else None
        if fault is not None and kind == "silence":
            self._hold(fault)
            raise GivenUpError(reset=True)
        if kind in ("reset-before-answer", "reset-before-body"):
            raise GivenUpError(reset=True)
        error = fault_error(call, kind, self._host.services.real_now())
        if error is not None:
            answer = error_answer(call, error)
            return attrs.evolve(answer, status=200) if kind == "error-inside" else answer
        answer = self._host.services.answer(call)
        if kind == "500-after":
            return error_answer(call, _internal_error(call))
        if kind == "lost-reply":
            raise GivenUpError(reset=True)
        if kind == "flipped-bit" and answer.body:
            changed = bytearray(answer.body)
            changed[len(changed) // 2] ^= 1
            answer = attrs.evolve(answer, body=bytes(changed))
        return answer

    def _send(self, answer: Answer) -> None:
        fault = self._fault
        kind = fault.kind if fault else None
        phrase = http.HTTPStatus(answer.status).phrase
        date = email.utils.format_datetime(self._host.services.real_now(), usegmt=True)
        lines = [f"HTTP/1.1 {answer.status} {phrase}", f"Content-Length: {len(answer.body)}", f"Date: {date}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if kind == "short-body":
            self._ended(answer.status)
            self.wfile.write(head + answer.body[: len(answer.body) // 2])
            raise GivenUpError(reset=False)
        if fault is not None and kind == "slow-drip":
            self.wfile.write(head + answer.body[:DRIP])
            self._hold(fault)
            self._ended(answer.status)
            self.wfile.write(answer.body[DRIP:])
            return
        self._ended(answer.status)
        self.connection.sendall(head + answer.body)

    def _hold(self, fault: FaultRule) -> None:
        """Wait until the fault lets go, the client gives up or the server closes."""
        ours, theirs = socket.socketpair()
        with ours, theirs, selectors.DefaultSelector() as selector, fault.holding(theirs):
            selector.register(ours, selectors.EVENT_READ)
            selector.register(self.connection, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if ours in ready:
                    return
                if not socket.socket.recv(self.connection, 1, socket.MSG_PEEK):  # below TLS
                    raise GivenUpError(reset=False)
                selector.unregister(self.connection)


def fault_error(call: Call, kind: str | None, now: datetime.datetime) -> ServiceError | None:
    """The error that a fault answers with, in the words of the call's service."""
    if kind in ("500", "error-inside"):
        return _internal_error(call)
    if kind == "503":
        code = "ServiceUnavailableException" if call.service == "ebs" else "Unavailable"
        return ServiceError(code, "The server is overloaded and can't handle the request.", status=503)
    if kind == "throttle":
        return throttled(call)
    if kind == "late-signature":
        return skewed(call, now - datetime.timedelta(hours=1), now, 900)
    return invalid("Failed to read block data") if kind == "failed-to-read" else None


def _internal_error(call: Call) -> ServiceError:
    code = "InternalServerException" if call.service == "ebs" else "InternalError"
    return ServiceError(code, "An internal error has occurred", status=500)
