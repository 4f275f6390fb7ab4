"""What storing by orders costs its coordinator: ``python -m benchmarks.coordinator WORK GIB WORKERS``.

Workers are made up: each order is pickled, as for another machine, and answered at once with records and
parts that a worker might have made, without a byte of data. Their making is not counted. Prints CPU seconds
and peak memory as JSON to standard error.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Final

import amistore
from amistore import BLOCK_SIZE, GIB
from amistore.backends import Block, BlockPage, BlockSource, SnapshotBlock, StoreTraits, UploadedPart
from amistore.container.encoder import ContainerWriter, EncodedSegment
from amistore.container.plan import plan
from amistore.container.records import SegmentDescriptor
from amistore.container.runs import Runs
from amistore.objects.store_orders import OrderPlan, Stored, StoreOrder
from amistore.pipeline.tokens import OrderTokens
from benchmarks.blocks import SNAPSHOT_ID, DroppingStore, GeneratedSource, image_of_one_snapshot
from benchmarks.child import synthetic_segment
from benchmarks.machine import peak_memory
from benchmarks.table import Row

__all__ = ["measure_coordinator"]

TIB: Final = 1024  # GiB
PEAK_GOAL, LARGE_GOAL = 256, 512  # MiB
CPU_GOAL = 1.0  # seconds for 10,000 blocks
WORKERS, FEW = 64, 16


def measure_coordinator() -> Iterator[Row]:
    """A store of 1 TiB, all of it listed, its second run, and what can be had of 64 TiB; a process each."""
    for work, name in (
        ("store", f"1 TiB, {WORKERS} orders out"),
        ("store_without_log", "1 TiB, without a log"),
        ("resume", "1 TiB, resumed with all orders in the log"),
    ):
        result = _run(work, TIB, WORKERS)
        note = f"in {result['seconds']:.1f} s"
        yield Row(name=f"{name}: peak memory", value=result["peak"], unit="MiB", goal=PEAK_GOAL, note=note)
        each = result["cpu"] / (TIB * GIB / BLOCK_SIZE) * 10_000
        yield Row(name=f"{name}: CPU for 10,000 blocks", value=each, unit="s", goal=CPU_GOAL)
    for workers in (FEW, WORKERS):
        result = _run("large", 64 * TIB, workers)
        note = f"in {result['seconds']:.1f} s"
        name = f"64 TiB, index of all and tokens of two orders for each of {workers} workers: peak memory"
        yield Row(name=name, value=result["peak"], unit="MiB", goal=LARGE_GOAL, note=note)


def _run(work: str, volume_size: int, workers: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.coordinator", work, str(volume_size)]
    done = subprocess.run([*command, str(workers)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stderr)
    return result


class ListedSource(BlockSource):
    """A fully allocated volume that is listed and never read, with tokens as long as EBS's."""

    def __init__(self, volume_size: int) -> None:
        self._volume_size = volume_size

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        page = GeneratedSource.page(self._volume_size, next_token)
        blocks = [Block(each.block_index, _token(each.block_index)) for each in page.blocks]
        return BlockPage(volume_size=page.volume_size, blocks=blocks, next_token=page.next_token)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        raise NotImplementedError


def _token(block_index: int) -> str:
    """104 characters, of which no two blocks have any in common."""
    drawn = hashlib.shake_128(block_index.to_bytes(8, "little")).digest(76)
    return base64.b64encode(drawn).decode()


class MadeUpWorkers(Executor):
    """Answers an order as soon as it is given.

    Attributes:
        cpu: the seconds that workers would have taken for the making of answers.
    """

    def __init__(self) -> None:
        self.cpu = 0.0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        (order,) = arguments
        pickle.dumps(order)
        start = time.process_time()
        answer = pickle.dumps(_stored(order))
        self.cpu += time.process_time() - start
        future: Future[Any] = Future()
        future.set_result(pickle.loads(answer))
        return future


def _stored(order: StoreOrder) -> Stored:
    """What a worker might answer."""
    segments = [synthetic_segment(segment) for segment in order.segments]
    left = len(order.before)
    left += sum(len(each.record) + each.descriptor.payload_size for each in segments)
    parts: list[UploadedPart] = []
    while left:
        size = left if left <= order.part_size + order.least else order.part_size
        number = order.first_part + len(parts)
        parts.append(UploadedPart(part_number=number, size=size, etag=f'"{number:032x}"'))
        left -= size
    return Stored(records=[each.record for each in segments], parts=parts, rest=b"")


def store(volume_size: int, workers: int, log: Path | None) -> float:
    """Store with made-up workers; return the coordinator's CPU seconds."""
    made_up = MadeUpWorkers()
    to = DroppingStore().at("bucket", "archive.bin")
    start = time.process_time()
    amistore.store(
        image_of_one_snapshot(), ListedSource(volume_size), to, executor=made_up, workers=workers, log=log
    )
    return time.process_time() - start - made_up.cpu


def resume(volume_size: int, workers: int, log: Path) -> float:
    """Store up to the tail, which fails; return what the second run, of which all orders are done, takes."""

    class Failing(DroppingStore):
        failing = True

        def upload_part(self, *arguments: Any, **options: Any) -> UploadedPart:
            if self.failing:
                raise amistore.BackendError("the network is gone", operation="upload_part")
            return super().upload_part(*arguments, **options)

    store, source = Failing(), ListedSource(volume_size)
    given: dict[str, Any] = {"executor": MadeUpWorkers(), "workers": workers, "log": log}
    with contextlib.suppress(amistore.BackendError):
        amistore.store(image_of_one_snapshot(), source, store.at("bucket", "archive.bin"), **given)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    store.failing = False
    start = time.process_time()
    # In the end it reads what stands between segments, which was dropped.
    with contextlib.suppress(amistore.CorruptArchiveError):
        amistore.store(image_of_one_snapshot(), source, store.at("bucket", "archive.bin"), **given)
    return time.process_time() - start


def large(volume_size: int, workers: int) -> float:
    """The tokens of two orders for each worker, and the index of all segments, whose records are one's.

    No order is out any more as the tail is made.
    """
    start = time.process_time()
    runs = Runs.of_blocks(range(volume_size * GIB // BLOCK_SIZE))
    planned = plan(image_of_one_snapshot(), [(SNAPSHOT_ID, volume_size, runs)])
    orders = OrderPlan.of(planned, StoreTraits(), None)
    tokens = OrderTokens(planned, ListedSource(volume_size))
    held = [tokens.of(cut) for cut in orders.cuts[: 2 * workers]]
    writer = ContainerWriter(planned, 3)
    writer.front()
    writer.volume(planned.volumes[0])
    made = synthetic_segment(planned.segment(0))
    segment = EncodedSegment(SegmentDescriptor.parse(made.record), made.record, [])
    for _ in range(planned.segments):
        writer.segment(segment)
    del held
    b"".join(writer.tail())
    return time.process_time() - start


def main() -> None:
    work, volume_size, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="amistore-benchmarks-") as folder:
        log = Path(folder, "store.log")
        works: dict[str, Callable[[], float]] = {
            "store": lambda: store(volume_size, workers, log),
            "store_without_log": lambda: store(volume_size, workers, None),
            "resume": lambda: resume(volume_size, workers, log),
            "large": lambda: large(volume_size, workers),
        }
        cpu = works[work]()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak_memory()}), file=sys.stderr)


if __name__ == "__main__":
    main()
