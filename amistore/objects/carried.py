"""Whether the parts that runs took over from a log make the object that was planned."""

from __future__ import annotations

import contextlib

from amistore.archive.reader import ContainerFile, has_digest
from amistore.backends.ranges import RangeReader
from amistore.container import Plan
from amistore.errors import InvalidRequestError
from amistore.pipeline.workers import ordered_map, worker_pool

__all__ = ["check_object"]


def check_object(ranges: RangeReader, planned: Plan, count: int, workers: int | None) -> None:
    """Find in an object the front, the preludes and the first segments that its index stands for.

    The index is the one thing that the run which completed the object made whole. Parts cannot
    be read before their upload is completed, so this comes after it.

    Args:
        ranges: the object.
        planned: what it must be.
        count: of the first segments, those that came from a log.
        workers: descriptors read at once.

    Raises:
        InvalidRequestError: it is not an archive of this plan.
        ArchiveError: a part is not what its log said, or is damaged.
    """
    container = ContainerFile(ranges)
    if container.head.file_id != planned.file_id:  # not made by any run of this plan
        raise InvalidRequestError("the resume log is of another object: amistore.abandon ends its run")
    _check_preludes(container)

    with (
        worker_pool(workers, None) as (pool, limit),
        contextlib.closing(ordered_map(pool, container.segment, range(count), limit)) as found,
    ):
        for _ in found:
            pass


def _check_preludes(container: ContainerFile) -> None:
    """Front and preludes, which lie in parts of an earlier run, are those that this run makes."""
    index = container.index
    volumes = ((volume.offset, volume.length, volume.prelude_digest) for volume in index.volumes)
    for offset, length, digest in ((0, index.front_end, index.front_digest), *volumes):
        wrong = "a part is of another run than the resume log says"
        container.read(offset, length, "front or VOLD", has_digest(digest), wrong)
