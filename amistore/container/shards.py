"""Shards: runs of segments that one worker makes into parts, and the PAD that fills them up.

Writer and readers keep the same `Shards`. `docs/format.md`, section 8, is the rule.
"""

from __future__ import annotations

from amistore.container import layout
from amistore.container.layout import Layout

__all__ = ["Shards"]


class Shards:
    """Where each shard of a container ends, told segment by segment."""

    def __init__(self, form: Layout, segments: int) -> None:
        """Take the layout, and how many segments the container has."""
        self._per_shard = form.segments_per_shard
        self._segments = segments
        self._start = 0

    def pad(self, count: int, end: int) -> int:
        """The size in bytes of the PAD behind a segment; 0 for none.

        No part but the last may be smaller than 5 MiB, so a shard that is, and is not the last, is filled.

        Args:
            count: of the segments up to this one.
            end: file offset behind its frames.
        """
        if count % self._per_shard or count == self._segments:
            return 0
        missing = layout.MIN_PART - (end - self._start)
        size = max(missing, layout.RECORD_OVERHEAD) if missing > 0 else 0
        self._start = end + size
        return size
