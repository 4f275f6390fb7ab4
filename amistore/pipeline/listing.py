"""Listing a snapshot twice: once for the runs to plan with, once for the block tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from amistore.backends import Block, BlockSource
from amistore.container import PlannedSegment, PlannedVolume, Runs
from amistore.errors import BackendError, SourceChangedError
from amistore.units import GIB

__all__ = ["list_runs", "list_tokens"]


def list_runs(source: BlockSource, snapshot_id: str, progress: Callable[[int], None]) -> tuple[int, Runs]:
    """Volume size in GiB and listed blocks. `progress` gets the number of blocks so far."""
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
        SourceChangedError: it differs from the first, which `volume` was planned from.
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
