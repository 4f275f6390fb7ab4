"""Holes of a volume: the blocks that its snapshot does not list, and the sums once they are filled.

A hole reads as zeros on an unencrypted EBS volume, and as noise on an encrypted one, since what was never
written is decrypted like the rest. Everything here holds runs only, never an entry for each block.
Next: `snapshots.py` fills them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
from typing_extensions import Self

from amistore.container.plan import PlannedVolume
from amistore.container.runs import Runs
from amistore.model import BlockRange
from amistore.units import BLOCK_SIZE, ZERO_DIGEST

__all__ = ["FilledSum", "HolePiece", "Holes"]

Range = tuple[int, int]  # first block index, count

_DIGESTS: Final = ZERO_DIGEST * 4096  # hashed at once, where a hole has so many blocks


@attrs.frozen
class HolePiece:
    """Some blocks of a volume's holes, for one worker.

    Attributes:
        stored_id: the archived snapshot's id.
        snapshot_id: the new snapshot's id.
        ranges: the ranges of the blocks, ascending.
    """

    stored_id: str
    snapshot_id: str
    ranges: tuple[Range, ...]

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return sum(count for _, count in self.ranges)

    @property
    def end(self) -> int:
        """One past its last block."""
        return sum(self.ranges[-1])


@attrs.frozen
class Holes:
    """The blocks of a volume that are neither listed nor lost. Lost blocks are never filled.

    Attributes:
        size: the volume's size in bytes.
        runs: the runs of its listed blocks.
        lost: the blocks that could not be recovered, ascending.
    """

    size: int
    runs: Runs = attrs.field(repr=False)
    lost: Sequence[BlockRange]

    @classmethod
    def of(cls, volume: PlannedVolume, lost: Sequence[BlockRange]) -> Self:
        """The holes of a container's volume."""
        return cls(volume.size, volume.runs, lost)

    @property
    def blocks(self) -> int:
        """How many blocks they have."""
        return self.size // BLOCK_SIZE - self.runs.blocks - sum(each.block_count for each in self.lost)

    def __iter__(self) -> Iterator[Range]:
        """Each range of them, ascending."""
        at = 0
        lost = ((each.first_block, each.block_count) for each in self.lost)
        for start, count in heapq.merge(self.runs, lost, ((self.size // BLOCK_SIZE, 0),)):
            if start > at:
                yield at, start - at
            at = start + count

    def before(self, index: int) -> int:
        """The number of hole blocks before a block index."""
        return sum(min(count, index - start) for start, count in self if start < index)

    def pieces(self, first: int, most: int) -> Iterator[tuple[Range, ...]]:
        """The hole blocks from the block index `first` on, in pieces."""
        piece: list[Range] = []
        left = most
        for start, count in self:
            end = start + count
            start = max(start, first)
            while start < end:
                taken = min(end - start, left)
                piece.append((start, taken))
                start += taken
                left -= taken
                if not left:
                    yield tuple(piece)
                    piece, left = [], most
        if piece:
            yield tuple(piece)


class FilledSum:
    """The number and LINEAR checksum of a volume's blocks with its holes filled, for CompleteSnapshot.

    It gets the listed blocks in order, and adds the filled blocks' digests between them, so it needs no
    memory for any of them.
    """

    def __init__(self, holes: Holes) -> None:
        self._holes = iter(holes)
        self._hole = next(self._holes, None)
        self._linear = hashlib.sha256()
        self._blocks = 0

    def add(self, runs: Runs, digests: Sequence[bytes]) -> None:
        """The next listed blocks."""
        at = 0
        for start, count in runs:
            self._fill(start)
            self._linear.update(b"".join(digests[at : at + count]))
            at += count
        self._blocks += at

    def end(self) -> tuple[int, bytes]:
        """The result, once all listed blocks were added."""
        self._fill(2**64)
        return self._blocks, self._linear.digest()

    def _fill(self, end: int) -> None:
        while self._hole is not None and self._hole[0] < end:
            left = self._hole[1]
            self._blocks += left
            while left:
                taken = min(left, len(_DIGESTS) // len(ZERO_DIGEST))
                self._linear.update(_DIGESTS[: taken * len(ZERO_DIGEST)])
                left -= taken
            self._hole = next(self._holes, None)
