"""`Progress` events, and `reporting`, which alone knows what `progress=` may be: below it is a function.

It is called in the caller's own thread. Next: `bars.py` draws bars.
"""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar, Union

import attrs

from amistore.errors import InvalidRequestError
from amistore.pipeline.bars import Bars
from amistore.units import BLOCK_SIZE

__all__ = ["Phase", "Progress", "ProgressCallback", "ProgressOption", "reporting", "reporting_by", "untold"]


class Phase(enum.Enum):
    """A phase of a job.

    Attributes:
        LIST: snapshots are listed, before they are packed.
        PACK: their blocks are read and compressed.
        UNPACK: an archive's blocks are put into new snapshots.
        FILL: the holes of new snapshots are filled with zeros.
        VERIFY: an archive is verified.
        EXTRACT: an archive's disks are extracted.
        COMPARE: an archive's blocks are compared with those of live snapshots.
        COPY: an archive is copied.
        RECOVER: a damaged archive is searched for what is left.
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
    """The progress of a job.

    Attributes:
        phase: the job's present phase.
        blocks: the number of listed blocks done, of 524,288 bytes each; while filling, of blocks of holes.
        total_blocks: the number of all these blocks; None while it is not known.
        stored_bytes: the number of the container's compressed bytes written or read.
        total_bytes: the number of all these bytes; None where it is not known before the end.
    """

    phase: Phase
    blocks: int
    total_blocks: int | None = None
    stored_bytes: int = 0
    total_bytes: int | None = None


ProgressCallback = Callable[[Progress], None]
"""What is called below the calls of users."""

ProgressOption = Union[bool, ProgressCallback, None]
"""What users give: True for a bar, or a function."""

F = TypeVar("F", bound=Callable[..., None])


@contextlib.contextmanager
def reporting(progress: ProgressOption) -> Iterator[ProgressCallback]:
    """What to call with each `Progress` of a call, as its user wants it; bars end with the block.

    Raises:
        InvalidRequestError: `progress` is neither True, False, None nor a function.
        ImportError: a bar is wanted, and tqdm is not installed.
    """

    def draw(bars: Bars) -> Callable[[Progress], None]:
        return functools.partial(_show, bars)

    with reporting_by(progress, draw) as report:
        yield untold if report is None else report


def untold(event: Progress) -> None:
    """What is called where nobody wants to know."""


@contextlib.contextmanager
def reporting_by(progress: bool | F | None, draw: Callable[[Bars], F]) -> Iterator[F | None]:
    """As `reporting`, for anything that `draw` shows in bars."""
    if progress is True:
        with Bars() as bars:
            yield draw(bars)
    elif progress is None or progress is False:
        yield None
    elif callable(progress):
        yield progress
    else:
        raise InvalidRequestError(f"progress is True, False or a function, not {progress!r:.80}")


def _show(bars: Bars, event: Progress) -> None:
    done, total = event.blocks * BLOCK_SIZE, event.total_blocks
    if event.total_bytes is not None:
        bars.show(event.phase.value, event.stored_bytes, event.total_bytes)
    else:
        bars.show(event.phase.value, done, None if total is None else total * BLOCK_SIZE)
