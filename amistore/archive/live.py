"""`LiveSnapshot`: a live snapshot's blocks, hashed as they come, to compare an archive with."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterator
from typing import Final

import attrs

from amistore.backends import BlockSource
from amistore.model import BlockRange, Snapshot
from amistore.pipeline.gets import BlockGets, SegmentGets
from amistore.pipeline.orders import ORDER_BLOCKS, Cluster, Order, Orders, limited
from amistore.pipeline.shared import Shared
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import GIB

__all__ = ["Digest", "LiveSnapshot"]

Digest = tuple[int, bytes]
"""A block's index, and its SHA-256."""

_PIECE = 64  # blocks that a worker gets at once, as of a segment

_Listed = tuple[tuple[int, str], ...]  # block indexes with their tokens


@attrs.define
class LiveSnapshot:
    """A live snapshot.

    Attributes:
        source: the source of its blocks.
        snapshot_id: its id.
        cluster: who gets the blocks by orders; None for threads of this process.
        size: its size in bytes, once it was listed.
        content_id, device_names, lost_blocks: as of an archive's volume; not known.
    """

    source: BlockSource
    snapshot_id: str
    cluster: Cluster | None
    size: int = 0
    content_id: Final = ""
    device_names: Final[tuple[str, ...]] = ()
    lost_blocks: Final[tuple[BlockRange, ...]] = ()

    def __attrs_post_init__(self) -> None:
        Snapshot(snapshot_id=self.snapshot_id)  # refuse what is no id

    def digests(self, workers: int | None) -> Generator[Digest, None, None]:
        """The digests of all blocks, in order."""
        if self.cluster is None:
            with worker_pool(workers, None) as pool:
                gets = BlockGets(self.source, None, pool.most)
                pieces = (self._segment(gets, piece) for piece in self._pieces(_PIECE))
                found = pool.map(_digests, pieces, stop=gets.stop)
                with closing(found), gets:
                    for piece in found:
                        yield from piece
            return
        source, rate = Shared(self.source), self.cluster.share(self.source)
        orders = (
            _DigestOrder(number=number, source=source, snapshot_id=self.snapshot_id, listed=piece, rate=rate)
            for number, piece in enumerate(self._pieces(ORDER_BLOCKS))
        )
        with Orders["list[Digest]"](self.cluster, self.source) as out, closing(out.map(orders)) as ended:
            for _, digests in ended:
                yield from digests

    def _segment(self, gets: BlockGets, piece: _Listed) -> SegmentGets:
        indexes, tokens = zip(*piece, strict=True)
        return gets.segment(self.snapshot_id, indexes, tokens)

    def _pieces(self, most: int) -> Iterator[_Listed]:
        listed = self._listed()
        while piece := tuple(itertools.islice(listed, most)):
            yield piece

    def _listed(self) -> Iterator[tuple[int, str]]:
        for page in self.source.pages(self.snapshot_id):
            self.size = page.volume_size * GIB
            yield from ((block.block_index, block.block_token) for block in page.blocks)


def _digests(gets: SegmentGets) -> list[Digest]:
    """Runs in a worker."""
    with gets:
        digests = [
            block.checksum if block.proved and block.checksum else hashlib.sha256(block.content).digest()
            for block in gets
        ]
    return list(zip(gets.indexes, digests, strict=True))


@attrs.frozen(kw_only=True, eq=False)
class _DigestOrder(Order["list[Digest]"]):
    """Hash some blocks.

    Attributes:
        source: the source of the blocks.
        snapshot_id: their snapshot.
        listed: their indexes and tokens.
        rate: the most gets a second.
    """

    source: Shared[BlockSource]
    snapshot_id: str
    listed: _Listed = attrs.field(repr=False)
    rate: float | None

    def work(self) -> list[Digest]:
        with worker_pool(1, None) as pool:
            gets = BlockGets(limited(self.source.value, self.rate), None, pool.most)
            pieces = (self.listed[at : at + _PIECE] for at in range(0, len(self.listed), _PIECE))
            segments = (gets.segment(self.snapshot_id, *zip(*piece, strict=True)) for piece in pieces)
            found = pool.map(_digests, segments, stop=gets.stop)
            with closing(found), gets:
                return list(itertools.chain.from_iterable(found))
