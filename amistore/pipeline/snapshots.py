"""The snapshots that a restore makes: started as their volumes come, completed together or deleted."""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Final

import attrs

from amistore.backends import BlockSink
from amistore.backends.checks import check_flags
from amistore.container.index import IndexedVolume
from amistore.container.plan import PlannedVolume
from amistore.container.runs import Runs
from amistore.container.segments import StoredSegment, decode_segment
from amistore.errors import (
    ArchiveError,
    BackendError,
    InvalidRequestError,
    InvalidValueError,
    LostBlocksError,
)
from amistore.model import Image, Snapshot, Tag
from amistore.pipeline.holes import FilledSum, HolePiece, Holes
from amistore.pipeline.orders import ORDER_BLOCKS, Cluster, Order, Orders, limited
from amistore.pipeline.pack import choose_snapshots
from amistore.pipeline.puts import BlockPuts, PutBatch
from amistore.pipeline.shared import Shared
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import BLOCK_SIZE, GIB, ZERO_DIGEST, sized

__all__ = [
    "HolePut",
    "RestorePolicy",
    "RestoredSnapshots",
    "SegmentPut",
    "WrittenVolume",
]


_logger = logging.getLogger("amistore")


def _by_id(snapshots: Iterable[str] | None) -> tuple[str, ...] | None:
    if snapshots is None:
        return None
    return tuple(sorted({snapshots} if isinstance(snapshots, str) else set(snapshots)))


@attrs.frozen(kw_only=True)
class RestorePolicy:
    """What a restore makes of an archive's snapshots.

    Attributes:
        expected: the only content id to accept; None for any.
        snapshots: the archived ids of the snapshots to make; None for all.
        tags: the tags to set on every new snapshot, over the stored ones.
        fill_holes: whether to put a block of zeros for each block that a snapshot does not list.
        holes_told: whether the caller knows that holes read as noise on encrypted volumes.
        allow_lost: whether to make snapshots with lost blocks, too.
    """

    expected: bytes | None = None
    snapshots: tuple[str, ...] | None = attrs.field(default=None, converter=_by_id)
    tags: tuple[Tag, ...] = ()
    fill_holes: bool = False
    holes_told: bool = False
    allow_lost: bool = False

    def __attrs_post_init__(self) -> None:
        check_flags(fill_holes=self.fill_holes, allow_lost=self.allow_lost)


@attrs.frozen
class WrittenVolume:
    """What was put of a snapshot: the archived id, the number of blocks, and LINEAR over their digests."""

    snapshot_id: str
    blocks: int
    linear: bytes


class RestoredSnapshots:
    """The new snapshots for those of a stored image.

    Args:
        image: the image of the container.
        sink: the sink that gets the new snapshots.
        policy: which of them are made, and how.

    Attributes:
        holes: the holes to fill, of what was begun, by the stored id.

    Raises:
        LostBlocksError: blocks of one were lost, without `allow_lost`.
    """

    def __init__(self, image: Image, sink: BlockSink, policy: RestorePolicy) -> None:
        image = image.with_tags(snapshot_tags=policy.tags)
        self._image = image
        self._sink = sink
        self._by_name = policy.snapshots is not None
        self._wanted = choose_snapshots(image, policy.snapshots)
        wanted = set(self._wanted)
        lossy = [s.snapshot_id for s in image.snapshots if s.lost_blocks and s.snapshot_id in wanted]
        if lossy and not policy.allow_lost:
            raise LostBlocksError(
                "the archive was recovered from a damaged one, and blocks of this snapshot were lost: "
                "allow_lost=True restores the rest",
                snapshot_id=lossy[0],
            )
        self._started: dict[str, str] = {}
        self._asked: Callable[[], str] | None = None  # for a snapshot, without an answer so far
        self._policy = policy
        self._told = policy.fill_holes or policy.holes_told
        self.holes: dict[str, Holes] = {}
        self._sums: dict[str, FilledSum] = {}

    def get(self, stored_id: str) -> str | None:
        """The new snapshot's id; None where it is not started or not wanted."""
        return self._started.get(stored_id)

    def has(self, snapshot_id: str | None) -> bool:
        """Whether a snapshot was started here."""
        return snapshot_id in self._started.values()

    def wanted(self, stored_id: str) -> bool:
        """Whether a snapshot is to be restored."""
        return stored_id in self._wanted

    def known(self, stored_id: str) -> Snapshot:
        """What the archive knows of a snapshot, with the tags to set."""
        return self._image.snapshot(stored_id)

    def begin(self, volume: PlannedVolume, *, client_token: str | None = None) -> str | None:
        """Start a volume's new snapshot, if it is wanted."""
        stored_id = volume.snapshot_id
        if stored_id not in self._wanted:
            return None
        known = self._image.snapshot(stored_id)
        self._asked = functools.partial(
            self._sink.start_snapshot,
            volume.size // GIB,
            description=known.description or "",
            tags=known.tags,
            client_token=client_token or secrets.token_hex(16),
        )
        try:
            started = self._asked()
        except BackendError as error:
            if type(error) is not BackendError and not error.retryable:
                self._asked = None  # it was refused, for a known reason
            raise
        again = started in self._started.values()
        self._started[stored_id] = started
        self._asked = None
        try:
            Snapshot(snapshot_id=started)
        except InvalidValueError as error:
            raise BackendError(f"the sink gave no snapshot id: {error}", operation="start_snapshot") from None
        if again:
            raise BackendError(f"the sink gave {started} twice", operation="start_snapshot")
        if self._policy.fill_holes:
            holes = self.holes[stored_id] = Holes.of(volume, known.lost_blocks)
            self._sums[stored_id] = FilledSum(holes)
        return started

    def warn_of_holes(self, volume: PlannedVolume) -> None:
        """Log, once, that holes will read as noise, if a volume's new snapshot is encrypted."""
        snapshot_id = self._started.get(volume.snapshot_id)
        blocks = Holes.of(volume, self._image.snapshot(volume.snapshot_id).lost_blocks).blocks
        if self._told or snapshot_id is None or not blocks:
            return
        # What StartSnapshot has made of it: an account may encrypt whatever was asked for.
        self._told = self._sink.describe_snapshot(snapshot_id).encrypted is True
        if self._told:
            _logger.warning(
                "%s is restored encrypted as %s, and %s of it are holes, which read as noise on an encrypted "
                "volume: fill_holes=True puts zeros into all holes of this restore",
                volume.snapshot_id,
                snapshot_id,
                sized(blocks * BLOCK_SIZE),
            )

    def add(self, stored_id: str, runs: Runs, digests: Sequence[bytes]) -> None:
        """Count a segment's blocks for its new snapshot; each volume's segments come in order."""
        if stored_id in self._sums:
            self._sums[stored_id].add(runs, digests)

    @property
    def hole_blocks(self) -> int:
        """The number of blocks that `fill` puts, in all started snapshots."""
        return sum(holes.blocks for holes in self.holes.values())

    def filling(
        self,
        workers: int | None,
        cluster: Cluster | None,
        most: int,
        filled: Callable[[str], int] = lambda stored_id: 0,
    ) -> Generator[tuple[HolePiece, int], None, None]:
        """Put zeros into the holes of the started snapshots, if that is wanted.

        Yields the pieces in order, each with the number of blocks filled so far.

        Args:
            workers: the number of pieces worked on at once; None for the number of CPUs.
            cluster: who fills them by orders; None for threads of this process.
            most: the most blocks of a piece, in this process.
            filled: a function that returns the block index, by the archived id, before which all holes are
                filled.
        """
        done = self.filled_before(filled)
        if cluster is None:
            put = self._filled(workers, self.pieces(most, filled))
        else:
            put = self._filled_by_orders(cluster, self.pieces(ORDER_BLOCKS, filled))
        with closing(put):
            for piece in put:
                done += piece.blocks
                yield piece, done

    def _filled(self, workers: int | None, pieces: Iterator[HolePiece]) -> Generator[HolePiece, None, None]:
        with worker_pool(workers, None) as pool:
            puts = BlockPuts(self._sink, None)
            items = ((piece, puts.batch()) for piece in pieces)
            put = pool.map(HolePut(self._sink), items, stop=puts.stop)
            with closing(put), puts:
                for piece in put:
                    puts.landed()
                    yield piece

    def _filled_by_orders(
        self, cluster: Cluster, pieces: Iterator[HolePiece]
    ) -> Generator[HolePiece, None, None]:
        sink, rate = Shared(self._sink), cluster.share(self._sink, -(-self.hole_blocks // ORDER_BLOCKS))
        orders = (
            _FillOrder(number=number, sink=sink, piece=piece, rate=rate)
            for number, piece in enumerate(pieces)
        )
        with Orders[HolePiece](cluster, self._sink) as out, closing(out.map(orders)) as ended:
            for _, piece in ended:
                yield piece

    def pieces(self, most: int, filled: Callable[[str], int]) -> Iterator[HolePiece]:
        """The holes that are not filled, in pieces of so many blocks; `filled` as in `filling`."""
        for stored_id, holes in self.holes.items():
            for ranges in holes.pieces(filled(stored_id), most):
                yield HolePiece(stored_id, self._started[stored_id], ranges)

    def filled_before(self, filled: Callable[[str], int]) -> int:
        """The number of blocks of holes that are filled already; `filled` as in `filling`."""
        return sum(holes.before(filled(stored_id)) for stored_id, holes in self.holes.items())

    def complete(self, volumes: Iterable[IndexedVolume | WrittenVolume]) -> None:
        """Complete the started snapshots once the whole container has verified, and wait for them."""
        waiting = []
        for volume in volumes:
            snapshot_id = self._started.get(volume.snapshot_id)
            if snapshot_id is not None:
                blocks, linear = volume.blocks, volume.linear
                if volume.snapshot_id in self._sums:
                    blocks, linear = self._sums[volume.snapshot_id].end()
                self._sink.complete_snapshot(snapshot_id, blocks, linear)
                waiting.append(snapshot_id)
        for snapshot_id in waiting:
            self._sink.wait_snapshot(snapshot_id)

    def undo(self) -> bool:
        """Delete every started snapshot, and return whether all are gone; any other is logged by id."""
        gone = True
        interrupt: BaseException | None = None
        for snapshot_id in (*self._started.values(), None):
            try:
                if snapshot_id is not None:
                    self._sink.delete_snapshot(snapshot_id)
                elif self._asked is not None:  # begun, it may be: for the same token the sink tells its id
                    self._sink.delete_snapshot(self._asked())
            except BaseException as error:  # the others are deleted all the same
                left = f"{snapshot_id} is" if snapshot_id else "that was being started may be"
                _logger.error("snapshot %s left behind, delete it: %s", left, error)
                gone = False
                interrupt = interrupt if isinstance(error, Exception) else error
        if interrupt is not None:
            raise interrupt
        return gone

    def image(self) -> Image:
        """The stored image on its new snapshots.

        Raises:
            InvalidRequestError: a snapshot that was asked for by name is not in the archive.
        """
        absent = sorted(set(self._wanted) - set(self._started)) if self._by_name else []
        if absent:
            raise InvalidRequestError(
                f"{absent[0]} is mapped by the image, but was not packed into this archive",
                code="InvalidSnapshot.NotFound",
            )
        for snapshot_id in self._image.snapshot_ids:
            if snapshot_id not in self._started:
                _logger.warning("leaving out the mapping of %s: its snapshot was not restored", snapshot_id)
        return self._image.with_snapshots(self._started)


_ZEROS: Final = bytes(BLOCK_SIZE)


@attrs.frozen
class SegmentPut:
    """Decode a segment, prove each of its blocks and put it; without a snapshot only prove them.

    Picklable. Puts in flight go to the item's batch, which is waited for once the item's result is there.
    """

    sink: BlockSink

    def __call__(self, item: tuple[StoredSegment, str | None, PutBatch | None]) -> int:
        """Take a segment, the new snapshot of its volume, and a batch; give the number of its blocks."""
        stored, snapshot_id, batch = item
        put = self.sink.put_snapshot_block if batch is None else batch.put
        try:
            for block in decode_segment(stored):
                if snapshot_id is not None:
                    put(snapshot_id, block.index, block.content, block.digest)
        except ArchiveError:
            if batch is not None:
                batch.wait()  # the error of a block before this one comes first
            raise
        return stored.located.descriptor.runs.blocks


@attrs.frozen
class HolePut:
    """Put a block of zeros for each of a piece of holes."""

    sink: BlockSink

    def __call__(self, item: tuple[HolePiece, PutBatch | None]) -> HolePiece:
        """Take the piece and a batch, and give the piece back."""
        piece, batch = item
        put = self.sink.put_snapshot_block if batch is None else batch.put
        for start, count in piece.ranges:
            for index in range(start, start + count):
                put(piece.snapshot_id, index, _ZEROS, ZERO_DIGEST)
        return piece


@attrs.frozen(kw_only=True, eq=False)
class _FillOrder(Order[HolePiece]):
    """Fill some holes with zeros.

    Attributes:
        sink: the sink that has the snapshot.
        piece: the holes.
        rate: the most puts a second.
    """

    sink: Shared[BlockSink]
    piece: HolePiece
    rate: float | None

    def work(self) -> HolePiece:
        sink = limited(self.sink.value, self.rate)
        puts = BlockPuts(sink, None)
        with puts:
            HolePut(sink)((self.piece, puts.batch()))
            puts.landed()
        return self.piece
