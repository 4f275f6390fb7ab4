"""Receiving a range: its pieces go into memory of its own as they come, in bounded time."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from amistore.errors import BackendError
from amistore.units import KIB, MIB

__all__ = ["Content", "receive"]

Content: TypeAlias = "bytes | memoryview"
"""Bytes of a range."""

_PIECE: Final = 64 * KIB
"""Bytes to ask for at once: a TLS record has 16 KiB at most, and memory for more would be given back."""

_PAGES: Final = 1 * MIB
"""Bytes from which on a range has pages of its own.

They go back to the system once nobody needs them. The heap has a part for each thread that reads, and each
part keeps the most that it ever had (docs/decisions/0026).
"""


def receive(read: Callable[[int], bytes], most: int, seconds: float, name: str = "") -> memoryview:
    """The first `most` bytes of what comes in pieces; fewer where it ends before.

    Args:
        read: the function that gives the next piece, of so many bytes or any number; empty at the end.
        most: the most bytes to take.
        seconds: the longest time for all of them: a limit between two would let them drip for ever.
        name: the name for the error.

    Raises:
        BackendError: it takes longer; `retryable`.
        MemoryError: there is no memory for `most` bytes.
    """
    end = time.monotonic() + seconds
    content = _memory(most)
    size = 0
    while size < most and (piece := read(min(_PIECE, most - size))[: most - size]):
        content[size : size + len(piece)] = piece
        size += len(piece)
        if size < most and time.monotonic() > end:
            told = f"{name}: " if name else ""
            raise BackendError(
                f"{told}{size} of {most} bytes took more than {seconds:.0f} seconds",
                retryable=True,
                operation="read" if name else None,
            )
    return content[:size].toreadonly()


def _memory(size: int) -> memoryview:
    if size < _PAGES:
        return memoryview(bytearray(size))
    try:  # private: a forked child must not see what comes after the fork
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes: {error.strerror}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):  # of Linux: pages of 2 MiB are ready in a tenth of the time
        with contextlib.suppress(OSError):  # of a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)
