"""`pack`: an image and its snapshots become a container's bytes.

Next: `packing.py`, which does it unit by unit, and `unpack.py`, the way back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor
from types import TracebackType
from typing import Final

import attrs
from typing_extensions import Self

from amistore import forks
from amistore.backends import BlockSource
from amistore.backends.checks import check_kind
from amistore.container.layout import Layout
from amistore.container.plan import Plan, plan
from amistore.container.runs import Runs
from amistore.errors import InvalidRequestError, SourceChangedError
from amistore.model import Image
from amistore.pipeline.packing import PackedUnit, SegmentEncode, list_runs, packed_units
from amistore.pipeline.progress import Phase, Progress, ProgressCallback, ProgressOption, reporting, untold
from amistore.pipeline.workers import check_picklable, closing, waiting, worker_count

__all__ = [
    "DEFAULTS",
    "ArchiveBytes",
    "PackOptions",
    "check_packing",
    "choose_snapshots",
    "pack",
    "plan_pack",
]


@attrs.frozen(kw_only=True)
class PackOptions:
    """Options of packing that are rarely needed.

    Attributes:
        layout: the sizes of segments, frames and parts; None for what fits the container's size.
        check_frames: whether to decode each frame, and compare it with the blocks, before it is handed out.
        part_size: the bytes of a part where the archive becomes an object, with an executor at least so many;
            None for 16 MiB, or more where the object would have too many parts. The archive's bytes do not
            depend on it.
    """

    layout: Layout | None = None
    check_frames: bool = True
    part_size: int | None = None


DEFAULTS: Final = PackOptions()


class ArchiveBytes(Iterator[bytes]):
    """An iterator of one archive's bytes, in pieces of little more than 8 MiB at most; `pack` returns it.

    Closing or dropping it ends its threads. A context manager that closes it.

    Attributes:
        most_bytes: the upper bound of the archive's size in bytes, reached if nothing compresses.
    """

    def __init__(
        self, units: Generator[PackedUnit, None, None], reports: contextlib.ExitStack, most_bytes: int
    ) -> None:
        self.most_bytes = most_bytes
        self._pieces = _pieces(units, reports)
        self._reports = reports
        self._content_id: bytes | None = None

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._content_id = self._content_id or end.value
            raise

    @property
    def content_id(self) -> str:
        """The archive's content id, computed while it was made: 64 hexadecimal digits.

        Keep it out of reach of those who can write the archive: later it proves that the archive is the same.

        Raises:
            InvalidRequestError: the iterator has not reached its end.
        """
        if self._content_id is None:
            raise InvalidRequestError(
                "the content id is known at the archive's end: take all bytes, until the iterator stops"
            )
        return self._content_id.hex()

    def close(self) -> None:
        """End the threads; no more bytes follow."""
        with waiting():
            self._pieces.close()
        self._reports.close()  # where no piece was taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _pieces(
    units: Generator[PackedUnit, None, None], reports: contextlib.ExitStack
) -> Generator[bytes, None, bytes]:
    """All bytes, and at the end the content id."""
    process = os.getpid()
    content_id = b""
    with reports, closing(units):
        for unit in units:
            pieces = unit.pieces
            if unit.written is not None:
                content_id = unit.written.content_id
            del unit  # so that a piece is freed as soon as it was taken
            while pieces:
                yield pieces.pop(0)
                forks.check_owner(process, "this iterator")
    return content_id


def pack(
    image: Image,
    source: BlockSource,
    *,
    level: int = 3,
    snapshots: Iterable[str] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: ProgressOption = None,
    options: PackOptions = DEFAULTS,
) -> ArchiveBytes:
    """Pack an image with its snapshots into one container.

    This lists the snapshots and plans the container before it returns; the iterator reads the blocks. Closing
    or dropping the iterator ends its threads. The same image, options and libzstd give the same bytes, with
    any number of workers.

    Args:
        image: the image to pack, such as `describe_image` returns.
        source: the source of the image's snapshots.
        level: the zstd level, 1 to 22, or negative for its fast modes.
        snapshots: the ids of the snapshots to include; None for all that the mappings name.
        workers: the number of segments worked on at once; None for the number of CPUs.
        executor: the executor that packs segments; None for threads. For processes the source must be
            picklable.
        progress: True for a bar (extra ``progress``), or a function that is called with a `Progress` after
            each listed page and each segment.
        options: the options that are rarely needed.

    Returns:
        An iterator of the container's bytes, in pieces of little more than 8 MiB at most, that knows the
        archive's `content_id` at its end.

    Raises:
        NotFoundError: a snapshot does not exist.
        InvalidRequestError: the image cannot be packed.
        SourceChangedError: (while iterating) the snapshot is not what was listed.
        ChecksumMismatchError: (while iterating) a block does not have the checksum of its source.
        BackendError: the source failed.
    """
    if not isinstance(options, PackOptions):
        raise InvalidRequestError(f"options must be an amistore.PackOptions, not {type(options).__name__}")
    check_packing(image, source, level, workers, executor)  # refused here, not at the first piece
    encode = SegmentEncode(level, options.check_frames)
    with contextlib.ExitStack() as reports:
        report = reports.enter_context(reporting(progress))
        planned = plan_pack(image, source, snapshots=snapshots, progress=report, layout=options.layout)
        units = packed_units(planned, source, encode, workers=workers, executor=executor, progress=report)
        return ArchiveBytes(units, reports.pop_all(), planned.most_bytes)


def check_packing(
    image: Image, source: BlockSource, level: int, workers: int | None, executor: Executor | None
) -> None:
    """Refuse an image or a zstd level that cannot be packed."""
    if not isinstance(level, int) or not -131072 <= level <= 22:
        raise InvalidRequestError(f"zstd levels are -131072 to 22, not {level!r}")
    worker_count(workers)
    if not isinstance(image, Image):
        raise InvalidRequestError(
            f"image must be an amistore.Image, not {type(image).__name__}: describe_image gives one"
        )
    check_kind(source, BlockSource, "source")
    check_picklable(executor, source, "source")


def plan_pack(
    image: Image,
    source: BlockSource,
    *,
    snapshots: Iterable[str] | None = None,
    progress: ProgressCallback = untold,
    layout: Layout | None = None,
) -> Plan:
    """List the snapshots and plan the container; arguments as in `pack`."""
    volumes: list[tuple[str, int, Runs]] = []
    for snapshot_id in choose_snapshots(image, snapshots):
        before = sum(runs.blocks for _, _, runs in volumes)

        def listed(count: int, before: int = before) -> None:
            progress(Progress(phase=Phase.LIST, blocks=before + count))

        size, runs = list_runs(source, snapshot_id, listed)
        known = image.snapshot(snapshot_id).volume_size
        if known not in (None, size):
            raise SourceChangedError(
                f"the image describes the snapshot with {known} GiB, the listing with {size}",
                snapshot_id=snapshot_id,
            )
        volumes.append((snapshot_id, size, runs))
    return plan(image, volumes, layout)


def choose_snapshots(image: Image, snapshots: Iterable[str] | None) -> tuple[str, ...]:
    """The image's snapshots to include, in an archive's order."""
    if snapshots is None:
        return image.snapshot_ids
    wanted = {snapshots} if isinstance(snapshots, str) else set(snapshots)
    foreign = sorted(wanted - set(image.snapshot_ids))
    if foreign:
        raise InvalidRequestError(
            f"{foreign[0]} is no snapshot of {image.image_id}, "
            f"which has {', '.join(image.snapshot_ids) or 'none'}",
            code="InvalidSnapshot.NotFound",
        )
    return tuple(sorted(wanted))
