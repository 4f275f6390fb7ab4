"""The one owner of retries: it decides when a call is made again.

A backend makes one attempt for each call, and its errors say whether another may help
(`BackendError.retryable`). That attempt is made here: after exponential backoff with full jitter, within the
call's limits of attempts and time, and the budget that all calls share. A throttled call slows down all calls
to its snapshot or service. Next: `retrying.py`, which wraps a backend in this.

Sources: EBS user guide, "Error retries and exponential backoff"; AWS SDKs reference guide,
"Retry behavior" (standard mode: the budget).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from amistore import forks
from amistore.backends.redaction import hide_secrets
from amistore.errors import BackendError, InvalidValueError, ThrottledError

__all__ = ["Retrier", "RetryPolicy"]

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
        max_delay: the most seconds between two attempts.
        operation_limit: the seconds after a call's beginning from which on no further attempt is made.
        budget: the retries that all calls share: each retry takes 5, each call that succeeds at once gives 1
            back. When a service is down for all, calls fail at their first error.

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


class _Pace:
    """The spacing of calls to one snapshot or service: widened by throttling, narrowed by success."""

    def __init__(self) -> None:
        self._interval = 0.0
        self._next = 0.0

    def reserve(self, now: float) -> float:
        """Take the next slot; return the seconds until it comes."""
        start = max(now, self._next)
        self._next = start + self._interval
        return start - now

    def throttled(self, now: float, delay: float) -> None:
        self._interval = min(max(2 * self._interval, 0.002), 1.0)  # EBS allows 1,000 gets a second
        self._next = max(self._next, now + delay)

    def succeeded(self) -> None:
        self._interval = self._interval * 0.95 if self._interval > 0.0005 else 0.0


class Retrier:
    """Makes calls until they succeed, fail for good, or a limit is reached. Any number of threads.

    Args:
        policy: the limits.
        clock: a monotonic clock, in seconds.
        sleep: a function that waits for so many seconds.
        draw: a function that returns a number from 0 to 1 for the jitter; `random` draws others in each
            forked child.
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
        self._paces: dict[str, _Pace] = {}

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
        began = self._clock()
        attempt = 0
        while True:
            attempt += 1
            self._wait_turn(pace)
            try:
                result = function(*arguments, **options)
            except BackendError as error:
                delay = self._delay(error, attempt, began, pace)
                if delay is None:
                    error.attempts = attempt
                    raise
                if not isinstance(error, _NotGoodError):  # who reads has told of that
                    told = hide_secrets(f"{type(error).__name__}: {error}")
                    most = self.policy.attempts
                    _logger.info(
                        "attempt %d of %d failed, the next one in %.1f s: %s", attempt, most, delay, told
                    )
                self._sleep(delay)
            else:
                with self._lock:
                    if attempt == 1:
                        self._budget = min(self._budget + 1, self.policy.budget)
                    self._paces[pace].succeeded()
                return result

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

    def _wait_turn(self, pace: str) -> None:
        with self._lock:
            wait = self._paces.setdefault(pace, _Pace()).reserve(self._clock())
        if wait > 0:
            self._sleep(wait)

    def _delay(self, error: BackendError, attempt: int, began: float, pace: str) -> float | None:
        """The seconds until the next attempt; None where none is made."""
        if not error.retryable:
            return None
        policy = self.policy
        if isinstance(error, _NotGoodError):  # it says nothing of the service: no pause, and no budget
            late = self._clock() - began > policy.operation_limit
            return 0.0 if attempt < policy.attempts and not late else None
        if attempt >= policy.attempts:
            return None
        delay: float = self._draw() * min(policy.base_delay * 2 ** min(attempt - 1, 20), policy.max_delay)
        now = self._clock()
        if now + delay - began > policy.operation_limit:
            return None
        with self._lock:
            if isinstance(error, ThrottledError):
                self._paces[pace].throttled(now, delay)
            if self._budget < _RETRY_COST:
                return None
            self._budget -= _RETRY_COST
        return delay


class _NotGoodError(BackendError):
    """An attempt whose result was not good."""

    def __init__(self, result: Any) -> None:
        super().__init__("the result is not a good one", retryable=True)
        self.result = result
