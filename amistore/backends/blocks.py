"""EBS's interfaces: `BlockSource` and `BlockSink`, in the verbs of the EBS direct APIs.

`docs/tutorial-backends.md` shows how to write one. The contract suites of `amistore.testing` check what
this module says. A method may raise any `BackendError`; other exceptions are wrapped in one, and each gets
the verb and the ids of its call (`interface.py`). Every method may be called from several threads at once.

A snapshot's id is ``snap-`` and 8 or 17 hexadecimal digits. A method that takes one raises
`NotFoundError` for a snapshot that was never there or was deleted, and for text of another form.
"""

from __future__ import annotations

import abc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
from typing_extensions import Buffer

from amistore.backends.interface import Interface, composed
from amistore.errors import BackendError, ChecksumMismatchError, SourceChangedError, foreign_errors
from amistore.model import Snapshot, Tag
from amistore.units import BLOCK_SIZE, GIB

__all__ = [
    "Block",
    "BlockPage",
    "BlockSink",
    "BlockSource",
    "BlockStore",
    "SnapshotBlock",
    "beginner",
    "check_answer",
    "check_digest",
]


@attrs.frozen
class Block:
    """A listed block: its index in the volume and the token to get it with."""

    block_index: int
    block_token: str = ""


@attrs.frozen(kw_only=True)
class BlockPage:
    """One answer of ListSnapshotBlocks.

    Attributes:
        volume_size: the volume's size in GiB, the same in every page.
        blocks: the listed blocks, ascending; a page may be short, or empty with a `next_token`.
        next_token: the token of the next page; None ends the list.
    """

    volume_size: int
    blocks: Sequence[Block]
    next_token: str | None = None


@attrs.frozen
class SnapshotBlock:
    """A block's content, 524,288 bytes, and its SHA-256 (32 raw bytes) where the source knows it.

    The digest is compared with the content before anything is stored.

    Attributes:
        content: the bytes.
        checksum: their SHA-256; None where the source does not know it.
        proved: whether the two were compared already, in this process, so that nobody needs to hash again.
    """

    content: Buffer
    checksum: bytes | None = None
    proved: bool = False


MOST_EMPTY_PAGES = 1000
"""In a row. EBS gives some where much of a volume was never written; a listing must end all the same."""


class BlockSource(Interface):
    """A source of snapshots: EBS's ListSnapshotBlocks and GetSnapshotBlock.

    Attributes:
        requests: how many blocks to ask for at once, where an answer takes its time. Each is asked for in a
            thread of its own, and has a buffer of its own. With 0 each worker asks for one after the other,
            and the source may use a buffer again.
        rate: the most gets a second that the workers of all orders make together; None for any number. Each
            order gets a share, which a `RetryingBackend` keeps.
        snapshot_rate: the most of them for one snapshot; None for any number.
    """

    requests: int = 0
    rate: float | None = None
    snapshot_rate: float | None = None

    @abc.abstractmethod
    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        """List the blocks that exist in a completed snapshot, a page at a time, ascending.

        A block of zeros that was put exists. A second listing equals the first.

        Args:
            snapshot_id: the id of a completed snapshot.
            next_token: the token from the page before; None for the first page.

        Raises:
            NotFoundError: no such snapshot.
            AmistoreError: the snapshot is pending; any class will do.
        """

    @abc.abstractmethod
    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        """Read one listed block: 524,288 bytes. Several threads ask for blocks, in any order.

        Args:
            snapshot_id: the id of a completed snapshot.
            block_index: the index of a listed block.
            block_token: the block's token from the listing.

        Raises:
            NotFoundError: no such snapshot.
        """

    @composed
    def pages(self, snapshot_id: str) -> Iterator[BlockPage]:
        """All pages of one listing, at least one, checked against each other.

        Raises:
            SourceChangedError: the pages contradict each other.
        """
        last, empty = -1, 0
        size = token = None
        while True:
            page = self.list_snapshot_blocks(snapshot_id, next_token=token)
            with foreign_errors("list_snapshot_blocks", snapshot_id=snapshot_id):
                last = _check_page(page, size, last)
                following = page.next_token
                empty = 0 if page.blocks else empty + 1
            yield page
            if following is None:
                return
            if empty > MOST_EMPTY_PAGES or (following == token and not page.blocks):
                raise BackendError(
                    "the listing makes no progress", operation="list_snapshot_blocks", snapshot_id=snapshot_id
                )
            size, token = page.volume_size, following


def _check_page(page: BlockPage, size: int | None, last: int) -> int:
    """Check a page against the volume's size and the last block before it; return its last block."""
    if type(page.volume_size) is not int or not 1 <= page.volume_size <= 65_536:
        raise BackendError(f"the listing gives a volume of {page.volume_size!r} GiB")
    if size not in (None, page.volume_size):
        raise SourceChangedError(f"the volume had {size} GiB and now has {page.volume_size}")
    end = page.volume_size * (GIB // BLOCK_SIZE)
    if not isinstance(page.blocks, Sequence):
        raise BackendError(f"a page's blocks are a {type(page.blocks).__name__}, not a sequence")
    for block in page.blocks:
        if not isinstance(block.block_token, str):
            raise BackendError(f"the token of block {block.block_index!r} is no string")
        if type(block.block_index) is not int or block.block_index <= last:
            raise BackendError(
                "block indexes must be whole numbers that ascend from 0, and "
                f"{block.block_index!r} was listed" + (f" after {last}" if last >= 0 else " first")
            )
        if block.block_index >= end:  # or a listing could go on for ever
            raise BackendError(f"block {block.block_index} lies outside the volume of {page.volume_size} GiB")
        last = block.block_index
    return last


def check_answer(answer: SnapshotBlock, snapshot_id: str, block_index: int) -> SnapshotBlock:
    """Refuse an answer that is no block of 524,288 bytes; it may have been cut on its way."""
    facts: Any = {
        "operation": "get_snapshot_block",
        "snapshot_id": snapshot_id,
        "block_index": block_index,
    }
    try:
        size = memoryview(answer.content).cast("B").nbytes
        if answer.checksum is not None and not isinstance(answer.checksum, bytes):
            raise TypeError(f"the checksum is a {type(answer.checksum).__name__}, not bytes")
    except TypeError as error:
        raise BackendError(f"the source gave no block: {error}", **facts) from error
    if size != BLOCK_SIZE:
        raise BackendError(
            f"the source gave {size} bytes for a block of {BLOCK_SIZE}", retryable=True, **facts
        )
    return answer


def beginner(service: object, begin: str, call: str) -> Callable[..., Any] | None:
    """The service's method that begins a call; None where it has none, or where `call` was changed since.

    A subclass, or an object, that overrides ``get_snapshot_block`` must see every call, also where its base
    could begin calls past it.

    Args:
        service: a source or a sink.
        begin: the name of the method that begins a call, ``"begin_get"`` or ``"begin_put"``.
        call: the name of the method that makes it.
    """
    if call in getattr(service, "__dict__", {}):
        return None
    for kind in type(service).__mro__:
        if begin in vars(kind):
            found: Callable[..., Any] = getattr(service, begin)
            return found
        if call in vars(kind):
            return None
    return None


def check_digest(block: SnapshotBlock, snapshot_id: str, block_index: int) -> SnapshotBlock:
    """Refuse a block that does not have the SHA-256 that its source gives."""
    if block.checksum is None:
        return block
    if block.checksum != hashlib.sha256(block.content).digest():
        raise ChecksumMismatchError(
            "the block's content does not have the SHA-256 that its source gives",
            retryable=True,
            operation="get_snapshot_block",
            snapshot_id=snapshot_id,
            block_index=block_index,
        )
    return attrs.evolve(block, proved=True)


class BlockSink(Interface):
    """A sink for snapshots: EBS's StartSnapshot, PutSnapshotBlock and CompleteSnapshot, and DeleteSnapshot.

    A refused call has no effect: the snapshot stays as it was, and can still be completed.

    Attributes:
        where: the sink's name, so that a resume log is not used with another sink; may be empty.
        requests: how many blocks to put at once, where a put takes its time, each in a thread of its own.
            With 0 each worker puts one after the other.
        rate: the most puts a second that the workers of all orders make together; None for any number, as in
            `BlockSource`.
        snapshot_rate: the most of them for one snapshot; None for any number.
    """

    where: str = ""
    requests: int = 0
    rate: float | None = None
    snapshot_rate: float | None = None

    @abc.abstractmethod
    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        """Begin a pending snapshot and return its id, which no other snapshot has had.

        Args:
            volume_size: the volume's size in GiB.
            description: the snapshot's description.
            tags: the snapshot's tags.
            client_token: a token of up to 64 characters. A second call with the same token returns the first
                call's snapshot, so a lost answer leaves no second snapshot.

        Raises:
            AmistoreError: the size is not 1 to 65,536 GiB; any class will do.
        """

    @abc.abstractmethod
    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        """Write a block of a pending snapshot, over its earlier content. Blocks come in any order.

        Args:
            snapshot_id: the id of a pending snapshot.
            block_index: the block's index, inside the volume.
            content: the block's 524,288 bytes, valid only during the call: copy what you keep.
            checksum: the SHA-256 of `content`, 32 raw bytes, to be verified.

        Raises:
            ChecksumMismatchError: `content` does not have that digest.
            NotFoundError: no such snapshot.
            AmistoreError: `content` has another size, the block lies outside the volume, or the snapshot is
                completed; any class will do.
        """

    @abc.abstractmethod
    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        """Make a pending snapshot readable, if it holds the right blocks.

        Where completing takes time, this only begins it, and `describe_snapshot` says when it ends. A second
        call with the same arguments succeeds.

        Args:
            snapshot_id: the id of a pending snapshot.
            changed_blocks_count: the number of distinct blocks written; a block written twice counts once.
            checksum: LINEAR, the SHA-256 over the blocks' raw digests in index order.

        Raises:
            ChecksumMismatchError: count or checksum differ from what was written.
            NotFoundError: no such snapshot.
        """

    @abc.abstractmethod
    def delete_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot, pending or completed.

        Raises:
            NotFoundError: no such snapshot.
        """

    def encrypts_snapshots(self) -> bool | None:
        """Whether new snapshots become encrypted; None where only starting one tells.

        It must agree with what `describe_snapshot` says of a new snapshot. Override it where it can be known.
        """
        return None

    def describe_snapshot(self, snapshot_id: str) -> Snapshot:
        """Describe a snapshot: its `state` is ``pending``, ``completed`` or ``error``.

        Override it where completing takes time, where restores are to be resumed, or where snapshots may be
        encrypted: a restore that leaves holes asks for `encrypted` after starting a snapshot.

        Raises:
            NotFoundError: no such snapshot.
        """
        return Snapshot(snapshot_id=snapshot_id, state="completed")

    @composed
    def wait_snapshot(self, snapshot_id: str) -> None:
        """Wait, without a limit, until a snapshot that is being completed is completed.

        Raises:
            BackendError: the snapshot went into the state ``error``.
        """
        pause = 0.1
        while (state := self.describe_snapshot(snapshot_id).state) != "completed":
            if state != "pending":
                raise BackendError(
                    f"the snapshot went into the state {state}",
                    snapshot_id=snapshot_id,
                    operation="wait_snapshot",
                )
            time.sleep(pause)
            pause = min(2 * pause, 15.0)  # as boto3's waiter snapshot_completed


class BlockStore(BlockSource, BlockSink):
    """EBS in both directions: a block that was put is listed, and read as it was put.

    `describe_snapshot` tells at least the volume's size, the description, the tags and the state.
    """
