"""`verify`: every byte of an archive, in parallel, and all that is wrong with it.

What opening trusts INDX for is read here where it stands first: the front, each volume's
prelude, each segment and whatever lies between. Both views must say the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from amistore.archive.reader import ContainerFile, LoadedSegment, has_digest, is_exactly, opens
from amistore.archive.report import VerifyReport
from amistore.archive.volumereader import VolumeReader
from amistore.container import (
    PREAMBLE,
    DecodedBlock,
    PlannedVolume,
    SegmentDescriptor,
    VolumeDescriptor,
    layout,
)
from amistore.container.envelope import check_others, open_envelope, open_record, pad_record
from amistore.container.frames import check_frame
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.members import open_prelude
from amistore.container.plan import cut_segment, pad_size
from amistore.container.segments import check_segment
from amistore.errors import ArchiveError, CorruptArchiveError, InvalidRequestError
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.workers import ordered_map, worker_pool

__all__ = ["Checked", "Task", "Verification", "verify"]


def verify(
    container: ContainerFile,
    *,
    quick: bool,
    expected_content_id: str | None,
    workers: int | None,
    progress: ProgressCallback,
) -> VerifyReport:
    """See `Archive.verify`."""
    start = time.perf_counter()
    expected = parse_content_id(expected_content_id)
    if quick and expected is not None:
        raise InvalidRequestError(
            "a quick check reads no block, so it cannot prove a content id: leave out quick=True, or compare "
            "what the archive claims with open(…, expected_content_id=…)"
        )
    verification = Verification(container, quick=quick, progress=progress)
    try:
        check_content_id(container.index.content_id, expected)
    except CorruptArchiveError as error:
        verification.findings.append(error)
    verification.run(workers)
    return VerifyReport(
        name=container.name,
        quick=quick,
        content_id=container.index.content_id.hex(),
        size=container.size,
        volumes=len(container.index.volumes),
        segments=len(container.index.offsets),
        blocks=container.head.blocks,
        seconds=time.perf_counter() - start,
        findings=tuple(verification.findings),
        lost_blocks=sum(
            lost.block_count for snapshot in container.image.snapshots for lost in snapshot.lost_blocks
        ),
    )


Task = tuple[int, "PlannedVolume | None", int]  # number of the volume, the volume, sequence


@attrs.frozen
class Checked:
    """A segment that was read: its descriptor, its end, and what was wrong with it."""

    descriptor: SegmentDescriptor | None
    end: int
    findings: tuple[ArchiveError, ...]


class Verification:
    """One pass over a container, from front to end; what is wrong is collected.

    `objects/restoration.py` makes a restore of it, for which `_begin`, `_load`, `_block`, `_done`
    and `_note` are.
    """

    _phase = Phase.VERIFY

    def __init__(self, container: ContainerFile, *, quick: bool, progress: ProgressCallback) -> None:
        self._container = container
        self._quick = quick
        self._progress = progress
        self._blocks = 0
        self._shard_start: int | None = 0
        self.findings: list[ArchiveError] = []

    def run(self, workers: int | None) -> None:
        with self._noting():
            self._front()
        volumes: list[PlannedVolume | None] = []
        for number in range(len(self._container.index.volumes)):
            volumes.append(self._prelude(number))
        with (
            worker_pool(workers, None) as (pool, limit),
            contextlib.closing(ordered_map(pool, self._segment, self._tasks(volumes), limit)) as checked,
        ):
            for number in range(len(volumes)):
                self._volume(number, checked)
            next(checked, None)  # the tasks' end: volumes without a segment that come last are begun there
        with self._noting():
            self._end()

    def _tasks(self, volumes: list[PlannedVolume | None]) -> Iterator[Task]:
        for number, volume in enumerate(volumes):
            self._begin(number, volume)
            for sequence in VolumeReader(self._container, number).segments:
                yield number, volume, sequence

    def _begin(self, number: int, volume: PlannedVolume | None) -> None:
        """Called before the first segment of a volume is worked on."""

    def _done(self, sequence: int, descriptor: SegmentDescriptor | None) -> None:
        """Called when a segment was worked on, and all before it."""

    def _note(self, findings: Iterable[ArchiveError]) -> None:
        self.findings += findings

    @contextlib.contextmanager
    def _noting(self, **facts: Any) -> Iterator[None]:
        """Note an error of the bytes as a finding; those of the backend go on up."""
        try:
            yield
        except ArchiveError as error:
            self._note([error.locate(**facts)])

    def _front(self) -> None:
        """The front is, byte for byte, PREAMBLE and the index's copies of HEAD and manifest."""
        index = self._container.index
        parts = (("PREAMBLE", PREAMBLE), ("HEAD", index.head), ("manifest", index.manifest_frames))
        offset = 0
        expected = hashlib.sha256()
        for record, content in parts:
            expected.update(content)
            wrong = "it is not as the index says"
            self._container.read(offset, len(content), record, is_exactly(content), wrong)
            offset += len(content)
        if (offset, expected.digest()) != (index.front_end, index.front_digest):
            raise CorruptArchiveError("the front is not the one that the index was made for", record="INDX")
        following = index.volumes[0].offset if index.volumes else self._container.foot.data_end
        self._gap(index.front_end, following)

    def _prelude(self, number: int) -> PlannedVolume | None:
        """The volume as VOLD and its sparse map have it; None where they are damaged."""
        indexed = self._container.index.volumes[number]
        with self._noting(record="VOLD", offset=indexed.offset, snapshot_id=indexed.snapshot_id):
            intact = has_digest(indexed.prelude_digest)
            wrong = "VOLD, tar headers or sparse map are not as the index says"
            content = self._container.read(indexed.offset, indexed.length, "VOLD", intact, wrong)
            size = open_envelope(content[: layout.ENVELOPE.size]).size
            descriptor = VolumeDescriptor.parse(open_record(content[:size], layout.VOLD))
            volume = open_prelude(descriptor, content[size:], self._container.image)
            if (
                descriptor.file_id,
                descriptor.volume,
                descriptor.first_segment,
                descriptor.snapshot_id,
                descriptor.size,
                descriptor.blocks,
                descriptor.runs,
                descriptor.runs_digest,
            ) != (
                self._container.head.file_id,
                number,
                self._container.first_segment(number),
                indexed.snapshot_id,
                indexed.size,
                indexed.blocks,
                indexed.runs,
                indexed.runs_digest,
            ):
                raise CorruptArchiveError("VOLD is not the volume of the index")
            return volume
        return None

    def _segment(self, task: Task) -> Checked:
        """Runs in a worker."""
        number, volume, sequence = task
        container = self._container
        descriptor: SegmentDescriptor | None = None
        end = container.segment_end(sequence)
        findings: list[ArchiveError] = []
        try:
            loaded = self._load(sequence)
            descriptor = loaded.located.descriptor
            end = loaded.located.end
            if volume is not None:
                planned = cut_segment(
                    container.head.file_id, volume, descriptor.ordinal, container.head.layout
                )
                check_segment(descriptor, planned)
            findings += self._frames(number, loaded)
        except ArchiveError as error:
            snapshot_id = container.index.volumes[number].snapshot_id
            findings.append(
                error.locate(
                    record="SEGD",
                    segment=sequence,
                    offset=container.index.offsets[sequence],
                    snapshot_id=snapshot_id,
                )
            )
        return Checked(descriptor, end, tuple(findings))

    def _load(self, sequence: int) -> LoadedSegment:
        return self._container.load(sequence)

    def _frames(self, number: int, loaded: LoadedSegment) -> Iterator[ArchiveError]:
        """What is wrong with a segment's frames: each is checked, whatever the others are."""
        volume = VolumeReader(self._container, number)
        located = loaded.located
        for place, frame in enumerate(loaded.frames):
            try:
                if self._quick:
                    entry = located.descriptor.frames[place]
                    check_frame(frame, located.frame_contents[place], entry.crc32)
                else:
                    for block in volume.frame(loaded, place).blocks():
                        self._block(volume.indexed.snapshot_id, block)
            except ArchiveError as error:
                yield error.locate(
                    record="frame",
                    offset=located.frame_offset(place),
                    segment=located.descriptor.sequence,
                    snapshot_id=volume.indexed.snapshot_id,
                    block_index=located.first_block(place),
                )

    def _block(self, snapshot_id: str, block: DecodedBlock) -> None:
        """Called with each block that is as it should be, in a worker."""

    def _volume(self, number: int, checked: Iterator[Checked]) -> None:
        """A volume's segments in order: what lies between them, and what the index sums up of them."""
        container = self._container
        indexed = container.index.volumes[number]
        segments = VolumeReader(container, number).segments
        following = container.index.offsets[segments.start] if segments else container.volume_end(number)
        with self._noting(snapshot_id=indexed.snapshot_id):
            self._gap(indexed.offset + indexed.length, following)
        blocks = 0
        digests = hashlib.sha256()  # LINEAR, without keeping the digest of each block
        all_found = True
        for sequence in segments:
            found = next(checked)
            self._note(found.findings)
            if found.descriptor is None:
                all_found = False
                self._shard_start = None  # where it ends is not known
            else:
                blocks += len(found.descriptor.digests)
                digests.update(b"".join(found.descriptor.digests))
                with self._noting(segment=sequence, snapshot_id=indexed.snapshot_id):
                    self._behind(sequence, found.end)
            self._done(sequence, found.descriptor)
            self._blocks += container.segment_blocks(sequence)
            self._report(found.end)
        if all_found and (blocks, digests.digest()) != (indexed.blocks, indexed.linear):
            self._note(
                [
                    CorruptArchiveError(
                        "the volume's blocks are not those that its content id stands for",
                        record="INDX",
                        snapshot_id=indexed.snapshot_id,
                    )
                ]
            )

    def _behind(self, sequence: int, end: int) -> None:
        """PAD where a shard ends, and records of unknown type."""
        container = self._container
        following = container.segment_end(sequence)
        last = sequence + 1 == len(container.index.offsets)
        if (sequence + 1) % container.head.layout.segments_per_shard == 0 and not last:
            if self._shard_start is not None:
                size = pad_size(end - self._shard_start)
                self._shard_start = end + size
                if end + size > following:
                    raise CorruptArchiveError("a shard lacks its PAD", record="PAD", offset=end)
                self._pad(end, size)
                end += size
            else:  # a damaged segment in this shard: its PAD cannot be foretold
                self._shard_start = following
                return
        self._gap(end, following)

    def _pad(self, offset: int, size: int) -> None:
        if not size:
            return
        expected = pad_record(size)
        wrong = "PAD has another length or does not hold zeros"
        self._container.read(offset, size, "PAD", is_exactly(expected), wrong)

    def _gap(self, offset: int, end: int) -> None:
        """Records of unknown type are all that may stand here, and nothing at the end of data."""
        if offset != end == self._container.foot.data_end:
            raise CorruptArchiveError("bytes stand behind the last segment", offset=offset)
        if offset == end:
            return
        most = layout.MAX_OTHERS * layout.MAX_DESCRIPTOR
        wrong = "what stands here is more than a few records that may be skipped, or they are damaged"
        try:
            content = self._container.read(
                offset, min(end - offset, most), "record", opens(check_others), wrong
            )
            if len(content) < end - offset:
                raise CorruptArchiveError(wrong)
        except ArchiveError as error:
            raise error.locate(offset=offset, record="record") from None

    def _end(self) -> None:
        """The tail as it is now is the one that was opened."""
        container, foot = self._container, self._container.foot
        changed = "the file changed while it was open"
        end, expected = layout.END_FRAME, foot.encode()
        wrong = "the frame that ends the tar is damaged"
        container.read(foot.data_end, len(end), "end of tar", is_exactly(end), wrong)
        container.read(foot.index_offset, foot.index_length, "INDX", has_digest(foot.index_digest), changed)
        container.read(container.size - len(expected), len(expected), "FOOT", is_exactly(expected), changed)

    def _report(self, offset: int) -> None:
        if self._progress is not None:
            self._progress(
                Progress(
                    phase=self._phase,
                    blocks=self._blocks,
                    total_blocks=self._container.head.blocks,
                    stored_bytes=offset,
                )
            )
