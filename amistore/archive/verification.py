"""`verify`: check every byte of an archive, in parallel, and find every fault.

Opening trusts INDX. Here the originals are read: the front, each volume's prelude, each segment and all bytes
between. Both views must say the same.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from amistore.archive.reader import ContainerFile, has_digest, is_exactly, opens
from amistore.archive.volumereader import VolumeSums
from amistore.backends.receiving import Content
from amistore.container import layout
from amistore.container.frames import cut_frames
from amistore.container.members import PREAMBLE, PreludeReader
from amistore.container.plan import PlannedVolume, Shards, cut_segment
from amistore.container.records import check_others, open_envelope
from amistore.container.segments import (
    LocatedSegment,
    check_segment,
)
from amistore.errors import (
    ArchiveError,
    CorruptArchiveError,
    locating,
)

__all__ = ["Checked", "Verification", "check_mapped"]


@attrs.frozen
class Checked:
    """A segment that was read.

    Attributes:
        sequence: the segment's number.
        end: the file offset behind it; for a damaged segment, behind what follows it.
        located: the segment's descriptor and place; None where the descriptor is damaged.
        findings: the faults of the segment.
    """

    sequence: int
    end: int
    located: LocatedSegment | None
    findings: tuple[ArchiveError, ...] = ()


def check_mapped(container: ContainerFile, volume: PlannedVolume, located: LocatedSegment) -> None:
    """Refuse a segment that differs from its volume's sparse map.

    Raises:
        CorruptArchiveError: the segment differs; the error says where.
    """
    descriptor, head = located.descriptor, container.head
    with container.locating(descriptor.sequence):
        check_segment(descriptor, cut_segment(head.file_id, volume, descriptor.ordinal, head.layout))


class Verification:
    """One pass over a container from front to end, without the insides of its segments.

    Call `volumes`, give each segment to a worker, pass the workers' results through `segments`, then call
    `end`. Each fault is given to `note`, in this order; `note` may raise it.
    """

    def __init__(self, container: ContainerFile, note: Callable[[ArchiveError], object]) -> None:
        self._container = container
        self._note = note
        self._shards = Shards(container.head.layout, len(container.index.offsets))

    def volumes(self) -> list[PlannedVolume | None]:
        """Check the front; yield each volume by VOLD and its sparse map, None where they are damaged."""
        with self._noting():
            self._front()
        return [self._prelude(number) for number in range(len(self._container.index.volumes))]

    def segments(self, checked: Iterator[Checked]) -> Iterator[Checked]:
        """Check what lies between the segments that workers have checked, and yield these in order."""
        for number in range(len(self._container.index.volumes)):
            yield from self._volume(number, checked)
        next(checked, None)  # so that who makes the tasks comes to their end

    def end(self) -> None:
        """Check that the tail is still the one that was opened."""
        with self._noting():
            self._end()

    @contextlib.contextmanager
    def _noting(self, **facts: Any) -> Iterator[None]:
        """Note errors of the archive's bytes; a backend's errors pass."""
        try:
            yield
        except ArchiveError as error:
            self._note(error.locate(**facts))

    def _front(self) -> None:
        """Check that the front is PREAMBLE and the index's copies of HEAD and manifest, byte for byte."""
        index = self._container.index
        parts = (("PREAMBLE", PREAMBLE), ("HEAD", index.head), ("manifest", index.manifest_frames))
        front = b"".join(content for _, content in parts)
        wrong = "it is not as the index says"
        if not self._is_intact(0, len(front), "front", is_exactly(front)):
            offset = 0
            for record, content in parts:
                self._container.read(offset, len(content), record, is_exactly(content), wrong)
                offset += len(content)
        if (len(front), hashlib.sha256(front).digest()) != (index.front_end, index.front_digest):
            raise CorruptArchiveError("the front is not the one that the index was made for", record="INDX")
        following = index.volumes[0].offset if index.volumes else self._container.foot.data_end
        self._gap(index.front_end, following)

    def _prelude(self, number: int) -> PlannedVolume | None:
        """The volume by VOLD and its sparse map; None where they are damaged."""
        indexed = self._container.index.volumes[number]
        with self._noting(record="VOLD", offset=indexed.offset, snapshot_id=indexed.snapshot_id):
            intact = has_digest(indexed.prelude_digest)
            wrong = "VOLD, tar headers or sparse map are not as the index says"
            content = self._container.read(indexed.offset, indexed.length, "VOLD", intact, wrong)
            size = open_envelope(content[: layout.ENVELOPE.size]).size
            first = self._container.segments_of(number).start
            prelude = PreludeReader(content[:size], self._container.head.file_id, number, first)
            for frame in cut_frames(content[size:], prelude.descriptor.frames):
                prelude.feed(frame)
            volume = prelude.volume(self._container.image)
            if not indexed.is_of(prelude.descriptor):
                raise CorruptArchiveError("VOLD is not the volume of the index")
            return volume
        return None

    def _volume(self, number: int, checked: Iterator[Checked]) -> Iterator[Checked]:
        """Check a volume's segments in order: what lies between them, and their sums in the index."""
        container = self._container
        indexed = container.index.volumes[number]
        segments = container.segments_of(number)
        following = container.index.offsets[segments.start] if segments else container.volume_end(number)
        with self._noting(snapshot_id=indexed.snapshot_id):
            self._gap(indexed.offset + indexed.length, following)
        sums = VolumeSums()
        all_found = True
        for sequence in segments:
            found = next(checked)
            for finding in found.findings:
                self._note(finding)
            if found.located is None:
                all_found = False
            else:
                sums.add(found.located.descriptor)
            with self._noting(segment=sequence, snapshot_id=indexed.snapshot_id):
                self._behind(sequence, found.end)
            yield found
        if all_found:
            with self._noting():
                sums.check(indexed)

    def _behind(self, sequence: int, end: int) -> None:
        """Check what follows a segment: PAD where a shard ends, and records of unknown type.

        Behind a damaged segment no PAD is expected, since `end` is already behind it.
        """
        container = self._container
        following = container.segment_end(sequence)
        pad = self._shards.pad(sequence + 1, end)
        if end + len(pad) > following:
            raise CorruptArchiveError("a shard lacks its PAD", record="PAD", offset=end)
        if pad:
            wrong = "PAD has another length or does not hold zeros"
            container.read(end, len(pad), "PAD", is_exactly(pad), wrong)
        self._gap(end + len(pad), following)

    def _gap(self, offset: int, end: int) -> None:
        """Check that only records of unknown type stand here, and nothing at the end of data."""
        if offset != end == self._container.foot.data_end:
            raise CorruptArchiveError("bytes stand behind the last segment", offset=offset)
        if offset == end:
            return
        most = layout.MAX_OTHERS * layout.MAX_DESCRIPTOR
        wrong = "too many records to skip stand here, or they are damaged"
        with locating(offset=offset, record="record"):
            content = self._container.read(
                offset, min(end - offset, most), "record", opens(check_others), wrong
            )
            if len(content) < end - offset:
                raise CorruptArchiveError(wrong)

    def _end(self) -> None:
        """Check that the tail is still the one that was opened."""
        container, foot = self._container, self._container.foot
        changed = "the file changed while it was open"
        end, expected = layout.END_FRAME, foot.encode()
        is_end, is_index, is_foot = is_exactly(end), has_digest(foot.index_digest), is_exactly(expected)

        def intact(tail: Content) -> bool:
            index = tail[len(end) : -len(expected)]
            return is_end(tail[: len(end)]) and is_index(index) and is_foot(tail[-len(expected) :])

        if self._is_intact(foot.data_end, container.size - foot.data_end, "tail", intact):
            return
        wrong = "the frame that ends the tar is damaged"
        container.read(foot.data_end, len(end), "end of tar", is_end, wrong)
        container.read(foot.index_offset, foot.index_length, "INDX", is_index, changed)
        container.read(container.size - len(expected), len(expected), "FOOT", is_foot, changed)

    def _is_intact(self, offset: int, length: int, record: str, intact: Callable[[Content], bool]) -> bool:
        """Read records that stand together at once; where they are damaged, the caller finds the one."""
        try:
            self._container.read(offset, length, record, intact, "")
        except CorruptArchiveError:
            return False
        return True
