"""Puts what a scan found in its places: identifies the archive, its image, its volumes and segments.

Each fact has several homes: HEAD and the manifest are in front and in INDX, a volume's name and size in VOLD,
its tar headers and INDX, its listed blocks in the sparse map and, in pieces, in each SEGD. The first home
that proves itself is believed. Records of other containers, such as on a guest's disk, have another file id
and are ignored.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import attrs

from amistore.archive.reader import has_digest, is_exactly, opens
from amistore.archive.scan import Found, FoundSegment
from amistore.backends.ranges import RangeReader
from amistore.container import layout
from amistore.container.frames import LONGEST_HEADER, declared_content, decompress, leading_frame
from amistore.container.index import Index
from amistore.container.layout import Layout
from amistore.container.members import PREAMBLE, RECORD, SparseMap, is_prelude, open_manifest, read_manifest
from amistore.container.plan import PlannedVolume
from amistore.container.records import Foot, Head, VolumeDescriptor, refuse_newer
from amistore.container.runs import Runs
from amistore.errors import ArchiveError, CorruptArchiveError
from amistore.model import Image, decode_manifest
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["FoundVolume", "Pieces", "find_pieces"]

_SIZE = b"GNU.sparse.realsize="
_MOST_DECODED = 32
"""Bytes of sparse maps and manifests that are decoded for each byte of the file, on average, besides 8 MiB.

Behind each of many small records that claim one, 40 crafted bytes decode to 8 MiB. A map of
regular holes compresses to a 12th, and a block that is listed takes 32 bytes for its SHA-256 besides.
"""
_TRIED_INDEXES = 8
"""Places of INDX that are tried without FOOT: the last ones, where the only one stands."""


@attrs.frozen(kw_only=True)
class FoundVolume:
    """A volume, and its segments that were found, in order.

    `listed` are ranges (first block, count), ascending, that were listed: exactly those, or
    where that is not known, all that may have been.
    """

    snapshot_id: str
    size: int
    listed: Iterable[tuple[int, int]]
    exact: bool
    segments: list[FoundSegment]


@attrs.frozen(kw_only=True)
class Pieces:
    """What is left of an archive, in its places.

    `unnamed` volumes could not be told whose they are. Of `layout` the frames are right, and all
    else where HEAD is left.
    """

    image: Image
    volumes: list[FoundVolume]
    unnamed: int
    findings: list[str]
    layout: Layout


def find_pieces(ranges: RangeReader, found: Found) -> Pieces:
    """Put what was found in its places.

    Raises:
        CorruptArchiveError: neither copy of the manifest is left.
        UnsupportedArchiveError: the archive has a newer format.
    """
    return _Search(ranges, found).pieces()


class _Search:
    def __init__(self, ranges: RangeReader, found: Found) -> None:
        self._ranges = ranges
        self._found = found
        self._findings: list[str] = []
        self._index_is_proved = False
        self._to_decode = layout.MAX_FRAME_CONTENT + _MOST_DECODED * ranges.size
        self._head: Head | None = None
        self._index = self._find_index()
        self._file_id = self._find_file_id()
        self._head = next((head for _, head in found.heads if head.file_id == self._file_id), self._head)
        for newer, error in found.newer:
            if newer == self._file_id and self._head is None:
                raise error
        self._vold: dict[int, VolumeDescriptor] = {}
        for _, volume in found.volumes:
            if volume.file_id == self._file_id and volume.volume < layout.MAX_VOLUMES:
                self._vold.setdefault(volume.volume, volume)
        self._image = self._find_image()
        self._layout = self._find_layout()
        self._segments: dict[int, list[FoundSegment]] = {}
        for segment in found.segments:
            if self._is_ours(segment):
                self._segments.setdefault(segment.volume, []).append(segment)
        self._preludes = self._find_preludes()

    def pieces(self) -> Pieces:
        if self._ranges.read_intact(0, len(PREAMBLE), is_exactly(PREAMBLE)) != PREAMBLE:
            self._findings.append("PREAMBLE was damaged")
        names, unnamed = self._names()
        return Pieces(
            image=self._image,
            volumes=[self._volume(number, name) for number, name in sorted(names.items())],
            unnamed=unnamed,
            findings=self._findings,
            layout=self._layout,
        )

    # Which archive it is.

    def _find_index(self) -> Index | None:
        """INDX, where FOOT or at least what is in it proves it."""
        size = self._ranges.size
        places = self._found.indexes[-_TRIED_INDEXES:]
        digest = None
        length = 0
        try:
            tail = max(0, size - layout.FOOT_SIZE)
            foot = Foot.parse(bytes(self._ranges.read_intact(tail, layout.FOOT_SIZE, opens(Foot.parse))))
            length, digest = foot.index_length, foot.index_digest
            places = [max(0, size - layout.FOOT_SIZE - length)]
        except CorruptArchiveError:
            self._findings.append("FOOT was damaged or lost")
        for at in reversed(places):
            if digest is None:
                length = int.from_bytes(self._ranges.read(at + 4, 4), "little") + layout.SKIPPABLE_HEADER
            intact = opens(Index.parse) if digest is None else has_digest(digest)
            record = bytes(self._ranges.read_intact(at, min(length, layout.MAX_INDEX), intact))
            # Without FOOT its own CRCs and content ids must do: they leave the digests of segments. It may
            # be that of a container on a guest's disk then, so that a newer one says nothing of this one.
            with contextlib.suppress(ArchiveError if digest is None else CorruptArchiveError):
                if digest not in (None, hashlib.sha256(record).digest()):
                    refuse_newer(record)
                    continue
                index = Index.parse(record)
                self._head, _ = index.open()
                self._index_is_proved = digest is not None
                return index
        self._findings.append("INDX was damaged or lost")
        return None

    def _find_file_id(self) -> bytes:
        """Of this archive, not of one on a guest's disk: INDX's, the front's, or the most frequent."""
        if self._head is not None:  # INDX's
            return self._head.file_id
        front = [head.file_id for at, head in self._found.heads if at == len(PREAMBLE)]
        if front:
            return front[0]
        self._findings.append("HEAD was damaged")
        counts = Counter(segment.file_id for segment in self._found.segments)
        counts.update(volume.file_id for _, volume in self._found.volumes)
        counts.update(head.file_id for _, head in self._found.heads)
        counts.update(newer for newer, _ in self._found.newer)
        if not counts:
            raise CorruptArchiveError("this is no amistore container, or nothing of it is left", offset=0)
        return counts.most_common(1)[0][0]

    def _find_image(self) -> Image:
        """The image from either copy of the manifest."""
        head = self._head
        fixed = layout.RECORD_OVERHEAD + layout.HEAD_FIXED.size + layout.FRAME_ENTRY.size
        size = len(head.encode()) if head else fixed
        behind = layout.ENVELOPE.size + layout.INDX_FIXED.size + size
        indexes = self._found.indexes[-_TRIED_INDEXES:]
        places = [len(PREAMBLE) + size, *(at + behind for at in reversed(indexes))]
        for place in places:
            try:
                if head is not None:
                    opened = functools.partial(open_manifest, head)
                    return opened(bytes(self._ranges.read_intact(place, head.payload_size, opens(opened))))[1]
                return decode_manifest(read_manifest(self._frame_at(place)[0]))
            except ArchiveError:
                if place == places[0]:
                    self._findings.append("the manifest in front was damaged")
        raise CorruptArchiveError(
            "neither copy of the manifest is left, so the image cannot be put together again",
            record="manifest",
        )

    def _find_layout(self) -> Layout:
        if self._head is not None:
            return self._head.layout
        most = 1
        for segment in self._found.segments:
            if segment.file_id == self._file_id and segment.intact[0]:
                with contextlib.suppress(CorruptArchiveError):
                    size = declared_content(self._ranges.read(segment.payload, LONGEST_HEADER))
                    most = max(most, size // BLOCK_SIZE)
        return Layout(blocks_per_frame=most, blocks_per_segment=most)

    def _is_ours(self, segment: FoundSegment) -> bool:
        """Of this archive, with as many frames as it must have, and where INDX is proved the one it knows."""
        frames = len(self._layout.frame_contents(segment.runs.blocks))
        ours = segment.file_id == self._file_id and segment.volume < layout.MAX_VOLUMES
        if not ours or len(segment.intact) != frames:
            return False
        if self._index is None or not self._index_is_proved:
            return True
        return (
            segment.sequence < len(self._index.offsets)
            and self._index.segment_digest(segment.sequence) == segment.record_digest
        )

    # Sparse maps, and whose they are.

    def _find_preludes(self) -> dict[str, PlannedVolume]:
        """Each volume whose tar headers and sparse map are whole, even behind a damaged VOLD."""
        fixed = layout.RECORD_OVERHEAD + layout.VOLD_FIXED.size + layout.FRAME_ENTRY.size
        places = {
            at + len(volume.encode()): len(volume.frames)
            for at, volume in self._found.volumes
            if volume.file_id == self._file_id
        }
        starts = list(self._found.broken_volumes)
        if self._head is not None:
            starts.append(len(PREAMBLE) + len(self._head.encode()) + self._head.payload_size)
        if self._index is not None:
            starts += [volume.offset for volume in self._index.volumes]
        for start in starts:
            places.setdefault(start + fixed, 1)
        volumes: dict[str, PlannedVolume] = {}
        # Last, and only if need be: behind every segment, where nothing of VOLD is left.
        for place in chain(sorted(places), (end + fixed for end in self._found.ends)):
            found = self._prelude(place, places.get(place, 1))
            while found is not None:  # behind an empty volume stands the next one
                volume, end = found
                volumes.setdefault(volume.snapshot_id, volume)
                found = self._prelude(end + fixed, 1)
            if len(volumes) == len(self._image.snapshot_ids):
                break
        return volumes

    def _prelude(self, place: int, frames: int) -> tuple[PlannedVolume, int] | None:
        """The volume whose tar headers and sparse map start at an offset, and where they end.

        They prove themselves by being built again, and must be those that VOLD or INDX mean.
        """
        found, read = SparseMap(), hashlib.sha256()
        headers = b""
        try:
            for _ in range(frames):
                piece, place = self._frame_at(place)
                found.feed(piece)
                read.update(piece)
                headers = headers or piece[: 3 * RECORD]
            name = next((each for each in self._image.snapshot_ids if each.encode() in headers), None)
            mark = headers.find(_SIZE) + len(_SIZE)
            size = int(headers[mark : headers.index(b"\n", mark)])
        except (ArchiveError, ValueError):
            return None
        runs = found.runs
        if name is None or runs.digest() not in self._expected_runs(name, runs):
            return None
        planned = PlannedVolume(number=0, snapshot_id=name, size=size, runs=runs, first_segment=0)
        return (planned, place) if is_prelude(read.digest(), self._image, planned) else None

    def _frame_at(self, place: int) -> tuple[bytes, int]:
        """The content of the frame that starts at a file offset, and the offset behind it."""
        size = declared_content(self._ranges.read(place, LONGEST_HEADER))
        most = size + size // 256 + 1024  # ZSTD_compressBound, and header and checksum
        self._to_decode -= most
        if self._to_decode < 0:
            raise CorruptArchiveError("too many frames that are no sparse map of this file")
        frame = leading_frame(self._ranges.read(place, most))
        return decompress(frame, size, zlib.crc32(frame)), place + len(frame)

    def _expected_runs(self, snapshot_id: str, found: Runs) -> list[bytes]:
        """The hashes of the runs that other records give for a volume; those found where none does."""
        if self._index is not None:
            return [each.runs_digest for each in self._index.volumes if each.snapshot_id == snapshot_id]
        given = [each.runs_digest for each in self._vold.values() if each.snapshot_id == snapshot_id]
        return given or [found.digest()]

    def _names(self) -> tuple[dict[int, str], int]:
        """Snapshot id of each volume by its number, and how many volumes have none."""
        if self._index is not None:
            return {number: each.snapshot_id for number, each in enumerate(self._index.volumes)}, 0
        names = {number: volume.snapshot_id for number, volume in self._vold.items()}
        mapped = self._image.snapshot_ids
        numbers = set(self._segments) | set(names)
        count = self._head.volumes if self._head else max(numbers, default=-1) + 1
        for number in range(count):
            if number in names:
                continue
            left = [each for each in self._preludes if each not in names.values()]
            fitting = [each for each in left if self._fits(number, self._preludes[each])]
            if count == len(mapped):  # all of them, so in their order
                names[number] = mapped[number]
            elif len(fitting) == 1:
                names[number] = fitting[0]
            else:
                self._findings.append(f"volume {number} cannot be named: what it held was left out")
        absent = len(mapped) - count if self._head is None else 0
        if absent:
            self._findings.append(f"{absent} snapshots of the image were not packed, or all of them is lost")
        return names, count - len(names) + absent

    def _fits(self, number: int, planned: PlannedVolume) -> bool:
        """Whether a volume's segments are those of a sparse map."""
        return all(planned.holds(each.ordinal, each.runs) for each in self._segments.get(number, ()))

    # Volumes and their segments.

    def _volume(self, number: int, snapshot_id: str) -> FoundVolume:
        size = self._size(number, snapshot_id)
        planned = self._preludes.get(snapshot_id)
        segments = self._segments_of(number, planned)
        if planned is not None:
            listed: Iterable[tuple[int, int]] = planned.runs
            exact = True
        else:
            self._findings.append(f"the map of listed blocks of {snapshot_id} was damaged")
            gaps, exact = self._gaps(number, segments, size)
            listed = sorted([*(run for segment in segments for run in segment.runs), *gaps])
        return FoundVolume(snapshot_id=snapshot_id, size=size, listed=listed, exact=exact, segments=segments)

    def _size(self, number: int, snapshot_id: str) -> int:
        told = self._told_size(number)
        if told is not None:
            return told
        if snapshot_id in self._preludes:
            return self._preludes[snapshot_id].size
        known = self._image.snapshot(snapshot_id).volume_size
        ends = [segment.runs.end for segment in self._segments.get(number, ())]
        least = -(-max(ends, default=1) * BLOCK_SIZE // GIB)
        self._findings.append(f"the size of {snapshot_id} is taken from the manifest or its last block")
        return min(max(known or 1, least), layout.MAX_VOLUME_GIB) * GIB

    def _segments_of(self, number: int, planned: PlannedVolume | None) -> list[FoundSegment]:
        """The segments of a volume, by sequence number; of two with the same one the better."""
        chosen: dict[int, FoundSegment] = {}
        for segment in self._segments.get(number, ()):
            if planned is not None and not planned.holds(segment.ordinal, segment.runs):
                continue
            other = chosen.get(segment.sequence)
            if other is None or sum(segment.intact) > sum(other.intact):
                chosen[segment.sequence] = segment
        end = 0
        size = self._told_size(number) or layout.MAX_VOLUME_GIB * GIB
        kept = []
        for _, segment in sorted(chosen.items()):  # no two may claim the same block
            if segment.runs.first >= end and segment.runs.end * BLOCK_SIZE <= size:
                kept.append(segment)
                end = segment.runs.end
        return kept

    def _told_size(self, number: int) -> int | None:
        """The size of a volume as INDX or VOLD has it."""
        told = self._vold.get(number) if self._index is None else self._index.volumes[number]
        return None if told is None else told.size

    def _gaps(
        self, number: int, segments: list[FoundSegment], size: int
    ) -> tuple[list[tuple[int, int]], bool]:
        """Without the map: all that missing segments may have held, and whether that is exact."""
        if self._index is not None:
            return self._indexed_gaps(self._index, number, {each.sequence for each in segments})
        gaps = []
        end = ordinal = 0
        for segment in segments:
            if segment.ordinal != ordinal:
                gaps.append((end, segment.runs.first - end))
            end, ordinal = segment.runs.end, segment.ordinal + segment.runs.blocks
        if number not in self._vold or self._vold[number].blocks != ordinal:
            gaps.append((end, size // BLOCK_SIZE - end))
        gaps = [gap for gap in gaps if gap[1] > 0]
        return gaps, not gaps

    def _indexed_gaps(self, index: Index, number: int, found: set[int]) -> tuple[list[tuple[int, int]], bool]:
        """INDX knows first and last block of each segment, and how many it had."""
        first = sum(volume.segments for volume in index.volumes[:number])
        volume = index.volumes[number]
        gaps = []
        exact = True
        for sequence in range(first, first + volume.segments):
            if sequence in found:
                continue
            start, last = index.firsts[sequence], index.lasts[sequence]
            blocks = self._layout.segment_blocks(sequence - first, volume.blocks)
            gaps.append((start, last - start + 1))
            exact = exact and blocks == last - start + 1
        return gaps, exact
