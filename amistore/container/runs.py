"""`Runs`: which blocks of a volume are listed, as runs of consecutive block indexes.

A fully allocated 64 TiB volume is one run. Three arrays of 4-byte integers, so the most
that a volume may have (2**22 runs) takes 48 MiB. Imports `errors` and `layout` only.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from amistore.container import layout
from amistore.errors import CorruptArchiveError, InvalidRequestError

__all__ = ["Runs"]

_STEP = 2**16  # runs that are hashed at once


class Runs:
    """Ascending runs of block indexes that do not touch; treat as immutable.

    `len()` is the number of runs; `blocks` the number of blocks in them.
    """

    __slots__ = ("_lengths", "_ordinals", "_starts", "blocks")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        """Take (first block index, count) pairs in ascending order; adjacent ones are joined.

        Raises:
            InvalidRequestError: not ascending, empty, negative, or more than 2**22 runs.
        """
        self._starts = array("I")
        self._lengths = array("I")
        self._ordinals = array("I")
        self.blocks = 0
        for start, count in runs:
            self.append(start, count)

    @classmethod
    def of_blocks(cls, indexes: Iterable[int]) -> Runs:
        """The runs of ascending block indexes."""
        runs = cls()
        first = end = -1
        for index in indexes:
            if index < 0:
                raise InvalidRequestError(f"block indexes start at 0, not {index}")
            if index == end:
                end += 1
                continue
            if first >= 0:
                runs.append(first, end - first)
            if index < end:
                raise InvalidRequestError(f"block indexes must ascend: {index} after {end - 1}")
            first, end = index, index + 1
        if first >= 0:
            runs.append(first, end - first)
        return runs

    def append(self, start: int, count: int) -> None:
        """Add a run, while they are put together; see `__init__`."""
        end = self.end
        if start < end or count < 1 or start + count >= 2**32:
            raise InvalidRequestError(f"run of {count} blocks at {start} does not follow block {end - 1}")
        if self._starts and start == end:
            self._lengths[-1] += count
        else:
            if len(self._starts) >= layout.MAX_RUNS:
                raise InvalidRequestError(f"more than {layout.MAX_RUNS} runs of blocks in one volume")
            self._starts.append(start)
            self._lengths.append(count)
            self._ordinals.append(self.blocks)
        self.blocks += count

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(first block index, count) of each run."""
        return zip(self._starts, self._lengths, strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Runs):
            return NotImplemented
        return self._starts == other._starts and self._lengths == other._lengths

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{start}+{count}" for start, count in zip(self._starts[:4], self._lengths[:4], strict=True)
        )
        return f"Runs({shown}{', …' if len(self) > 4 else ''}; {self.blocks} blocks)"

    @property
    def first(self) -> int:
        """The first block index; 0 where there is none."""
        return self._starts[0] if self._starts else 0

    @property
    def end(self) -> int:
        """One past the last block index; 0 where there is none."""
        return self._starts[-1] + self._lengths[-1] if self._starts else 0

    def indexes(self) -> Iterator[int]:
        """Each block index, ascending."""
        for start, count in self:
            yield from range(start, start + count)

    def slice(self, ordinal: int, count: int) -> Runs:
        """The runs of `count` listed blocks from the `ordinal`-th listed one on."""
        part = Runs()
        if not 0 <= ordinal < self.blocks:
            return part
        at = bisect_right(self._ordinals, ordinal) - 1
        while count and at < len(self._starts):
            skip = ordinal - self._ordinals[at]
            take = min(count, self._lengths[at] - skip)
            part.append(self._starts[at] + skip, take)
            ordinal += take
            count -= take
            at += 1
        return part

    def ordinal(self, index: int) -> int | None:
        """How many listed blocks stand before block `index`, or None where it is not listed."""
        at = bisect_right(self._starts, index) - 1
        if at < 0 or index >= self._starts[at] + self._lengths[at]:
            return None
        return self._ordinals[at] + index - self._starts[at]

    def after(self, index: int) -> int:
        """The first listed block from `index` on; 2**64 where there is none."""
        at = bisect_right(self._starts, index) - 1
        if at >= 0 and index < self._starts[at] + self._lengths[at]:
            return index
        return self._starts[at + 1] if at + 1 < len(self._starts) else 2**64

    def run_end(self, index: int) -> int:
        """One past the run that a listed block is in."""
        at = bisect_right(self._starts, index) - 1
        return self._starts[at] + self._lengths[at]

    def digest(self) -> bytes:
        """SHA-256 over (first block index, count) of each run, as 8-byte little-endian integers."""
        digest = hashlib.sha256()
        for at in range(0, len(self), _STEP):
            starts = self._starts[at : at + _STEP]
            pairs = array("Q", bytes(16 * len(starts)))
            pairs[::2] = array("Q", starts)
            pairs[1::2] = array("Q", self._lengths[at : at + _STEP])
            if sys.byteorder == "big":
                pairs.byteswap()
            digest.update(pairs)
        return digest.digest()

    def encode(self) -> bytes:
        """(gap to the end of the run before, count) of each run, as varints (LEB128)."""
        encoded = bytearray()
        end = 0
        for start, count in self:
            _put_varint(encoded, start - end)
            _put_varint(encoded, count)
            end = start + count
        return bytes(encoded)

    @classmethod
    def decode(cls, encoded: bytes) -> Runs:
        """The reverse of `encode`.

        Raises:
            CorruptArchiveError: not what `encode` writes.
        """
        numbers = list(_varints(encoded))
        if len(numbers) % 2:
            raise CorruptArchiveError("a run of blocks lacks its length")
        runs = cls()
        end = 0
        for gap, count in zip(numbers[::2], numbers[1::2], strict=True):
            if not count or (runs and not gap):
                raise CorruptArchiveError("a run of blocks is empty or touches the one before")
            try:
                runs.append(end + gap, count)
            except (InvalidRequestError, OverflowError):
                raise CorruptArchiveError("a run of blocks is out of range") from None
            end += gap + count
        return runs


def _put_varint(encoded: bytearray, number: int) -> None:
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)


def _varints(encoded: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in encoded:
        if shift > 63:
            raise CorruptArchiveError("a varint is longer than 64 bits")
        number |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            continue
        if shift and not byte:
            raise CorruptArchiveError("a varint is not the shortest of its value")
        yield number
        number = shift = 0
    if shift:
        raise CorruptArchiveError("a varint is cut short")
