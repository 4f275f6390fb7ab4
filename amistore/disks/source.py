"""`DiskSource`: a disk image, or a block device, as a source of blocks."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol

import attrs
from typing_extensions import Self

from amistore.backends import Block, BlockPage, BlockSource, SnapshotBlock, files
from amistore.backends.checks import check_path
from amistore.container.layout import MAX_VOLUME_GIB
from amistore.container.runs import Runs
from amistore.disks.headers import FORMATS
from amistore.disks.qemu import open_image
from amistore.disks.rawdisk import open_disk
from amistore.disks.signatures import SECTOR, refuse_foreign
from amistore.errors import InvalidRequestError, NotFoundError, SourceChangedError
from amistore.text import printable
from amistore.units import BLOCK_SIZE, GIB, sized

__all__ = ["Disk", "DiskSource", "Format", "Zeros"]

_logger = logging.getLogger("amistore")

Format = Literal["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"]
Zeros = Literal["listed", "unlisted"]

_PAGE: Final = 10_000  # blocks, as many as a page of EBS has at most
_ZEROS: Final = bytes(BLOCK_SIZE)


class Disk(Protocol):
    """A disk that is open.

    Attributes:
        size: the size in bytes.
    """

    size: int

    @property
    def state(self) -> tuple[int, ...]:
        """What tells that it is the same, and unchanged."""
        ...

    def blocks(self) -> Iterator[int]:
        """The indexes of the blocks that are no holes, ascending."""
        ...

    def read(self, index: int) -> bytes:
        """A block, filled up with zeros behind the disk's end."""
        ...

    def check(self) -> None:
        """Refuse a disk that changed since it was opened."""
        ...


@attrs.define(eq=False)
class _OpenDisk:
    """A disk that is open, what closes it, and what was found out of it.

    Attributes:
        zeros: the blocks of zeros that were read.
    """

    disk: Disk
    volume_size: int
    closing: contextlib.ExitStack
    runs: Runs | None = None
    zeros: set[int] = attrs.field(factory=set)


class DiskSource(BlockSource):
    """A disk image, or a block device, as the source of one snapshot's blocks.

    It is opened as it is first used, and refused once somebody writes to it: a write is noticed by the size
    and the times of change. A write through mmap goes unnoticed on tmpfs, and one by another machine may on a
    network filesystem. A context manager that closes it. Any number of threads.

    The volume reads as zeros behind the disk's end, as in EBS. Holes of the file are blocks that are not
    listed. Parts that were allocated and never written (``fallocate``) are listed like written zeros, if the
    filesystem tells of them (FIEMAP: ext4, XFS, btrfs and others; not tmpfs, NFS); a block device has no
    holes.

    Args:
        path: the path of the image, or of a block device that is not in use.
        format: the image's format; None for that of the path's suffix, ``.qcow2``, ``.vmdk``, ``.vhd``,
            ``.vhdx`` or ``.vdi``, and for raw without one of these. Those other than raw are read by qemu
            (qemu-utils), once their header was judged: an image that names another file is refused.
            ``"raw"`` takes the bytes as they are, also if the file looks like another format.
        volume_size: the volume's size in GiB; None for the disk's, rounded up.
        zeros: the treatment of blocks that hold only zeros: ``"listed"`` keeps them, ``"unlisted"`` leaves
            them out, for which the disk is read twice. On an encrypted EBS volume a block that is not listed
            reads as noise.

    Attributes:
        path: the path.
        snapshot_id: the id that the source gives its snapshot, the same for every disk.

    Raises:
        InvalidRequestError: an argument is none of these; or, as it is opened, the disk is empty, larger than
            the volume, in use, or has another format.
        BackendError: (as it is opened) the disk cannot be read.
    """

    snapshot_id: Final = f"snap-{1:017x}"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: Format | None = None,
        volume_size: int | None = None,
        zeros: Zeros = "listed",
    ) -> None:
        self.path: Path = check_path(path, "disk")
        if format not in (None, "raw", *FORMATS):
            raise InvalidRequestError(f"format is raw, {', '.join(FORMATS)} or None, not {format!r}")
        if zeros not in ("listed", "unlisted"):
            raise InvalidRequestError(f'zeros is "listed" or "unlisted", not {zeros!r}')
        if volume_size is not None and (
            type(volume_size) is not int or not 1 <= volume_size <= MAX_VOLUME_GIB
        ):
            raise InvalidRequestError(
                f"volume_size is a whole number of GiB from 1 to {MAX_VOLUME_GIB}, not {volume_size!r}"
            )
        self._format = format
        self._wanted = volume_size
        self._zeros = zeros
        self._lock = threading.Lock()
        self._open: _OpenDisk | None = None
        self._state: tuple[int, ...] | None = None  # of the disk that another process has opened

    def __repr__(self) -> str:
        return f"DiskSource({str(self.path)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # What another process opens must be what was listed here.
        return _remake, (self.path, self._format, self._wanted, self._zeros, self._opened().disk.state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the disk; the next use opens it again."""
        with self._lock:
            opened, self._open = self._open, None
        if opened is not None:
            opened.closing.close()

    def check(self) -> None:
        """Refuse a disk that changed since it was opened.

        Raises:
            SourceChangedError: it did.
        """
        with files.operation("import", path=self.path):
            self._opened().disk.check()

    @property
    def volume_size(self) -> int:
        """The volume's size in GiB; it opens the disk."""
        return self._opened().volume_size

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        opened = self._opened(snapshot_id)
        runs = self._runs(opened)
        start = 0 if next_token is None else self._place(next_token, runs.blocks)
        end = min(start + _PAGE, runs.blocks)
        listed = runs.slice(start, end - start).indexes() if start < end else ()
        return BlockPage(
            volume_size=opened.volume_size,
            blocks=[Block(index) for index in listed],
            next_token=str(end) if end < runs.blocks else None,
        )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        opened = self._opened(snapshot_id)
        if self._runs(opened).ordinal(block_index) is None:
            raise NotFoundError(
                f"{self.path} has no block {block_index}",
                operation="get_snapshot_block",
                snapshot_id=snapshot_id,
                block_index=block_index,
            )
        with files.operation("import", path=self.path):
            return SnapshotBlock(self._read(opened, block_index))

    def log_zeros(self) -> None:
        """Log how many zeros the blocks held that were read, and what became of them."""
        opened = self._opened()
        if opened.zeros:
            kept = self._zeros == "listed"
            done = 'are listed; zeros="unlisted" leaves them out' if kept else "are left out"
            _logger.info(
                "%s: %s of zeros %s", printable(self.path.name), sized(len(opened.zeros) * BLOCK_SIZE), done
            )

    def _read(self, opened: _OpenDisk, index: int) -> bytes:
        content = opened.disk.read(index)
        if content == _ZEROS:
            opened.zeros.add(index)
        return content

    def _place(self, token: str, blocks: int) -> int:
        if not (token.isascii() and token.isdecimal() and len(token) < 12 and int(token) < blocks):
            raise InvalidRequestError(f"{token!r:.40} is no token of this disk")
        return int(token)

    def _runs(self, opened: _OpenDisk) -> Runs:
        """The listed blocks, found out once."""
        with self._lock:
            if opened.runs is None:
                with files.operation("import", path=self.path):
                    opened.runs = Runs.of_blocks(self._listed(opened))
            return opened.runs

    def _listed(self, opened: _OpenDisk) -> Iterator[int]:
        for index in opened.disk.blocks():
            if self._zeros == "listed" or self._read(opened, index) != _ZEROS:
                yield index

    def _opened(self, snapshot_id: str = snapshot_id) -> _OpenDisk:
        if snapshot_id != self.snapshot_id:
            raise NotFoundError(
                f"{self.path} is {self.snapshot_id}, and no other snapshot",
                operation="list_snapshot_blocks",
                snapshot_id=snapshot_id,
            )
        with self._lock:
            if self._open is None:
                with files.operation("import", path=self.path), contextlib.ExitStack() as stack:
                    disk = stack.enter_context(self._opening())
                    if self._state not in (None, disk.state):
                        raise SourceChangedError(
                            f"{self.path} is not what another process has opened: stop what writes to it"
                        )
                    self._open = _OpenDisk(disk, self._size(disk), stack.pop_all())
            return self._open

    @contextlib.contextmanager
    def _opening(self) -> Iterator[Disk]:
        suffix = self.path.suffix[1:].lower()
        if self._format in FORMATS or (self._format is None and suffix in FORMATS):
            with open_image(self.path, self._format or suffix) as image:
                yield image
            return
        with open_disk(self.path) as disk:
            if self._format is None:
                refuse_foreign(self.path, *disk.ends(SECTOR))
            yield disk

    def _size(self, disk: Disk) -> int:
        size = -(-disk.size // GIB)
        if size > MAX_VOLUME_GIB:
            raise InvalidRequestError(f"{self.path} has {size} GiB, and a volume {MAX_VOLUME_GIB} at most")
        if self._wanted is not None and self._wanted < size:
            raise InvalidRequestError(f"{self.path} needs {size} GiB, more than volume_size={self._wanted}")
        return self._wanted or size


def _remake(
    path: Path, format: Format | None, volume_size: int | None, zeros: Zeros, state: tuple[int, ...]
) -> DiskSource:
    """A source in another process."""
    source = DiskSource(path, format=format, volume_size=volume_size, zeros=zeros)
    source._state = state
    return source
