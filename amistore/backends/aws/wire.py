"""The lean path for the two hot calls, GetSnapshotBlock and PutSnapshotBlock.

botocore's credentials, endpoint and signer over urllib3, botocore's own HTTP library, without
its generated client, which spends more time in Python than the block takes to travel
(`python -m benchmarks ebs`). One attempt a request, and no request without an end.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import attrs
import botocore.auth
import botocore.awsrequest
import botocore.exceptions
import botocore.httpsession
import botocore.utils
import urllib3
from typing_extensions import Buffer

from amistore.backends.aws.connection import CONNECT_TIMEOUT, READ_TIMEOUT, Connection
from amistore.backends.aws.errors import service_error
from amistore.errors import BackendError
from amistore.units import KIB, MIB

__all__ = ["Answer", "Wire"]

ATTEMPT_LIMIT = 20.0  # seconds from the first byte of an answer to its last
_POOL = 64  # connections that are kept
_MOST = 1 * MIB  # bytes of an answer; a block has half of it


@attrs.frozen
class Answer:
    """Headers (any case) and content of an answer with a status below 300."""

    headers: Mapping[str, str]
    content: bytes


class Wire:
    """Signed requests to the EBS direct APIs of one Region. Any number of threads."""

    def __init__(self, connection: Connection) -> None:
        client = connection.client("ebs")
        self._url = client.meta.endpoint_url.rstrip("/")
        self._host = urllib.parse.urlsplit(self._url).netloc
        self._region = client.meta.region_name
        self._session = connection.session
        self._pool = _pool(self._url, self._session)

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
        """Send a request and take its whole answer.

        Args:
            method: of HTTP.
            path: from ``/`` on.
            query: parameters, unescaped.
            headers: beside those of the signature.
            body: bytes; not part of the signature (EBS direct APIs, "Signature Version 4 signing").
            operation: our verb, for errors.
            facts: what it is made on, for errors.
        """
        target = path
        if query:
            target += f"?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"
        # EBS lets the data of a Put be left out of the signature; an empty body is signed as such.
        payload = "UNSIGNED-PAYLOAD" if body is not None else _NO_BODY
        signed = self._sign(method, f"{self._url}{target}", {**headers, "X-Amz-Content-SHA256": payload})
        began = time.monotonic()
        try:
            answer = self._pool.urlopen(
                method,
                target,  # not the whole URL, which is for proxies
                body=memoryview(body) if body is not None else None,
                headers=signed,
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
            )
            try:
                content = _read(answer, began)
            except BaseException:
                answer.close()  # what was not read must not be taken for the next answer
                raise
            answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise BackendError(
                f"the connection failed: {type(error).__name__}", retryable=True, operation=operation, **facts
            ) from None
        if answer.status >= 300:
            code, message, reason = _fault(answer.headers, content)
            raise service_error(code, message, answer.status, operation, reason=reason, **facts)
        declared = answer.headers.get("Content-Length")
        if declared is not None and declared != str(len(content)):
            raise BackendError(
                f"the answer broke off after {len(content)} of {declared} bytes",
                retryable=True,
                operation=operation,
                **facts,
            )
        return Answer(answer.headers, content)

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


def _pool(url: str, session: Any) -> Any:
    """A pool of connections with the proxies and certificates that botocore would use."""
    proxies = botocore.httpsession.ProxyConfiguration(botocore.utils.get_environ_proxies(url))
    options: dict[str, Any] = {
        "maxsize": _POOL,
        "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
        "blocksize": 128 * KIB,
    }
    if url.startswith("https"):
        bundle = session._session.get_config_variable("ca_bundle")
        options["ca_certs"] = bundle or botocore.httpsession.get_cert_path(True)
    proxy = proxies.proxy_url_for(url)
    if proxy is None:
        return urllib3.PoolManager(**options).connection_from_url(url)
    manager = urllib3.ProxyManager(proxy, proxy_headers=proxies.proxy_headers_for(proxy), **options)
    return manager.connection_from_url(url)


def _read(answer: Any, began: float) -> bytes:
    """The whole body, in bounded time: a read time limit alone lets a body drip for ever."""
    pieces = []
    size = 0
    while piece := answer.read1(_MOST):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST or time.monotonic() - began > ATTEMPT_LIMIT:
            raise urllib3.exceptions.TimeoutError("the answer takes too long")
    return b"".join(pieces)


def _fault(headers: Mapping[str, str], content: bytes) -> tuple[str, str, str]:
    """Code, message and reason of an error's answer (AWS REST-JSON protocol, "Operation errors")."""
    code = headers.get("x-amzn-ErrorType", "").split(":")[0].rpartition("#")[2]
    try:
        described = json.loads(content)
    except ValueError:
        described = None
    if not isinstance(described, dict):
        return code, "", ""
    code = code or str(described.get("__type", described.get("code", ""))).rpartition("#")[2]
    message = described.get("message", described.get("Message", ""))
    return code, str(message or ""), str(described.get("Reason", "") or "")
