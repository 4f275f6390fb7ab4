"""A clock that moves when a test says so, so that nothing has to sleep."""

from __future__ import annotations

import datetime
import threading

__all__ = ["Clock"]


class Clock:
    """The time of the fake services. It stands still between calls of `advance`.

    Args:
        start: with a time zone; None is the time of this call, so that what the services tell
            agrees with what clients read from their own clocks.
    """

    def __init__(self, start: datetime.datetime | None = None) -> None:
        self._now = start or datetime.datetime.now(datetime.timezone.utc)
        self._lock = threading.Lock()

    def now(self) -> datetime.datetime:
        """Tell the time, in UTC."""
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> None:
        """Move on by some seconds; never back.

        Raises:
            ValueError: the seconds are negative.
        """
        if seconds < 0:
            raise ValueError("a clock does not run backwards")
        with self._lock:
            self._now += datetime.timedelta(seconds=seconds)
