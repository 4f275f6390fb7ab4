"""Orders of storing: a worker gets its blocks, makes its segments, and uploads them as parts of its own.

Each order is a run of segments of one volume, with part numbers of its own (S3 allows gaps). What an order
makes may be less than a store takes as a part; then it answers with these bytes, and `ordered_upload.py`
joins them with what follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Final

import attrs

from amistore.backends import ObjectLocation, UploadedPart
from amistore.backends.traits import StoreTraits
from amistore.container.layout import MIN_PART
from amistore.container.plan import Plan, PlannedVolume, worst_segment
from amistore.errors import InvalidRequestError
from amistore.objects.parts import SPOOL, ObjectBounds, Part, sent_parts
from amistore.pipeline.block_orders import BlockOrder
from amistore.pipeline.gets import BlockGets
from amistore.pipeline.orders import limited, order_length
from amistore.pipeline.packing import SegmentEncode, segment_numbers
from amistore.pipeline.shared import Shared
from amistore.pipeline.tokens import OrderCut
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import MIB, sized

__all__ = ["OrderPlan", "StoreOrder", "Stored", "takes_orders"]

_LEAST_PARTS: Final = 4  # of an order: one of many GiB is not one part, which would wait whole in TMPDIR
_USUAL: Final = 16 * MIB  # bytes of a part, as in parts.py


def takes_orders(traits: StoreTraits) -> bool:
    """Whether several workers can upload an object: with parts of any size, and numbers with gaps."""
    return traits.part_gaps and not traits.equal_parts


@attrs.frozen
class OrderPlan:
    """How a container is cut into orders, and these into parts.

    Attributes:
        cuts: the orders.
        trailing: the volumes whose preludes stand behind all segments.
        parts: the part numbers of each order.
        sizes: the bytes from which on a part may be sent: an order's numbers suffice, and the store takes it.
        part_size: the bytes from which on it is.
        least: the least bytes of a part: what the store takes, and what a shard has at least.
    """

    cuts: tuple[OrderCut, ...]
    trailing: tuple[PlannedVolume, ...]
    parts: int
    sizes: range
    part_size: int
    least: int

    @property
    def identity(self) -> list[int]:
        """What two runs that go on with each other must share."""
        return [len(self.cuts), self.parts]

    def first_part(self, cut: OrderCut) -> int:
        """The number of an order's first part."""
        return cut.number * self.parts + 1

    def last_part(self, cut: OrderCut) -> int:
        """The number that an order's last part may have."""
        return self.first_part(cut) + self.parts - 1

    @property
    def tail_part(self) -> int:
        """The number of the part behind all orders."""
        return len(self.cuts) * self.parts + 1

    def bounds(self, planned: Plan) -> ObjectBounds:
        """The upper bounds for the object; each worker has one part in a file, and the one that it fills."""
        size, most = planned.most_bytes, self.part_size + self.least
        return ObjectBounds(
            size=size,
            part_size=self.part_size,
            parts=min(-(-size // self.part_size) + len(self.cuts), self.tail_part),
            spooled=min(2 * most, size) if most > SPOOL else 0,
        )

    @classmethod
    def of(cls, planned: Plan, traits: StoreTraits, part_size: int | None = None) -> OrderPlan:
        """Cut a container.

        Args:
            planned: the container.
            traits: what the store can do.
            part_size: the caller's size of parts; None for what fits.

        Raises:
            InvalidRequestError: the store takes too few parts, too small ones, or none of `part_size`.
        """
        length = order_length(planned.layout.blocks_per_segment)
        most = traits.most_parts - 1  # and one for the tail
        cuts, trailing = _cuts(planned, length)
        while len(cuts) * _LEAST_PARTS > most and length < planned.segments:
            length *= 2
            cuts, trailing = _cuts(planned, length)
        parts = most // max(1, len(cuts))
        if not parts:
            raise InvalidRequestError(
                f"the container has {len(cuts)} volumes and shards, and the store takes {most + 1} parts: "
                "leave out executor=, or give larger shards"
            )
        least = max(traits.least_part, MIN_PART)
        longest = max((len(cut.segments) for cut in cuts), default=0)
        most_bytes = longest * worst_segment(planned.layout) + planned.overhead + least
        # A part may get the beginning of the next one, which is too small for one.
        largest = traits.largest_part - least
        if largest < least:
            raise InvalidRequestError(
                f"the store takes parts of up to {sized(traits.largest_part)} only: leave out executor="
            )
        # The largest ones may be too small if nothing compresses: then an order fails.
        sizes = range(min(max(-(-most_bytes // parts), least), largest), largest + 1)
        size = min(max(_USUAL, sizes.start), sizes.stop - 1) if part_size is None else part_size
        if type(size) is not int or size not in sizes:
            raise InvalidRequestError(
                f"part_size must be a whole number from {sizes.start} to {sizes.stop - 1} for orders of "
                f"up to {sized(most_bytes)} in {parts} parts each, not {size!r}"
            )
        return cls(tuple(cuts), trailing, parts, sizes, size, least)


def _cuts(planned: Plan, length: int) -> tuple[list[OrderCut], tuple[PlannedVolume, ...]]:
    """The orders, and the volumes behind the last one.

    An order ends with its shard, too: PAD stands there, which depends on the bytes of several orders.
    """
    cuts: list[OrderCut] = []
    preludes: list[PlannedVolume] = []
    per_shard = planned.layout.segments_per_shard
    for volume in planned.volumes:
        preludes.append(volume)
        numbers = segment_numbers(planned, volume)
        start = numbers.start
        while start < numbers.stop:
            end = min(start + length, numbers.stop, (start // per_shard + 1) * per_shard)
            preceding, preludes = tuple(preludes), []
            cuts.append(
                OrderCut(number=len(cuts), volume=volume, segments=range(start, end), preludes=preceding)
            )
            start = end
    return cuts, tuple(preludes)


@attrs.frozen(kw_only=True)
class Stored:
    """What a worker answers.

    Attributes:
        records: the SEGD records of the order's segments.
        parts: the uploaded parts; none where all is too small for one.
        rest: all bytes of the order, where they are too small for a part.
    """

    records: list[bytes]
    parts: list[UploadedPart]
    rest: bytes


@attrs.frozen(kw_only=True, eq=False)
class StoreOrder(BlockOrder[Stored]):
    """Make and upload some segments.

    Attributes:
        to: the object's location.
        first: the number of the first order whose bytes are in it.
        upload_id: the upload's id.
        first_part: the number of the first part.
        last_part: the number that the last part may have.
        part_size: the bytes from which on a part is sent.
        least: the least bytes of a part.
        before: the bytes before the first segment: the front and preludes, and orders that were too small.
        encode: makes a segment.
    """

    to: Shared[ObjectLocation]
    first: int
    upload_id: str
    first_part: int
    last_part: int
    part_size: int
    least: int
    before: bytes = attrs.field(repr=False)
    encode: SegmentEncode

    def work(self) -> Stored:
        """Make the segments one after the other, and upload them meanwhile."""
        records: list[bytes] = []
        to = self.to.value
        begun: deque[Part] = deque()
        with closing(self._pieces(records)) as pieces:
            parts = order_parts(
                pieces, self.part_size, self.least, range(self.first_part, self.last_part + 1), begun
            )
            sent = [uploaded for _, uploaded in sent_parts(to, self.upload_id, parts, begun, None)]
        rest = b"".join(part.content() for part in begun)  # one at most, that is too small
        return Stored(records=records, parts=sent, rest=rest)

    def _pieces(self, records: list[bytes]) -> Generator[bytes, None, None]:
        """All bytes of the order; the records are told aside."""
        yield self.before
        with worker_pool(1, None) as pool:
            gets = BlockGets(limited(self.source.value, self.rate), None, pool.most)
            made = pool.map(self.encode, self.gets(gets), stop=gets.stop)
            with closing(made), gets:
                for encoded in made:
                    records.append(encoded.record)
                    yield encoded.record
                    yield from encoded.frames


def order_parts(
    pieces: Iterable[bytes], size: int, least: int, numbers: range, begun: deque[Part]
) -> Iterator[Part]:
    """Cut an order's bytes into parts of `size` bytes, or of up to `least` more where less would be left.

    Where all bytes are fewer than `least`, there is no part, and `begun` keeps them.

    Args:
        pieces: the bytes.
        size: the bytes of a part.
        least: the least bytes of a part.
        numbers: the numbers of the parts.
        begun: gets each part before its first byte.

    Raises:
        InvalidRequestError: there are more parts than numbers.
    """
    part = Part(numbers.start, size + least)
    begun.append(part)
    held: list[memoryview] = []  # behind a part of `size` bytes: fewer than `least`
    for piece in pieces:
        rest = memoryview(piece)
        if part.size < size:
            taken = rest[: size - part.size]
            part.add(taken)
            rest = rest[len(taken) :]
        if rest:
            held.append(rest)
        while sum(map(len, held)) >= least:
            yield part
            if part.number + 1 not in numbers:
                raise InvalidRequestError(
                    f"an order needs more than its {len(numbers)} parts of {sized(size)}, for too little "
                    "compresses: leave out executor="
                )
            part = Part(part.number + 1, size + least)
            begun.append(part)
            behind, held = held, []
            for rest in behind:
                taken = rest[: size - part.size]
                part.add(taken)
                if len(taken) < len(rest):
                    held.append(rest[len(taken) :])
    for rest in held:
        part.add(rest)
    if part.size >= least:
        yield part
