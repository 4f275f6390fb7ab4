"""`FrameCache`: decoded frames of an archive, shared by all its open volumes and their threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from amistore import forks
from amistore.container.segments import DecodedFrame, StoredFrame
from amistore.errors import InvalidRequestError
from amistore.units import KIB, MIB

__all__ = ["CACHE_SIZE", "FrameCache"]

CACHE_SIZE = 64 * MIB
"""The bytes of blocks that an archive keeps."""

_DECODED = 8  # the part of the bytes that decoded frames have, where stored ones need the rest

_OVERHEAD = 2 * KIB  # of a kept frame: its place, and a descriptor that it may be the only one to keep

_Place = tuple[int, int]  # sequence number of a segment, number of a frame in it


class FrameCache:
    """Frames, each fetched once for all that want it at a time; the least recently used are dropped first.

    Where frames come from far away, their stored bytes are kept longer than the decoded ones, of which there
    are two or three times as many: to decode a frame again takes a tenth of the time in which it comes again.

    Args:
        size: the bytes to keep.
    """

    def __init__(self, size: int) -> None:
        if type(size) is not int or size < 0:
            raise InvalidRequestError(f"cache_size must be a whole number from 0 on, not {size!r}")
        self._size = size
        self.clear()
        forks.register(self, FrameCache.clear)  # where a frame is fetched, a child would wait for ever

    def clear(self) -> None:
        """Drop all frames."""
        self._lock = threading.Lock()
        self._decoded = self._stored = 0  # bytes
        self._frames: OrderedDict[_Place, Future[DecodedFrame]] = OrderedDict()
        self._kept: OrderedDict[_Place, StoredFrame] = OrderedDict()

    def get(self, place: _Place, fetch: Callable[[], DecodedFrame]) -> DecodedFrame:
        """The frame of a place; `fetch` gets it where it is not here."""
        mine: Future[DecodedFrame] = Future()
        with self._lock:
            frame = self._frames.setdefault(place, mine)
            self._frames.move_to_end(place)
            kept = self._kept.get(place)
            if kept is not None:
                self._kept.move_to_end(place)
        if frame is mine:
            self._make(place, mine, fetch if kept is None else kept.decode)
        try:
            return frame.result()
        finally:
            del frame, mine  # an error's traceback holds this frame

    def _make(self, place: _Place, mine: Future[DecodedFrame], fetch: Callable[[], DecodedFrame]) -> None:
        try:
            fetched = fetch()
        except BaseException as error:
            with self._lock:
                self._frames.pop(place, None)
            mine.set_exception(error)
            del mine
            return
        mine.set_result(fetched)
        with self._lock:
            self._count(place, fetched)

    def _count(self, place: _Place, fetched: DecodedFrame) -> None:
        self._decoded += fetched.size
        if fetched.stored is not None and place not in self._kept:
            self._kept[place] = fetched.stored
            self._stored += _weight(fetched.stored)
        while self._decoded + self._stored > self._size:
            if self._kept and self._decoded <= self._size // _DECODED:
                self._stored -= _weight(self._kept.popitem(last=False)[1])
            else:
                oldest = next(each for each, frame in self._frames.items() if frame.done())
                self._decoded -= self._frames.pop(oldest).result().size


def _weight(stored: StoredFrame) -> int:
    return len(stored.content) + _OVERHEAD
