"""`Volume`: one disk of an archive, to read, to write out, and to look at."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from amistore.archive.extraction import extract
from amistore.archive.reader import ContainerFile
from amistore.archive.volumefile import VolumeFile
from amistore.archive.volumereader import VolumeReader
from amistore.container.identity import parse_content_id
from amistore.errors import advising
from amistore.model import BlockRange
from amistore.pipeline.progress import ProgressOption, reporting
from amistore.text import printable
from amistore.units import MIB, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Volume"]


class Volume:
    """One distinct snapshot in an archive.

    Attributes:
        snapshot_id: the snapshot it was stored from.
        device_names: that it is mapped as, in the order of the mappings.
        size: in bytes, whole GiB.
        blocks: number of listed blocks of 524,288 bytes.
        content_id: what it holds and where, in hexadecimal; a restored copy has the same.
        linear: the LINEAR checksum of EBS, 32 raw bytes.
        lost_blocks: what could not be recovered, in a recovered archive.
    """

    def __init__(self, container: ContainerFile, number: int) -> None:
        self._reader = VolumeReader(container, number)
        indexed = self._reader.indexed
        self.snapshot_id = indexed.snapshot_id
        self.device_names = container.image.device_names(self.snapshot_id)
        self.size = indexed.size
        self.blocks = indexed.blocks
        self.content_id = indexed.content_id.hex()
        self.linear = indexed.linear
        self.lost_blocks = self._reader.lost_blocks

    def __repr__(self) -> str:
        lost = f", {sum(each.block_count for each in self.lost_blocks)} LOST" if self.lost_blocks else ""
        name = printable(" ".join([*self.device_names, self.snapshot_id]))
        return f"<Volume {name}: {self.size >> 30} GiB, {counted(self.blocks, 'block')}{lost}>"

    def open(self, *, cache_size: int = 32 * MIB, workers: int | None = None) -> io.RawIOBase:
        """The disk as a seekable binary file; holes read as zeros, lost blocks raise.

        What is read in order is read ahead by threads, which end when the file is closed. The
        file is for one thread at a time; open it again for another.

        Args:
            cache_size: bytes of decoded frames that are kept.
            workers: threads that read ahead; None for the number of CPUs.
        """
        return VolumeFile(self._reader, cache_size=cache_size, workers=workers)

    def extract(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        overwrite: bool = False,
        resume: bool = False,
        allow_lost: bool = False,
        expected_content_id: str | None = None,
        workers: int | None = None,
        progress: ProgressOption = None,
    ) -> None:
        """Write the disk to a new sparse raw file, a block device, or a writable stream.

        In a file holes stay holes, and it appears under its name only when it is whole and on
        the disk. On a device holes are written as zeros. A stream gets every byte in order.

        Args:
            target: a path, of which links are followed, or a binary file that stays yours to close.
            overwrite: replace a file that exists; needed for a block device.
            resume: keep what is there when it fails or is interrupted, in ``<name>.part``
                beside the file, and go on from there, after proving it, when called again.
            allow_lost: also where `lost_blocks` is not empty. They are filled with a text
                that says so, and beside a file ``<target>.map`` (ddrescue's map file) lists them.
            expected_content_id: of the archive: refuse another, before anything is written; 64 hexadecimal
                digits. The volume's blocks are proved to be those that it stands for before the file
                appears, and before a stream gets its first byte; a device has them by then.
            workers: threads; None for the number of CPUs.
            progress: True for a bar (extra ``progress``), or a function that is called with a `Progress`
                after each segment.

        Raises:
            AlreadyExistsError: the file exists, or a device without `overwrite`.
            NotFoundError: the target's folder does not exist.
            InvalidRequestError: the target is a folder, the archive itself, or a device too small.
            BackendError: the target or the archive failed, or another extraction is at it.
            CorruptArchiveError: damaged bytes; without `resume` no file is left.
            LostBlocksError: blocks were lost, without `allow_lost`.
            StorageFullError: no room, or the filesystem has no files of this size.
        """
        if isinstance(target, (str, os.PathLike)):
            target = os.path.realpath(target)  # a link stays, what it leads to is written
        with reporting(progress) as report, advising():
            extract(
                self._reader,
                target,
                overwrite=overwrite,
                resume=resume,
                allow_lost=allow_lost,
                expected=parse_content_id(expected_content_id),
                workers=workers,
                progress=report,
            )

    def listed(self, *, workers: int | None = None) -> Iterator[BlockRange]:
        """The listed blocks, ascending, as ranges that end where segments end at the latest."""
        with contextlib.closing(self._reader.descriptors(workers)) as descriptors:
            for descriptor in descriptors:
                for first, count in descriptor.runs:
                    yield BlockRange(first_block=first, block_count=count)

    def plot(self, axes: Axes | None = None, *, workers: int | None = None) -> Axes:
        """Draw what is where: data, zeros, holes and lost blocks, and how well each place compresses.

        Needs matplotlib (``amistore[plot]``). Reads descriptors only.

        Args:
            axes: to draw into; None for new ones.
            workers: threads; None for the number of CPUs.

        Returns:
            The axes, to save or to change.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from amistore.archive.blockmap import plot

        return plot(self._reader, axes, workers)
