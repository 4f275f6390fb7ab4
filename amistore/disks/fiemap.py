"""FIEMAP: the parts of a file that have storage, as the filesystem knows them, not the page cache.

Every byte of the call is declared here (linux/fiemap.h, linux/fs.h; "Fiemap Ioctl" in the kernel's
documentation of filesystems). SEEK_DATA skips an extent that was allocated and not written, until something
has read it into the cache; FIEMAP always reports it.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator
from typing import Final

__all__ = ["mapped", "mapping_is_known"]

_FS_IOC_FIEMAP: Final = 0xC020660B  # _IOWR('f', 11, struct fiemap), of 32 bytes
# struct fiemap: start and length in bytes; flags; extents that were found; room for extents; reserved
_REQUEST: Final = struct.Struct("=QQIIII")
# struct fiemap_extent: start in the file, start on the device and length in bytes; reserved; flags; reserved
_EXTENT: Final = struct.Struct("=QQQ16xI12x")
_FLAG_SYNC: Final = 1  # FIEMAP_FLAG_SYNC: write out first, so that all that was written has its extent
_EXTENT_LAST: Final = 1  # FIEMAP_EXTENT_LAST, of the extent's flags: the file has none behind it
_ROOM: Final = 512  # extents that are asked for at once

# What filesystems (tmpfs, NFS) and files (block devices) without it answer.
_UNKNOWN: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL}


def mapping_is_known(descriptor: int) -> bool:
    """Whether the file's filesystem answers FIEMAP."""
    try:
        _ask(descriptor, 0, 1, room=0)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False
    return True


def mapped(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that have storage, written or not, as pairs of offsets, ascending.

    Args:
        descriptor: the descriptor of a file whose `mapping_is_known`.
        size: the file's size; storage behind it is left out.

    Raises:
        OSError: the filesystem does not answer, or answers nonsense.
    """
    start = 0
    while start < size:
        answer = _ask(descriptor, start, size - start, room=_ROOM)
        end, flags = start, _EXTENT_LAST
        for number in range(_REQUEST.unpack_from(answer)[3]):
            first, _, length, flags = _EXTENT.unpack_from(answer, _REQUEST.size + number * _EXTENT.size)
            begin, end = max(start, first), min(first + length, size)
            if begin >= end:
                raise OSError(errno.EIO, f"FIEMAP tells of {length} bytes at {first} behind {start}")
            yield begin, end
            start = end
        if flags & _EXTENT_LAST:
            return


def _ask(descriptor: int, start: int, length: int, *, room: int) -> bytearray:
    answer = bytearray(_REQUEST.size + room * _EXTENT.size)
    _REQUEST.pack_into(answer, 0, start, length, _FLAG_SYNC, 0, room, 0)
    fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, answer)
    return answer
