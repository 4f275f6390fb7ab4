"""The one owner of retries: it decides when a call is made again.

A backend makes one attempt for each call, and its errors say whether another may help
(`BackendError.retryable`). That attempt is made here: after exponential backoff with full jitter, within the
call's limits of attempts and time, and the budget that all calls share. A throttled call slows down all calls
to its snapshot or service (`pace.py`). Next: `retrying.py`, which wraps a backend in this.

Sources: EBS user guide, "Error retries and exponential backoff"; AWS SDKs reference guide,
"Retry behavior" (standard mode: the budget).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from amistore import forks
from amistore.backends.pace import INTERVAL, Ceiling, Pace
from amistore.backends.redaction import hide_secrets
from amistore.errors import BackendError, InvalidValueError, ThrottledError

__all__ = ["Attempts", "Retrier", "RetryPolicy"]

R = TypeVar("R")


def _number(default: float, *, least: float = 0) -> Any:
    """A validator for a number of the default's type; whole numbers always pass."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if type(value) not in (int, type(default)) or not value >= least:
            field = f"RetryPolicy.{attribute.name}"
            rule = f"a {'whole ' if type(default) is int else ''}number from {least} on"
            raise InvalidValueError(f"{field} must be {rule}, not {value!r}", field=field, value=value)

    return attrs.field(default=default, validator=check)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """The limits of retries.

    Attributes:
        attempts: the most attempts of a call, the first one included.
        base_delay: the most seconds before the second attempt; doubled for each further one.
        max_delay: the most seconds between two attempts, also where the other side asks for more.
        operation_limit: the seconds after a call's beginning from which on no further attempt is made.
        budget: the retries that all calls share: each retry takes 5, each call that succeeds at once gives 1
            back. When a service is down for all, calls fail at their first error. A throttled call's retry
            takes nothing: many that are in flight together are refused together, and their pace spares the
            service.

    Raises:
        InvalidValueError: a limit is no such number.
    """

    attempts: int = _number(5, least=1)
    base_delay: float = _number(0.1)
    max_delay: float = _number(20.0)
    operation_limit: float = _number(120.0, least=0.001)
    budget: int = _number(2000)


_logger = logging.getLogger("amistore")

_RETRY_COST = 5


class Retrier:
    """Makes calls until they succeed, fail for good, or a limit is reached. Any number of threads.

    Args:
        policy: the limits.
        clock: a monotonic clock, in seconds.
        sleep: a function that waits for so many seconds.
        draw: a function that returns a number from 0 to 1 for the jitter; `random` draws others in each
            forked child.

    Attributes:
        policy: the limits.
        throttled: how many calls of each pace were refused as too many.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._renew_lock()
        forks.register(self, Retrier._renew_lock)
        self._budget = policy.budget
        self._paces: dict[str, Pace] = {}
        self._ceiling: Ceiling | None = None
        self.throttled: Counter[str] = Counter()

    def __reduce__(self) -> tuple[Any, ...]:
        return Retrier, (self.policy,)  # another process has a clock and a budget of its own

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def call(self, pace: str, function: Callable[..., R], *arguments: Any, **options: Any) -> R:
        """Call `function` with the arguments, in as many attempts as the policy allows.

        Args:
            pace: the pace that calls share; they slow down together.
            function: the function to call, whose errors say whether to try again.

        Raises:
            AmistoreError: the error of the last attempt; a `BackendError` has their number in `attempts`.
        """
        attempts = self.attempts(pace)
        while True:
            if (wait := attempts.turn()) > 0:
                self._sleep(wait)
            try:
                result = function(*arguments, **options)
            except BackendError as error:
                pause = attempts.failed(error)
                if pause is None:
                    raise
                self._sleep(pause)
            else:
                attempts.succeeded()
                return result

    def limited(self, rate: float) -> Retrier:
        """A retrier whose calls keep to so many a second; it slows down together with this one."""
        limited = Retrier(self.policy, clock=self._clock, sleep=self._sleep, draw=self._draw)
        limited._lock, limited._paces, limited.throttled = self._lock, self._paces, self.throttled
        limited._ceiling = Ceiling(rate, self._clock())
        return limited

    def attempts(self, pace: str) -> Attempts:
        """The attempts of one call, for who waits between them in a way of its own."""
        return Attempts(self, pace)

    def call_until(
        self,
        good: Callable[[R], bool],
        pace: str,
        function: Callable[..., R],
        *arguments: Any,
        **options: Any,
    ) -> R:
        """As `call`, but make another attempt also for a result that is not good.

        The last attempt's result is returned in any case, for the caller to refuse.
        """

        def attempt() -> R:
            result = function(*arguments, **options)
            if not good(result):
                raise _NotGoodError(result)
            return result

        try:
            return self.call(pace, attempt)
        except _NotGoodError as error:
            last: R = error.result
            return last


class Attempts:
    """The attempts of one call: when the next one is made, and whether.

    Args:
        retrier: whose policy holds, and whose budget and paces all calls share.
        pace: the pace that calls share.
    """

    def __init__(self, retrier: Retrier, pace: str) -> None:
        self._retrier = retrier
        self._pace = pace
        self._number = 0
        self._began = retrier._clock()

    def turn(self) -> float:
        """Begin an attempt; return the seconds until it may be made."""
        self._number += 1
        retrier = self._retrier
        with retrier._lock:
            now = retrier._clock()
            wait = retrier._paces.setdefault(self._pace, Pace()).reserve(now)
            return wait if retrier._ceiling is None else retrier._ceiling.reserve(now + wait) - now

    def succeeded(self) -> None:
        retrier = self._retrier
        with retrier._lock:
            if self._number == 1:
                retrier._budget = min(retrier._budget + 1, retrier.policy.budget)
            retrier._paces[self._pace].succeeded(retrier._clock())

    def failed(self, error: BackendError) -> float | None:
        """The seconds until the next attempt; None where none is made, and the error is the call's."""
        pause = self._pause(error)
        if pause is None:
            error.attempts = self._number
        elif not isinstance(error, _NotGoodError):  # who reads has told of that
            told = hide_secrets(f"{type(error).__name__}: {error}")
            most = self._retrier.policy.attempts
            _logger.info(
                "attempt %d of %d failed, the next one in %.1f s: %s", self._number, most, pause, told
            )
        return pause

    def _pause(self, error: BackendError) -> float | None:
        if not error.retryable:
            return None
        retrier, number = self._retrier, self._number
        policy = retrier.policy
        now = retrier._clock()
        if isinstance(error, _NotGoodError):  # it says nothing of the service: no pause, and no budget
            late = now - self._began > policy.operation_limit
            return 0.0 if number < policy.attempts and not late else None
        longest: float = min(policy.base_delay * 2 ** min(number - 1, 20), policy.max_delay)
        if not isinstance(error, ThrottledError):
            pause = retrier._draw() * longest
        else:
            # Those that are refused together wait until their pace is right, or some would fail before.
            longest = min(max(longest, INTERVAL), policy.max_delay)
            pause = (1 + retrier._draw()) * longest / 2
            pause = max(pause, min(error.retry_after or 0.0, policy.max_delay))
        with retrier._lock:
            if isinstance(error, ThrottledError):
                retrier._paces[self._pace].throttled(now, pause)
                retrier.throttled[self._pace] += 1
            if number >= policy.attempts or now + pause - self._began > policy.operation_limit:
                return None
            if not isinstance(error, ThrottledError):
                if retrier._budget < _RETRY_COST:
                    return None
                retrier._budget -= _RETRY_COST
        return pause


class _NotGoodError(BackendError):
    """An attempt whose result was not good."""

    def __init__(self, result: Any) -> None:
        super().__init__("the result is not a good one", retryable=True)
        self.result = result
