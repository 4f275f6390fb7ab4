"""Progress events, typed; given to `progress=` callbacks in the caller's own thread."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Optional

import attrs

__all__ = ["Phase", "Progress", "ProgressCallback"]


class Phase(enum.Enum):
    """What is being done.

    Attributes:
        LIST: snapshots are listed, before they are packed.
        PACK: their blocks are read and compressed.
        UNPACK: an archive's blocks are put into new snapshots.
        FILL: holes of these are filled with zeros.
        VERIFY: an archive is verified.
        EXTRACT: disks are written out of one.
        COMPARE: its blocks are compared with live snapshots'.
        RECOVER: a damaged one is searched for what is left.
    """

    LIST = "list"
    PACK = "pack"
    UNPACK = "unpack"
    FILL = "fill"
    VERIFY = "verify"
    EXTRACT = "extract"
    COMPARE = "compare"
    COPY = "copy"
    RECOVER = "recover"


@attrs.frozen(kw_only=True)
class Progress:
    """How far it is.

    Attributes:
        phase: what is being done.
        blocks: listed blocks done so far, of 524,288 bytes each; while filling, blocks of holes.
        total_blocks: of how many; None while listing.
        stored_bytes: compressed bytes of the container written or read so far.
    """

    phase: Phase
    blocks: int
    total_blocks: int | None
    stored_bytes: int


ProgressCallback = Optional[Callable[[Progress], None]]
