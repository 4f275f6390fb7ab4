"""A container unit by unit: front, preludes, segments and tail, in order.

Listing, tokens and order live in the caller's thread; workers get, hash, compress and
check one segment each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor

import attrs
from typing_extensions import Buffer

from amistore.backends import BlockSource
from amistore.backends.blocks import check_answer
from amistore.container import (
    ContainerWriter,
    EncodedSegment,
    Plan,
    PlannedSegment,
    PlannedVolume,
    encode_segment,
)
from amistore.container.layout import MAX_OBJECT
from amistore.errors import ChecksumMismatchError, InvalidRequestError
from amistore.pipeline.listing import list_tokens
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.workers import ordered_map, worker_pool

__all__ = ["PackedUnit", "SegmentEncode", "WrittenArchive", "packed_units"]


@attrs.frozen
class WrittenArchive:
    """What is known of an archive once its last byte is made.

    Attributes:
        size: in bytes.
        content_id: computed from what was written.
        foot: its last bytes, which bind its index.
    """

    size: int
    content_id: bytes
    foot: bytes


@attrs.frozen
class PackedUnit:
    """Consecutive bytes of a container, in pieces.

    Attributes:
        pieces: the bytes; take them out to free them.
        start: the file offset of the first of them.
        end: the file offset behind the last.
        segment: the SEGD record, where it is a segment (with its PAD): a part may end behind it.
        written: the whole archive, where these are its last bytes.
    """

    pieces: list[bytes]
    start: int
    end: int
    segment: bytes | None = None
    written: WrittenArchive | None = None


def packed_units(
    planned: Plan,
    encode: SegmentEncode,
    *,
    carried: Sequence[EncodedSegment] = (),
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressCallback = None,
) -> Generator[PackedUnit, None, None]:
    """Everything of a container, in order.

    Args:
        planned: what to make.
        encode: how to make a segment.
        carried: the first segments, made in an earlier run: their frames are left out, and
            their blocks are not read.
        workers: segments worked on at once; None for the number of CPUs.
        executor: where to work; None for threads.
        progress: called with a `Progress` after each segment.
    """
    writer = ContainerWriter(planned, encode.level)
    yield PackedUnit(writer.front(), 0, writer.offset)
    with worker_pool(workers, executor) as (pool, limit):
        made = ordered_map(pool, encode, _items(planned, encode.source, len(carried)), limit)
        with contextlib.closing(made):
            done = 0
            for volume in planned.volumes:
                start = writer.offset
                yield PackedUnit(writer.volume(volume), start, writer.offset)
                for sequence in _segments(planned, volume):
                    encoded = carried[sequence] if sequence < len(carried) else next(made)
                    done += encoded.descriptor.runs.blocks
                    start = writer.offset
                    unit = PackedUnit(writer.segment(encoded), start, writer.offset, encoded.record)
                    del encoded  # so that its frames are freed as they are taken
                    yield unit
                    del unit
                    _report(progress, planned, done, writer.offset)
            next(made, None)  # the second listing's end is checked after the last segment
    start = writer.offset
    tail = writer.tail()
    end = start + sum(map(len, tail))
    yield PackedUnit(tail, start, end, written=WrittenArchive(end, writer.content_id, tail[-1]))


def _segments(planned: Plan, volume: PlannedVolume) -> range:
    count = planned.layout.segments(volume.runs.blocks)
    return range(volume.first_segment, volume.first_segment + count)


_Item = tuple[str, PlannedSegment, tuple[str, ...]]  # snapshot id, segment, block tokens


@attrs.frozen
class SegmentEncode:
    """A worker's task: get, hash, compress and check one segment. Picklable.

    Attributes:
        source: of the blocks.
        level: of zstd.
        check_frames: decode each frame and compare it.
    """

    source: BlockSource
    level: int
    check_frames: bool

    def __call__(self, item: _Item) -> EncodedSegment:
        snapshot_id, segment, tokens = item
        blocks = _Blocks(self.source, snapshot_id, segment, tokens)
        encoded = encode_segment(segment, iter(blocks), level=self.level, check=self.check_frames)
        blocks.compare(encoded.descriptor.digests)
        return encoded


@attrs.define
class _Blocks:
    """Gets a segment's blocks one by one, and remembers the digests that the source gave."""

    source: BlockSource
    snapshot_id: str
    segment: PlannedSegment
    tokens: tuple[str, ...]
    checksums: list[bytes | None] = attrs.field(factory=list)

    def __iter__(self) -> Iterator[Buffer]:
        for index, token in zip(self.segment.runs.indexes(), self.tokens, strict=True):
            answer = self.source.get_snapshot_block(self.snapshot_id, index, token)
            block = check_answer(answer, self.snapshot_id, index)
            self.checksums.append(block.checksum)
            yield block.content

    def compare(self, digests: tuple[bytes, ...]) -> None:
        for index, given, found in zip(self.segment.runs.indexes(), self.checksums, digests, strict=True):
            if given not in (None, found):
                raise ChecksumMismatchError(
                    "the block's content does not have the SHA-256 that its source gives",
                    retryable=True,
                    operation="get_snapshot_block",
                    snapshot_id=self.snapshot_id,
                    block_index=index,
                )


def _items(planned: Plan, source: BlockSource, first: int) -> Iterator[_Item]:
    """Each segment from the `first` on with its blocks' tokens; lists its snapshot for the second time."""
    for volume in planned.volumes:
        sequences = _segments(planned, volume)
        if sequences.stop <= first and sequences:
            continue
        segments = (planned.segment(sequence) for sequence in sequences)
        for segment, tokens in list_tokens(source, volume, segments):
            if segment.sequence >= first:
                yield volume.snapshot_id, segment, tokens


def _report(progress: ProgressCallback, planned: Plan, blocks: int, stored: int) -> None:
    if stored > MAX_OBJECT:
        raise InvalidRequestError(
            f"the container grew beyond {MAX_OBJECT} bytes, the most that an S3 object holds"
        )
    if progress is not None:
        progress(Progress(phase=Phase.PACK, blocks=blocks, total_blocks=planned.blocks, stored_bytes=stored))
