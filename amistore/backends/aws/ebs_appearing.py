"""Calls for a snapshot that was just started: not every host of the service knows it at the same time.

It may even have been found before.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from amistore.errors import NotFoundError

__all__ = ["Appearing", "appears"]

F = TypeVar("F", bound=Callable[..., Any])

_logger = logging.getLogger("amistore")

APPEARING = 120.0  # seconds in which a snapshot just started may be unknown (EBS user guide: up to 2 minutes)
_FIRST_PAUSE = 0.1  # seconds between two calls then
_LAST_PAUSE = 5.0


class Appearing:
    """How long to wait for a snapshot that is not found.

    Args:
        snapshot_id: the snapshot's id.
        started: when it was started, by the clock; None where that was long ago, or by others.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, snapshot_id: str, started: float | None, clock: Callable[[], float]) -> None:
        self._snapshot_id = snapshot_id
        self._started = started
        self._clock = clock
        self._pause = _FIRST_PAUSE

    def pause(self, error: NotFoundError) -> float | None:
        """The seconds until it is asked for again; None where it is not."""
        pause = self._pause
        if self._started is None or self._clock() + pause - self._started > APPEARING:
            return None
        _logger.info(
            "%s was just started and is not found yet, trying again in %.1f s: %s",
            self._snapshot_id,
            pause,
            error,
        )
        self._pause = min(2 * pause, _LAST_PAUSE)
        return pause


def appears(method: F) -> F:
    """Repeat a call of a store's if a snapshot is not found soon after that store started it."""

    @functools.wraps(method)
    def call(self: Any, snapshot_id: str, *arguments: Any, **options: Any) -> Any:
        appearing = Appearing(snapshot_id, self._started.get(snapshot_id), self.clock)
        while True:
            try:
                return method(self, snapshot_id, *arguments, **options)
            except NotFoundError as error:
                pause = appearing.pause(error)
                if pause is None:
                    raise
            self.sleep(pause)

    return cast("F", call)
