"""One piece of work in a process of its own: ``python -m benchmarks.child WORK GIB``.

Prints seconds and the process's peak memory as JSON to standard error; standard output
and input carry the container.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable

if "--pure-crc" in sys.argv:  # before amistore is imported, as if there had been no compiler
    sys.modules["crcmod._crcfunext"] = None  # type: ignore[assignment]

import amistore
from amistore.container.encoder import ContainerWriter, EncodedSegment
from amistore.container.frames import Frame
from amistore.container.plan import PlannedSegment
from amistore.container.records import SegmentDescriptor
from amistore.pipeline import plan_pack
from benchmarks.blocks import DroppingSink, GeneratedSource, image_of_one_snapshot
from benchmarks.machine import peak_memory

__all__ = ["synthetic_segment"]

WORKERS = 2


def pack(volume_size: int) -> float:
    source = GeneratedSource(volume_size)
    return _timed(
        lambda: sys.stdout.buffer.writelines(amistore.pack(image_of_one_snapshot(), source, workers=WORKERS))
    )


def unpack(volume_size: int) -> float:
    return _timed(lambda: amistore.unpack(sys.stdin.buffer, DroppingSink(), workers=WORKERS))


def plan(volume_size: int) -> float:
    return _timed(lambda: plan_pack(image_of_one_snapshot(), GeneratedSource(volume_size)))


def index(volume_size: int) -> float:
    """Open an archive of this size, of which only the end was written; the rest is a hole."""
    planned = plan_pack(image_of_one_snapshot(), GeneratedSource(volume_size))
    writer = ContainerWriter(planned, 3)
    writer.front()
    writer.volume(planned.volumes[0])
    for sequence in range(planned.segments):
        writer.segment(synthetic_segment(planned.segment(sequence)))
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.truncate(writer.offset)
        file.seek(writer.offset)
        file.writelines(writer.tail())
        file.flush()
        return _timed(lambda: amistore.open(file.name).close())


def synthetic_segment(segment: PlannedSegment) -> EncodedSegment:
    """A segment that might be, of frames that are not there."""
    sequence = segment.sequence
    descriptor = SegmentDescriptor(
        file_id=segment.file_id,
        volume=segment.volume,
        sequence=segment.sequence,
        ordinal=segment.ordinal,
        runs=segment.runs,
        frames=tuple(Frame(1_700_000 + sequence * 7919 % 500_000, sequence) for _ in segment.frame_contents),
        digests=tuple(place.to_bytes(32, "little") for place in segment.runs.indexes()),
    )
    return EncodedSegment(descriptor, descriptor.encode(), [b""])


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    work = {"pack": pack, "unpack": unpack, "plan": plan, "index": index}[sys.argv[1]]
    seconds = work(int(sys.argv[2]))
    print(json.dumps({"seconds": seconds, "peak": peak_memory()}), file=sys.stderr)


if __name__ == "__main__":
    main()
