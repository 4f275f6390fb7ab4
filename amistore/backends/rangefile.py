"""`RangeFile`: something that is read by ranges, as a seekable binary file."""

from __future__ import annotations

import abc
import io

from typing_extensions import Buffer

__all__ = ["RangeFile"]


class RangeFile(io.RawIOBase):
    """A read-only file over ranged reads. One thread at a time.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    @abc.abstractmethod
    def _fill(self, position: int, view: memoryview) -> int:
        """Read at `position` into `view`, which ends within the file; return how much of it, not 0."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in bases or bases[whence] + offset < 0:
            raise ValueError(f"cannot seek to {offset}, whence {whence}")
        self._position = bases[whence] + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        length = self._fill(self._position, view) if view else 0
        self._position += length
        return length
