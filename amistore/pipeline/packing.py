"""Packs a container unit by unit: front, preludes, segments and tail, in order.

The caller's thread lists and keeps the order; each worker hashes, compresses and checks one segment, whose
blocks `requests.py` gets.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import chain

import attrs
from typing_extensions import Buffer

from amistore.backends import Block, BlockSource
from amistore.container.encoder import ContainerWriter, EncodedSegment, encode_segment
from amistore.container.layout import MAX_OBJECT
from amistore.container.plan import Plan, PlannedSegment, PlannedVolume
from amistore.container.runs import Runs
from amistore.errors import BackendError, ChecksumMismatchError, InvalidRequestError, SourceChangedError
from amistore.pipeline.gets import BlockGets, SegmentGets
from amistore.pipeline.progress import Phase, Progress, ProgressCallback, untold
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import GIB

__all__ = [
    "PackedUnit",
    "SegmentEncode",
    "WrittenArchive",
    "check_size",
    "list_runs",
    "list_tokens",
    "packed_units",
    "segment_gets",
    "segment_numbers",
]


@attrs.frozen
class WrittenArchive:
    """The facts about an archive that are known once its last byte is made.

    Attributes:
        size: the size in bytes.
        content_id: the content id, computed from what was written.
        foot: the last bytes, which bind the index.
    """

    size: int
    content_id: bytes
    foot: bytes


@attrs.frozen
class PackedUnit:
    """Consecutive bytes of a container, in pieces.

    Attributes:
        pieces: the bytes; take them out to free them.
        end: the file offset behind the last byte.
        segment: the SEGD record of a segment (with its PAD); else None.
        blocks: the number of the segment's blocks.
        written: the facts about the whole archive, with its last bytes; else None.
    """

    pieces: list[bytes]
    end: int
    segment: bytes | None = None
    blocks: int = 0
    written: WrittenArchive | None = None


def packed_units(
    planned: Plan,
    source: BlockSource,
    encode: SegmentEncode,
    *,
    carried: Sequence[EncodedSegment] = (),
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressCallback = untold,
) -> Generator[PackedUnit, None, None]:
    """Everything of a container, in order.

    Args:
        planned: the plan of the container.
        source: the source of the blocks.
        encode: the function that makes a segment.
        carried: the first segments, made in an earlier run: their frames are left out, and their blocks are
            not read.
        workers: the number of segments worked on at once; None for the number of CPUs.
        executor: the executor; None for threads.
        progress: a function called with a `Progress` after each segment.
    """
    writer = ContainerWriter(planned, encode.level)
    with worker_pool(workers, executor) as pool:
        gets = BlockGets(source, executor, pool.most)
        items = _items(planned, source, gets, len(carried))
        made = pool.map(encode, items, stop=gets.stop)
        with closing(made), gets:
            done = 0
            for unit in _units(planned, writer, chain(carried, made)):
                done += unit.blocks
                is_segment = unit.segment is not None
                yield unit
                del unit  # so that its frames are freed as they are taken
                if is_segment:
                    _report(progress, planned, done, writer.offset)
            next(made, None)  # the second listing's end is checked after the last segment
    start = writer.offset
    tail = writer.tail()
    end = start + sum(map(len, tail))
    yield PackedUnit(tail, end, written=WrittenArchive(end, writer.content_id, tail[-1]))


def _units(planned: Plan, writer: ContainerWriter, made: Iterator[EncodedSegment]) -> Iterator[PackedUnit]:
    """The bytes of all segments, in order, with each volume's prelude and the container's front."""
    yield PackedUnit(writer.front(), writer.offset)
    for volume in planned.volumes:
        yield PackedUnit(writer.volume(volume), writer.offset)
        for _ in segment_numbers(planned, volume):
            encoded = next(made)
            blocks = encoded.descriptor.runs.blocks
            unit = PackedUnit(writer.segment(encoded), writer.offset, encoded.record, blocks)
            del encoded
            yield unit
            del unit


def segment_numbers(planned: Plan, volume: PlannedVolume) -> range:
    """The sequence numbers of a volume's segments."""
    count = planned.layout.segments(volume.runs.blocks)
    return range(volume.first_segment, volume.first_segment + count)


_Item = tuple[PlannedSegment, SegmentGets]


@attrs.frozen
class SegmentEncode:
    """The worker's job for one segment: hash, compress and check its blocks. Picklable.

    Attributes:
        level: the zstd level.
        check_frames: whether to decode each frame and compare it.
    """

    level: int
    check_frames: bool

    def __call__(self, item: _Item) -> EncodedSegment:
        segment, gets = item
        checksums: list[bytes | None] = []
        with gets:
            encoded = encode_segment(
                segment, _contents(gets, checksums), level=self.level, check=self.check_frames
            )
        for index, given, found in zip(gets.indexes, checksums, encoded.descriptor.digests, strict=True):
            if given not in (None, found):
                raise ChecksumMismatchError(
                    "the block's content does not have the SHA-256 that its source gives",
                    retryable=True,
                    operation="get_snapshot_block",
                    snapshot_id=gets.snapshot_id,
                    block_index=index,
                )
        return encoded


def _contents(gets: SegmentGets, checksums: list[bytes | None]) -> Iterator[tuple[Buffer, bytes | None]]:
    """Each block, with its digest if it is proved; the digests that the source gave go to `checksums`."""
    for block in gets:
        checksums.append(block.checksum)
        yield block.content, block.checksum if block.proved else None


def _items(planned: Plan, source: BlockSource, gets: BlockGets, first: int) -> Iterator[_Item]:
    """Each segment from the `first` on with its blocks."""
    for volume in planned.volumes:
        sequences = segment_numbers(planned, volume)
        if sequences.stop > first or not sequences:
            yield from segment_gets(planned, volume, source, gets, first)


def segment_gets(
    planned: Plan, volume: PlannedVolume, source: BlockSource, gets: BlockGets, first: int = 0
) -> Iterator[tuple[PlannedSegment, SegmentGets]]:
    """A volume's segments from the `first` of the container on, with their blocks by a second listing."""
    segments = (planned.segment(sequence) for sequence in segment_numbers(planned, volume))
    for segment, tokens in list_tokens(source, volume, segments):
        if segment.sequence >= first:
            yield segment, gets.segment(volume.snapshot_id, segment.runs.indexes(), tokens)


def _report(progress: ProgressCallback, planned: Plan, blocks: int, stored: int) -> None:
    check_size(stored)
    progress(Progress(phase=Phase.PACK, blocks=blocks, total_blocks=planned.blocks, stored_bytes=stored))


def check_size(stored: int) -> None:
    """Refuse a container of more bytes than an object can have."""
    if stored > MAX_OBJECT:
        raise InvalidRequestError(
            f"the container grew beyond {MAX_OBJECT} bytes, the most that an S3 object holds"
        )


def list_runs(source: BlockSource, snapshot_id: str, progress: Callable[[int], None]) -> tuple[int, Runs]:
    """The volume's size in GiB and its listed blocks; `progress` gets the number of blocks so far."""
    size = count = 0

    def indexes() -> Iterator[int]:
        nonlocal size, count
        for page in source.pages(snapshot_id):
            size = page.volume_size
            yield from (block.block_index for block in page.blocks)
            count += len(page.blocks)
            progress(count)

    runs = Runs.of_blocks(indexes())
    return size, runs


def list_tokens(
    source: BlockSource, volume: PlannedVolume, segments: Iterable[PlannedSegment]
) -> Iterator[tuple[PlannedSegment, tuple[str, ...]]]:
    """Each of a volume's segments with the tokens of its blocks, from a second listing.

    Raises:
        SourceChangedError: the listing differs from the first, which `volume` was planned from.
    """
    snapshot_id = volume.snapshot_id
    blocks = _listed(source, snapshot_id, volume.size // GIB)
    for segment in segments:
        tokens = []
        for index in segment.runs.indexes():
            block = next(blocks, None)
            if block is None or block.block_index != index:
                raise _changed(snapshot_id, index, block)
            tokens.append(block.block_token)
        yield segment, tuple(tokens)
    block = next(blocks, None)
    if block is not None:
        raise _changed(snapshot_id, None, block)


def _listed(source: BlockSource, snapshot_id: str, size: int) -> Iterator[Block]:
    for page in source.pages(snapshot_id):
        if page.volume_size != size:
            raise SourceChangedError(
                f"the volume had {size} GiB and now has {page.volume_size}", snapshot_id=snapshot_id
            )
        yield from page.blocks


def _changed(snapshot_id: str, expected: int | None, found: Block | None) -> BackendError:
    was = "the end" if expected is None else f"block {expected}"
    now = "the end" if found is None else f"block {found.block_index}"
    return SourceChangedError(
        f"the second listing has {now} where the first had {was}: the snapshot changed, or its "
        "source lists it differently each time",
        operation="list_snapshot_blocks",
        snapshot_id=snapshot_id,
    )
