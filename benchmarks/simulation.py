"""Storing by orders on a fake clock that keeps EBS's limits, against the formula of `RequestRates`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import attrs

from amistore import BLOCK_SIZE, RequestRates
from amistore.pipeline.orders import ORDER_BLOCKS
from benchmarks.table import Row

__all__ = ["measure_model"]

PAGE = 10_000  # blocks of a page of ListSnapshotBlocks
IN_FLIGHT = 64  # gets of a worker
LEAST_PARTS, MOST_PARTS = 4, 10_000  # of an order, and of an upload
AHEAD = 2  # orders of each worker that are begun and not in the index yet
RATES = RequestRates(latency=0.02)

SIZES = {"8 GiB": 8, "1 TiB": 1024, "16 TiB": 16 * 1024, "64 TiB": 64 * 1024}
WORKERS = (1, 4, 16, 64)


@attrs.frozen
class Cluster:
    """Workers of one core each, and how fast one order's blocks come there."""

    workers: int

    def speed(self, orders: int) -> float:
        """Blocks a second in one worker: by its share of the service's rate, its core, its requests."""
        share = RATES.block_reads / min(self.workers, orders) // 1
        return min(share, RATES.compression * 1e6 / BLOCK_SIZE, IN_FLIGHT / RATES.latency)

    def seconds(self, blocks: int) -> float:
        """The seconds from the first listing to the end of the last order.

        Each order begins once a worker is free, its tokens are listed, and no more than two for each worker
        wait for one that is not done.
        """
        pages = math.ceil(blocks / PAGE)
        length = ORDER_BLOCKS
        while blocks / length * LEAST_PARTS >= MOST_PARTS:
            length *= 2
        speed = self.speed(math.ceil(blocks / length))
        listing = pages / RATES.block_lists
        free = [listing] * self.workers
        ends: list[float] = []  # by the order's number
        latest: list[float] = []  # when all orders up to one are done
        for number in range(math.ceil(blocks / length)):
            first = number * length
            count = min(length, blocks - first)
            listed = listing + math.ceil((first + count) / PAGE) / RATES.block_lists
            window = number - AHEAD * self.workers
            begin = max(heapq.heappop(free), listed, latest[window] if window >= 0 else 0.0)
            ends.append(begin + RATES.latency + count / speed)
            latest.append(max(ends[-1], latest[-1] if latest else 0.0))
            heapq.heappush(free, ends[-1])
        return latest[-1]


def formula(blocks: int, workers: int) -> float:
    """What a plan says."""
    requests = {"list_snapshot_blocks": 2 * math.ceil(blocks / PAGE), "get_snapshot_block": blocks}
    return RATES.seconds(requests, in_flight=IN_FLIGHT * workers, cores=workers)


def measure_model() -> Iterator[Row]:
    """The formula's seconds, and the simulation's."""
    for name, gib in SIZES.items():
        for workers in WORKERS:
            blocks = gib * 2048
            simulated = Cluster(workers).seconds(blocks)
            ratio = formula(blocks, workers) / simulated
            yield Row(
                name=f"{name} on {workers} workers, the formula of the simulation",
                value=ratio,
                note=f"{simulated:,.0f} s simulated",
            )
