"""The lean path for the two hot calls, GetSnapshotBlock and PutSnapshotBlock.

It uses botocore's credentials, endpoint and signer over the standard library's HTTP. botocore's generated
client would spend most of the time in Python (`python -m benchmarks --only ebs`, docs/decisions/0012). Each
request has one attempt and a time limit. Next: `ebs_requests.py`, which has many in flight.
"""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.exceptions
import urllib3
from typing_extensions import Buffer

from amistore.backends.aws.answers import refuse_redirect
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs_connections import Pool, TimeLimits
from amistore.backends.aws.ebs_incoming import MOST, Incoming, Received, read_answer
from amistore.backends.aws.errors import connection_error, service_error
from amistore.errors import BackendError, InvalidRequestError
from amistore.wire.ebs import error_of
from amistore.wire.signature import UNSIGNED

__all__ = ["Answer", "Request", "Wire"]


@attrs.frozen(kw_only=True)
class Request:
    """A request, yet to be signed.

    Attributes:
        method: the HTTP method.
        path: the path, from ``/``.
        query: the parameters, unescaped.
        headers: the headers, besides those of the signature.
        body: the body, which is not signed (EBS direct APIs, "Signature Version 4 signing").
        operation: our verb, for errors.
        facts: the call's arguments, for errors.
    """

    method: str
    path: str
    query: Mapping[str, str] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: Buffer | None = None
    operation: str
    facts: Mapping[str, Any]


@attrs.frozen
class Answer:
    """An answer with a status below 300: headers (in any case) and content."""

    headers: Mapping[str, str]
    content: Buffer


class Wire:
    """Signed requests to the EBS direct APIs of one Region. Any number of threads.

    Args:
        connection: the connection to AWS.
        limits: the time limits.

    Attributes:
        limits: the time limits.
        pool: the connections.
    """

    def __init__(self, connection: Connection, limits: TimeLimits) -> None:
        client = connection.client("ebs")
        self._url = client.meta.endpoint_url.rstrip("/")
        self._host = urllib.parse.urlsplit(self._url).netloc
        self._region = client.meta.region_name
        self._session = connection.session
        self._loaded = False  # whether the session has found credentials, and gives them without looking
        self.limits = limits
        self.pool = Pool(self._url, self._session, client.meta.config, limits)
        # A proxy that compressed would cost both sides more than it saves.
        self._unsigned = {"User-Agent": "amistore", "Accept-Encoding": "identity", **self.pool.headers}

    def request(self, request: Request) -> Answer:
        """Send a request and read its whole answer."""
        head = self.head(request)
        with self.connection_errors(request):
            received = self._exchange(request, head)
        return self.answer(request, received)

    @contextlib.contextmanager
    def connection_errors(self, request: Request) -> Iterator[None]:
        """Turn errors of the connection into ours."""
        try:
            yield
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            raise connection_error(error, self._url, request.operation, **request.facts) from None

    def answer(self, request: Request, received: Received) -> Answer:
        """Refuse an answer that is an error, or that is not whole."""
        answer, content = received.answer, received.content
        found: Any = answer.headers  # a mapping in all that is used of it
        refuse_redirect(answer.status, found)
        if answer.status >= 300:
            refused = error_of(answer.status, found, bytes(content))
            date, retry_after = found.get("Date", ""), found.get("Retry-After", "")
            raise service_error(
                refused, request.operation, date=date, retry_after=retry_after, **request.facts
            )
        if not received.whole:
            declared = found.get("Content-Length", "")[:20]
            raise BackendError(
                f"the answer broke off after {len(content)} of {declared} bytes"
                if len(content) < MOST
                else f"the answer has more than {MOST} bytes",
                retryable=True,
                operation=request.operation,
                **request.facts,
            )
        return Answer(found, content)

    def signs_at_once(self) -> bool:
        """Whether signing waits for nobody who hands out credentials."""
        if not self._loaded:
            return False
        credentials = self._session.get_credentials()
        if type(credentials) is botocore.credentials.Credentials:
            return True
        needed = getattr(credentials, "refresh_needed", None)
        return needed is not None and not needed()

    def head(self, request: Request) -> bytes:
        """A request's head, signed."""
        target, body = request.path, request.body
        if request.query:
            target += f"?{urllib.parse.urlencode(request.query, quote_via=urllib.parse.quote)}"
        # EBS lets the data of a Put be left out of the signature; an empty body is signed as such.
        payload = UNSIGNED if body is not None else _NO_BODY
        headers = {**request.headers, "X-Amz-Content-SHA256": payload}
        signed = self._sign(request.method, f"{self._url}{target}", headers)
        lines = [f"{request.method} {self.pool.prefix}{target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {**signed, **self._unsigned}.items()]
        if body is not None:
            lines.append(f"Content-Length: {memoryview(body).nbytes}")
        text = "\r\n".join(lines)
        # A credential may come from anywhere, and a line break in it would begin another header.
        if not text.isascii() or text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
            raise InvalidRequestError("a header cannot be sent: is there a line break in the credentials?")
        return f"{text}\r\n\r\n".encode("ascii")

    def _exchange(self, request: Request, head: bytes) -> Received:
        """Send a request and read its answer; only after a whole one is the connection used again."""
        limits = self.limits
        end = time.monotonic() + limits.attempt
        connection = self.pool.take()
        keep = False
        try:
            sent = _send(connection.sock, head, request.body, limits.attempt)
            received = read_answer(Incoming(connection.sock, limits.read, end), request.method)
            keep = sent and received.reusable
            return received
        finally:
            if keep:
                self.pool.give(connection)
            else:
                connection.close()

    def _sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        credentials = self._session.get_credentials()
        if credentials is None:
            raise botocore.exceptions.NoCredentialsError
        self._loaded = True
        request = botocore.awsrequest.AWSRequest(
            method,
            url,
            # X-Amz-Content-SHA256, when given, the signer takes for the hash of the body.
            headers={**headers, "Host": self._host},
        )
        signer = botocore.auth.SigV4Auth(credentials.get_frozen_credentials(), "ebs", self._region)
        signer.add_auth(request)
        return dict(request.headers.items())


# SHA-256 of nothing.
_NO_BODY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _send(sock: Any, head: bytes, body: Buffer | None, limit: float) -> bool:
    """Send a request, its body without a copy; return whether all of it went."""
    sock.settimeout(limit)  # of all that one sendall sends
    try:
        sock.sendall(head)
        if body is not None:
            sock.sendall(body)
    except (BrokenPipeError, ConnectionResetError):
        return False  # who hangs up on a body may have said why
    return True
