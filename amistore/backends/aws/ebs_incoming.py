"""Answers to the lean path's requests, read by `http.client`, with limits of time and size."""

from __future__ import annotations

import contextlib
import http.client
import io
import time
from typing import Any, Final

import attrs
from typing_extensions import Buffer

from amistore.units import MIB

__all__ = ["MOST", "Incoming", "Received", "read_answer"]

MOST: Final = 1 * MIB
"""Bytes of an answer; a block has half of it."""


class Incoming(io.RawIOBase):
    """A socket's input until a deadline. Stands for the socket in `http.client.HTTPResponse`.

    Args:
        sock: the socket.
        limit: the most seconds of silence.
        end: the deadline, by the monotonic clock.
        begun: what was read from the socket before.
    """

    def __init__(self, sock: Any, limit: float, end: float, begun: bytes = b"") -> None:
        self._sock = sock
        self._limit = limit
        self._end = end
        self._begun = begun

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        if self._begun:
            with memoryview(buffer) as view:
                count = min(len(view), len(self._begun))
                view[:count] = self._begun[:count]
            self._begun = self._begun[count:]
            return count
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self._sock.settimeout(min(self._limit, left))
        received: int = self._sock.recv_into(buffer)
        return received


@attrs.frozen
class Received:
    """An answer as it came.

    Attributes:
        answer: status and headers.
        content: the body, or the part of it that came.
        whole: whether all of it came.
        reusable: whether another request may follow on the connection.
    """

    answer: http.client.HTTPResponse
    content: bytes | bytearray
    whole: bool
    reusable: bool


def read_answer(incoming: Any, method: str) -> Received:
    """Read an answer of any kind.

    Args:
        incoming: what `http.client` may read from, as from a socket.
        method: the request's method.
    """
    # Closed here: Python 3.13 tells of one that is not, whose file was collected before it.
    with contextlib.closing(http.client.HTTPResponse(incoming, method=method)) as answer:
        answer.begin()
        content = answer.read(MOST)
        whole = answer.isclosed()
        return Received(answer, content, whole, whole and not answer.will_close)
