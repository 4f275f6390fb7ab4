"""`Pace`: how fast calls to one snapshot or service may follow each other.

Nothing slows them down until the service refuses one as too many. From then on the rate goes down to a part
of what the service was seen to answer, and up again, slowly at first. Many calls that are in flight together
are refused together, so there is one cut for all of them.
"""

from __future__ import annotations

__all__ = ["INTERVAL", "Ceiling", "Pace"]

INTERVAL = 0.5  # seconds, over which answers are counted, and in which there is one cut at most
_FIRST_INTERVAL = 0.2  # after the first cut: what was answered before it may be a burst that is allowed
_CUT = 0.8  # of the measured rate
_FIRST = 800.0  # calls a second at most after the first cut; EBS allows 1,000 gets and as many puts
_LEAST = 10.0  # calls a second; EBS allows so many of its rarest, StartSnapshot and CompleteSnapshot
_GROWTH = 0.1  # of the rate after the cut, each second
_LEAST_GROWTH = 5.0  # calls a second, each second
_STEADY = 3.0  # seconds after a cut from which on the growth doubles each second
_FREE = 2000.0  # calls a second from which on nothing is slowed down


class Pace:
    """The rate of the calls to one snapshot or service. Its owner's lock guards it.

    Attributes:
        rate: the calls a second; None where nothing slows them down.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._growth = 0.0  # calls a second, each second
        self._cut = 0.0  # when the rate was cut
        self._next = 0.0
        self._settled = 0.0  # when the rate may be cut again
        self._grown = 0.0  # until when it has grown
        self._busy = 0.0  # since when there were calls without a pause
        self._called = 0.0
        self._interval = 0.0  # the beginning of the interval whose answers are counted
        self._counted = 0
        self._before = 0  # the answers in the interval before

    def reserve(self, now: float) -> float:
        """Take the next slot; return the seconds until it comes."""
        wait = max(self._next - now, 0.0)
        if now + wait - self._called > INTERVAL:
            self._busy = now + wait
        self._called = now + wait
        if self.rate is not None:
            # What was not used is made up for, so that calls that come in bunches are not slowed down twice.
            self._next = max(self._next, now - INTERVAL) + 1 / self.rate
        return wait

    def throttled(self, now: float, delay: float) -> None:
        """A call was refused, and is made again after `delay` seconds."""
        if self.rate is not None and now < self._settled:
            return
        measured = self._measured(now)
        if self.rate is None:
            rate = min(_CUT * measured or _FIRST, _FIRST)
            self._settled = now + _FIRST_INTERVAL
        else:
            rate = _CUT * measured or self.rate / 2
            self._settled = now + INTERVAL
        self.rate = max(rate, _LEAST)
        self._growth = max(_GROWTH * self.rate, _LEAST_GROWTH)
        self._cut = self._busy = self._interval = self._grown = (
            now  # what is answered from now on shows the limit
        )
        self._counted = self._before = 0
        self._next = max(self._next, now + delay)

    def succeeded(self, now: float) -> None:
        """A call was answered."""
        self._turn_over(now)
        self._counted += 1
        if self.rate is not None:
            # Seconds without an answer show nothing of what the service would bear.
            growth = self._growth * 2 ** min(max(now - self._cut - _STEADY, 0.0), 10.0)
            self.rate += growth * min(now - self._grown, INTERVAL)
            self._grown = now
            if self.rate > _FREE:
                self.rate = None

    def _measured(self, now: float) -> float:
        """The calls a second that were answered in the last interval, or since calls began."""
        self._turn_over(now)
        share = 1 - (now - self._interval) / INTERVAL  # of the interval before, what is not yet past
        answered = self._before * share + self._counted
        return answered / min(max(now - self._busy, 0.001), INTERVAL)

    def _turn_over(self, now: float) -> None:
        passed = now - self._interval
        if passed >= INTERVAL:
            self._before = self._counted if passed < 2 * INTERVAL else 0
            self._interval = self._interval + INTERVAL if passed < 2 * INTERVAL else now
            self._counted = 0


class Ceiling:
    """The most calls a second of one order: its share of what a service allows.

    Also the first call keeps its distance, for the order before may have called just now. So all orders that
    follow each other in a worker's place make no more calls in any second than one.

    Args:
        rate: the calls a second.
        now: the time by the calls' clock.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._distance = 1 / rate
        self._last = now

    def reserve(self, earliest: float) -> float:
        """The time of the next call, at `earliest` or later."""
        self._last = max(self._last + self._distance, earliest)
        return self._last
