"""Limits on how often operations may be called."""

from __future__ import annotations

import datetime
import threading

from amistore.testing.aws.clock import Clock
from amistore.wire.calls import Call
from amistore.wire.errors import ServiceError

__all__ = ["Throttle", "throttled"]


class Throttle:
    """One operation's limit: a bucket of calls that the clock refills, or every Nth call.

    Attributes:
        reason: of the EBS direct APIs' RequestThrottledException.
        refused: how many calls it has refused.
    """

    def __init__(
        self, clock: Clock, *, per_second: float | None, burst: int | None, every: int | None, reason: str
    ) -> None:
        if (per_second is None) == (every is None):
            raise ValueError("a throttle is per second or for every Nth call")
        self.reason = reason
        self.refused = 0
        self._clock = clock
        self._per_second = per_second
        self._every = every
        self._size = float(burst or max(1, int(per_second or 1)))
        self._left = self._size
        self._filled = clock.now()
        self._seen = 0
        self._lock = threading.Lock()

    def admits(self) -> bool:
        """Whether the next call may pass."""
        with self._lock:
            admitted = self._take()
            self.refused += not admitted
            return admitted

    def _take(self) -> bool:
        if self._every is not None:
            self._seen += 1
            return self._seen % self._every != 0
        now = self._clock.now()
        passed = (now - self._filled) / datetime.timedelta(seconds=1)
        self._left = min(self._size, self._left + passed * (self._per_second or 0))
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def throttled(call: Call, reason: str = "ACCOUNT_THROTTLED") -> ServiceError:
    """What a service says to a call too many."""
    if call.service == "ebs":
        return ServiceError("RequestThrottledException", "Rate exceeded", reason=reason)
    code = "RequestLimitExceeded" if call.service == "ec2" else "Throttling"
    # "EC2 API reference: Request throttling": the status is 503, not 400.
    return ServiceError(code, "Request limit exceeded.", status=503 if call.service == "ec2" else 400)
