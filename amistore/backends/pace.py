"""`Pace`: how fast calls to one snapshot or service may follow each other.

Nothing slows them down until the service refuses one as too many. From then on the rate goes up by so many
calls a second each second, and down to a part of what the service was seen to answer. Many calls that are in
flight together are refused together, so there is one cut for all of them.
"""

from __future__ import annotations

__all__ = ["Pace"]

_INTERVAL = 0.5  # seconds, in which answers are counted, and in which there is one cut at most
_CUT = 0.8  # of the measured rate
_FIRST = 500.0  # calls a second where none was answered yet; EBS allows 1,000 gets and as many puts
_LEAST = 10.0  # calls a second; EBS allows so many of its rarest, StartSnapshot and CompleteSnapshot
_GROWTH = 20.0  # calls a second, each second
_FREE = 2000.0  # calls a second from which on nothing is slowed down


class Pace:
    """The rate of the calls to one snapshot or service. Its owner's lock guards it.

    Attributes:
        rate: the calls a second; None where nothing slows them down.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._next = 0.0
        self._changed = 0.0  # when the rate was changed, up or down
        self._cut = 0.0  # when it was cut, or never
        self._interval = 0.0  # the beginning of the interval whose answers are counted
        self._counted = 0
        self._before = 0  # the answers in the interval before

    def reserve(self, now: float) -> float:
        """Take the next slot; return the seconds until it comes."""
        start = max(now, self._next)
        self._next = start + (1 / self.rate if self.rate is not None else 0.0)
        return start - now

    def throttled(self, now: float, delay: float) -> None:
        """A call was refused, and is made again after `delay` seconds."""
        if self.rate is not None and now - self._cut < _INTERVAL:
            return
        measured = self._measured(now)
        known = _FIRST if self.rate is None else self.rate / 2
        self.rate = max(_CUT * measured if measured else known, _LEAST)
        self._cut = self._changed = now
        self._next = max(self._next, now + delay)

    def succeeded(self, now: float) -> None:
        """A call was answered."""
        self._turn_over(now)
        self._counted += 1
        if self.rate is not None:
            # Seconds without an answer show nothing of what the service would bear.
            self.rate += _GROWTH * min(now - self._changed, _INTERVAL)
            self._changed = now
            if self.rate > _FREE:
                self.rate = None

    def _measured(self, now: float) -> float:
        """The calls that were answered in the last interval, per second."""
        self._turn_over(now)
        share = 1 - (now - self._interval) / _INTERVAL  # of the interval before, what is not yet past
        return (self._before * share + self._counted) / _INTERVAL

    def _turn_over(self, now: float) -> None:
        passed = now - self._interval
        if passed >= _INTERVAL:
            self._before = self._counted if passed < 2 * _INTERVAL else 0
            self._interval = self._interval + _INTERVAL if passed < 2 * _INTERVAL else now
            self._counted = 0
