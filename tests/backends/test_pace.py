"""The pace of calls, against services of a simulated second: what they refuse, and how fast one gets."""

import heapq
import itertools
import random

import attrs
import pytest

from amistore import BackendError, ThrottledError
from amistore.backends.pace import Pace
from amistore.backends.retries import Retrier, RetryPolicy


@attrs.define
class Service:
    """Answers so many calls a second and keeps what was not used, up to a second's worth, as EBS does."""

    limit: float
    left: float = 0.0
    filled: float = 0.0
    refused: int = 0

    def admits(self, now):
        self.left = min(self.limit, self.left + (now - self.filled) * self.limit)
        self.filled = now
        if self.left < 1:
            self.refused += 1
            return False
        self.left -= 1
        return True


def run(service, calls, *, in_flight, latency, seed=1):
    """Make calls with so many in flight, as the loop does; return the seconds."""
    now = [0.0]
    retrier = Retrier(RetryPolicy(), clock=lambda: now[0], draw=random.Random(seed).random)
    events, numbers, left = [], itertools.count(), [calls]

    def at(seconds, step):
        heapq.heappush(events, (now[0] + seconds, next(numbers), step))

    def begin():
        if left[0]:
            left[0] -= 1
            attempts = retrier.attempts("snap-1")
            at(attempts.turn(), lambda: send(attempts))

    def send(attempts):
        at(latency, lambda: answer(attempts))

    def answer(attempts):
        if service.admits(now[0]):
            attempts.succeeded()
            begin()
            return
        pause = attempts.failed(error := ThrottledError("slow down", retryable=True))
        if pause is None:
            raise error
        at(pause, lambda: at(attempts.turn(), lambda: send(attempts)))

    for _ in range(in_flight):
        begin()
    while events:
        now[0], _, step = heapq.heappop(events)
        step()
    return now[0]


@pytest.mark.parametrize("latency", [0.02, 0.1])
@pytest.mark.parametrize("limit", [50, 150, 300, 1000])
def test_many_in_flight_reach_what_the_service_allows(limit, latency):
    service = Service(limit)
    calls = 20 * limit
    seconds = run(service, calls, in_flight=64, latency=latency)
    assert calls / seconds >= 0.9 * min(limit, 64 / latency)
    assert service.refused <= 64 + 0.1 * calls


@pytest.mark.parametrize("limit", [150, 300])
def test_a_short_run_is_not_slowed_down_for_long(limit):
    service = Service(limit, left=limit)
    assert 1024 / run(service, 1024, in_flight=64, latency=0.02) >= 0.85 * limit
    assert service.refused <= 200


def test_calls_that_are_refused_together_are_one_cut():
    pace = Pace()
    for number in range(100):
        pace.succeeded(1.0 + number / 250)
    for _ in range(64):
        pace.throttled(1.4, 0.0)
    assert pace.rate == pytest.approx(0.8 * 200)


def test_the_rate_goes_up_again_until_nothing_is_slowed_down():
    pace = Pace()
    pace.throttled(1.0, 0.0)
    now, rates = 1.0, [pace.rate]
    while pace.rate is not None:
        now += pace.reserve(now)
        pace.succeeded(now)
        rates.append(pace.rate or float("inf"))
    assert rates == sorted(rates)
    assert now < 20
    assert pace.reserve(now + 1) == 0.0


def test_a_service_that_refuses_everything_is_still_asked_ten_times_a_second():
    pace = Pace()
    for second in range(100):
        pace.throttled(float(second), 0.0)
    assert pace.rate == 10.0


def test_refusals_of_what_is_in_flight_take_nothing_from_the_budget_for_other_errors():
    retrier = Retrier(RetryPolicy(budget=5), clock=lambda: 0.0, sleep=lambda seconds: None, draw=lambda: 0.0)
    for _ in range(64):
        attempts = retrier.attempts("snap-1")
        attempts.turn()
        assert attempts.failed(ThrottledError("slow down", retryable=True)) is not None
    attempts = retrier.attempts("snap-1")
    attempts.turn()
    assert attempts.failed(BackendError("busy", retryable=True)) is not None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [50, 150])
def test_no_call_fails_because_a_burst_that_was_allowed_has_ended(limit, seed):
    service = Service(limit, left=limit)
    assert run(service, 512, in_flight=64, latency=0.02, seed=seed) > 1
