"""One HTTP exchange on a stream. Heads are read by `http.client`, as is every answer that is not plain.

A plain answer says how long it is. What does not (pieces, an end by closing, interim answers, a head too
long) is read on in a helper's thread, by `ebs_incoming.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
from typing import Any

import attrs
from typing_extensions import Buffer

from amistore.backends.aws.ebs_connections import TimeLimits
from amistore.backends.aws.ebs_incoming import MOST, Incoming, Received, read_answer
from amistore.backends.aws.ebs_loop import Loop
from amistore.backends.aws.ebs_streams import Stream
from amistore.units import KIB

__all__ = ["exchange"]

_HEAD_MOST = 64 * KIB
_HEAD_END = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[01] 1")


async def exchange(
    loop: Loop, stream: Stream, method: str, head: bytes, body: Buffer | None, limits: TimeLimits, end: float
) -> Received:
    """Send a request and receive its answer.

    Args:
        loop: the loop that runs this.
        stream: the connection; it may be kept where the answer says that it is reusable.
        method: the request's method.
        head: the request's head.
        body: the request's body.
        limits: the time limits.
        end: when the answer must be there, by the monotonic clock.
    """
    sent = True
    try:
        await stream.send(head, end)
        if body is not None:
            await stream.send(body, end)
    except (BrokenPipeError, ConnectionResetError):
        sent = False  # who hangs up on a body may have said why
    begun = bytearray()
    found = None
    piece = bytearray(16 * KIB)
    with memoryview(piece) as view:
        while found is None and len(begun) < _HEAD_MOST:
            count = await stream.receive(view, limits.read, end)
            if not count:
                break
            begun += view[:count]
            found = _HEAD_END.search(begun)
    size = found.end() if found else len(begun)
    if (found is None and size) or _INTERIM.match(begun):
        return await _on_in_thread(loop, stream, method, bytes(begun), limits, end)
    told: Any = _Head(begun[:size])  # of a socket, http.client uses only makefile
    with contextlib.closing(http.client.HTTPResponse(told, method=method)) as answer:
        answer.begin()
        length = answer.length
    if length is None or length > MOST:
        return await _on_in_thread(loop, stream, method, bytes(begun), limits, end)
    content, more = await _body(stream, begun[size:], length, limits, end)
    whole = len(content) == length
    return Received(answer, content, whole, sent and whole and not more and not answer.will_close)


async def _body(
    stream: Stream, begun: bytearray, length: int, limits: TimeLimits, end: float
) -> tuple[bytearray, bool]:
    """The body, and whether more came than belongs to it."""
    content = bytearray(length)
    there = min(len(begun), length)
    content[:there] = begun[:there]
    with memoryview(content) as view, view[there:] as rest:
        there += await stream.receive(rest, limits.read, end, whole=True)
    del content[there:]
    return content, len(begun) > length


async def _on_in_thread(
    loop: Loop, stream: Stream, method: str, begun: bytes, limits: TimeLimits, end: float
) -> Received:
    stream.rest()
    incoming = Incoming(stream.sock, limits.read, end, begun)
    received = await loop.in_thread(read_answer, incoming, method)
    return attrs.evolve(received, reusable=False)


class _Head:
    """Stands for the socket in `http.client.HTTPResponse`, where the head is there already."""

    def __init__(self, head: bytes | bytearray) -> None:
        self._head = head

    def makefile(self, mode: str) -> io.BufferedIOBase:
        return io.BytesIO(self._head)
