"""Answers to botocore's clients, limited and checked before botocore parses them.

botocore reads an answer of any length and at any speed, follows S3's redirects, and takes an error of EC2's
with a status of 200 for success. (`ebs_wire.py` does its own reading.)
"""

from __future__ import annotations

import datetime
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import attrs
import urllib3

from amistore.backends.aws.error_codes import STORE_APART
from amistore.errors import BackendError, InvalidRequestError
from amistore.units import KIB, MIB

__all__ = ["Answers", "refuse_redirect"]

_PIECE = 64 * KIB
_LATE = 300.0  # seconds from signing to an answer; EBS allows so many, S3 and EC2 three times as many


@attrs.frozen(kw_only=True)
class Answers:
    """Sends a client's requests, and reads the answers.

    Attributes:
        most: the most bytes of an answer that is no object's content. A thousand images with all their
            mappings and tags have some ten million.
        limit: the most seconds for the whole answer; S3 keeps a connection open by spaces for minutes while
            it completes an upload.
    """

    most: int = 32 * MIB
    limit: float = 600.0

    def watch(self, client: Any) -> None:
        """Send a boto3 client's requests from here."""
        session = client._endpoint.http_session
        service, region_name = client.meta.service_model, client.meta.region_name

        def send(request: Any, event_name: str, **_: Any) -> Any:
            operation = service.operation_model(event_name.rpartition(".")[2])
            return self._send(session, request, operation, region_name)

        client.meta.events.register("before-send", send)

    def _send(self, session: Any, request: Any, operation: Any, region_name: str) -> Any:
        request.stream_output = True  # or botocore would read all of it
        answer = session.send(request)
        try:
            _refuse_region(answer.status_code, answer.headers, region_name)
            refuse_redirect(answer.status_code, answer.headers)
            _refuse_late(answer.status_code, request.headers.get("X-Amz-Date"))
            if operation.has_streaming_output and answer.status_code < 300:
                answer.raw = _Pieces(answer.raw)
                return answer
            answer._content = self._read(answer.raw)
        except BaseException:
            answer.raw.close()
            raise
        if answer.status_code < 300:
            _check_root(answer, operation)
        return answer

    def _read(self, raw: Any) -> bytes:
        end = time.monotonic() + self.limit
        content = bytearray()
        pieces = _Pieces(raw)
        while piece := pieces.read(_PIECE):
            content += piece
            if len(content) > self.most:
                raise BackendError(f"the answer has more than {self.most} bytes", retryable=True)
            if time.monotonic() > end:
                raise BackendError("the answer takes too long", retryable=True)
        return bytes(content)


@attrs.frozen
class _Pieces:
    """A body that returns what has come, instead of waiting for all that was asked for."""

    raw: Any

    def read(self, amount: int) -> bytes:
        try:
            return self.raw.read1(amount) or b""
        except (OSError, urllib3.exceptions.HTTPError) as error:
            # Its text may hold the URL.
            message = f"the connection failed: {type(error).__name__}"
            raise BackendError(message, retryable=True) from None

    def close(self) -> None:
        self.raw.close()


def refuse_redirect(status: int, headers: Mapping[str, str]) -> None:
    """Refuse redirects: a disk's data goes only where the caller said.

    Raises:
        InvalidRequestError: the answer is a redirect; the message says where to.
    """
    if 300 <= status < 400 and status != 304:
        host = urllib.parse.urlsplit(headers.get("location", "")).hostname or "another place"
        raise InvalidRequestError(
            f"the service answers with a redirect to {host[:80]!r} (HTTP {status}), which is not followed: "
            "give the address that serves in endpoint_urls=, or the bucket's Region as region_name="
        )


def _refuse_region(status: int, headers: Mapping[str, str], region_name: str) -> None:
    """Refuse a bucket of another Region, which S3's answer to HEAD tells by status 400 and a header only."""
    found = headers.get("x-amz-bucket-region", region_name)
    if found != region_name and 300 <= status <= 400:
        raise InvalidRequestError(
            f"the bucket lies in {found[:40]!r}, not in {region_name}: give region_name={found[:40]!r}; "
            f"{STORE_APART}",
            code="InaccessibleStorageLocation",
        )


def _refuse_late(status: int, signed: str | bytes | None) -> None:
    """Recognize the refusal of a request that was signed too long before, as before a sleep.

    S3's answer to HEAD has no text, and EC2's AuthFailure gives no reason.
    """
    if status not in (400, 401, 403) or signed is None:
        return
    text = signed.decode() if isinstance(signed, bytes) else signed
    at = datetime.datetime.strptime(text, "%Y%m%dT%H%M%S%z")
    if (datetime.datetime.now(datetime.timezone.utc) - at).total_seconds() > _LATE:
        told = f"refused (HTTP {status}), as the request came too late, after a sleep or on a slow line"
        raise BackendError(told, retryable=True)


def _check_root(answer: Any, operation: Any) -> None:
    """Refuse an answer of another operation, which botocore would take for an empty one.

    It matters where an empty answer of S3's has a meaning: no parts, no uploads. Where EC2's model has no
    members, nothing else shows that a call was carried out (EC2 API reference, DeleteSnapshot, Response
    Elements: ``return``).
    """
    content, service = answer.content, operation.service_model.service_name
    if service == "ec2":
        root = f"<{operation.name}Response"
    elif service == "s3" and operation.name in ("ListParts", "ListMultipartUploads"):
        root = operation.name  # S3 writes ListPartsResult, moto ListPartsOutput
    else:
        return
    told = None
    if root.encode() not in content[:1024]:
        told = (
            f"the answer (HTTP {answer.status_code}) is not one of {operation.name}: another program's page?"
        )
    elif service == "ec2" and operation.output_shape is None and b"<return>true</return>" not in content:
        told = f"EC2's answer does not say that it carried {operation.name} out"
    if told is not None and b"<Code>" in content:
        answer.status_code = 500  # an error inside a 200, for botocore to read
    elif told is not None:
        raise BackendError(told, retryable=True)
