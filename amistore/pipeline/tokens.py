"""The block tokens of orders: one lister of each snapshot, whose workers never list."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
import zstandard

from amistore.backends import BlockPage, BlockSource
from amistore.container.plan import Plan, PlannedSegment, PlannedVolume
from amistore.errors import InvalidTokenError, SourceChangedError
from amistore.pipeline.packing import list_tokens, segment_numbers

__all__ = ["OrderCut", "OrderTokens", "own_tokens"]

_logger = logging.getLogger("amistore")

_REFUSED: Final = 2  # times that an order's newest tokens are refused, before it goes out alone


@attrs.frozen(kw_only=True)
class OrderCut:
    """Which segments an order takes: some of one volume.

    Attributes:
        number: the order's number.
        volume: the volume of its segments.
        segments: their sequence numbers.
        preludes: the volumes whose preludes stand before them in the container.
    """

    number: int
    volume: PlannedVolume
    segments: range
    preludes: tuple[PlannedVolume, ...] = ()


@attrs.frozen
class Tokens:
    """The tokens of the blocks of an order's segments, packed: as strings they take twice as much.

    An order of a 64 TiB volume has 53,000 of them, and waits in the coordinator's memory with others.
    """

    packed: bytes = attrs.field(repr=False)

    @classmethod
    def pack(cls, segments: Sequence[Sequence[str]]) -> Tokens:
        """Those of each segment."""
        return cls(zstandard.ZstdCompressor(level=1).compress(json.dumps(segments).encode()))

    def unpack(self) -> list[list[str]]:
        """Those of each segment."""
        segments: list[list[str]] = json.loads(zstandard.ZstdDecompressor().decompress(self.packed))
        return segments


class OrderTokens:
    """The tokens of all orders of a run, which nobody else lists.

    A snapshot that is listed again gets new tokens, and the older ones end. So there is one lister, and
    tokens belong to a listing. Where they end while orders wait, there is another listing; where they do not
    even last until an order has ended, orders go out alone, and the worker lists by itself.

    Args:
        planned: the plan.
        source: the source of the blocks.

    Attributes:
        alone: whether orders go out alone.
    """

    def __init__(self, planned: Plan, source: BlockSource) -> None:
        self._planned = planned
        self._source = source
        self._listings: dict[int, _Listing] = {}
        self._refused: Counter[int] = Counter()
        self.alone = False

    def are_newest(self, cut: OrderCut, number: int) -> bool:
        """Whether an order's tokens, of the listing of this number, are as good as there are."""
        if self.alone:
            return number == 0
        listing = self._listings.get(cut.volume.number)
        return listing is not None and not listing.ended and number == listing.number

    def end_others(self, cut: OrderCut) -> bool:
        """Whether an order's tokens need another listing, which ends those of orders that are out."""
        listing = self._listings.get(cut.volume.number)
        return listing is not None and not self.alone and listing.is_behind(cut.segments)

    def of(self, cut: OrderCut) -> tuple[Tokens | None, int]:
        """An order's tokens, and the number of their listing; None where its worker is to list."""
        if self.alone:
            return None, 0
        listing = self._listing(cut)
        return listing.of(cut.segments), listing.number

    def refused(self, cut: OrderCut, number: int, error: InvalidTokenError) -> None:
        """An order's tokens, of the listing of this number, were refused.

        Raises:
            InvalidTokenError: those that its worker listed were, too.
        """
        if number == 0:
            raise error
        listing = self._listing(cut)
        if number == listing.number:
            listing.ended = True
            self._refused[cut.number] += 1
            if self._refused[cut.number] > _REFUSED and not self.alone:
                _logger.warning(
                    "the block tokens of %s end before its orders do: one order at a time goes on",
                    cut.volume.snapshot_id,
                )
                self.alone = True

    def _listing(self, cut: OrderCut) -> _Listing:
        volume = cut.volume
        if volume.number not in self._listings:
            self._listings[volume.number] = _Listing(self._planned, volume, self._source)
        return self._listings[volume.number]


class _Listing:
    """A volume's listing, as far as it is needed, and those that followed it."""

    def __init__(self, planned: Plan, volume: PlannedVolume, source: BlockSource) -> None:
        self._planned = planned
        self._volume = volume
        self._source = source
        self._numbers = segment_numbers(planned, volume)
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """Begin another listing, which ends all tokens."""
        self.number += 1
        self.ended = False  # whether one of its tokens was refused
        segments = map(self._planned.segment, self._numbers)
        self._at = self._numbers.start
        self._rest = list_tokens(self._source, self._volume, segments)

    def is_behind(self, segments: range) -> bool:
        """Whether it has no more tokens for these segments."""
        return self.ended or segments.start < self._at

    def of(self, segments: range) -> Tokens:
        """The tokens of consecutive segments; one that was passed by is listed again."""
        if self.is_behind(segments):
            self.begin()
        given = []
        while self._at < segments.stop:
            tokens = next(self._rest)[1]
            if self._at in segments:
                given.append(tokens)
            self._at += 1
        if segments.stop == self._numbers.stop:
            next(self._rest, None)  # refuses a listing that goes on
        return Tokens.pack(given)


def own_tokens(source: BlockSource, snapshot_id: str, segments: Sequence[PlannedSegment]) -> list[list[str]]:
    """The tokens of consecutive segments, by a listing of one's own; the page with the last one is the last.

    Raises:
        SourceChangedError: a block is not listed any more.
    """
    blocks = _tokens(source.pages(snapshot_id))
    given = []
    for segment in segments:
        tokens = []
        for index in segment.runs.indexes():
            token = next((token for at, token in blocks if at == index), None)
            if token is None:
                raise SourceChangedError(
                    "the block was listed before and is no longer listed",
                    snapshot_id=snapshot_id,
                    block_index=index,
                )
            tokens.append(token)
        given.append(tokens)
    return given


def _tokens(pages: Iterator[BlockPage]) -> Iterator[tuple[int, str]]:
    for page in pages:
        for block in page.blocks:
            yield block.block_index, block.block_token
