"""`verify`: check every byte of an archive, in parallel, and find every fault.

Workers check the segments, in threads or by orders; `verification.py` all that stands between them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Final

import attrs

from amistore.archive.orders import ArchiveOrder, archive_ranges
from amistore.archive.reader import ContainerFile
from amistore.archive.report import VerifyReport
from amistore.archive.verification import Checked, Verification, check_mapped
from amistore.container.identity import check_content_id, parse_content_id
from amistore.container.plan import PlannedVolume
from amistore.container.segments import LocatedSegment, StoredSegment, check_stored_frame, decode_frame
from amistore.errors import ArchiveError, CorruptArchiveError, InvalidRequestError
from amistore.pipeline.orders import Cluster, Orders
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.requests import Reads
from amistore.pipeline.shared import Shared
from amistore.pipeline.workers import closing, worker_pool

__all__ = ["verify"]

_AHEAD: Final = 2  # segments that are begun before the front is read


def verify(
    container: ContainerFile,
    *,
    quick: bool,
    expected_content_id: str | None,
    workers: int | None,
    cluster: Cluster | None,
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
    blocks = 0
    if cluster is None:
        found = _by_threads(container, verification, quick, workers)
    else:
        found = _by_orders(container, verification, quick, cluster)
    with closing(found) as checked:
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


def _by_threads(
    container: ContainerFile, verification: Verification, quick: bool, workers: int | None
) -> Generator[Checked, None, None]:
    """The checked segments, in order."""
    check = _SegmentCheck(container, quick)
    loads = container.loads()
    with worker_pool(workers, None) as pool, loads:
        ahead = deque(map(loads.begin, range(min(_AHEAD, len(container.index.offsets)))))
        tasks = _tasks(container, verification.volumes(), loads, ahead)
        with closing(pool.map(check, tasks, check.weigh, most=loads.most(pool.count))) as checked:
            yield from checked


def _by_orders(
    container: ContainerFile, verification: Verification, quick: bool, cluster: Cluster
) -> Generator[Checked, None, None]:
    """The checked segments, in order; the maps that workers do not have are compared here."""
    shared, digest = Shared(container), container.foot.index_digest
    volumes = verification.volumes()
    orders = (
        _VerifyOrder(number=number, container=shared, index_digest=digest, sequences=sequences, quick=quick)
        for number, sequences in enumerate(archive_ranges(container))
    )
    with Orders[list[Checked]](cluster) as out, closing(out.map(orders)) as ended:
        for _, checked in ended:
            for each in checked:
                yield _mapped(container, volumes[container.volume_of(each.sequence)], each)


def _mapped(container: ContainerFile, volume: PlannedVolume | None, checked: Checked) -> Checked:
    if volume is not None and checked.located is not None:
        try:
            check_mapped(container, volume, checked.located)
        except ArchiveError as error:
            return attrs.evolve(checked, findings=(error,))
    return checked


@attrs.frozen(kw_only=True, eq=False)
class _VerifyOrder(ArchiveOrder["list[Checked]"]):
    """Check some segments.

    Attributes:
        quick: whether no block is decompressed.
    """

    quick: bool

    def read(self, container: ContainerFile) -> list[Checked]:
        check = _SegmentCheck(container, self.quick)
        loads = container.loads()
        with worker_pool(1, None) as pool, loads:
            tasks = ((None, sequence, loads.begin(sequence)) for sequence in self.sequences)
            with closing(pool.map(check, tasks, check.weigh, most=loads.most(pool.count))) as checked:
                return [
                    attrs.evolve(each, findings=tuple(map(_without_frames, each.findings)))
                    for each in checked
                ]


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
