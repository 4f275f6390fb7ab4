"""`RangeReader`: bytes that are read by ranges, from a local or any seekable file.

Archives are read through a `RangeReader` only. `objects.py` has the one for objects, `remote.py` those for
URLs.
"""

from __future__ import annotations

import abc
import io
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from typing_extensions import Buffer

from amistore import forks
from amistore.backends import files
from amistore.backends.receiving import Content
from amistore.errors import BackendError, InvalidRequestError, SourceChangedError
from amistore.units import MIB

__all__ = ["FileRanges", "RangeFile", "RangeReader", "RangeStream", "StreamRanges"]

_READ_ALL = 8 * MIB  # bytes a request


class RangeReader(abc.ABC):
    """Bytes of a known size that do not change while they are read, by several threads at once.

    Attributes:
        name: the name for messages and reprs, without secrets.
        size: the size in bytes.
        metadata: the facts beside the bytes: an object's user metadata.
        requests: how many ranges to read at once, where each takes its time; 0 for one in each worker.
    """

    requests: int = 0
    name: str
    size: int
    metadata: Mapping[str, str] = MappingProxyType({})

    @property
    def identity(self) -> dict[str, str]:
        """The facts that a resume log notes, so that it is used with these bytes only."""
        return {"file": self.name}

    @abc.abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`, fewer only where the bytes end.

        Raises:
            SourceChangedError: the bytes are not those that were opened.
            BackendError: the bytes cannot be read.
        """

    def read_intact(self, offset: int, length: int, intact: Callable[[Content], bool]) -> Content:
        """Read as `read` does; where bytes may be damaged on their way, read again what is not intact.

        The result may still be damaged, namely where it is stored; the caller refuses it.

        Args:
            offset: the first byte's offset.
            length: the number of bytes.
            intact: a function that says whether bytes are the stored ones.

        Returns:
            The bytes, or a view of them.
        """
        return self.read(offset, length)

    def close(self) -> None:
        """Close what was opened for the reader."""
        return


class FileRanges(RangeReader):
    """A local file, held open and pinned to its size and time of change.

    A file that replaces it later is not read. The time of change counts for bytes that nothing proves: it
    moves also where a mounted cloud notes a finished upload, and where a file is touched.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        target = Path(path)
        self.name = str(target)
        with files.operation("open"):
            # Without O_NONBLOCK the opening of a FIFO would wait for one who writes to it.
            descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
            try:
                mode = os.fstat(descriptor).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                    raise InvalidRequestError(
                        f"{self.name} is neither a file nor a block device; amistore.unpack reads a pipe"
                    )
                self.size = os.lseek(descriptor, 0, os.SEEK_END)  # of a block device too
                self._pin = _change(descriptor)
                self._file = os.fdopen(descriptor, "rb", buffering=0)
            except BaseException:
                os.close(descriptor)
                raise

    def __reduce__(self) -> tuple[Any, ...]:
        return FileRanges, (str(Path(self.name).absolute()),)  # another process opens the file by itself

    def read(self, offset: int, length: int) -> bytes:
        return self.read_intact(offset, length, lambda content: False)

    def read_intact(self, offset: int, length: int, intact: Callable[[Content], bool]) -> bytes:
        with files.operation("read"):
            try:
                descriptor = self._file.fileno()
            except ValueError:
                raise BackendError(f"{self.name} is closed") from None
            content = files.read_at(descriptor, length, offset)
            if _change(descriptor) != self._pin and not intact(content):
                raise SourceChangedError(f"{self.name} changed while it was open")
            return content

    def close(self) -> None:
        self._file.close()


def _change(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


class StreamRanges(RangeReader):
    """A seekable binary file, which its owner closes.

    A forked child shares the file's position with its parent, so a child reads only files that need none: a
    file of the operating system's, and one in memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._process = os.getpid()
        self._renew_lock()
        forks.register(self, StreamRanges._renew_lock)
        self.name = str(getattr(file, "name", type(file).__name__))
        try:
            self.size = file.seek(0, io.SEEK_END)
            if type(self.size) is not int or self.size < 0:
                raise TypeError(f"seek gave {self.size!r}")
        except Exception as error:
            raise BackendError(
                f"{self.name} cannot be opened for random access: {error}; amistore.unpack reads a pipe",
                operation="open",
            ) from error

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        try:
            if _is_plain(self._file):
                return files.read_at(self._file.fileno(), length, offset)
            if type(self._file) is not io.BytesIO:
                forks.check_owner(self._process, f"the opened file {self.name}")
            with self._lock:
                return self._read(offset, length)
        except (BackendError, InvalidRequestError, MemoryError):
            raise
        except Exception as error:
            message = f"{self.name}: {type(error).__name__}: {error}"
            raise BackendError(message, operation="read") from error

    def _read(self, offset: int, length: int) -> bytes:
        pieces = []
        self._file.seek(offset)
        while length:
            piece = self._file.read(length)
            if not isinstance(piece, bytes) or len(piece) > length:
                raise InvalidRequestError(
                    f"reading {self.name} gave {type(piece).__name__}, not up to {length} bytes: "
                    "open it in binary mode"
                )
            if not piece:
                break
            pieces.append(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _is_plain(file: BinaryIO) -> bool:
    """Whether the file's bytes are those of its descriptor, as for ``open(path, "rb")``."""
    raw = file.raw if type(file) is io.BufferedReader else file
    return type(raw) is io.FileIO


class RangeFile(io.RawIOBase):
    """A read-only file over ranged reads. One thread at a time.

    Args:
        size: the file's size in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    @abc.abstractmethod
    def _fill(self, position: int, view: memoryview) -> int:
        """Read at `position` into `view`, which ends within the file; return the number of bytes, not 0."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, content: object, /) -> int:
        raise io.UnsupportedOperation("an archive's bytes are read-only")

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        if whence not in bases or bases[whence] + offset < 0:
            raise ValueError(f"cannot seek to {offset}, whence {whence}")
        self._position = bases[whence] + offset
        return self._position

    def readall(self) -> bytes:
        """Read all that is left; `io`'s own method asks for 8 KiB at a time."""
        return b"".join(iter(lambda: self.read(_READ_ALL), b""))

    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer`, partly only at the end."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        done = 0
        while done < len(view):
            done += self._fill(self._position + done, view[done:])
        self._position += done
        return done


class RangeStream(RangeFile):
    """A `RangeReader`'s bytes as a stream."""

    def __init__(self, reader: RangeReader) -> None:
        self._reader = reader
        super().__init__(reader.size)

    def _fill(self, position: int, view: memoryview) -> int:
        content = self._reader.read(position, len(view))
        if len(content) != len(view):
            raise BackendError(
                f"{self._reader.name}: asked for {len(view)} bytes at {position} and got {len(content)}",
                retryable=True,
                operation="read",
            )
        view[:] = content
        return len(view)
