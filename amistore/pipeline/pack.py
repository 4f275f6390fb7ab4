"""`pack`: an image and its snapshots become a container's bytes.

Listing, tokens and order live in the caller's thread; workers get, hash, compress and
check one segment each. Next: `unpack.py`, the way back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor

import attrs
from typing_extensions import Buffer

from amistore.backends import BlockSource
from amistore.container import (
    ContainerWriter,
    EncodedSegment,
    Layout,
    Plan,
    PlannedSegment,
    Runs,
    encode_segment,
    plan,
)
from amistore.container.layout import MAX_OBJECT
from amistore.errors import (
    BackendError,
    ChecksumMismatchError,
    InvalidRequestError,
    SourceChangedError,
)
from amistore.model import Image
from amistore.pipeline.foreign import check_kind, check_picklable, foreign_errors
from amistore.pipeline.listing import list_runs, list_tokens
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.workers import ordered_map, worker_count, worker_pool
from amistore.units import BLOCK_SIZE

__all__ = ["choose_snapshots", "pack", "plan_pack"]


def pack(
    image: Image,
    source: BlockSource,
    *,
    level: int = 3,
    snapshots: Iterable[str] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressCallback = None,
    check_frames: bool = True,
    layout: Layout | None = None,
) -> Generator[bytes, None, None]:
    """Pack an image with its snapshots into one container.

    The snapshots are listed and the container is planned before this returns; blocks are
    read while the iterator is. Closing or dropping the iterator ends its threads. The same
    image, options and libzstd give the same bytes, whatever the workers.

    Args:
        image: what to pack, such as `describe_image` returns.
        source: where its snapshots are.
        level: zstd level, 1 to 22, or negative for its fast modes.
        snapshots: ids of those to include; None for all that the mappings name.
        workers: segments worked on at once; None for the number of CPUs.
        executor: where to work; None for threads. For processes `source` must be picklable.
        progress: called with a `Progress` after each listed page and each segment.
        check_frames: decode each frame and compare it before it is handed out.
        layout: how to cut the container; None for what fits its size.

    Returns:
        An iterator of the container's bytes, in pieces of up to 8 MiB and some.

    Raises:
        NotFoundError: a snapshot does not exist.
        InvalidRequestError: nothing that can be packed.
        SourceChangedError: (while iterating) the snapshot is not what was listed.
        ChecksumMismatchError: (while iterating) a block is not what its source says.
        BackendError: the source failed.
    """
    if not -131072 <= level <= 22:
        raise InvalidRequestError(f"zstd levels are -131072 to 22, not {level}")
    worker_count(workers)  # refused here, not at the first piece
    if not isinstance(image, Image):
        raise InvalidRequestError(
            f"image must be an amistore.Image, not {type(image).__name__}: describe_image gives one"
        )
    check_kind(source, BlockSource, "source")
    check_picklable(executor, source, "source")
    planned = plan_pack(image, source, snapshots=snapshots, progress=progress, layout=layout)
    encode = _Encode(source, level, check_frames)
    return _pieces(planned, encode, workers, executor, progress)


def plan_pack(
    image: Image,
    source: BlockSource,
    *,
    snapshots: Iterable[str] | None = None,
    progress: ProgressCallback = None,
    layout: Layout | None = None,
) -> Plan:
    """List the snapshots and plan the container; see `pack` for the arguments."""
    volumes: list[tuple[str, int, Runs]] = []
    for snapshot_id in choose_snapshots(image, snapshots):
        before = sum(runs.blocks for _, _, runs in volumes)

        def listed(count: int, before: int = before) -> None:
            if progress is not None:
                progress(Progress(phase=Phase.LIST, blocks=before + count, total_blocks=None, stored_bytes=0))

        size, runs = list_runs(source, snapshot_id, listed)
        known = image.snapshot(snapshot_id).volume_size
        if known not in (None, size):
            raise SourceChangedError(
                f"the image describes the snapshot with {known} GiB, the listing with {size}",
                snapshot_id=snapshot_id,
            )
        volumes.append((snapshot_id, size, runs))
    return plan(image, volumes, layout)


def choose_snapshots(image: Image, snapshots: Iterable[str] | None) -> tuple[str, ...]:
    """Those of the image's snapshots that were asked for, in an archive's order."""
    if snapshots is None:
        return image.snapshot_ids
    wanted = {snapshots} if isinstance(snapshots, str) else set(snapshots)
    foreign = sorted(wanted - set(image.snapshot_ids))
    if foreign:
        raise InvalidRequestError(
            f"{foreign[0]} is no snapshot of {image.image_id}, "
            f"which has {', '.join(image.snapshot_ids) or 'none'}",
            code="InvalidSnapshot.NotFound",
        )
    return tuple(sorted(wanted))


_Item = tuple[str, PlannedSegment, tuple[str, ...]]  # snapshot id, segment, block tokens


@attrs.frozen
class _Encode:
    """A worker's task: get, hash, compress and check one segment. Picklable."""

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
            with foreign_errors("get_snapshot_block", snapshot_id=self.snapshot_id, block_index=index):
                block = self.source.get_snapshot_block(self.snapshot_id, index, token)
                size = memoryview(block.content).cast("B").nbytes
                checksum = block.checksum
                if checksum is not None and not isinstance(checksum, bytes):
                    raise TypeError(f"the checksum is a {type(checksum).__name__}, not bytes")
            if size != BLOCK_SIZE:
                raise BackendError(
                    f"the source gave {size} bytes for a block of {BLOCK_SIZE}",
                    retryable=True,
                    operation="get_snapshot_block",
                    snapshot_id=self.snapshot_id,
                    block_index=index,
                )
            self.checksums.append(checksum)
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


def _pieces(
    planned: Plan,
    encode: _Encode,
    workers: int | None,
    executor: Executor | None,
    progress: ProgressCallback,
) -> Generator[bytes, None, None]:
    writer = ContainerWriter(planned, encode.level)
    yield from writer.front()
    with worker_pool(workers, executor) as (pool, limit):
        segments = ordered_map(pool, encode, _items(planned, encode.source), limit)
        with contextlib.closing(segments):
            done = 0
            for volume in planned.volumes:
                yield from writer.volume(volume)
                for _ in range(planned.layout.segments(volume.runs.blocks)):
                    encoded = next(segments)
                    done += encoded.descriptor.runs.blocks
                    pieces = writer.segment(encoded)
                    del encoded  # so that a piece is freed as soon as it was taken
                    while pieces:
                        yield pieces.pop(0)
                    _report(progress, planned, done, writer.offset)
            next(segments, None)  # the second listing's end is checked after the last segment
    yield from writer.tail()


def _items(planned: Plan, source: BlockSource) -> Iterator[_Item]:
    """Each segment with its blocks' tokens; lists each snapshot for the second time."""
    for volume in planned.volumes:
        first = volume.first_segment
        count = planned.layout.segments(volume.runs.blocks)
        segments = (planned.segment(sequence) for sequence in range(first, first + count))
        for segment, tokens in list_tokens(source, volume, segments):
            yield volume.snapshot_id, segment, tokens


def _report(progress: ProgressCallback, planned: Plan, blocks: int, stored: int) -> None:
    if stored > MAX_OBJECT:
        raise InvalidRequestError(
            f"the container grew beyond {MAX_OBJECT} bytes, the most that an S3 object holds"
        )
    if progress is not None:
        progress(Progress(phase=Phase.PACK, blocks=blocks, total_blocks=planned.blocks, stored_bytes=stored))
