"""`OrderedUpload`: a container becomes an object by orders, whose workers upload their own parts.

No byte of a part passes here, but what is too small for one: orders of fewer bytes than the store takes as a
part are joined, or made once more with the next order. The index comes of the records that workers answer, in
order; the log has them as they come. A resumed run gives the orders that the log, the plan and the upload's
own list do not confirm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import attrs

from amistore.backends import BlockSource, ObjectLocation, UploadedPart
from amistore.backends.locations import ObjectRanges
from amistore.container.encoder import ContainerWriter, EncodedSegment
from amistore.container.plan import Plan
from amistore.container.records import SegmentDescriptor
from amistore.container.segments import check_segment
from amistore.errors import InvalidRequestError, SourceChangedError
from amistore.objects.multipart import LoggedUpload, StoredArchive
from amistore.objects.partlog import ByOrders, order_entry
from amistore.objects.resumelog import ResumeLog, read_entry
from amistore.objects.store_orders import OrderPlan, Stored, StoreOrder
from amistore.objects.upload import check_end, check_object, logged_segments, upload_identity
from amistore.pipeline.block_orders import BlockOrder, BlockOrders
from amistore.pipeline.orders import Cluster, Order
from amistore.pipeline.packing import SegmentEncode, WrittenArchive, check_size
from amistore.pipeline.progress import Phase, Progress, ProgressCallback, untold
from amistore.pipeline.shared import Shared
from amistore.pipeline.tokens import OrderCut

__all__ = ["OrderedUpload"]


@attrs.frozen
class _Made:
    """What an order made.

    Attributes:
        records: the SEGD records of its segments.
        parts: its parts; none where its bytes are too small, or in the parts of other orders.
        rest: its bytes where they are too small.
        joined: whether they are in the parts of other orders.
    """

    records: list[bytes]
    parts: list[UploadedPart]
    rest: bytes = b""
    joined: bool = False


@attrs.define
class _Small:
    """Consecutive orders that are together too small for a part: the first one, bytes and records."""

    first: int = 0
    content: bytearray = attrs.field(factory=bytearray)
    records: list[bytes] = attrs.field(factory=list)

    def add(self, number: int, made: _Made, pad: bytes) -> None:
        """Add an order that follows."""
        if not self.records:
            self.first = number
        self.content += made.rest
        self.content += pad
        self.records += made.records


class OrderedUpload:
    """One run of packing into an object by orders, or one that resumes another."""

    def __init__(
        self,
        planned: Plan,
        source: BlockSource,
        encode: SegmentEncode,
        to: ObjectLocation,
        log: ResumeLog | None,
        part_size: int | None,
        cluster: Cluster,
    ) -> None:
        self._plan = plan = OrderPlan.of(planned, to.store.traits, part_size)
        identity, changed = upload_identity(planned, encode, part_size, plan.identity)
        self._upload = LoggedUpload(to, log, "pack", plan.part_size, identity, changed, form=ByOrders())
        self._planned = planned
        self._source = Shared(source)
        self._to = Shared(to)
        self._encode = encode
        self._rate = cluster.share(source, len(plan.cuts))
        self._orders = BlockOrders(cluster, planned, source, plan.cuts, self._order, late=self._log)
        self._writer = ContainerWriter(planned, encode.level)  # in order, without the segments' frames
        self._ahead = ContainerWriter(planned, encode.level)  # for what stands before segments
        self._small = _Small()
        self._made: dict[int, _Made] = {}  # orders that are done, and not in the index
        self._blocks = self._bytes = 0
        self._progress: ProgressCallback = untold
        self._written: WrittenArchive

    def run(
        self,
        metadata: Mapping[str, str],
        tags: Mapping[str, str] | None,
        *,
        overwrite: bool,
        workers: int | None,
        progress: ProgressCallback,
    ) -> StoredArchive:
        """Pack into the object; see `store` for the arguments and errors."""
        self._progress = progress

        def make(missing: bool) -> None:
            with self._orders:
                self._written = self._make(missing=missing)

        def check(ranges: ObjectRanges, new: bool) -> None:
            if self._upload.carried:
                check_object(ranges, self._planned, self._planned.segments, workers)
            check_end(ranges, self._written.size, self._written.foot)

        info = self._upload.run(metadata, tags, make, check, overwrite=overwrite)
        content_id = self._written.content_id.hex()
        return StoredArchive(location=self._upload.to, size=info.size, etag=info.etag, content_id=content_id)

    def _carried(self) -> dict[int, _Made]:
        """The orders that the log has."""
        made: dict[int, _Made] = {}
        for entry in self._upload.carried:
            first, last = read_entry(entry)["orders"]
            cuts = self._plan.cuts[first : last + 1]
            if last >= len(self._plan.cuts):
                raise InvalidRequestError("the resume log is damaged: it has orders beyond the plan")
            start, count = cuts[0].segments.start, sum(len(cut.segments) for cut in cuts)
            logged = logged_segments(entry, self._planned, start, count)
            records = [each.record for each in logged]
            parts = self._upload.form.parts(entry)
            self._blocks += sum(each.descriptor.runs.blocks for each in logged)
            self._bytes += sum(part.size for part in parts)
            for cut in cuts:
                own, records = records[: len(cut.segments)], records[len(cut.segments) :]
                is_last = cut.number == last
                made[cut.number] = _Made(own, parts if is_last else [], joined=not is_last or not parts)
        return made

    def _make(self, *, missing: bool) -> WrittenArchive:
        """Have all orders done, and send the tail, unless the upload is completed already."""
        upload, plan = self._upload, self._plan
        self._made = self._carried()
        if upload.part_size not in plan.sizes:
            raise InvalidRequestError("the resume log is damaged: its orders' parts cannot have its size")
        absent = [cut.number for cut in plan.cuts if cut.number not in self._made]
        if absent and not missing:
            raise InvalidRequestError(
                "the resume log is damaged: it lacks orders of the object that was made"
            )
        if self._made:
            self._tell()
        parts = [part for cut in plan.cuts for part in self._parts(cut)]
        start = self._writer.offset
        trailing = self._trailing()
        tail = self._writer.tail()
        if missing:
            if self._small.content:
                upload.log.append(order_entry(self._small.first, len(plan.cuts) - 1, [], self._small.records))
            parts.append(self._send(plan.tail_part, b"".join((self._small.content, *trailing, *tail))))
            upload.parts = parts
            upload.confirm()
        end = start + sum(map(len, (*trailing, *tail)))
        return WrittenArchive(end, self._writer.content_id, tail[-1])

    def _parts(self, cut: OrderCut) -> list[UploadedPart]:
        """Take the next order into the index; return the parts that have come with it."""
        made = self._await(cut.number)
        if self._small.content and made.joined:
            raise InvalidRequestError("the resume log is damaged: its joined orders lack the first one")
        if self._small.content and made.parts:
            made = self._join(cut, made)
        pad = self._index(cut, made.records)
        self._orders.forget(cut.number)
        if made.parts or made.joined:
            return made.parts
        self._small.add(cut.number, made, pad)
        return [self._send_small(cut.number)] if len(self._small.content) >= self._plan.least else []

    def _await(self, number: int) -> _Made:
        """What an order made."""
        while number not in self._made:
            self._take(*self._orders.ended(number, self._made))
        return self._made.pop(number)

    def _order(self, cut: OrderCut) -> StoreOrder:
        front = self._ahead.front() if cut.number == 0 else []
        preludes = [piece for volume in cut.preludes for piece in self._ahead.volume(volume)]
        return StoreOrder(
            number=cut.number,
            source=self._source,
            snapshot_id=cut.volume.snapshot_id,
            segments=tuple(map(self._planned.segment, cut.segments)),
            rate=self._rate,
            to=self._to,
            first=cut.number,
            upload_id=self._upload.upload_id,
            first_part=self._plan.first_part(cut),
            last_part=self._plan.last_part(cut),
            part_size=self._upload.part_size,
            least=self._plan.least,
            before=b"".join((*front, *preludes)),
            encode=self._encode,
        )

    def _take(self, order: BlockOrder[Stored], stored: Stored) -> None:
        """Log what an order made, and tell of it."""
        self._log(order, stored)
        self._made[order.number] = _Made(stored.records, stored.parts, stored.rest)
        if cast(StoreOrder, order).first == order.number:
            self._blocks += sum(segment.runs.blocks for segment in order.segments)
            self._bytes += sum(part.size for part in stored.parts) + len(stored.rest)
        self._tell()

    def _log(self, order: Order[Stored], stored: Stored) -> None:
        """Log the parts that an order made, also one that ended too late for the index."""
        first = cast(StoreOrder, order).first
        if stored.parts:
            before = self._small.records if first < order.number else []
            self._upload.log.append(
                order_entry(first, order.number, stored.parts, [*before, *stored.records])
            )

    def _tell(self) -> None:
        total = self._planned.blocks
        self._progress(
            Progress(phase=Phase.PACK, blocks=self._blocks, total_blocks=total, stored_bytes=self._bytes)
        )

    def _join(self, cut: OrderCut, made: _Made) -> _Made:
        """Have an order done once more, with the bytes before it that are too small for a part.

        Its parts get the numbers of the first of them, which had none: a store may take a number once.
        """
        first, content = self._small.first, bytes(self._small.content)
        number = self._plan.first_part(self._plan.cuts[first])

        def join(order: BlockOrder[Stored]) -> StoreOrder:
            alone = cast(StoreOrder, order)
            return attrs.evolve(alone, first=first, first_part=number, before=content + alone.before)

        self._orders.again(cut, join)
        joined = self._await(cut.number)
        if joined.records != made.records:
            raise SourceChangedError(
                "the source gives other blocks each time", snapshot_id=cut.volume.snapshot_id
            )
        self._small = _Small()
        return joined

    def _send_small(self, last: int) -> UploadedPart:
        """Send orders that are together large enough for a part."""
        small, self._small = self._small, _Small()
        sent = self._send(self._plan.first_part(self._plan.cuts[small.first]), bytes(small.content))
        self._upload.log.append(order_entry(small.first, last, [sent], small.records))
        return sent

    def _send(self, number: int, content: bytes) -> UploadedPart:
        to = self._upload.to
        return to.store.upload_part(to.bucket, to.key, self._upload.upload_id, number, content)

    def _index(self, cut: OrderCut, records: list[bytes]) -> bytes:
        """Take an order's segments into the index; return the PAD behind them, where its shard is small."""
        if cut.number == 0:
            self._writer.front()
        for volume in cut.preludes:
            self._writer.volume(volume)
        pieces: list[bytes] = []
        for sequence, record in zip(cut.segments, records, strict=True):
            descriptor = SegmentDescriptor.parse(record)
            check_segment(descriptor, self._planned.segment(sequence))
            pieces = self._writer.segment(EncodedSegment(descriptor, record, []))
        check_size(self._writer.offset)
        return b"".join(pieces[1:])

    def _trailing(self) -> list[bytes]:
        """What stands behind the segments, before the tail: of a container without any all of it."""
        front = [] if self._plan.cuts else self._writer.front()
        return [*front, *(piece for volume in self._plan.trailing for piece in self._writer.volume(volume))]
