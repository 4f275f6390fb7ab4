"""`BlockOrders`: orders of a snapshot's blocks, given with the tokens that their workers need.

Next: `tokens.py`, who lists; `orders.py`, which gives any orders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Generic, cast

import attrs
from typing_extensions import Self

from amistore.backends import BlockSink, BlockSource
from amistore.container.plan import Plan, PlannedSegment
from amistore.errors import InvalidTokenError
from amistore.pipeline.gets import BlockGets, SegmentGets
from amistore.pipeline.orders import Cluster, Order, Orders, R
from amistore.pipeline.shared import Shared
from amistore.pipeline.tokens import OrderCut, OrderTokens, Tokens, own_tokens

__all__ = ["BlockOrder", "BlockOrders"]


@attrs.frozen(kw_only=True, eq=False)
class BlockOrder(Order[R]):
    """An order whose worker gets blocks.

    Attributes:
        source: the source of the blocks.
        snapshot_id: the snapshot of the blocks.
        segments: the segments.
        tokens: the tokens of each segment's blocks; None where the worker is to list them.
        listing: the number of the listing that the tokens are of; 0 without them.
        rate: the most gets a second.
    """

    source: Shared[BlockSource]
    snapshot_id: str
    segments: tuple[PlannedSegment, ...] = attrs.field(repr=False)
    tokens: Tokens | None = attrs.field(default=None, repr=False)
    listing: int = 0
    rate: float | None

    def gets(self, gets: BlockGets) -> Iterator[tuple[PlannedSegment, SegmentGets]]:
        """Each segment with its blocks, in a worker."""
        if self.tokens is None:
            tokens = own_tokens(self.source.value, self.snapshot_id, self.segments)
        else:
            tokens = self.tokens.unpack()
        for segment, own in zip(self.segments, tokens, strict=True):
            yield segment, gets.segment(self.snapshot_id, segment.runs.indexes(), own)


class BlockOrders(Generic[R]):
    """The orders of one run, each with its tokens. A context, as `Orders`.

    Args:
        cluster: who does them.
        planned: the plan.
        source: the source of the blocks, which nobody else lists meanwhile.
        cuts: the segments of each order.
        make: makes the order of a cut, without tokens.
        sinks: where the blocks go, if that is a service with a rate.
        late: as in `Orders`.
    """

    def __init__(
        self,
        cluster: Cluster,
        planned: Plan,
        source: BlockSource,
        cuts: Sequence[OrderCut],
        make: Callable[[OrderCut], BlockOrder[R]],
        *sinks: BlockSink,
        late: Callable[[Order[R], R], None] | None = None,
    ) -> None:
        self._orders = Orders[R](cluster, source, *sinks, refused=self._refused, late=late)
        self._tokens = OrderTokens(planned, source)
        self._cuts = cuts
        self._make = make
        self._given: dict[int, BlockOrder[R]] = {}
        self._later: list[BlockOrder[R]] = []  # to be given again
        self._following = 0  # the first cut that was not given
        self._ahead = 2 * cluster.workers

    def __enter__(self) -> Self:
        self._orders.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._orders.__exit__(*error)

    def ended(self, first: int, done: Container[int]) -> tuple[BlockOrder[R], R]:
        """Give orders while there are workers, and wait for one that ends.

        Args:
            first: the first order that is missing: two for each worker, from here on, are given.
            done: the numbers of those that need not be given.
        """
        ended = None
        while ended is None:
            self._give(first, done)
            ended = self._orders.ended()
        return cast("BlockOrder[R]", ended[0]), ended[1]

    def again(self, cut: OrderCut, change: Callable[[BlockOrder[R]], BlockOrder[R]]) -> None:
        """Have an order done once more, changed, before all others."""
        order = self._given.get(cut.number) or self._make(cut)
        self._later.append(attrs.evolve(change(order), attempt=order.attempt + 1))

    def forget(self, number: int) -> None:
        """Forget an order that is not needed again, and its tokens."""
        self._given.pop(number, None)

    def _give(self, first: int, done: Container[int]) -> None:
        """Give orders while there are workers: those that were refused, then those up to the last."""
        self._following = max(self._following, first)  # those before it are done
        last = min(first + self._ahead, len(self._cuts))
        while not (self._tokens.alone and len(self._orders)):
            order = self._next(last, done)
            if order is None or (len(self._orders) and self._ends_others(order)):
                return
            if not self._orders.give(functools.partial(self._with_tokens, order)):
                return
            self._later.remove(order)

    def _next(self, last: int, done: Container[int]) -> BlockOrder[R] | None:
        """The first order that is to be given, of those before the last."""
        while not self._later and self._following < last:
            if self._following not in done:
                self._later.append(self._make(self._cuts[self._following]))
            self._following += 1
        return min(self._later, key=lambda order: order.number, default=None)

    def _ends_others(self, order: BlockOrder[R]) -> bool:
        """Whether its tokens would end those of orders that are out, which then had to be done again."""
        cut = self._cuts[order.number]
        return not self._tokens.are_newest(cut, order.listing) and self._tokens.end_others(cut)

    def _with_tokens(self, order: BlockOrder[R]) -> BlockOrder[R]:
        """The order as it is given: with the newest tokens."""
        cut = self._cuts[order.number]
        if not self._tokens.are_newest(cut, order.listing):
            tokens, listing = self._tokens.of(cut)
            order = attrs.evolve(order, tokens=tokens, listing=listing)
        self._given[order.number] = order
        return order

    def _refused(self, order: Order[R], error: InvalidTokenError) -> None:
        """An order's tokens were refused: it is given with newer ones, in its turn."""
        refused = cast("BlockOrder[R]", order)
        self._tokens.refused(self._cuts[order.number], refused.listing, error)
        self._later.append(attrs.evolve(refused, tokens=None, listing=0))
