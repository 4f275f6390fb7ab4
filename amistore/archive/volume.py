"""`Volume`: one disk of an archive, to read, extract and plot."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from amistore.archive.extraction import Extraction, extract
from amistore.archive.reader import ContainerFile
from amistore.archive.volumefile import VolumeFile
from amistore.archive.volumereader import VolumeReader
from amistore.backends.checks import check_flags
from amistore.container.identity import parse_content_id
from amistore.errors import advising
from amistore.model import BlockRange
from amistore.pipeline.progress import ProgressOption, reporting
from amistore.pipeline.workers import closing
from amistore.text import printable
from amistore.units import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Volume"]


class Volume:
    """One distinct snapshot in an archive.

    Attributes:
        snapshot_id: the archived snapshot's id.
        device_names: the names of its devices, in the order of the mappings.
        size: the size in bytes, a whole number of GiB.
        blocks: the number of listed blocks, of 524,288 bytes each.
        content_id: the volume's content id, in hexadecimal, which stands for its blocks and their indexes; a
            restored copy has the same.
        linear: EBS's LINEAR checksum, 32 raw bytes.
        lost_blocks: the blocks of a recovered archive that could not be recovered.
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

    def open(self, *, workers: int | None = None) -> io.RawIOBase:
        """Open the disk as a seekable binary file; holes read as zeros, lost blocks raise `LostBlocksError`.

        For reads in order, threads read ahead until the file is closed: as far as one `read` reaches, and a
        quarter of what was read in order before it. One thread at a time may use the file; open the disk
        again for another. All share the archive's cache.

        Args:
            workers: the number of threads that read ahead; None for the number of CPUs.
        """
        return VolumeFile(self._reader, workers=workers)

    def extract(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        format: str = "raw",
        overwrite: bool = False,
        resume: bool = False,
        allow_lost: bool = False,
        expected_content_id: str | None = None,
        workers: int | None = None,
        progress: ProgressOption = None,
    ) -> None:
        """Write the disk to a new sparse raw file or one of another format, a block device, or a stream.

        A file keeps its holes, and gets its name once it is whole and on the disk. On a device holes are
        written as zeros. A stream gets every byte in order.

        Args:
            target: a path, whose links are followed, or a binary file, which you close yourself.
            format: ``"raw"``; or for a new file ``"qcow2"``, ``"vmdk"`` (stream-optimized), ``"vhd"``,
                ``"vhdx"`` or ``"vdi"``, which qemu-img writes: it must be installed. These have no `resume`
                and no `allow_lost`.
            overwrite: whether to replace a file that exists; needed for a block device.
            resume: whether to keep an interrupted or failed extraction in ``<name>.part`` beside the file.
                The next call proves and resumes it.
            allow_lost: whether to extract a volume with `lost_blocks`. A text in their place says that they
                were lost; for a file, ``<target>.map`` (ddrescue's map file) lists them.
            expected_content_id: the archive's only content id to accept, 64 hexadecimal digits; None for any.
                It is compared before anything is written. The volume's blocks are proved to be those that it
                stands for before the file appears, and before a stream gets its first byte; a device has them
                by then.
            workers: the number of threads; None for the number of CPUs.
            progress: True for a bar (extra ``progress``), or a function that is called with a `Progress`
                after each segment.

        Raises:
            AlreadyExistsError: the target is a file that exists or a device, without `overwrite`.
            NotFoundError: the target's folder does not exist.
            InvalidRequestError: the target is a folder, the archive itself, or a device too small; or the
                format is unknown, not for this target, or needs qemu-img.
            BackendError: the target, the archive or qemu-img failed, or another extraction writes to the
                target.
            CorruptArchiveError: the archive is damaged; without `resume` no file is left.
            LostBlocksError: blocks were lost, without `allow_lost`.
            StorageFullError: the target has no room, or its filesystem takes no file of this size.
        """
        check_flags(overwrite=overwrite, resume=resume, allow_lost=allow_lost)
        if isinstance(target, (str, os.PathLike)):
            target = os.path.realpath(target)  # a link stays, what it leads to is written
        with reporting(progress) as report, advising():
            how = Extraction(
                overwrite=overwrite,
                resume=resume,
                allow_lost=allow_lost,
                expected=parse_content_id(expected_content_id),
                workers=workers,
                progress=report,
                format=format,
            )
            extract(self._reader, target, how)

    def listed(self, *, workers: int | None = None) -> Iterator[BlockRange]:
        """The listed blocks, ascending, as ranges; no range goes beyond its segment."""
        with closing(self._reader.descriptors(workers)) as descriptors:
            for descriptor in descriptors:
                for first, count in descriptor.runs:
                    yield BlockRange(first_block=first, block_count=count)

    def plot(self, axes: Axes | None = None, *, workers: int | None = None) -> Axes:
        """Plot data, zeros, holes and lost blocks by their place, and how well each place compresses.

        It needs matplotlib (``amistore[plot]``), and reads descriptors only.

        Args:
            axes: the axes to draw into; None for new ones.
            workers: the number of threads; None for the number of CPUs.

        Returns:
            The axes, to save or to change.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from amistore.archive.blockmap import plot

        return plot(self._reader, axes, workers)
