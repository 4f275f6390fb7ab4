"""Putting what a scan found in its places: which archive it is, its image, its volumes and segments.

Each fact has several homes: HEAD and the manifest stand in front and in INDX, a volume's
name and size in VOLD, its tar headers and INDX, its listed blocks in the sparse map and, piece
by piece, in each SEGD. The first home that proves itself is believed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import attrs
import zstandard

from amistore.archive.scan import Found, FoundSegment
from amistore.backends.ranges import RangeReader
from amistore.container import PREAMBLE, Foot, Head, Index, SegmentDescriptor, layout, tar
from amistore.container.members import open_manifest
from amistore.container.plan import PlannedVolume, prelude
from amistore.errors import ArchiveError, CorruptArchiveError
from amistore.model import Image, decode_manifest
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["FoundVolume", "Pieces", "find_pieces"]

_SIZE = b"GNU.sparse.realsize="


@attrs.frozen(kw_only=True)
class FoundVolume:
    """A volume, and its segments that were found, in order.

    `listed` are ranges (first block, count) that were listed: exactly those, or where that is
    not known, all that may have been.
    """

    number: int
    snapshot_id: str
    size: int
    listed: list[tuple[int, int]]
    exact: bool
    segments: list[FoundSegment]


@attrs.define(kw_only=True)
class Pieces:
    """What is left of an archive, in its places."""

    head: Head | None
    image: Image
    volumes: list[FoundVolume]
    findings: list[str]
    blocks_per_frame: int

    def frame_contents(self, descriptor: SegmentDescriptor) -> Sequence[int]:
        """Content sizes of a segment's frames."""
        step = self.blocks_per_frame * BLOCK_SIZE
        total = descriptor.runs.blocks * BLOCK_SIZE
        return [min(step, total - at) for at in range(0, total, step)]


def find_pieces(ranges: RangeReader, found: Found) -> Pieces:
    """Put what was found in its places.

    Raises:
        CorruptArchiveError: neither copy of the manifest is left.
    """
    return _Search(ranges, found).pieces()


class _Search:
    def __init__(self, ranges: RangeReader, found: Found) -> None:
        self._ranges = ranges
        self._found = found
        self._findings: list[str] = []
        self._foot_digest: bytes | None = None
        self._index = self._whole_index()
        self._file_id = self._choose_file_id()
        self._head = next((head for _, head in found.heads if head.file_id == self._file_id), None)
        self._segments = [each for each in found.segments if each.descriptor.file_id == self._file_id]
        self._image = self._find_image()
        self._preludes = self._find_preludes()

    def pieces(self) -> Pieces:
        if self._ranges.read(0, len(PREAMBLE)) != PREAMBLE:
            self._findings.append("PREAMBLE was damaged")
        return Pieces(
            head=self._head,
            image=self._image,
            volumes=[self._volume(*each) for each in self._volumes()],
            findings=self._findings,
            blocks_per_frame=self._blocks_per_frame(),
        )

    def _whole_index(self) -> Index | None:
        """INDX, where FOOT or at least what is in it proves it."""
        size = self._ranges.size
        try:
            foot = Foot.parse(self._ranges.read(max(0, size - layout.FOOT_SIZE), layout.FOOT_SIZE))
            self._foot_digest = foot.index_digest
        except ArchiveError:
            self._findings.append("FOOT was damaged or lost")
        for at in reversed(self._found.indexes):
            length = int.from_bytes(self._ranges.read(at + 4, 4), "little") + layout.SKIPPABLE_HEADER
            record = self._ranges.read(at, min(length, layout.MAX_INDEX))
            if self._foot_digest not in (None, hashlib.sha256(record).digest()):
                continue
            # Without FOOT its own CRCs and content ids must do: they leave the digests of segments.
            with contextlib.suppress(ArchiveError):
                index = Index.parse(record)
                index.open()
                return index
        self._findings.append("INDX was damaged or lost")
        return None

    def _choose_file_id(self) -> bytes:
        """Of this archive, not of one on a guest's disk: INDX's, the front's, or the most frequent."""
        if self._index is not None:
            return self._index.parse_head().file_id
        front = [head.file_id for at, head in self._found.heads if at == len(PREAMBLE)]
        if front:
            return front[0]
        self._findings.append("HEAD was damaged")
        counts = Counter(segment.descriptor.file_id for segment in self._found.segments)
        counts.update(head.file_id for _, head in self._found.heads)
        if not counts:
            raise CorruptArchiveError("this is no amistore container, or nothing of it is left", offset=0)
        return counts.most_common(1)[0][0]

    def _find_image(self) -> Image:
        """The image from either copy of the manifest."""
        size = len(self._head.encode()) if self._head else layout.RECORD_OVERHEAD + layout.HEAD_FIXED.size + 8
        behind = layout.ENVELOPE.size + layout.INDX_FIXED.size + size
        places = [len(PREAMBLE) + size, *(at + behind for at in reversed(self._found.indexes))]
        for place in places:
            try:
                if self._head is not None:
                    length = sum(frame.size for frame in self._head.manifest_frames)
                    return open_manifest(self._head, self._ranges.read(place, length))[1]
                member, _ = _frame_at(self._ranges, place)
                length = int(member[124:135], 8)
                return decode_manifest(member[512 : 512 + length])
            except (ArchiveError, ValueError):
                if place == places[0]:
                    self._findings.append("the manifest in front was damaged")
        raise CorruptArchiveError(
            "neither copy of the manifest is left, so the image cannot be put together again",
            record="manifest",
        )

    def _find_preludes(self) -> dict[str, PlannedVolume]:
        """Each volume whose tar headers and sparse map are whole, even behind a damaged VOLD."""
        known = [at + len(volume.encode()) for at, volume in self._found.volumes]
        fixed = layout.RECORD_OVERHEAD + layout.VOLD_FIXED.size + layout.FRAME_ENTRY.size
        starts = [*self._found.broken_volumes, *self._front_ends()]
        if self._index is not None:
            starts += [volume.offset for volume in self._index.volumes]
        places = sorted({*known, *(start + fixed for start in starts)})
        volumes: dict[str, PlannedVolume] = {}
        # Last, and only if need be: behind every segment, where nothing of VOLD is left.
        for place in chain(places, (end + fixed for end in self._found.ends)):
            found = self._prelude(place)
            while found is not None:  # behind an empty volume stands the next one
                volume, end = found
                volumes[volume.snapshot_id] = volume
                found = self._prelude(end + fixed)
            if len(volumes) == len(self._image.snapshot_ids):
                break
        return volumes

    def _front_ends(self) -> list[int]:
        if self._head is None:
            return []
        frames = sum(frame.size for frame in self._head.manifest_frames)
        return [len(PREAMBLE) + len(self._head.encode()) + frames]

    def _prelude(self, place: int) -> tuple[PlannedVolume, int] | None:
        """The volume whose tar headers and sparse map start at an offset, and where they end.

        They prove themselves by being built again.
        """
        volume = next((each for at, each in self._found.volumes if at + len(each.encode()) == place), None)
        content = b""
        try:
            for _ in range(len(volume.frames) if volume else 1):
                piece, place = _frame_at(self._ranges, place)
                content += piece
            name = next((each for each in self._image.snapshot_ids if each.encode() in content[:1536]), None)
            mark = content.find(_SIZE) + len(_SIZE)
            size = int(content[mark : content.index(b"\n", mark)])
            runs = tar.parse_map(content, size)
        except (ArchiveError, ValueError):
            return None
        planned = PlannedVolume(number=0, snapshot_id=name or "", size=size, runs=runs, first_segment=0)
        return (planned, place) if prelude(self._image, planned) == content else None

    def _blocks_per_frame(self) -> int:
        if self._head is not None:
            return self._head.layout.blocks_per_frame
        most = 1
        for segment in self._segments:
            frames, blocks = len(segment.descriptor.frames), segment.descriptor.runs.blocks
            if segment.intact[0] and frames:
                header = self._ranges.read(segment.payload, 32)
                found = zstandard.get_frame_parameters(header).content_size // BLOCK_SIZE
                if frames > 1 or found == blocks:
                    most = max(most, found)
        return most

    def _volumes(self) -> list[tuple[int, str]]:
        """Number and snapshot id of each volume that there was."""
        names: dict[int, str] = {}
        if self._index is not None:
            return list(enumerate(volume.snapshot_id for volume in self._index.volumes))
        for _, volume in self._found.volumes:
            if volume.file_id == self._file_id:
                names[volume.volume] = volume.snapshot_id
        mapped = self._image.snapshot_ids
        count = self._head.volumes if self._head else len(mapped)
        if count == len(mapped):
            names.update(enumerate(mapped))
        for number in range(count):
            if number not in names:
                self._findings.append(f"volume {number} cannot be named: its segments were left out")
        return sorted(names.items())

    def _volume(self, number: int, snapshot_id: str) -> FoundVolume:
        size = self._size(number, snapshot_id)
        planned = self._preludes.get(snapshot_id)
        segments = self._segments_of(number, planned)
        if planned is not None:
            listed, exact = list(planned.runs), True
        else:
            self._findings.append(f"the map of listed blocks of {snapshot_id} was damaged")
            listed, exact = self._listed(number, segments, size)
        return FoundVolume(
            number=number, snapshot_id=snapshot_id, size=size, listed=listed, exact=exact, segments=segments
        )

    def _size(self, number: int, snapshot_id: str) -> int:
        if self._index is not None:
            return self._index.volumes[number].size
        for _, volume in self._found.volumes:
            if (volume.file_id, volume.volume) == (self._file_id, number):
                return volume.size
        if snapshot_id in self._preludes:
            return self._preludes[snapshot_id].size
        known = self._image.snapshot(snapshot_id).volume_size
        ends = [each.descriptor.runs.end for each in self._segments if each.descriptor.volume == number]
        least = -(-max(ends, default=1) * BLOCK_SIZE // GIB)
        self._findings.append(f"the size of {snapshot_id} is taken from the manifest or its last block")
        return max(known or 1, least) * GIB

    def _segments_of(self, number: int, planned: PlannedVolume | None) -> list[FoundSegment]:
        """The segments of a volume, by sequence number; of two with the same one the better."""
        chosen: dict[int, FoundSegment] = {}
        for segment in self._segments:
            descriptor = segment.descriptor
            if descriptor.volume != number or not self._belongs(segment, planned):
                continue
            other = chosen.get(descriptor.sequence)
            if other is None or sum(segment.intact) > sum(other.intact):
                chosen[descriptor.sequence] = segment
        ordered = [chosen[sequence] for sequence in sorted(chosen)]
        end = -1
        kept = []
        for segment in ordered:  # no two may claim the same block
            if segment.descriptor.runs.first > end:
                kept.append(segment)
                end = segment.descriptor.runs.end - 1
        return kept

    def _belongs(self, segment: FoundSegment, planned: PlannedVolume | None) -> bool:
        descriptor = segment.descriptor
        if (
            self._index is not None
            and self._foot_digest is not None
            and (
                descriptor.sequence >= len(self._index.offsets)
                or hashlib.sha256(segment.record).digest() != self._index.segment_digest(descriptor.sequence)
            )
        ):
            return False
        return planned is None or descriptor.runs == planned.runs.slice(
            descriptor.ordinal, descriptor.runs.blocks
        )

    def _listed(
        self, number: int, segments: list[FoundSegment], size: int
    ) -> tuple[list[tuple[int, int]], bool]:
        """Without the map: what segments say themselves, and for missing ones all they may have held."""
        listed = [run for segment in segments for run in segment.descriptor.runs]
        if self._index is not None:
            gaps, exact = self._indexed_gaps(number, {each.descriptor.sequence for each in segments})
            return sorted([*listed, *gaps]), exact
        gaps = []
        end = ordinal = 0
        for segment in segments:
            descriptor = segment.descriptor
            if descriptor.ordinal != ordinal:
                gaps.append((end, descriptor.runs.first - end))
            end, ordinal = descriptor.runs.end, descriptor.ordinal + descriptor.runs.blocks
        blocks = [volume.blocks for _, volume in self._found.volumes if volume.volume == number]
        if not blocks or blocks[0] != ordinal:
            gaps.append((end, size // BLOCK_SIZE - end))
        gaps = [gap for gap in gaps if gap[1]]
        return sorted([*listed, *gaps]), not gaps

    def _indexed_gaps(self, number: int, found: set[int]) -> tuple[list[tuple[int, int]], bool]:
        """INDX knows first and last block of each segment, and how many it had."""
        index = self._index
        assert index is not None  # noqa: S101 (the caller asked)
        per_segment = index.parse_head().layout.blocks_per_segment
        first = sum(volume.segments for volume in index.volumes[:number])
        volume = index.volumes[number]
        gaps = []
        exact = True
        for sequence in range(first, first + volume.segments):
            if sequence in found:
                continue
            start, last = index.firsts[sequence], index.lasts[sequence]
            blocks = min(per_segment, volume.blocks - (sequence - first) * per_segment)
            gaps.append((start, last - start + 1))
            exact = exact and blocks == last - start + 1
        return gaps, exact


def _frame_at(ranges: RangeReader, place: int) -> tuple[bytes, int]:
    """The content of the frame that starts at a file offset, and the offset behind it."""
    start = ranges.read(place, 32)
    if start[:4] != layout.ZSTD_MAGIC:
        raise CorruptArchiveError("no frame stands here")
    try:
        size = zstandard.get_frame_parameters(start).content_size
        if not 1 <= size <= layout.MAX_FRAME_CONTENT:
            raise CorruptArchiveError("a frame of a size that is none of ours")
        decoder = zstandard.ZstdDecompressor(max_window_size=layout.MAX_WINDOW).decompressobj()
        frame = ranges.read(place, layout.MAX_FRAME_SIZE)
        content = decoder.decompress(frame)
    except zstandard.ZstdError as error:
        raise CorruptArchiveError(f"a frame does not decode: {error}") from None
    if len(content) != size or not decoder.eof:
        raise CorruptArchiveError("a frame is cut short")
    return content, place + len(frame) - len(decoder.unused_data)
