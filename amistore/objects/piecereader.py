"""`PieceReader`: pieces of bytes as a file."""

from __future__ import annotations

import io
from collections.abc import Iterator

from typing_extensions import Buffer

__all__ = ["PieceReader"]


class PieceReader(io.RawIOBase):
    """The pieces of an iterator, which stays its owner's to close, as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
