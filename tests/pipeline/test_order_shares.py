"""Orders keep to their shares of what a service allows: all together never call too often in any second."""

from __future__ import annotations

import functools
import math
import threading
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor

import attrs
import images
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import amistore
from amistore.backends.retries import Retrier
from amistore.pipeline.orders import Cluster, Order, Orders


def service(rate: float | None, snapshot_rate: float | None = None) -> amistore.backends.BlockStore:
    store = amistore.MemoryBackend().ebs
    store.rate, store.snapshot_rate = rate, snapshot_rate
    return store


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# Of each order: seconds since the one before it, its calls, and how many of them are in flight.
ORDERS = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 120), st.integers(1, 64)), min_size=1, max_size=6)


@given(st.lists(ORDERS, min_size=1, max_size=4), st.sampled_from([50, 200, 333, 1000]))
@example([[(0.0, 1, 1)] * 5 + [(0.0, 50, 1)]], 50)
def test_the_calls_of_workers_that_come_and_go_stay_below_the_limit_in_every_second(
    places: list[list[tuple[float, int, int]]], limit: int
) -> None:
    workers = len(places)
    share = Cluster(ThreadPoolExecutor(1), workers).share(service(limit))
    assert share is not None and 0.9 * limit <= workers * share <= limit
    permits: list[float] = []
    for orders in places:  # which follow each other in a worker's place
        clock = Clock()
        retrier = Retrier(amistore.backends.RetryPolicy(), clock=clock)
        for pause, calls, in_flight in orders:
            clock.now += pause
            limited = retrier.limited(share)
            flying: list[float] = []
            for _ in range(calls):
                if len(flying) == in_flight:
                    clock.now = max(clock.now, flying.pop(0))
                flying.append(clock.now + limited.attempts("snap-1").turn())
                permits.append(flying[-1])
            clock.now = max(clock.now, flying[-1])  # the order ends once its calls have
    permits.sort()
    most = max(bisect_left(permits, permit + 1 - 1e-9) - at for at, permit in enumerate(permits))
    assert most <= limit


@pytest.mark.parametrize(("limit", "workers", "share"), [(1000, 64, 15), (1000, 1, 1000), (3, 6, 0.5)])
def test_an_order_gets_the_limit_by_the_orders_that_are_out(limit: int, workers: int, share: float) -> None:
    assert Cluster(ThreadPoolExecutor(1), workers).share(service(limit)) == share
    assert Cluster(ThreadPoolExecutor(1), workers).share(service(None)) is None


def test_a_run_of_few_orders_has_larger_shares_unless_others_share_the_executor() -> None:
    pool, ebs = ThreadPoolExecutor(1), service(1000)
    shares = [Cluster(pool, 64).share(ebs, orders) for orders in (0, 1, 16, 64, 2048)]
    assert shares == [1000, 1000, 62, 15, 15]
    assert Cluster(pool, 64, shared=True).share(ebs, 16) == 15


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("rates", [(1000, 1000), (4000, 1000), (4000, None), (None, 1000), (300, 1000)])
def test_the_orders_of_one_snapshot_and_those_of_all_have_a_limit_each(
    rates: tuple[float | None, float | None], workers: int, shared: bool
) -> None:
    ebs, cluster = service(*rates), Cluster(ThreadPoolExecutor(1), workers, shared=shared)
    share, most = cluster.share(ebs), cluster.most_out(ebs)
    assert share is not None
    account, snapshot = (rate or math.inf for rate in rates)
    assert share * workers <= account
    limit = min(account, snapshot)
    assert share * most <= limit
    if shared:
        assert share * most >= 0.5 * min(limit, account / workers * most), "a task gets what it may have"


def test_a_task_has_only_so_many_orders_out_as_its_snapshot_allows() -> None:
    """Held: the workers begin an order, and end none before all are given that may be out."""
    ebs, begun = service(4000, 1000), threading.Semaphore(0)
    go_on = threading.Event()

    @attrs.frozen(kw_only=True, eq=False)
    class Held(Order[int]):
        def work(self) -> int:
            begun.release()
            go_on.wait(60)
            return self.number

    with ThreadPoolExecutor(16) as pool, Orders[int](Cluster(pool, 16, shared=True), ebs) as orders:
        given = [orders.give(functools.partial(Held, number=number)) for number in range(16)]
        assert given == [True] * 4 + [False] * 12
        assert all(begun.acquire(timeout=60) for _ in range(4))
        go_on.set()
        assert orders.ended() is not None
        assert orders.give(functools.partial(Held, number=4))


def test_a_limited_store_slows_down_together_with_all_calls_to_a_snapshot() -> None:
    clock = Clock()
    retrier = Retrier(amistore.backends.RetryPolicy(), clock=clock)
    limited = retrier.limited(1000)
    attempts = limited.attempts("snap-1")
    attempts.turn()
    attempts.failed(amistore.ThrottledError("too many", retryable=True))
    assert retrier.throttled["snap-1"] == 1
    assert retrier.attempts("snap-1").turn() > 0.2


def test_orders_of_a_backend_with_retries_get_and_put_at_their_share() -> None:
    inner = amistore.MemoryBackend()
    asked: list[float] = []
    cloud = amistore.RetryingBackend(inner)
    snapshot_id = images.snapshot(cloud.ebs, 1, {i: images.block(i + 1) for i in range(4)})
    limited = cloud.ebs.limited(1e6)  # type: ignore[attr-defined]
    page = limited.list_snapshot_blocks(snapshot_id)
    for block in page.blocks:
        limited.get_snapshot_block(snapshot_id, block.block_index, block.block_token)
        asked.append(limited.retrier._ceiling._last)
    assert asked == sorted(set(asked))
