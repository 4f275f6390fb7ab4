"""What the workers of a restore do: put a segment's blocks, or zeros into holes. Picklable."""

from __future__ import annotations

from typing import Final

import attrs

from amistore.backends import BlockSink
from amistore.container import StoredSegment, decode_segment
from amistore.pipeline.holes import HolePiece
from amistore.units import BLOCK_SIZE, ZERO_DIGEST

__all__ = ["HolePut", "SegmentPut"]

_ZEROS: Final = bytes(BLOCK_SIZE)


@attrs.frozen
class SegmentPut:
    """Decode a segment, prove each of its blocks and put it; without a snapshot only prove them."""

    sink: BlockSink

    def __call__(self, item: tuple[StoredSegment, str | None]) -> int:
        """Take a segment, and the new snapshot of its volume; give the number of its blocks."""
        stored, snapshot_id = item
        for block in decode_segment(stored):
            if snapshot_id is not None:
                self.sink.put_snapshot_block(snapshot_id, block.index, block.content, block.digest)
        return stored.located.descriptor.runs.blocks


@attrs.frozen
class HolePut:
    """Put a block of zeros for each of a piece of holes."""

    sink: BlockSink

    def __call__(self, piece: HolePiece) -> HolePiece:
        """Take the piece, and give it back."""
        for start, count in piece.ranges:
            for index in range(start, start + count):
                self.sink.put_snapshot_block(piece.snapshot_id, index, _ZEROS, ZERO_DIGEST)
        return piece
