"""Whether what a run took over from its log is what the object holds."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

from amistore.archive.reader import ContainerFile
from amistore.backends.ranges import RangeReader
from amistore.container import EncodedSegment, Plan
from amistore.errors import CorruptArchiveError, InvalidRequestError
from amistore.pipeline.workers import ordered_map, worker_pool

__all__ = ["check_carried"]


def check_carried(
    ranges: RangeReader, planned: Plan, carried: Sequence[EncodedSegment], workers: int | None
) -> None:
    """Find in an object the segments that were carried over, and the front and preludes of this run.

    Parts cannot be read before their upload is completed, so this comes after it.

    Args:
        ranges: the object.
        planned: what it must be.
        carried: its first segments, as the log has them.
        workers: descriptors read at once.

    Raises:
        InvalidRequestError: it is not an archive of this plan.
        ArchiveError: it differs from the log, or is damaged.
    """
    container = ContainerFile(ranges)
    if container.head.file_id != planned.file_id:  # not made by any run of this plan
        raise InvalidRequestError("the resume log is of another object: amistore.abandon ends its run")
    _check_preludes(container)
    with (
        worker_pool(workers, None) as (pool, limit),
        contextlib.closing(ordered_map(pool, container.segment, range(len(carried)), limit)) as found,
    ):
        for located, segment in zip(found, carried, strict=True):
            if located.descriptor != segment.descriptor:
                raise CorruptArchiveError("a segment is not the one in the resume log")


def _check_preludes(container: ContainerFile) -> None:
    """Front and preludes, which lie in parts of an earlier run, are those that this run makes."""
    index = container.index
    volumes = ((volume.offset, volume.length, volume.prelude_digest) for volume in index.volumes)
    for offset, length, digest in ((0, index.front_end, index.front_digest), *volumes):
        if hashlib.sha256(container.read(offset, length, "front or VOLD")).digest() != digest:
            raise CorruptArchiveError("a part is of another run than the resume log says", offset=offset)
