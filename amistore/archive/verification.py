"""`verify`: check every byte of an archive, in parallel, and find every fault.

Opening trusts INDX. Here the originals are read: the front, each volume's prelude, each segment and all bytes
between. Both views must say the same.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from amistore.archive.reader import ContainerFile, has_digest, is_exactly, opens
from amistore.archive.volumereader import VolumeSums
from amistore.backends.receiving import Content
from amistore.container import layout
from amistore.container.frames import cut_frames
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.members import PREAMBLE, PreludeReader
from amistore.container.plan import PlannedVolume, Shards, cut_segment
from amistore.container.records import check_others, open_envelope
from amistore.container.segments import (
    LocatedSegment,
    StoredSegment,
    check_segment,
    check_stored_frame,
    decode_frame,
)
from amistore.errors import (
    REMEDY,
    ArchiveError,
    CorruptArchiveError,
    InvalidRequestError,
    advising,
    is_unadvised,
    locating,
)
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.requests import Reads
from amistore.pipeline.workers import closing, worker_pool
from amistore.text import html_table, printable
from amistore.units import BLOCK_SIZE, counted, sized

__all__ = ["Checked", "Verification", "VerifyReport", "check_mapped", "verify"]

_AHEAD: Final = 2  # segments that are begun before the front is read


@attrs.frozen(kw_only=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        name: the archive's name.
        quick: whether the verification was quick, and decompressed and hashed no block.
        content_id: the archive's content id, in hexadecimal.
        size: the number of bytes read and checked.
        volumes: the number of volumes.
        segments: the number of segments.
        blocks: the number of listed blocks, of 524,288 bytes each.
        seconds: the duration in seconds.
        findings: the faults, each an error that says where; empty for an intact archive.
        lost_blocks: the number of blocks that were lost before the archive was recovered; restoring it needs
            `allow_lost`.
        another: whether the content id is not the expected one. That is the first finding then, and no
            damage.
    """

    name: str
    quick: bool
    content_id: str
    size: int
    volumes: int
    segments: int
    blocks: int
    seconds: float
    findings: tuple[ArchiveError, ...]
    lost_blocks: int = 0
    another: bool = False

    @property
    def ok(self) -> bool:
        """Whether the archive is intact, and the expected one."""
        return not self.findings

    @property
    def throughput(self) -> float:
        """The number of the archive's bytes checked in a second."""
        return self.size / self.seconds if self.seconds else 0.0

    def check(self) -> VerifyReport:
        """Return this report if it has no findings.

        Raises:
            ArchiveError: the first finding.
        """
        if self.findings:
            with advising():
                raise copy.copy(self.findings[0])
        return self

    def __str__(self) -> str:
        lines = [f"{printable(self.name)}: {self._verdict()}"]
        lines += [f"  {name:<10}  {text}" for name, text in self._facts()]
        lines += [f"  - {finding}" for finding in self.findings]
        return "\n".join([*lines, *(f"  {remedy}" for remedy in self._remedy())])

    def _repr_html_(self) -> str:
        """What a notebook shows: the same, with a line for each finding."""
        facts = [("archive", self.name), ("verdict", self._verdict()), *self._facts()]
        found = [("finding", str(finding)) for finding in self.findings]
        return html_table([*facts, *found, *(("remedy", remedy) for remedy in self._remedy())])

    def _verdict(self) -> str:
        faults = len(self.findings) - self.another
        state = f"DAMAGED, {counted(faults, 'finding')}" if faults else "intact"
        return f"another archive than the expected one, {state}" if self.another else state

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "content id", self.content_id
        yield "checked", "quickly: records, index, CRCs" if self.quick else "fully: every block"
        blocks = f"{counted(self.blocks, 'block')} ({sized(self.blocks * BLOCK_SIZE)})"
        yield "holds", f"{counted(self.volumes, 'volume')}, {counted(self.segments, 'segment')}, {blocks}"
        seconds = f"{self.seconds:.{1 if self.seconds >= 0.1 else 4}f}"
        yield "read", f"{sized(self.size)} in {seconds} s, {sized(self.throughput)}/s"
        if self.lost_blocks:
            lost = f"{counted(self.lost_blocks, 'block')} ({sized(self.lost_blocks * BLOCK_SIZE)})"
            yield "LOST", f"{lost}, when it was recovered; restoring needs allow_lost=True"

    def _remedy(self) -> list[str]:
        return [REMEDY] if any(map(is_unadvised, self.findings)) else []


def verify(
    container: ContainerFile,
    *,
    quick: bool,
    expected_content_id: str | None,
    workers: int | None,
    progress: ProgressCallback,
) -> VerifyReport:
    """As `Archive.verify`."""
    start = time.perf_counter()
    expected = parse_content_id(expected_content_id)
    if quick and expected is not None:
        raise InvalidRequestError(
            "a quick check reads no block, so it cannot prove a content id: leave out quick=True, or compare "
            "what the archive claims with open(…, expected_content_id=…)"
        )
    findings: list[ArchiveError] = []

    def note(finding: ArchiveError) -> None:
        findings.append(_without_frames(finding))

    try:
        check_content_id(container.index.content_id, expected)
    except CorruptArchiveError as error:
        note(error)
    another = bool(findings)
    verification = Verification(container, note)
    check = _SegmentCheck(container, quick)
    loads = container.loads()
    blocks = 0
    with worker_pool(workers, None) as pool, loads:
        ahead = deque(map(loads.begin, range(min(_AHEAD, len(container.index.offsets)))))
        tasks = _tasks(container, verification.volumes(), loads, ahead)
        most = loads.most(pool.count)
        with closing(pool.map(check, tasks, check.weigh, most=most)) as checked:
            for each in verification.segments(checked):
                blocks += container.segment_blocks(each.sequence)
                progress(
                    Progress(
                        phase=Phase.VERIFY,
                        blocks=blocks,
                        total_blocks=container.head.blocks,
                        stored_bytes=each.end,
                    )
                )
    verification.end()
    return VerifyReport(
        name=container.name,
        quick=quick,
        content_id=container.index.content_id.hex(),
        size=container.size,
        volumes=len(container.index.volumes),
        segments=len(container.index.offsets),
        blocks=container.head.blocks,
        seconds=time.perf_counter() - start,
        findings=tuple(findings),
        lost_blocks=sum(
            lost.block_count for snapshot in container.image.snapshots for lost in snapshot.lost_blocks
        ),
        another=another,
    )


def _without_frames(finding: ArchiveError) -> ArchiveError:
    """Without tracebacks: each holds its segment, and a report would hold all that are damaged."""
    error: BaseException | None = finding
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    return finding


# What is known of the volume, the segment's sequence number, and what loads it.
_Task = tuple[PlannedVolume | None, int, Callable[[], StoredSegment]]


def _tasks(
    container: ContainerFile,
    volumes: list[PlannedVolume | None],
    loads: Reads[StoredSegment],
    ahead: deque[Callable[[], StoredSegment]],
) -> Iterator[_Task]:
    """Each segment; the loads of the first ones were begun `ahead`, while the front was read."""
    for number, volume in enumerate(volumes):
        for sequence in container.segments_of(number):
            yield volume, sequence, ahead.popleft() if ahead else loads.begin(sequence)


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


@attrs.frozen
class _SegmentCheck:
    """The worker's job for one segment: read it, and check it and each of its frames independently."""

    container: ContainerFile
    quick: bool

    def weigh(self, task: _Task) -> int:
        """The bytes that a task loads."""
        return self.container.segment_size(task[1])

    def __call__(self, task: _Task) -> Checked:
        volume, sequence, load = task
        located: LocatedSegment | None = None
        findings: list[ArchiveError] = []
        try:
            with self.container.locating(sequence):
                stored = load()
            located = stored.located
            if volume is not None:
                check_mapped(self.container, volume, located)
            findings += self._frames(stored)
        except ArchiveError as error:
            findings.append(error)
        end = self.container.segment_end(sequence) if located is None else located.end
        return Checked(sequence, end, located, tuple(findings))

    def _frames(self, stored: StoredSegment) -> Iterator[ArchiveError]:
        for number, frame in enumerate(stored.frames):
            try:
                if self.quick:
                    check_stored_frame(stored.located, number, frame)
                else:
                    for _ in decode_frame(stored.located, number, frame).blocks():
                        pass
            except ArchiveError as error:
                yield error


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
