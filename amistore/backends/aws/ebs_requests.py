"""`Requests`: the lean path with many requests in flight, sent and received by one thread.

The twin of `Wire.request`: same heads, limits and errors. What would block is a helper's: credentials that
are renewed, a host's name, proxies, answers that are not plain.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from amistore.backends.aws.ebs_exchange import exchange
from amistore.backends.aws.ebs_loop import Loop, Places
from amistore.backends.aws.ebs_streams import Streams
from amistore.backends.aws.ebs_wire import Answer, Request, Wire
from amistore.backends.retries import Attempts
from amistore.errors import BackendError

__all__ = ["Requests"]

R = TypeVar("R")


class Requests:
    """Requests in flight.

    Args:
        most: the most connections.

    Attributes:
        loop: the loop that the coroutines run in; it ends with this object.
        process: the process that this works in.
        making: the one place for who makes the wire.
    """

    def __init__(self, most: int) -> None:
        self.loop = Loop()
        self.process = os.getpid()
        weakref.finalize(self, self.loop.stop)
        self._places = Places(self.loop, most)
        self.making = Places(self.loop, 1)
        self._renewing: dict[str, Places] = {}
        self._streams: Streams | None = None

    def let_go(self) -> None:
        """In a forked child, close its copies of what the parent's thread works with."""
        self.loop.let_go()
        if self._streams is not None:
            self._streams.let_go()

    def renewing(self, snapshot_id: str) -> Places:
        """The one place for who renews a snapshot's tokens."""
        return self._renewing.setdefault(snapshot_id, Places(self.loop, 1))

    async def repeated(
        self,
        attempts: Attempts | None,
        function: Callable[..., Coroutine[None, Any, R]],
        *arguments: Any,
    ) -> R:
        """Make the attempts of one call.

        Args:
            attempts: say when there is another one; None for one alone.
            function: makes one.
            arguments: the function's.
        """
        if attempts is None:
            return await function(*arguments)
        while True:
            await self.loop.sleep(attempts.turn())
            try:
                result = await function(*arguments)
            except BackendError as error:
                pause = None if self.loop.unwanted else attempts.failed(error)
                if pause is None:
                    raise
            else:
                attempts.succeeded()
                return result
            await self.loop.sleep(pause)

    async def request(self, wire: Wire, request: Request) -> Answer:
        """Send a request and receive its whole answer."""
        async with self._places:
            self.loop.commit()
            if wire.pool.passes_proxy:
                return await self.loop.in_thread(wire.request, request)
            if self._streams is None:
                self._streams = Streams(self.loop, wire.pool, wire.limits)
            return await self._in_flight(wire, self._streams, request)

    async def _in_flight(self, wire: Wire, streams: Streams, request: Request) -> Answer:
        head = wire.head(request) if wire.signs_at_once() else await self.loop.in_thread(wire.head, request)
        end = time.monotonic() + wire.limits.attempt
        with wire.connection_errors(request):
            stream = await streams.take()
            keep = False
            try:
                received = await exchange(
                    self.loop, stream, request.method, head, request.body, wire.limits, end
                )
                keep = received.reusable
            finally:
                if keep:
                    streams.give(stream)
                else:
                    stream.close()
        return wire.answer(request, received)
