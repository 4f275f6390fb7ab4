"""A raw disk: the parts that exist, their content, and the check that nobody writes meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from amistore.backends import files
from amistore.backends.extents import blocks_of, extents
from amistore.disks.fiemap import mapped, mapping_is_known
from amistore.errors import InvalidRequestError, SourceChangedError
from amistore.units import BLOCK_SIZE

__all__ = ["SourceDisk", "open_disk"]

# A change within this time of the one before may have the same time. Kernels stamp with a clock that
# ticks at 100 Hz at least, and a busy host steals some ticks; exFAT keeps 10 ms. FAT keeps two seconds
# and ext3 one: their times have no fraction.
_GRAIN = 50_000_000  # nanoseconds
_COARSE_GRAIN = 2_000_000_000


class SourceDisk:
    """A raw disk that is refused once it changes.

    Each read is followed by a look at the file's size and times of change, or a device's size and its node's
    time of change. This finds every write that the kernel stamps, also through mmap: on a filesystem with a
    disk, earlier stores are written out at the beginning, and the next store into such a page is stamped.
    tmpfs stamps no store through mmap, and a network filesystem may report another machine's writes late.

    Args:
        path: the disk's path, for messages.
        descriptor: the disk's descriptor, which its owner closes.

    Attributes:
        size: the size in bytes, at least 1.

    Raises:
        InvalidRequestError: the disk is empty, or neither a file nor a block device.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise InvalidRequestError(f"{path} is neither a file nor a block device")
        self._state = self._look()
        self.size = self._state[0]
        if not self.size:
            raise InvalidRequestError(f"{path} is empty")
        _wait_for_another_time(self._state[-1])
        # In this order: what is stored through mmap from now on is stamped, with another time.
        with _unless_unsupported():
            os.fsync(descriptor)

    @property
    def state(self) -> tuple[int, ...]:
        """What tells that it is the same, and unchanged: for who opens it again."""
        return self._state

    def blocks(self) -> Iterator[int]:
        """The indexes of the blocks that are no holes, ascending.

        Without FIEMAP, parts that were allocated and never written count as holes. Where the filesystem knows
        no holes, there are none.
        """
        known = mapping_is_known(self._descriptor)
        return blocks_of((mapped if known else extents)(self._descriptor, self.size))

    def read(self, index: int) -> bytes:
        """Read a block, filled up with zeros behind the disk's end.

        Raises:
            SourceChangedError: the disk is not the one that was opened.
        """
        start = index * BLOCK_SIZE
        return self.read_at(start, min(BLOCK_SIZE, self.size - start)).ljust(BLOCK_SIZE, b"\0")

    def read_at(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from an offset; errors are those of `read`."""
        content = files.read_at(self._descriptor, length, offset)
        self.check()
        if len(content) < length:
            raise SourceChangedError(
                f"{self._path} ends at byte {offset + len(content)}, of {self.size} when it was opened"
            )
        return content

    def ends(self, length: int) -> tuple[bytes, bytes]:
        """The first and the last `length` bytes, or all bytes of a smaller disk."""
        length = min(length, self.size)
        return self.read_at(0, length), self.read_at(self.size - length, length)

    def check(self) -> None:
        """Refuse a disk that changed since it was opened; errors are those of `read`."""
        if self._look() != self._state:
            raise SourceChangedError(
                f"{self._path} changed while it was read: stop what writes to it, or read a snapshot of it"
            )

    def _look(self) -> tuple[int, ...]:
        """The size and times of change; only the kernel sets the last one."""
        status = os.fstat(self._descriptor)
        if stat.S_ISREG(status.st_mode):
            return status.st_size, status.st_mtime_ns, status.st_ctime_ns
        # Udev gives a node its mode and owner again, which sets its ctime.
        return os.lseek(self._descriptor, 0, os.SEEK_END), status.st_mtime_ns


@contextlib.contextmanager
def open_disk(path: Path) -> Iterator[SourceDisk]:
    """Open a raw disk to read; a block device is opened exclusively, as mount does.

    Raises:
        InvalidRequestError: the file is no disk, or the device is in use.
        OSError: the disk cannot be opened.
    """
    # Without O_NONBLOCK the opening of a FIFO would wait for one who writes to it.
    alone = os.O_EXCL if path.is_block_device() else 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | alone)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise InvalidRequestError(
            f"{path} is mounted or otherwise in use, so it may change while it is read: unmount it, or "
            "import a snapshot of it, such as one of LVM"
        ) from None
    try:
        yield SourceDisk(path, descriptor)
    finally:
        os.close(descriptor)


def _wait_for_another_time(stamp: int) -> None:
    """Wait until a change would get another time than this one, in nanoseconds."""
    grain = _GRAIN if stamp % 1_000_000_000 else _COARSE_GRAIN
    left = stamp + grain - time.time_ns()
    if 0 < left <= grain:  # more: it is of the future, and no change has it soon
        time.sleep(left / 1_000_000_000)


@contextlib.contextmanager
def _unless_unsupported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):
            raise
