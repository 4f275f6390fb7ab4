"""`recover`: a new, valid archive of what is left of a damaged one.

First a scan finds every record that proves itself. Then the pieces are put in their places, by the front's or
INDX's copy of the manifest, by sparse maps, and by INDX where it is whole. Then every frame is decoded and
hashed. Blocks that prove themselves by their SHA-256 are packed anew; all others that were listed are
recorded as lost, never as data or as a hole.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from amistore.archive.archive import open_archive
from amistore.archive.opening import Openable, open_ranges
from amistore.archive.pieces import FoundVolume, Pieces, find_pieces
from amistore.archive.reader import has_crc, has_digest
from amistore.archive.scan import FoundSegment, scan
from amistore.backends import Block, BlockPage, BlockSource, SnapshotBlock, files
from amistore.backends.ranges import RangeReader
from amistore.container.records import SegmentDescriptor
from amistore.container.runs import Runs
from amistore.container.segments import DecodedFrame, LocatedSegment, decode_frame
from amistore.errors import ArchiveError, InvalidRequestError, machine_limits
from amistore.model import BlockRange, Image, Snapshot
from amistore.pipeline.pack import pack
from amistore.pipeline.progress import Phase, Progress, ProgressCallback, ProgressOption, reporting
from amistore.pipeline.workers import closing, worker_count, worker_pool
from amistore.text import printable
from amistore.units import BLOCK_SIZE, GIB, MIB, counted

__all__ = ["RecoveryReport", "VolumeRecovery", "recover"]

_MOST_RANGES = 10_000
"""Lost ranges of a volume that are told one by one: a manifest has room for some 40,000."""


@attrs.frozen(kw_only=True)
class VolumeRecovery:
    """The recovery of a volume.

    Attributes:
        snapshot_id: the archived snapshot's id.
        size: the volume's size in bytes.
        recovered: the number of blocks that were saved.
        lost: the ranges of blocks that were lost.
        exact: whether `lost` holds exactly the listed blocks that were not saved. If not, the map of listed
            blocks was lost too, and `lost` may hold blocks that were never listed.
    """

    snapshot_id: str
    size: int
    recovered: int
    lost: tuple[BlockRange, ...]
    exact: bool

    def __str__(self) -> str:
        count = sum(each.block_count for each in self.lost)
        lost = f"{count}" if self.exact else f"up to {count}"
        text = f"{self.snapshot_id}: {counted(self.recovered, 'block')} recovered, {lost} lost"
        shown = [f"{each.first_block}-{each.end - 1}" for each in self.lost[:8]]
        more = ", …" if len(self.lost) > 8 else ""
        return f"{text} ({', '.join(shown)}{more})" if shown else text


@attrs.frozen(kw_only=True)
class RecoveryReport:
    """What was saved, and what was lost.

    Attributes:
        image: the image of the new archive; its snapshots list their lost blocks.
        content_id: the new archive's content id. If nothing was lost it is the old one's, unless that was a
            partial one of an earlier writer (docs/format.md, section 7).
        volumes: the recovery of each volume.
        left_out: the number of volumes that were left out, since too little of them is left to identify them.
        findings: descriptions of the damage.
    """

    image: Image
    content_id: str
    volumes: tuple[VolumeRecovery, ...]
    left_out: int
    findings: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether no block and no volume was lost."""
        return not self.left_out and not any(volume.lost for volume in self.volumes)

    @property
    def bytes_lost(self) -> int:
        """The bytes of all lost blocks."""
        return sum(each.block_count for volume in self.volumes for each in volume.lost) * BLOCK_SIZE

    def __str__(self) -> str:
        verdict = "everything was saved" if self.complete else f"{self.bytes_lost / MIB:,.1f} MiB were lost"
        if self.left_out:
            verdict += f", and {self.left_out} volumes left out"
        lines = [f"{self.image.image_id}: {verdict}"]
        for volume in self.volumes:
            lines.append(f"  {' '.join([*self.image.device_names(volume.snapshot_id), str(volume)])}")
        return "\n".join([*lines, *(f"  - {printable(finding)}" for finding in self.findings)])


def recover(
    damaged: Openable,
    target: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    level: int = 3,
    workers: int | None = None,
    progress: ProgressOption = None,
) -> RecoveryReport:
    """Save what is left of a damaged archive into a new, valid one.

    A damaged descriptor costs its whole segment of up to 32 MiB, a damaged frame only itself, up to 4 MiB.
    The new archive lists what was lost: restoring and extracting it need ``allow_lost=True``, reading a lost
    block raises `LostBlocksError`. `damaged` is read three times: to scan it, to prove its blocks, and to
    pack them.

    Args:
        damaged: the damaged archive's location, path, URL or open file, as in `open`.
        target: the path of the new archive.
        options: the options for a URL, as in `open`.
        level: the zstd level of the new archive.
        workers: the number of segments worked on at once; None for the number of CPUs.
        progress: True for a bar (extra ``progress``), or a function that is called with a `Progress`:
            phase RECOVER while reading, then LIST and PACK.

    Returns:
        A report of what was saved and what was lost.

    Raises:
        CorruptArchiveError: neither copy of the manifest is left, or the file is no archive.
        UnsupportedArchiveError: the archive has a newer format, in which blocks may mean something else.
        AlreadyExistsError: `target` exists.
        InvalidRequestError: the arguments do not go together.
        BackendError: `damaged` cannot be read, or `target` cannot be written.
    """
    if not isinstance(target, (str, os.PathLike)):
        raise InvalidRequestError(f"recover writes to a path, not to {type(target).__name__}")
    path = Path(target)
    ranges = open_ranges(damaged, options)
    with (
        contextlib.closing(ranges),
        reporting(progress) as report,
        files.operation("recover", path=path),
        machine_limits(),
    ):
        files.check_target(path, overwrite=False)

        def scanned(offset: int) -> None:
            report(Progress(phase=Phase.RECOVER, blocks=0, stored_bytes=offset, total_bytes=ranges.size))

        pieces = find_pieces(ranges, scan(ranges, scanned))
        scanned(ranges.size)
        salvage = _Salvage(ranges, pieces, worker_count(workers))
        salvage.prove(workers, report)
        outcomes = tuple(map(salvage.outcome, pieces.volumes))
        image = salvage.image(outcomes)
        with files.new_file(path) as descriptor:
            offset = 0
            names = [volume.snapshot_id for volume in pieces.volumes]
            for piece in pack(image, salvage, snapshots=names, level=level, workers=workers, progress=report):
                files.write_at(descriptor, piece, offset)
                offset += len(piece)
    with open_archive(path) as archive:
        return RecoveryReport(
            image=image,
            content_id=archive.content_id,
            volumes=outcomes,
            left_out=pieces.unnamed,
            findings=tuple(pieces.findings),
        )


@attrs.frozen
class _Proved:
    """A volume's blocks that proved themselves: the index and place of each.

    A place is one integer: the number of a segment in its volume, and of a frame in the segment.
    """

    indexes: array[int] = attrs.field(factory=lambda: array("Q"))
    places: array[int] = attrs.field(factory=lambda: array("Q"))


_FRAME_BITS = 10  # a segment has at most 512 frames


class _Salvage(BlockSource):
    """A source that packs from the blocks that proved themselves."""

    def __init__(self, ranges: RangeReader, pieces: Pieces, workers: int) -> None:
        self._ranges = ranges
        self._pieces = pieces
        self._image = pieces.image
        self._volumes = {volume.snapshot_id: volume for volume in pieces.volumes}
        self._proved = {name: _Proved() for name in self._volumes}
        self._lock = threading.Lock()
        # A worker goes through consecutive blocks, so through one frame after the other.
        self._frames: OrderedDict[tuple[str, int], DecodedFrame] = OrderedDict()
        self._kept = 3 * workers

    def prove(self, workers: int | None, progress: ProgressCallback) -> None:
        """Decode and hash every frame that was found."""
        tasks = [
            (name, place) for name, volume in self._volumes.items() for place in range(len(volume.segments))
        ]
        done, total = (
            0,
            sum(each.runs.blocks for volume in self._volumes.values() for each in volume.segments),
        )
        with (
            worker_pool(workers, None) as pool,
            closing(pool.map(self._prove_segment, tasks)) as proved,
        ):
            for (name, place), blocks in zip(tasks, proved, strict=True):
                for index, frame in blocks:
                    self._proved[name].indexes.append(index)
                    self._proved[name].places.append(place << _FRAME_BITS | frame)
                segment = self._volumes[name].segments[place]
                done += segment.runs.blocks
                progress(
                    Progress(
                        phase=Phase.RECOVER, blocks=done, total_blocks=total, stored_bytes=segment.offset
                    )
                )

    def _prove_segment(self, task: tuple[str, int]) -> list[tuple[int, int]]:
        """The index and frame of each block of a segment whose SHA-256 is right."""
        name, place = task
        segment = self._volumes[name].segments[place]
        proved = []
        for frame in range(len(segment.intact)):
            with contextlib.suppress(ArchiveError):
                decoded = self._decode(name, segment, frame)
                for at, index in enumerate(decoded.indexes):
                    with contextlib.suppress(ArchiveError):
                        decoded.block(at)
                        proved.append((index, frame))
        return proved

    def _decode(self, name: str, segment: FoundSegment, frame: int) -> DecodedFrame:
        is_record = has_digest(segment.record_digest)
        record = self._ranges.read_intact(segment.offset, segment.size, is_record)
        descriptor = SegmentDescriptor.parse(bytes(record))
        offset = segment.payload + sum(entry.size for entry in descriptor.frames[:frame])
        entry = descriptor.frames[frame]
        content = self._ranges.read_intact(offset, entry.size, has_crc(entry.crc32))
        contents = self._pieces.layout.frame_contents(descriptor.runs.blocks)
        located = LocatedSegment(descriptor, name, segment.offset, segment.payload, contents)
        return decode_frame(located, frame, content)

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        start = int(next_token or 0)
        end = start + 10_000
        proved = self._proved[snapshot_id]
        blocks = zip(proved.indexes[start:end], proved.places[start:end], strict=True)
        return BlockPage(
            volume_size=self._volumes[snapshot_id].size // GIB,
            blocks=[Block(index, str(place)) for index, place in blocks],
            next_token=str(end) if end < len(proved.indexes) else None,
        )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        token = snapshot_id, int(block_token)
        with self._lock:
            decoded = self._frames.get(token)
        if decoded is None:
            place, frame = token[1] >> _FRAME_BITS, token[1] & (1 << _FRAME_BITS) - 1
            decoded = self._decode(snapshot_id, self._volumes[snapshot_id].segments[place], frame)
            with self._lock:
                self._frames[token] = decoded
                if len(self._frames) > self._kept:
                    self._frames.popitem(last=False)
        block = decoded.block(decoded.indexes.index(block_index))
        return SnapshotBlock(block.content, block.digest)

    def image(self, outcomes: Iterable[VolumeRecovery]) -> Image:
        """The image; its snapshots list their lost blocks."""
        known = {snapshot.snapshot_id: snapshot for snapshot in self._image.snapshots}
        for outcome in outcomes:
            if outcome.lost:
                snapshot = known.get(outcome.snapshot_id) or Snapshot(snapshot_id=outcome.snapshot_id)
                known[outcome.snapshot_id] = attrs.evolve(
                    snapshot, lost_blocks=outcome.lost, volume_size=outcome.size // GIB
                )
        return attrs.evolve(self._image, snapshots=tuple(known.values()))

    def outcome(self, volume: FoundVolume) -> VolumeRecovery:
        """The recovery of a volume, with the losses of an earlier recovery."""
        saved = Runs.of_blocks(self._proved[volume.snapshot_id].indexes)
        earlier = self._image.snapshot(volume.snapshot_id).lost_blocks
        wanted = heapq.merge(volume.listed, ((lost.first_block, lost.block_count) for lost in earlier))
        lost = list(itertools.islice(_missing(_joined(wanted), saved), _MOST_RANGES + 1))
        exact = volume.exact
        if len(lost) > _MOST_RANGES:
            # What lies between two lost blocks with none saved between them counts as lost too.
            wanted = heapq.merge(volume.listed, ((each.first_block, each.block_count) for each in earlier))
            lost, exact = list(_coarse(_missing(_joined(wanted), saved), saved)), False
        return VolumeRecovery(
            snapshot_id=volume.snapshot_id,
            size=volume.size,
            recovered=saved.blocks,
            lost=tuple(lost),
            exact=exact,
        )


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ascending ranges as (first, end); those that touch or overlap are joined."""
    first = end = 0
    for start, count in ranges:
        if start > end:
            if end > first:
                yield first, end
            first, end = start, start + count
        end = max(end, start + count)
    if end > first:
        yield first, end


def _missing(wanted: Iterator[tuple[int, int]], saved: Runs) -> Iterator[BlockRange]:
    """The parts of the ranges (first, end) that are not in `saved`."""
    for first, end in wanted:
        at = first
        while at < end:
            if saved.ordinal(at) is not None:
                at = saved.run_end(at)
                continue
            stop = min(end, saved.after(at))
            yield BlockRange(first_block=at, block_count=stop - at)
            at = stop


def _coarse(lost: Iterator[BlockRange], saved: Runs) -> Iterator[BlockRange]:
    """The ranges, joined over gaps in which nothing was saved."""
    first = end = -1
    for each in lost:
        if first >= 0 and saved.after(end) >= each.first_block:
            end = each.end
            continue
        if first >= 0:
            yield BlockRange(first_block=first, block_count=end - first)
        first, end = each.first_block, each.end
    if first >= 0:
        yield BlockRange(first_block=first, block_count=end - first)
