"""The lean path for the two hot calls, GetSnapshotBlock and PutSnapshotBlock.

It uses botocore's credentials, endpoint and signer over the standard library's HTTP. botocore's generated
client would spend most of the time in Python (`python -m benchmarks --only ebs`, docs/decisions/0012). Each
request has one attempt and a time limit.
"""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import attrs
import botocore.auth
import botocore.awsrequest
import botocore.exceptions
import urllib3
from typing_extensions import Buffer

from amistore.backends.aws.answers import refuse_redirect
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs_connections import Incoming, Pool, TimeLimits
from amistore.backends.aws.errors import connection_error, service_error
from amistore.errors import BackendError, InvalidRequestError
from amistore.units import MIB
from amistore.wire.ebs import error_of
from amistore.wire.signature import UNSIGNED

__all__ = ["Answer", "Wire"]

_MOST = 1 * MIB  # bytes of an answer; a block has half of it


@attrs.frozen
class Answer:
    """An answer with a status below 300: headers (in any case) and content."""

    headers: Mapping[str, str]
    content: bytes


class Wire:
    """Signed requests to the EBS direct APIs of one Region. Any number of threads.

    Args:
        connection: the connection to AWS.
        limits: the time limits.
    """

    def __init__(self, connection: Connection, limits: TimeLimits) -> None:
        client = connection.client("ebs")
        self._url = client.meta.endpoint_url.rstrip("/")
        self._host = urllib.parse.urlsplit(self._url).netloc
        self._region = client.meta.region_name
        self._session = connection.session
        self._limits = limits
        self._pool = Pool(self._url, self._session, self._limits)
        # A proxy that compressed would cost both sides more than it saves.
        self._unsigned = {"User-Agent": "amistore", "Accept-Encoding": "identity", **self._pool.headers}

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Buffer | None,
        operation: str,
        **facts: Any,
    ) -> Answer:
        """Send a request and read its whole answer.

        Args:
            method: the HTTP method.
            path: the path, from ``/``.
            query: the parameters, unescaped.
            headers: the headers, besides those of the signature.
            body: the body, which is not signed (EBS direct APIs, "Signature Version 4 signing").
            operation: our verb, for errors.
            facts: the call's arguments, for errors.
        """
        target = path
        if query:
            target += f"?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"
        # EBS lets the data of a Put be left out of the signature; an empty body is signed as such.
        payload = UNSIGNED if body is not None else _NO_BODY
        signed = self._sign(method, f"{self._url}{target}", {**headers, "X-Amz-Content-SHA256": payload})
        head = self._head(method, target, signed, body)
        try:
            answer, content, whole = self._exchange(method, head, body)
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            raise connection_error(error, self._url, operation, **facts) from None
        found: Any = answer.headers  # a mapping in all that is used of it
        refuse_redirect(answer.status, found)
        if answer.status >= 300:
            refused = error_of(answer.status, found, content)
            raise service_error(refused, operation, date=found.get("Date", ""), **facts)
        if not whole:
            declared = found.get("Content-Length", "")[:20]
            raise BackendError(
                f"the answer broke off after {len(content)} of {declared} bytes"
                if len(content) < _MOST
                else f"the answer has more than {_MOST} bytes",
                retryable=True,
                operation=operation,
                **facts,
            )
        return Answer(found, content)

    def _head(self, method: str, target: str, signed: Mapping[str, str], body: Buffer | None) -> bytes:
        lines = [f"{method} {self._pool.prefix}{target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {**signed, **self._unsigned}.items()]
        if body is not None:
            lines.append(f"Content-Length: {memoryview(body).nbytes}")
        text = "\r\n".join(lines)
        # A credential may come from anywhere, and a line break in it would begin another header.
        if not text.isascii() or text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
            raise InvalidRequestError("a header cannot be sent: is there a line break in the credentials?")
        return f"{text}\r\n\r\n".encode("ascii")

    def _exchange(
        self, method: str, head: bytes, body: Buffer | None
    ) -> tuple[http.client.HTTPResponse, bytes, bool]:
        """Send a request and read its answer; return whether the answer is whole.

        Only after a whole answer is the connection used again.
        """
        limits = self._limits
        end = time.monotonic() + limits.attempt
        connection = self._pool.take()
        keep = False
        try:
            sent = _send(connection.sock, head, body, limits.attempt)
            incoming: Any = Incoming(connection.sock, limits.read, end)
            # Closed here: Python 3.13 tells of one that is not, whose file was collected before it.
            with contextlib.closing(http.client.HTTPResponse(incoming, method=method)) as answer:
                answer.begin()
                content = answer.read(_MOST)
                whole = answer.isclosed()
                keep = sent and whole and not answer.will_close
            return answer, content, whole
        finally:
            if keep:
                self._pool.give(connection)
            else:
                connection.close()

    def _sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        credentials = self._session.get_credentials()
        if credentials is None:
            raise botocore.exceptions.NoCredentialsError
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
