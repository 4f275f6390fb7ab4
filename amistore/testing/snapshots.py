"""Small snapshots to test with: made, put into a store and read back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import attrs

from amistore.backends import BlockSink, BlockSource
from amistore.units import BLOCK_SIZE

__all__ = ["SnapshotCase", "block", "linear", "read_snapshot", "sha256", "store_snapshot"]


@attrs.frozen(kw_only=True)
class SnapshotCase:
    """A completed snapshot and its known content.

    Attributes:
        source: the source that has the snapshot.
        snapshot_id: the snapshot's id.
        volume_size: the volume's size in GiB.
        blocks: the content of every block that exists, by index.
    """

    source: BlockSource
    snapshot_id: str
    volume_size: int
    blocks: Mapping[int, bytes]


def block(seed: int) -> bytes:
    """A block's content: zeros for seed 0, else unique to its seed and easy to compress."""
    if seed == 0:
        return bytes(BLOCK_SIZE)
    return (random.Random(seed).randbytes(512) * 1024)[:BLOCK_SIZE]  # noqa: S311


def sha256(content: bytes) -> bytes:
    """A block's checksum."""
    return hashlib.sha256(content).digest()


def linear(blocks: Mapping[int, bytes]) -> bytes:
    """The LINEAR checksum of blocks, as `complete_snapshot` takes it."""
    return hashlib.sha256(b"".join(sha256(blocks[index]) for index in sorted(blocks))).digest()


def store_snapshot(sink: BlockSink, volume_size: int, blocks: Mapping[int, bytes]) -> str:
    """Make a completed snapshot of `volume_size` GiB with these blocks."""
    snapshot_id = sink.start_snapshot(volume_size)
    for index, content in blocks.items():
        sink.put_snapshot_block(snapshot_id, index, content, sha256(content))
    sink.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
    sink.wait_snapshot(snapshot_id)
    return snapshot_id


def read_snapshot(source: BlockSource, snapshot_id: str) -> tuple[int, dict[int, bytes]]:
    """A snapshot's size in GiB and the content of each block that it lists."""
    volume_size = 0
    blocks: dict[int, bytes] = {}
    for page in source.pages(snapshot_id):
        volume_size = page.volume_size
        for listed in page.blocks:
            got = source.get_snapshot_block(snapshot_id, listed.block_index, listed.block_token)
            blocks[listed.block_index] = bytes(got.content)
    return volume_size, blocks
