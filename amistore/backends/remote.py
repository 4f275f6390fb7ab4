"""Remote bytes by URL: ``http(s):`` through urllib3, ``s3:``, ``gs:`` and ``az:`` through obstore.

Both are extras (``amistore[remote]``), imported when a URL is opened. Shown names hold no user and, besides
a version, no query, since these may hold signatures and passwords.
"""

from __future__ import annotations

import abc
import functools
import logging
import os
import re
import ssl
import urllib.parse
from collections.abc import Callable, Mapping, Sized
from typing import Any, ClassVar

from amistore import forks
from amistore.backends.connections import let_pools_go
from amistore.backends.ranges import FileRanges, RangeReader
from amistore.backends.receiving import Content, receive
from amistore.backends.redaction import URLLIB3_LOGGERS
from amistore.backends.retries import Retrier, RetryPolicy
from amistore.errors import (
    AccessDeniedError,
    BackendError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
)
from amistore.units import KIB

__all__ = ["TAIL", "is_url", "open_url"]

TAIL = 64 * KIB
"""Bytes at the end that are read first: FOOT, and INDX too of up to some 35 GiB of blocks."""

_OBJECT_SCHEMES = ("s3", "gs", "az")
_REDIRECTS = 5
_TIMEOUT = 60.0  # seconds without a byte
_LONGEST = 600.0  # seconds of an answer's body
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


def is_url(text: str) -> bool:
    """Whether a string is a URL, not a path: it has a scheme and two slashes, or is ``file:``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|file:", text) is not None


def open_url(url: str, options: Mapping[str, Any] | None) -> RangeReader:
    """Open a URL of one of the schemes above, or ``file:``.

    Args:
        url: the URL; for ``http(s):`` it may be presigned.
        options: the headers for ``http(s):``; for the others the options of `obstore.store.from_url`.

    Raises:
        InvalidRequestError: the scheme is another one.
        ImportError: the extra is not installed.
        NotFoundError, AccessDeniedError, BackendError: the URL cannot be opened.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InvalidRequestError(f"this is no URL: {error}") from None
    if parts.scheme in ("http", "https"):
        return _HTTPRanges(url, dict(options or {}))
    if parts.scheme in _OBJECT_SCHEMES:
        return _ObstoreRanges(parts, dict(options or {}))
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FileRanges(urllib.parse.unquote(parts.path))
    raise InvalidRequestError(
        f"{_shown(parts)}: unknown scheme; give a URL of file:, http:, https:, s3:, gs: or az:"
    )


def _shown(parts: urllib.parse.SplitResult) -> str:
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _version(parts: urllib.parse.SplitResult) -> str | None:
    """The version that an ``s3:`` URL names, as S3's own URLs do; None where it names none, or more."""
    query = urllib.parse.parse_qsl(parts.query)
    if parts.scheme != "s3" or parts.fragment or [name for name, _ in query] != ["versionId"]:
        return None
    return query[0][1]


def _missing(package: str) -> ImportError:
    return ImportError(f"{package} is not installed: pip install 'amistore[remote]'")


def _hide_queries(record: logging.LogRecord) -> bool:
    """Hide queries in urllib3's log: it logs whole URLs, and queries hold signatures."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            re.sub(r"\?.*|//[^/]*@", "...", each) if isinstance(each, str) else each for each in record.args
        )
    return True


class _RemoteRanges(RangeReader):
    """Ranged reads with retries, also for bytes damaged on their way."""

    requests = 8  # as of S3

    def __init__(self) -> None:
        self._retrier = Retrier(RetryPolicy())

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.read_intact(offset, length, lambda content: True))

    def read_intact(self, offset: int, length: int, intact: Callable[[Content], bool]) -> Content:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        return self._retrier.call_until(intact, "remote", self._range, offset, length)

    @abc.abstractmethod
    def _range(self, offset: int, length: int) -> Content:
        """Read a range in one attempt."""

    def _unwanted(self, offset: int, length: int, first: int, content: Sized) -> BackendError:
        """The error for other bytes than were asked for; too few may have been cut on their way."""
        return BackendError(
            f"{self.name}: asked for {length} bytes at {offset}, got {len(content)} at {first}",
            retryable=first == offset and len(content) < length,
            operation="read",
        )


class _HTTPRanges(_RemoteRanges):
    """A resource of a server that answers range requests.

    The answer to a first request for the last `TAIL` bytes tells its size; a presigned URL allows that (HEAD
    would need another signature). Later requests are pinned to its ETag or, without one, its time of change
    (RFC 9110, 13.1). A forked child uses connections of its own.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        try:
            import urllib3
        except ImportError:
            raise _missing("urllib3") from None
        super().__init__()
        for logger in URLLIB3_LOGGERS:
            logging.getLogger(logger).addFilter(_hide_queries)
        self.name = _shown(urllib.parse.urlsplit(url))
        self._url = url
        if not all(isinstance(each, str) for pair in headers.items() for each in pair):
            raise InvalidRequestError("options= of an HTTP URL are headers: strings to strings")
        self._headers = {"Accept-Encoding": "identity", **headers}
        self._urllib3 = urllib3
        self._pool = self._new_pool()
        self._process = os.getpid()
        forks.register(self, _HTTPRanges._begin_anew)
        self._pin: dict[str, str | None] = {}
        self.size = 0
        self._tail_offset, self._tail = self._retrier.call("remote", self._end)

    def _new_pool(self) -> Any:
        # Redirects are urllib3's, further attempts the retrier's.
        redirects = self._urllib3.Retry(
            total=None,
            connect=0,
            read=0,
            status=0,
            other=0,
            redirect=_REDIRECTS,
            respect_retry_after_header=False,  # it may say days
            # To another host go none of the caller's headers.
            remove_headers_on_redirect=[
                *self._urllib3.Retry.DEFAULT_REMOVE_HEADERS_ON_REDIRECT,
                *self._headers,
            ],
        )
        return self._urllib3.PoolManager(
            maxsize=16, retries=redirects, timeout=self._urllib3.Timeout(connect=10.0, read=_TIMEOUT)
        )

    def _begin_anew(self) -> None:
        """Begin anew in a forked child, without the parent's connections."""
        let_pools_go(self._pool)
        self._pool = self._new_pool()
        self._process = os.getpid()

    def _end(self) -> tuple[int, Content]:
        """The offset and content of the last `TAIL` bytes."""
        first, content = self._get(f"bytes=-{TAIL}", TAIL)
        start, length = max(0, self.size - TAIL), min(self.size, TAIL)
        if (first, len(content)) != (start, length):
            raise self._unwanted(start, length, first, content)
        return first, content

    def _range(self, offset: int, length: int) -> Content:
        tail = self._tail
        if tail and offset >= self._tail_offset:  # the first time: what was read there already
            self._tail = b""
            return tail[offset - self._tail_offset :][:length]
        first, content = self._get(f"bytes={offset}-{offset + length - 1}", length)
        if first != offset or len(content) != length:
            raise self._unwanted(offset, length, first, content)
        return content

    def _get(self, wanted: str, length: int) -> tuple[int, Content]:
        """The offset and content of a range, in one attempt."""
        if self._process != os.getpid():  # another library's hook was called before ours
            self._begin_anew()
        headers = {**self._headers, "Range": wanted, **self._conditions()}
        try:
            answer = self._pool.request("GET", self._url, headers=headers, preload_content=False)
            try:
                first = self._check(answer)
                content = self._body(answer, length)
            except BaseException:
                answer.close()  # what was not read must not be taken for the next answer
                raise
            answer.release_conn()
        except (TypeError, ValueError) as error:  # a header or URL that HTTP cannot say; it may be secret
            if isinstance(error, self._urllib3.exceptions.HTTPError):
                raise InvalidRequestError(f"{self.name} is no URL to ask") from None
            raise InvalidRequestError(
                f"{self.name}: a header, or the address that the server redirects to, cannot be sent"
            ) from None
        except self._urllib3.exceptions.HTTPError as error:
            # MaxRetryError's own message holds the URL, and that the signature; its reason's not.
            reason = getattr(error, "reason", None) or error
            distrusted = isinstance(next(iter(reason.args), None), ssl.SSLCertVerificationError)
            hint = "; SSL_CERT_FILE names the PEM file of another authority to trust" if distrusted else ""
            raise BackendError(
                f"{self.name}: {type(reason).__name__}: {_first_line(reason)}{hint}",
                retryable=not distrusted,  # it does not pass by asking again
                operation="read",
            ) from None
        return first, content

    def _body(self, answer: Any, length: int) -> Content:
        """The answer's bytes, at most one more than were asked for; urllib3 limits each pause only."""
        # A range is of the encoded bytes (RFC 9110, 14.1.2), whatever they are said to be.
        read = functools.partial(answer.read1, decode_content=False)
        return receive(read, length + 1, _LONGEST, self.name)

    def _conditions(self) -> dict[str, str]:
        etag, changed = self._pin.get("ETag"), self._pin.get("Last-Modified")
        if etag and not etag.startswith("W/"):  # RFC 9110, 13.1.1: If-Match compares strongly
            return {"If-Match": etag}
        return {"If-Unmodified-Since": changed} if changed else {}

    def _check(self, answer: Any) -> int:
        """Refuse an answer that is not the opened resource's range; return its first offset."""
        if answer.status in (401, 403):
            raise AccessDeniedError(f"{self.name}: HTTP {answer.status}", operation="read")
        if answer.status in (404, 410):
            raise NotFoundError(f"{self.name}: HTTP {answer.status}", operation="read")
        if answer.status == 412:
            raise self._changed()
        if answer.status == 416 and not self._pin:  # a suffix of nothing
            raise NotFoundError(f"{self.name} is empty", operation="read")
        if answer.status == 200:
            raise BackendError(
                f"{self.name}: the server does not answer range requests; download the archive first",
                operation="read",
            )
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status != 206 or found is None:
            raise BackendError(
                f"{self.name}: HTTP {answer.status} for a range",
                retryable=answer.status >= 500 or answer.status == 429,
                operation="read",
            )
        pin = {name: answer.headers.get(name) for name in ("ETag", "Last-Modified")}
        if not self._pin:
            self._pin = pin
            self.size = int(found[3])
        elif pin != self._pin or int(found[3]) != self.size:
            raise self._changed()
        return int(found[1])

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(f"{self.name} was replaced while it was open", operation="read")

    def close(self) -> None:
        self._pool.clear()


class _ObstoreRanges(_RemoteRanges):
    """An object of S3, Google Cloud Storage or Azure, pinned to its ETag and version.

    obstore runs in threads of the whole process, which its first request starts. A forked child has none of
    them, so each request would wait there for ever (tokio 4301).
    """

    _working_in: ClassVar[int | None] = None
    """The process whose threads obstore has."""

    def __init__(self, parts: urllib.parse.SplitResult, options: dict[str, Any]) -> None:
        try:
            import obstore
            from obstore import exceptions, store
        except ImportError:
            raise _missing("obstore") from None
        super().__init__()
        self.name = _shown(parts)
        self._obstore = obstore
        self._exceptions: Any = exceptions
        # A bucket or, of Azure, a container: its account is one of the options.
        root, key = parts.netloc, urllib.parse.unquote(parts.path.lstrip("/"))
        version = _version(parts)
        if version is None and (parts.query or parts.fragment):
            raise InvalidRequestError(
                f"{self.name}: write ? as %3F and # as %23 in a key; a version of S3's is ?versionId=..."
            )
        if not root or not key:
            raise InvalidRequestError(
                f"{self.name} names no object; the form is {parts.scheme}://bucket/key (az://container/key)"
            )
        self._key = key
        try:  # obstore's own further attempts would be nested in ours
            options = {"retry_config": {"max_retries": 0}, **options}
            self._store = store.from_url(f"{parts.scheme}://{root}", **options)
        except Exception as error:
            raise self._typed(error) from None
        if version is not None:
            self.name += f"?versionId={version}"
        found = self._retrier.call("remote", self._head, version)
        if version is not None and (found["version"] or "null") != version:
            raise BackendError(
                f"{self.name}: the server gave another version: does the bucket keep versions?",
                operation="read",
            )
        self.size = found["size"]
        self._pin: Any = {}
        if found["e_tag"]:
            self._pin["if_match"] = found["e_tag"]
        if found["version"]:
            self._pin["version"] = found["version"]

    def _work_here(self) -> None:
        worker = _ObstoreRanges._working_in
        if worker is None:
            _ObstoreRanges._working_in = os.getpid()
        elif worker != os.getpid():
            raise InvalidRequestError(
                f"{self.name}: obstore works with threads, which process {worker} had begun when this one "
                "was forked from it without them: open s3:, gs: and az: URLs after the fork only, or start "
                'processes by multiprocessing.get_context("spawn") or "forkserver"'
            )

    def _head(self, version: str | None) -> Any:
        self._work_here()
        try:
            if version is not None:
                options: Any = {"head": True, "version": version}
                return self._obstore.get(self._store, self._key, options=options).meta
            return self._obstore.head(self._store, self._key)
        except Exception as error:
            raise self._typed(error) from None

    def _range(self, offset: int, length: int) -> Content:
        self._work_here()
        content: Content = b""
        try:
            options: Any = {"range": (offset, offset + length), **self._pin}
            answer = self._obstore.get(self._store, self._key, options=options)
            first, end = answer.range
            if (first, end) == (offset, offset + length):
                # Of a body that does not end, no more than was asked for.
                pieces = filter(None, map(bytes, answer.stream()))
                content = receive(lambda _: next(pieces, b""), length + 1, _LONGEST, self.name)
        except (BackendError, MemoryError):
            raise
        except Exception as error:
            raise self._typed(error) from None
        if (first, len(content)) != (offset, length):
            raise self._unwanted(offset, length, first, content)
        return content

    def _typed(self, error: Exception) -> Exception:
        """Our error for obstore's; its own message holds the request, which may hold secrets."""
        if isinstance(error, (FileNotFoundError, self._exceptions.NotFoundError)):
            return NotFoundError(f"{self.name}: no such object", operation="read")
        if isinstance(error, (self._exceptions.PermissionDeniedError, self._exceptions.UnauthenticatedError)):
            return AccessDeniedError(f"{self.name}: access denied", operation="read")
        if isinstance(error, self._exceptions.PreconditionError):
            return SourceChangedError(f"{self.name} was replaced while it was open", operation="read")
        if isinstance(error, (TypeError, ValueError, self._exceptions.UnknownConfigurationKeyError)):
            return InvalidRequestError(f"{self.name}: {_first_line(error)}")
        insecure = "builder error" in str(error)
        hint = (
            "; for an endpoint with plain http give client_options={'allow_http': True}" if insecure else ""
        )
        return BackendError(
            f"{self.name}: {type(error).__name__}: {_first_line(error)}{hint}",
            retryable=not insecure,
            operation="read",
        )


def _first_line(error: Exception) -> str:
    """The first line of a message, without the queries of URLs in it."""
    return re.sub(r"\?[^\s\"')]*", "", str(error).strip().split("\n")[0])
