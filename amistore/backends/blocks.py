"""EBS's interfaces: `BlockSource` and `BlockSink`, in the verbs of the EBS direct APIs.

`docs/tutorial-backends.md` shows how to write one. What is said here the contract suites of
`amistore.testing` check. A method may raise any `BackendError`; other exceptions are wrapped in
one, and each gets the verb and the ids of its call (`interface.py`). Every method may be called from
several threads at once.

A snapshot's id is ``snap-`` and 8 or 17 hexadecimal digits. A method that takes one raises
`NotFoundError` for a snapshot that was never there or was deleted, and for text of another form.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from typing_extensions import Buffer

from amistore.backends.interface import Interface, composed
from amistore.errors import BackendError, SourceChangedError, foreign_errors
from amistore.model import Snapshot, Tag
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["Block", "BlockPage", "BlockSink", "BlockSource", "BlockStore", "SnapshotBlock", "check_answer"]


@attrs.frozen
class Block:
    """A listed block: its index in the volume and the token to get it with."""

    block_index: int
    block_token: str = ""


@attrs.frozen(kw_only=True)
class BlockPage:
    """One answer of ListSnapshotBlocks.

    Attributes:
        volume_size: in GiB, the same in every page.
        blocks: ascending; a page may be short, or empty with a `next_token`.
        next_token: asks for the next page; None ends the list.
    """

    volume_size: int
    blocks: Sequence[Block]
    next_token: str | None = None


@attrs.frozen
class SnapshotBlock:
    """A block's content, 524,288 bytes, and its SHA-256 (32 raw bytes) where the source knows it.

    The digest is compared with that of the content before anything is stored.
    """

    content: Buffer
    checksum: bytes | None = None


MOST_EMPTY_PAGES = 1000
"""In a row. EBS gives some where much of a volume was never written; a listing must end all the same."""


class BlockSource(Interface):
    """Where snapshots are read from: EBS's ListSnapshotBlocks and GetSnapshotBlock."""

    @abc.abstractmethod
    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        """List the blocks that exist in a completed snapshot, a page at a time, ascending.

        A block of zeros that was put exists. A second listing is like the first.

        Args:
            snapshot_id: a completed snapshot.
            next_token: that of the page before; None for the first page.

        Raises:
            NotFoundError: no such snapshot.
            AmistoreError: of any kind, the snapshot is pending.
        """

    @abc.abstractmethod
    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        """Read one listed block: 524,288 bytes. Blocks are asked for in any order, by several threads.

        Args:
            snapshot_id: a completed snapshot.
            block_index: a listed one.
            block_token: that the listing gave with it.

        Raises:
            NotFoundError: no such snapshot.
        """

    @composed
    def pages(self, snapshot_id: str) -> Iterator[BlockPage]:
        """All pages of one listing, at least one, checked against each other.

        Raises:
            SourceChangedError: pages that contradict each other.
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
    """Compare a page with the volume's size and the last block of those before it; gives its last block."""
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
    """Refuse a block that has not 524,288 bytes, and may have been cut on its way, or is none."""
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


class BlockSink(Interface):
    """Where snapshots are written to: EBS's Start-, Put- and CompleteSnapshot, and DeleteSnapshot.

    A call that is refused has no effect: the snapshot stays as it was, and can be completed right.

    Attributes:
        where: names the place, so that a resume log is not used with another; may be empty.
    """

    where: str = ""

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
            volume_size: in GiB.
            description: of the snapshot.
            tags: of the snapshot.
            client_token: up to 64 characters; a call with the token of an earlier one gives
                the snapshot that one began, so a lost answer leaves no second snapshot.

        Raises:
            AmistoreError: of any kind, the size is not 1 to 65,536 GiB.
        """

    @abc.abstractmethod
    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        """Write a block of a pending snapshot, over what it held. Blocks come in any order.

        Args:
            snapshot_id: a pending snapshot.
            block_index: inside the volume.
            content: 524,288 bytes, valid only during the call: copy what you keep.
            checksum: SHA-256 of `content`, 32 raw bytes, to be verified.

        Raises:
            ChecksumMismatchError: `content` does not have that digest.
            NotFoundError: no such snapshot.
            AmistoreError: of any kind, `content` has another size, the block lies outside of the volume,
                or the snapshot is completed.
        """

    @abc.abstractmethod
    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        """Make a pending snapshot readable, if it holds what was meant.

        Where that takes time, this only begins it, and `describe_snapshot` tells the end.
        Doing it again with the same arguments is fine.

        Args:
            snapshot_id: a pending snapshot.
            changed_blocks_count: number of distinct blocks written; one written again counts once.
            checksum: LINEAR, SHA-256 over the blocks' raw digests in index order.

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
        """Whether snapshots that are started here become encrypted; None where only starting one tells.

        What `describe_snapshot` says of a snapshot that is started must agree.

        Override it where it can be known.
        """
        return None

    def describe_snapshot(self, snapshot_id: str) -> Snapshot:
        """What is known of a snapshot: `state` is ``pending``, ``completed`` or ``error``.

        Override it where completing takes time, where a restore shall be resumed, or where
        snapshots may be encrypted: a restore that leaves holes asks for `encrypted` after starting one.

        Raises:
            NotFoundError: no such snapshot.
        """
        return Snapshot(snapshot_id=snapshot_id, state="completed")

    @composed
    def wait_snapshot(self, snapshot_id: str) -> None:
        """Wait until a snapshot whose completion was begun is completed, however long that takes.

        Raises:
            BackendError: it went into the state ``error``.
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
    """EBS: both directions. What was put is listed, and read as it was put.

    `describe_snapshot` gives at least the volume's size, the description, the tags and the state.
    """
