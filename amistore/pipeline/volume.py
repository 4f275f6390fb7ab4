"""`Volume`: one disk of an archive, as a file to read or to write out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from bisect import bisect_right
from pathlib import Path

from amistore.backends import files
from amistore.backends.rangefile import RangeFile
from amistore.container import (
    DecodedBlock,
    FrameDecoder,
    IndexedVolume,
    Runs,
    SegmentDescriptor,
    decode_frame,
)
from amistore.errors import AlreadyExistsError, ArchiveError, CorruptArchiveError
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.reader import ContainerFile, LocatedSegment
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import BLOCK_SIZE

__all__ = ["Volume"]


class Volume:
    """One distinct snapshot in an archive.

    Attributes:
        snapshot_id: the snapshot it was stored from.
        size: in bytes, whole GiB.
        blocks: number of listed blocks of 524,288 bytes.
        content_id: what it holds and where, in hexadecimal; a restored copy has the same.
        linear: the LINEAR checksum of EBS, 32 raw bytes.
    """

    def __init__(self, container: ContainerFile, indexed: IndexedVolume, first_segment: int) -> None:
        self._container = container
        self._first = first_segment
        self._segments = indexed.segments
        self.snapshot_id = indexed.snapshot_id
        self.size = indexed.size
        self.blocks = indexed.blocks
        self.content_id = indexed.content_id.hex()
        self.linear = indexed.linear
        self._runs_digest = indexed.runs_digest

    def __repr__(self) -> str:
        return f"<Volume {self.snapshot_id}: {self.size >> 30} GiB, {self.blocks} blocks>"

    def open(self) -> io.RawIOBase:
        """The disk as a seekable binary file; holes read as zeros. One thread at a time."""
        return _VolumeFile(self)

    def extract(
        self,
        path: str | os.PathLike[str],
        *,
        workers: int | None = None,
        progress: ProgressCallback = None,
    ) -> None:
        """Write the disk to a new sparse raw file; holes stay holes.

        The file appears under its name only when it is whole and on the disk.

        Args:
            path: of the new file.
            workers: threads; None for the number of CPUs.
            progress: called with a `Progress` after each segment.

        Raises:
            AlreadyExistsError: the file exists.
            CorruptArchiveError: damaged bytes; no file is left.
            StorageFullError: no room, or the filesystem has no files of this size.
        """
        target = Path(path)
        with files.operation("extract"):
            if target.exists():
                raise AlreadyExistsError(f"{target} exists", operation="extract")
            with files.new_file(target) as descriptor:
                os.truncate(descriptor, self.size)
                self._write(descriptor, workers, progress)

    def _write(self, target: int, workers: int | None, progress: ProgressCallback) -> None:
        def write(sequence: int) -> SegmentDescriptor:
            segment = self._container.segment(sequence)
            for frame in range(len(segment.frame_contents)):
                for block in self._frame(segment, frame):
                    files.write_at(target, block.content, block.index * BLOCK_SIZE)
            return segment.descriptor

        linear = hashlib.sha256()
        runs: list[tuple[int, int]] = []
        done = 0
        sequences = range(self._first, self._first + self._segments)
        with (
            worker_pool(workers, None) as (pool, limit),
            contextlib.closing(ordered_map(pool, write, sequences, limit)) as segments,
        ):
            for descriptor in segments:
                linear.update(b"".join(descriptor.digests))
                runs.extend(descriptor.runs)
                done += descriptor.runs.blocks
                if progress is not None:
                    progress(
                        Progress(phase=Phase.EXTRACT, blocks=done, total_blocks=self.blocks, stored_bytes=0)
                    )
        # Each segment is proved by the index; this proves that the index's sums are theirs.
        if (done, linear.digest(), Runs(runs).digest()) != (self.blocks, self.linear, self._runs_digest):
            raise CorruptArchiveError(
                "the volume's blocks are not those that its content id stands for",
                record="INDX",
                snapshot_id=self.snapshot_id,
            )

    def _frame(self, segment: LocatedSegment, frame: int) -> list[DecodedBlock]:
        """The blocks of one frame of a segment, read, decoded and checked."""
        frames = segment.descriptor.frames
        offset = segment.offset + sum(entry.size for entry in frames[:frame])
        content = self._container.read(offset, frames[frame].size, "frame")
        try:
            return decode_frame(segment.descriptor, frame, content, segment.frame_contents, FrameDecoder())
        except ArchiveError as error:
            raise error.locate(offset=offset, snapshot_id=self.snapshot_id) from None

    def _blocks_around(self, index: int) -> dict[int, memoryview]:
        """The blocks of the frame that holds block `index`; none where it is not listed."""
        container = self._container.index
        end = self._first + self._segments
        sequence = bisect_right(container.firsts, index, self._first, end) - 1
        if sequence < self._first or index > container.lasts[sequence]:
            return {}
        segment = self._container.segment(sequence)
        ordinal = segment.descriptor.runs.ordinal(index)
        if ordinal is None:
            return {}
        frame = ordinal * BLOCK_SIZE // segment.frame_contents[0]
        return {block.index: block.content for block in self._frame(segment, frame)}


class _VolumeFile(RangeFile):
    """A volume as a read-only file that remembers the frame read last."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._blocks: dict[int, memoryview] = {}
        super().__init__(volume.size)

    def _fill(self, position: int, view: memoryview) -> int:
        """Read up to the end of the block that the position is in."""
        index, start = divmod(position, BLOCK_SIZE)
        length = min(len(view), BLOCK_SIZE - start)
        if index not in self._blocks:
            self._blocks = self._volume._blocks_around(index)
        block = self._blocks.get(index)
        view[:length] = bytes(length) if block is None else block[start : start + length]
        return length
