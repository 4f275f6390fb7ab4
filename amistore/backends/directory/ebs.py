"""Snapshots as folders: ``<snapshot id>/disk.raw``, sparse, ``digests`` and ``snapshot.json``.

``digests`` has 32 bytes for each block of the volume, in order: the block's SHA-256, or zeros if the block
does not exist. So a listed block of zeros and a hole differ, and rot is found on reading. ``linear.json`` has
the number of blocks and LINEAR, so that none can vanish. A pending snapshot has ``digests.pending`` instead;
completing renames it, so a snapshot is pending or completed whenever a process dies. Safe for several
processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import checks, files
from amistore.backends.blocks import Block, BlockPage, BlockStore, SnapshotBlock
from amistore.backends.extents import extents
from amistore.backends.locking import FileLock
from amistore.errors import BackendError, ChecksumMismatchError, NotFoundError
from amistore.model import Snapshot, Tag
from amistore.model.fields import to_wire
from amistore.units import BLOCK_SIZE, GIB, MIB

__all__ = ["DirectoryEBS"]

_DIGESTS = {"pending": "digests.pending", "completed": "digests"}
_DIGEST_SIZE = 32
_ABSENT = bytes(_DIGEST_SIZE)  # no block has this SHA-256


@attrs.frozen
class DirectoryEBS(BlockStore):
    """EBS in the folder `root`.

    Attributes:
        root: the folder that holds a folder for each snapshot.
        page_size: the number of blocks in a page of ListSnapshotBlocks.
        where: the sink's name, as in `BlockSink`.
    """

    root: Path
    page_size: int = 10_000
    where: str = ""
    # What this process began. A power cut may have taken blocks of the others, and left their digests.
    _begun: set[str] = attrs.field(factory=set, init=False, eq=False, repr=False)

    def encrypts_snapshots(self) -> bool:
        return False

    def describe_snapshot(self, snapshot_id: str) -> Snapshot:
        """What is known of a snapshot."""
        with files.operation("describe_snapshot", snapshot_id=snapshot_id):
            folder = self._folder(snapshot_id)
            described = files.read_value(folder / "snapshot.json", Snapshot)
            if described is None:
                raise NotFoundError("no such snapshot")
            return attrs.evolve(described, state=_state(folder))

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        with (
            files.operation("list_snapshot_blocks", snapshot_id=snapshot_id),
            self._open(snapshot_id, "completed") as (disk_file, digests),
        ):
            if next_token is None:
                _check_digests(self.root / snapshot_id, digests)
            written = islice(_written(digests, _index(next_token or "0")), self.page_size + 1)
            indexes = [index for index, _ in written]
            return BlockPage(
                volume_size=os.fstat(disk_file).st_size // GIB,
                blocks=[Block(index) for index in indexes[: self.page_size]],
                next_token=str(indexes[-1]) if len(indexes) > self.page_size else None,
            )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        with (
            files.operation("get_snapshot_block", snapshot_id=snapshot_id, block_index=block_index),
            self._open(snapshot_id, "completed") as (disk_file, digests),
        ):
            digest = b""
            if block_index >= 0:
                digest = os.pread(digests, _DIGEST_SIZE, block_index * _DIGEST_SIZE)
            if len(digest) < _DIGEST_SIZE or digest == _ABSENT:
                raise NotFoundError("no such block")
            content = os.pread(disk_file, BLOCK_SIZE, block_index * BLOCK_SIZE)
            if len(content) < BLOCK_SIZE:
                raise BackendError(f"{snapshot_id}/disk.raw is damaged: it ends too soon")
            return SnapshotBlock(content, digest)

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        checks.check_volume_size(volume_size)
        described = Snapshot(
            snapshot_id=_token_id(client_token) if client_token is not None else checks.new_id("snap"),
            volume_size=volume_size,
            description=description,
            tags=tuple(tags),
        )
        folder = self.root / described.snapshot_id
        with files.operation("start_snapshot", path=self.root, snapshot_id=described.snapshot_id):
            if client_token is not None and folder.exists():
                return described.snapshot_id
            # Made out of sight, so that no id leads to half of a snapshot.
            hidden = folder.with_name(f".{described.snapshot_id}.{secrets.token_hex(4)}.tmp")
            hidden.mkdir()
            with forks.undoing(lambda _: shutil.rmtree(hidden, ignore_errors=True)):
                (hidden / _DIGESTS["pending"]).touch()
                with (hidden / "disk.raw").open("wb") as disk_file:
                    disk_file.truncate(volume_size * GIB)
                files.write_json(hidden / "snapshot.json", to_wire(described))
                try:
                    hidden.rename(folder)
                except OSError:
                    if client_token is None or not folder.exists():
                        raise
                    shutil.rmtree(hidden)  # another call with the token was faster
                files.sync_directory(self.root)
        self._begun.add(described.snapshot_id)
        return described.snapshot_id

    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        with (
            files.operation(
                "put_snapshot_block", path=self.root, snapshot_id=snapshot_id, block_index=block_index
            ),
            # Completing holds the folder alone, so no put is half done then.
            FileLock(self._folder(snapshot_id), shared=True),
            self._open(snapshot_id, "pending", os.O_WRONLY) as (disk_file, digests),
        ):
            volume_size = os.fstat(disk_file).st_size // GIB
            checks.check_block(snapshot_id, volume_size, block_index, content, checksum)
            files.write_at(disk_file, content, block_index * BLOCK_SIZE)
            files.write_at(digests, checksum, block_index * _DIGEST_SIZE)

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        with (
            files.operation("complete_snapshot", path=self.root, snapshot_id=snapshot_id),
            FileLock(folder := self._folder(snapshot_id)),
        ):
            completed_with = {"blocks": changed_blocks_count, "linear": checksum.hex()}
            if _state(folder) == "completed" and files.read_json(folder / "linear.json") == completed_with:
                return
            with self._open(snapshot_id, "pending") as (disk_file, digests):
                checks.check_complete(snapshot_id, dict(_written(digests)), changed_blocks_count, checksum)
                os.fsync(disk_file)
                os.fsync(digests)
                if snapshot_id not in self._begun:
                    _check_blocks(disk_file, digests)
            files.write_json(folder / "linear.json", completed_with)
            (folder / _DIGESTS["pending"]).rename(folder / _DIGESTS["completed"])
            files.sync_directory(folder)

    def delete_snapshot(self, snapshot_id: str) -> None:
        with files.operation("delete_snapshot", snapshot_id=snapshot_id):
            folder = self._folder(snapshot_id)
            self._begun.discard(snapshot_id)
            # First out of sight, so that a crash leaves no half snapshot under a valid id.
            hidden = folder.with_name(f".{snapshot_id}.deleted")
            folder.rename(hidden)
            files.remove(hidden)
            files.sync_directory(self.root)

    def _folder(self, snapshot_id: str) -> Path:
        """The folder of an id; refuse text that is no snapshot's id."""
        checks.check_snapshot_id(snapshot_id)
        return self.root / snapshot_id

    @contextlib.contextmanager
    def _open(self, snapshot_id: str, state: str, flags: int = os.O_RDONLY) -> Iterator[tuple[int, int]]:
        """Open the disk and the digests of a snapshot that must be in this state."""
        # Plain strings and calls: this is done for every block.
        folder = f"{self._folder(snapshot_id)}"
        try:
            digests = files.open_regular(f"{folder}/{_DIGESTS[state]}", flags)
        except FileNotFoundError:
            if not Path(folder).exists():
                raise NotFoundError("no such snapshot") from None
            raise BackendError(f"the snapshot is {_state(Path(folder))}, not {state}") from None
        try:
            disk_file = files.open_regular(f"{folder}/disk.raw", flags)
            try:
                yield disk_file, digests
            finally:
                os.close(disk_file)
        finally:
            os.close(digests)


def _token_id(client_token: str) -> str:
    """The snapshot's id for a client token: the same for the same token."""
    return "snap-" + hashlib.sha256(client_token.encode()).hexdigest()[:17]


def _state(folder: Path) -> str:
    return "completed" if (folder / _DIGESTS["completed"]).exists() else "pending"


def _check_digests(folder: Path, digests: int) -> None:
    """Refuse a list of blocks that is not what the snapshot was completed with."""
    count, linear = 0, hashlib.sha256()
    for _, digest in _written(digests):
        linear.update(digest)
        count += 1
    if files.read_json(folder / "linear.json") != {"blocks": count, "linear": linear.hexdigest()}:
        raise ChecksumMismatchError(f"{folder.name}/digests is damaged: it is not what was completed")


def _check_blocks(disk_file: int, digests: int) -> None:
    """Refuse blocks that do not have their digests: writes may reach the disk in any order."""
    for index, digest in _written(digests):
        content = os.pread(disk_file, BLOCK_SIZE, index * BLOCK_SIZE)
        if hashlib.sha256(content).digest() != digest:
            raise ChecksumMismatchError(
                "the disk does not have the block that was put, as after a power cut: restore again",
                block_index=index,
            )


def _index(token: str) -> int:
    if not token.isascii() or not token.isdecimal() or len(token) > 10:
        raise BackendError(f"{token[:40]!r} is no page token")
    return int(token)


def _written(digests: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
    """The index and digest of each block that exists, from an index on, ascending."""
    size = os.fstat(digests).st_size
    for start, end in extents(digests, size, first * _DIGEST_SIZE):
        for position in range(start, end, 1 * MIB):
            content = os.pread(digests, min(1 * MIB, end - position), position)
            if len(content) < min(1 * MIB, end - position):
                raise BackendError("digests is damaged: it ends too soon")
            for offset in range(0, len(content), _DIGEST_SIZE):
                digest = content[offset : offset + _DIGEST_SIZE]
                if digest != _ABSENT:
                    yield (position + offset) // _DIGEST_SIZE, digest
