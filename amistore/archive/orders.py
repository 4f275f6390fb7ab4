"""Orders of reading an archive: a worker opens it once, and reads its segments by itself."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import attrs

from amistore.archive.reader import ContainerFile
from amistore.errors import SourceChangedError
from amistore.pipeline.orders import Order, R, order_length, order_ranges
from amistore.pipeline.shared import Shared

__all__ = ["ArchiveOrder", "archive_ranges"]


@attrs.frozen(kw_only=True, eq=False)
class ArchiveOrder(Order[R]):
    """Read some segments of an archive.

    Attributes:
        container: the archive.
        index_digest: the SHA-256 of its index: what a worker opens by a path may be another file.
        sequences: the numbers of the segments, of one volume.
    """

    container: Shared[ContainerFile]
    index_digest: bytes
    sequences: range

    def work(self) -> R:
        container = self.container.value
        if container.foot.index_digest != self.index_digest:
            raise SourceChangedError(f"{container.name} is another archive where the worker reads it")
        return self.read(container)

    @abc.abstractmethod
    def read(self, container: ContainerFile) -> R:
        """Read the segments."""


def archive_ranges(container: ContainerFile) -> Iterator[range]:
    """The numbers of all segments, order by order; an order ends with its volume."""
    length = order_length(container.head.layout.blocks_per_segment)
    for volume in range(len(container.index.volumes)):
        yield from order_ranges(container.segments_of(volume), length)
