"""Extracts a volume to a sparse raw file, a block device or a stream.

Each worker loads and proves a segment, and writes its blocks at their places. The index alone says what a
worker may write to: from the end of the segment before to its own end.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs

from amistore.archive.conversion import check_format, convert
from amistore.archive.lostmap import map_path, write_map
from amistore.archive.volumefile import VolumeFile
from amistore.archive.volumereader import VolumeReader, VolumeSums
from amistore.backends import files
from amistore.backends.extents import blocks_of, extents
from amistore.backends.locking import FileLock
from amistore.container.identity import check_content_id
from amistore.container.records import SegmentDescriptor
from amistore.container.runs import Runs
from amistore.container.segments import StoredSegment, decode_segment
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    InvalidRequestError,
    LostBlocksError,
    foreign_errors,
)
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.requests import Reads
from amistore.pipeline.workers import closing, worker_pool
from amistore.units import BLOCK_SIZE, MIB

__all__ = ["LOST_BLOCK", "Extraction", "extract", "extract_all"]

_NOTE = b"amistore: this block was lost before this disk was recovered\n"
LOST_BLOCK = (_NOTE * (BLOCK_SIZE // len(_NOTE) + 1))[:BLOCK_SIZE]
"""What stands for a lost block in a disk: neither data nor zeros, and readable."""

_BLKZEROOUT = 0x127F  # linux/fs.h


@attrs.frozen(kw_only=True)
class Extraction:
    """How volumes are extracted; the attributes are arguments of `Volume.extract`."""

    overwrite: bool
    resume: bool
    allow_lost: bool
    expected: bytes | None
    workers: int | None
    progress: ProgressCallback
    format: str = "raw"

    def __attrs_post_init__(self) -> None:
        check_format(self.format, resume=self.resume, allow_lost=self.allow_lost)


def extract(volume: VolumeReader, target: str | os.PathLike[str] | BinaryIO, how: Extraction) -> None:
    """As `Volume.extract`, but refuse a link in the target's place."""
    check_content_id(volume.container.index.content_id, how.expected)
    check_lost(volume, how.allow_lost)
    if not isinstance(target, (str, os.PathLike)):
        writable = getattr(target, "writable", None)
        if not hasattr(target, "write") or (callable(writable) and not writable()):
            raise InvalidRequestError(
                f"extract writes to a path or a binary file open for writing, not to {type(target).__name__}"
            )
        _check_raw(how, "a stream")
        if how.expected is not None:  # what was written cannot be taken back: each block is proved by these
            for _ in volume.descriptors(how.workers):
                pass
        _to_stream(volume, target, how)
        return
    path = Path(target)
    with files.operation("extract", path=path):
        writing = _Writing(volume, how)
        if os.path.lexists(path) and stat.S_ISBLK(path.lstat().st_mode):
            _check_raw(how, "a block device")
            if not how.overwrite:
                raise AlreadyExistsError(f"{path} is a block device: overwrite=True replaces its content")
            _to_device(writing, path)
            return
        files.check_target(path, overwrite=how.overwrite)
        with contextlib.suppress(OSError, ValueError):  # not every archive has a path
            if path.samefile(volume.container.name):
                raise InvalidRequestError(f"{path} is the archive itself")
        if how.format != "raw":
            convert(
                volume,
                path,
                how.format,
                overwrite=how.overwrite,
                workers=how.workers,
                progress=how.progress,
            )
            return
        if volume.lost_blocks:
            files.check_target(map_path(path), overwrite=how.overwrite or how.resume)
        _to_file(writing, path)


def _check_raw(how: Extraction, target: str) -> None:
    if how.format != "raw":
        raise InvalidRequestError(f"format={how.format!r} is for a new file: to {target} only raw is written")


def extract_all(
    manifest: bytes,
    volumes: Sequence[VolumeReader],
    root: Path,
    how: Extraction,
) -> list[Path]:
    """As `Archive.extract`."""
    for volume in volumes:
        check_lost(volume, how.allow_lost)
    root.mkdir(parents=True, exist_ok=True)
    paths = [
        root / f"{volume.indexed.snapshot_id}.{'incomplete.raw' if volume.lost_blocks else how.format}"
        for volume in volumes
    ]
    described = root / "ami.json"
    for path in (described, *paths):  # names that the archive chose: no link there is followed
        files.check_target(path, overwrite=True)
    done = [path for path in (described, *paths) if path.exists()]
    if done and not (how.overwrite or how.resume):
        raise AlreadyExistsError(f"{done[0]} exists: overwrite=True replaces it, resume=True goes on from it")
    if how.overwrite:  # it comes back last, to tell that all is there
        described.unlink(missing_ok=True)
        done = []
    blocks, total = 0, sum(volume.indexed.blocks for volume in volumes)
    for volume, path in zip(volumes, paths, strict=True):
        if path in done:
            _prove(volume, path, how.workers)
        else:
            extract(volume, path, attrs.evolve(how, progress=_part(how.progress, blocks, total)))
        blocks += volume.indexed.blocks
    _write_manifest(described, manifest, there=described in done, overwrite=how.overwrite)
    return paths


def _part(report: ProgressCallback, before: int, total: int) -> ProgressCallback:
    """A function that reports one volume's progress as a part of all, behind the volumes before it."""
    return lambda event: report(attrs.evolve(event, blocks=before + event.blocks, total_blocks=total))


def _write_manifest(path: Path, content: bytes, *, there: bool, overwrite: bool) -> None:
    """Write ``ami.json``, or check that the existing one is this archive's."""
    if not there:
        with files.new_file(path, overwrite=overwrite) as descriptor:
            files.write_at(descriptor, content, 0)
        return
    with files.open_file(path, os.O_RDONLY | os.O_NOFOLLOW) as descriptor:
        found = files.read_at(descriptor, len(content) + 1, 0)
    if found != content:
        raise AlreadyExistsError(f"{path} exists, and is not this archive's")


def check_lost(volume: VolumeReader, allowed: bool) -> None:
    """Refuse a volume with lost blocks, unless they are allowed."""
    if volume.lost_blocks and not allowed:
        raise LostBlocksError(
            f"{sum(lost.block_count for lost in volume.lost_blocks)} blocks of this volume were lost before "
            "this archive was recovered; allow_lost=True writes the rest",
            snapshot_id=volume.indexed.snapshot_id,
        )


def _to_file(writing: _Writing, path: Path) -> None:
    how = writing.how
    if not how.resume:
        with files.new_file(path, overwrite=how.overwrite) as descriptor:
            os.truncate(descriptor, writing.volume.indexed.size)
            writing.write(descriptor)
            write_map(writing.volume, path)
        return
    part = path.with_name(f"{path.name}.part")
    try:
        lock = FileLock(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, wait=False)
    except BlockingIOError:
        raise BackendError(f"{part} is being written by another extraction") from None
    with lock:
        descriptor = lock.descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BackendError(f"{part} is no regular file: move it away")
        if status.st_nlink != 1 or not part.exists() or part.stat().st_ino != status.st_ino:
            raise BackendError(
                f"{part} was finished by another extraction, or has a second name: "
                "remove it, then extract again"
            )
        os.truncate(descriptor, writing.volume.indexed.size)
        writing.write(descriptor)
        foreign = _foreign_block(descriptor, writing.volume.indexed.size, writing.runs, writing.lost)
        if foreign is not None:  # an extraction of something else left it there
            raise BackendError(
                f"{part} holds bytes of something else: remove it, then extract again", block_index=foreign
            )
        os.fsync(descriptor)
        write_map(writing.volume, path)
        files.publish(part, path, overwrite=how.overwrite)


def _foreign_block(descriptor: int, size: int, runs: Runs, lost: Runs) -> int | None:
    """The first block of a file that is not the volume's and not all zeros."""
    for index in blocks_of(extents(descriptor, size)):
        if runs.ordinal(index) is None and lost.ordinal(index) is None:
            content = files.read_at(descriptor, BLOCK_SIZE, index * BLOCK_SIZE)
            if content.count(0) != len(content):
                return index
    return None


def _to_device(writing: _Writing, path: Path) -> None:
    # O_EXCL on a block device: refuse one that is mounted (open(2)).
    with files.open_descriptor(path, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size < writing.volume.indexed.size:
            raise InvalidRequestError(
                f"{path} has {size} bytes, the volume has {writing.volume.indexed.size}"
            )
        writing.zero_holes = True
        writing.write(descriptor)
        os.fsync(descriptor)


def _to_stream(volume: VolumeReader, stream: BinaryIO, how: Extraction) -> None:
    position = 0
    total = volume.indexed.size // BLOCK_SIZE
    with contextlib.closing(VolumeFile(volume, workers=how.workers, in_order=True)) as disk:
        for piece in _disk_pieces(volume, disk):
            with foreign_errors("extract"), files.operation("extract"):
                view = memoryview(piece)
                while view:
                    written = stream.write(view)
                    # None: nothing, of a raw file that does not block (io.RawIOBase.write).
                    if type(written) is not int or not 0 < written <= len(view):
                        raise OSError(f"write gave {written} for {len(view)} bytes")
                    view = view[written:]
            position += len(piece)
            how.progress(Progress(phase=Phase.EXTRACT, blocks=position // BLOCK_SIZE, total_blocks=total))


def _disk_pieces(volume: VolumeReader, disk: VolumeFile) -> Iterator[bytes]:
    """All bytes of a disk in order, with `LOST_BLOCK` for lost blocks."""
    position = 0
    for start, end in [
        *((lost.first_block, lost.end) for lost in volume.lost_blocks),
        (volume.indexed.size // BLOCK_SIZE,) * 2,
    ]:
        while position < start * BLOCK_SIZE:
            disk.seek(position)
            piece = disk.read(min(4 * MIB, start * BLOCK_SIZE - position))
            yield piece
            position += len(piece)
        for _ in range(start, end):
            yield LOST_BLOCK
        position = end * BLOCK_SIZE


_Task = tuple[int, Callable[[], StoredSegment]]  # the segment's sequence number, and what loads it


@attrs.define
class _Writing:
    """The extraction of one volume to a file or device."""

    volume: VolumeReader
    how: Extraction
    zero_holes: bool = False
    runs: Runs = attrs.field(factory=Runs)
    lost: Runs = attrs.field(factory=Runs)

    def write(self, descriptor: int) -> None:
        """Write all blocks, and prove that they are the volume's."""
        self.lost = Runs((lost.first_block, lost.block_count) for lost in self.volume.lost_blocks)
        sums = VolumeSums()

        container = self.volume.container
        loads = container.loads()

        def write(task: _Task) -> SegmentDescriptor:
            return self._segment(descriptor, *task)

        with (
            worker_pool(self.how.workers, None) as pool,
            closing(
                pool.map(
                    write,
                    self._tasks(loads),
                    lambda task: container.segment_size(task[0]),
                    most=loads.most(pool.count),
                )
            ) as segments,
            loads,
        ):
            for segment in segments:
                sums.add(segment)
                self._report(sums.blocks)
        indexed = self.volume.indexed
        self.runs = sums.check(indexed)
        if self.zero_holes:
            _zero(descriptor, self.runs.end * BLOCK_SIZE, indexed.size)
        for index in self.lost.indexes():
            files.write_at(descriptor, LOST_BLOCK, index * BLOCK_SIZE)

    def _tasks(self, loads: Reads[StoredSegment]) -> Iterator[_Task]:
        for sequence in self.volume.segments:
            if self.how.resume:  # the worker looks first whether it is there already
                yield sequence, functools.partial(self.volume.container.load, sequence)
            else:
                yield sequence, loads.begin(sequence)

    def _segment(
        self, descriptor: int, sequence: int, load: Callable[[], StoredSegment]
    ) -> SegmentDescriptor:
        container = self.volume.container
        if self.zero_holes:
            located = container.segment(sequence)
            end = container.index.lasts[sequence - 1] + 1 if sequence > self.volume.segments.start else 0
            for first, count in located.descriptor.runs:
                _zero(descriptor, end * BLOCK_SIZE, first * BLOCK_SIZE)
                end = first + count
        if self.how.resume:
            located = container.segment(sequence)
            if _there(descriptor, located.descriptor):
                return located.descriptor
        stored = load()
        for block in decode_segment(stored):
            files.write_at(descriptor, block.content, block.index * BLOCK_SIZE)
        return stored.located.descriptor

    def _report(self, blocks: int) -> None:
        self.how.progress(
            Progress(phase=Phase.EXTRACT, blocks=blocks, total_blocks=self.volume.indexed.blocks)
        )


def _there(descriptor: int, segment: SegmentDescriptor) -> bool:
    """Whether the file already has a segment's blocks, by their SHA-256."""
    for index, digest in zip(segment.runs.indexes(), segment.digests, strict=True):
        content = files.read_at(descriptor, BLOCK_SIZE, index * BLOCK_SIZE)
        if hashlib.sha256(content).digest() != digest:
            return False
    return True


def _zero(descriptor: int, start: int, end: int) -> None:
    """Write zeros to a part of a block device, by the device itself if it can."""
    if start >= end:
        return
    try:
        fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", start, end - start))
    except OSError:
        for at in range(start, end, 4 * MIB):
            files.write_at(descriptor, bytes(min(4 * MIB, end - at)), at)


def _prove(volume: VolumeReader, path: Path, workers: int | None) -> None:
    """Prove, block by block, that a file holds a volume.

    Raises:
        AlreadyExistsError: the file holds something else.
    """
    lost = Runs((each.first_block, each.block_count) for each in volume.lost_blocks)
    with files.operation("extract"), files.open_file(path, os.O_RDONLY | os.O_NOFOLLOW) as descriptor:
        found: list[tuple[int, int]] = []
        right = os.fstat(descriptor).st_size == volume.indexed.size
        for segment in volume.descriptors(workers) if right else ():
            right = right and _there(descriptor, segment)
            found.extend(segment.runs)
        if not right or _foreign_block(descriptor, volume.indexed.size, Runs(found), lost) is not None:
            raise AlreadyExistsError(f"{path} exists, and is not the volume")
