"""Snapshots as folders: ``<snapshot id>/disk.raw`` sparse, ``blocks`` and ``snapshot.json``.

``blocks`` has an entry per block written, its index (8 bytes, little-endian) and SHA-256,
so that a listed block of zeros and a hole differ and rot is found on reading. While a
snapshot is pending it is a log, appended to after each block; the last entry of an index
counts. Completing writes it anew, sorted. Safe for several processes.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import attrs
from typing_extensions import Buffer

from amistore.backends import checks
from amistore.backends.base import Block, BlockPage, BlockStore, SnapshotBlock
from amistore.backends.directory import files
from amistore.errors import BackendError
from amistore.model import Snapshot, Tag
from amistore.model.fields import from_wire, to_wire
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["DirectoryEBS"]

_ENTRY = struct.Struct("<Q32s")
_ID = re.compile(r"snap-[0-9a-f]{8,17}")


@attrs.frozen
class DirectoryEBS(BlockStore):
    """EBS in the folder `root`.

    Attributes:
        root: holds a folder per snapshot.
        page_size: blocks in a page of ListSnapshotBlocks.
    """

    root: Path
    page_size: int = 10_000

    def describe(self, snapshot_id: str) -> Snapshot:
        """What is known of a snapshot."""
        folder = self._folder(snapshot_id, "describe_snapshots")
        members = files.read_json(folder / "snapshot.json")
        if members is None:
            raise checks.no_snapshot(snapshot_id, "describe_snapshots")
        return from_wire(Snapshot, members)

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        with files.operation("list_snapshot_blocks", snapshot_id=snapshot_id):
            described = self._in_state(snapshot_id, "list_snapshot_blocks", "completed")
            start = int(next_token or 0)
            with (self._path(snapshot_id) / "blocks").open("rb") as log:
                log.seek(start * _ENTRY.size)
                content = log.read(self.page_size * _ENTRY.size)
                more = bool(log.read(1))
        # The token is the place of the block's entry in `blocks`.
        blocks = [
            Block(index, str(place)) for place, (index, _) in enumerate(_ENTRY.iter_unpack(content), start)
        ]
        return BlockPage(
            volume_size=described.volume_size or 0,
            blocks=blocks,
            next_token=str(start + len(blocks)) if more else None,
        )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        folder = self._folder(snapshot_id, "get_snapshot_block")
        entry = content = b""
        with files.operation("get_snapshot_block", snapshot_id=snapshot_id, block_index=block_index):
            try:
                entry = _read_at(folder / "blocks", int(block_token) * _ENTRY.size, _ENTRY.size)
                content = _read_at(folder / "disk.raw", block_index * BLOCK_SIZE, BLOCK_SIZE)
            except FileNotFoundError:
                raise checks.no_snapshot(snapshot_id, "get_snapshot_block") from None
            except ValueError:
                pass  # a token of another listing's making
        if len(entry) != _ENTRY.size or _ENTRY.unpack(entry)[0] != block_index:
            raise BackendError(
                "the block token is not valid", snapshot_id=snapshot_id, block_index=block_index
            )
        return SnapshotBlock(content, _ENTRY.unpack(entry)[1])

    def start_snapshot(self, volume_size: int, *, description: str = "", tags: Sequence[Tag] = ()) -> str:
        checks.check_volume_size(volume_size)
        described = Snapshot(
            snapshot_id=checks.new_id("snap"),
            volume_size=volume_size,
            description=description,
            tags=tuple(tags),
        )
        folder = self._path(described.snapshot_id)
        with files.operation("start_snapshot", snapshot_id=described.snapshot_id):
            folder.mkdir()
            try:
                (folder / "blocks").touch()
                with (folder / "disk.raw").open("wb") as disk:
                    disk.truncate(volume_size * GIB)
                self._describe(described, "pending")
                files.sync_directory(self.root)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return described.snapshot_id

    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        with files.operation("put_snapshot_block", snapshot_id=snapshot_id, block_index=block_index):
            folder = self._folder(snapshot_id, "put_snapshot_block")
            try:
                disk = os.open(folder / "disk.raw", os.O_WRONLY)
            except FileNotFoundError:
                raise checks.no_snapshot(snapshot_id, "put_snapshot_block") from None
            try:
                # A completed snapshot's disk is read-only, but not to root: the log's name tells.
                log = os.open(folder / "blocks", os.O_WRONLY | os.O_APPEND)
                try:
                    if os.fstat(log).st_mode & 0o200 == 0:
                        raise BackendError("the snapshot is completed, not pending", snapshot_id=snapshot_id)
                    volume_size = os.fstat(disk).st_size // GIB
                    checks.check_block(snapshot_id, volume_size, block_index, content, checksum)
                    files.write_at(disk, content, block_index * BLOCK_SIZE)
                    # One write of 40 bytes to a file opened for append is never interleaved.
                    os.write(log, _ENTRY.pack(block_index, checksum))
                finally:
                    os.close(log)
            finally:
                os.close(disk)

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        with files.operation("complete_snapshot", snapshot_id=snapshot_id):
            described = self._in_state(snapshot_id, "complete_snapshot", "pending")
            folder = self._path(snapshot_id)
            log = (folder / "blocks").read_bytes()
            blocks = dict(_ENTRY.iter_unpack(log[: len(log) // _ENTRY.size * _ENTRY.size]))
            checks.check_complete(snapshot_id, blocks, changed_blocks_count, checksum)
            with (folder / "disk.raw").open("rb") as disk:
                os.fsync(disk.fileno())
            with files.temporary(folder / "blocks") as name:
                with name.open("wb") as sorted_log:
                    sorted_log.write(b"".join(_ENTRY.pack(i, blocks[i]) for i in sorted(blocks)))
                    sorted_log.flush()
                    os.fsync(sorted_log.fileno())
                    os.fchmod(sorted_log.fileno(), 0o400)
                name.replace(folder / "blocks")
            (folder / "disk.raw").chmod(0o400)
            self._describe(described, "completed")

    def delete_snapshot(self, snapshot_id: str) -> None:
        folder = self._folder(snapshot_id, "delete_snapshot")
        with files.operation("delete_snapshot", snapshot_id=snapshot_id):
            if not folder.is_dir():
                raise checks.no_snapshot(snapshot_id, "delete_snapshot")
            # First out of sight, so that a crash leaves no half snapshot under a valid id.
            hidden = folder.with_name(f".{snapshot_id}.deleted")
            folder.rename(hidden)
            shutil.rmtree(hidden)
            files.sync_directory(self.root)

    def _describe(self, described: Snapshot, state: str) -> None:
        path = self._path(described.snapshot_id) / "snapshot.json"
        files.write_json(path, {**to_wire(described), "State": state})

    def _in_state(self, snapshot_id: str, operation: str, state: str) -> Snapshot:
        described = self.describe(snapshot_id)
        if described.state != state:
            raise BackendError(
                f"the snapshot is {described.state}, not {state}",
                operation=operation,
                snapshot_id=snapshot_id,
            )
        return described

    def _folder(self, snapshot_id: str, operation: str) -> Path:
        """The folder of an id that may come from anywhere."""
        if not isinstance(snapshot_id, str) or not _ID.fullmatch(snapshot_id):
            raise checks.no_snapshot(snapshot_id, operation)
        return self._path(snapshot_id)

    def _path(self, snapshot_id: str) -> Path:
        return self.root / snapshot_id


def _read_at(path: Path, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
