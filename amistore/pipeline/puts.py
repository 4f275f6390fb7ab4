"""`BlockPuts`: blocks that are put behind the workers that decode them."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from concurrent.futures import Executor, Future

import attrs
from typing_extensions import Buffer

from amistore.backends import BlockSink
from amistore.pipeline.requests import InFlight, Stopped, error_of

__all__ = ["BlockPuts", "PutBatch"]


class BlockPuts(InFlight):
    """Puts blocks behind the workers that decode them, within a budget of bytes.

    Args:
        sink: the sink of the blocks.
        executor: the executor of the workers; None for threads of our own.
    """

    _verb = "put"

    def __init__(self, sink: BlockSink, executor: Executor | None) -> None:
        super().__init__(sink, executor, "begin_put", "put_snapshot_block")
        self._batches: deque[PutBatch] = deque()

    def batch(self) -> PutBatch | None:
        """For a worker's next item, in the items' order; None where the worker calls the sink."""
        if not self.requests:
            return None
        self._batches.append(PutBatch(self))
        return self._batches[-1]

    def landed(self) -> None:
        """Wait for the next batch in order, once its worker has ended.

        Raises:
            BackendError: the error of its first block that could not be put.
        """
        if self._batches:
            self._batches.popleft().wait()

    def put(self, batch: PutBatch, snapshot_id: str, index: int, content: Buffer, digest: bytes) -> None:
        """Begin to put a block, once there is room for it."""
        begun = time.monotonic()
        with self._lock:
            self._full = self._full or self._in_flight >= self._budget
            self._room.wait_for(lambda: self._stopped or self._in_flight < self._budget)
            self._waited += time.monotonic() - begun
            self._workers.add(threading.get_ident())
            if self._stopped:
                raise Stopped
            self._enter()
            batch.left += 1
            at = batch.begun
            batch.begun += 1
        self._begin(functools.partial(self._land, batch, at), snapshot_id, index, content, digest)

    def _land(self, batch: PutBatch, at: int, future: Future[None]) -> None:
        error = error_of(future)
        with self._lock:
            batch.left -= 1
            if error is not None:
                batch.errors[at] = error
            if not batch.left:
                self._ended.notify_all()

    def wait(self, batch: PutBatch) -> None:
        """Wait for all that a batch has begun."""
        begun = time.monotonic()
        with self._lock:
            self._ended.wait_for(lambda: not batch.left)
            self._waited += time.monotonic() - begun


@attrs.define(eq=False)
class PutBatch:
    """The blocks that one worker's item puts."""

    puts: BlockPuts
    begun: int = 0
    left: int = 0
    errors: dict[int, BaseException] = attrs.field(factory=dict)

    def put(self, snapshot_id: str, index: int, content: Buffer, digest: bytes) -> None:
        """As the sink's `put_snapshot_block`; `content` must stay as it is until it is put."""
        if self.errors:
            self.wait()
        self.puts.put(self, snapshot_id, index, content, digest)

    def wait(self) -> None:
        """Wait until all that was begun has ended.

        Raises:
            BackendError: the error of the first block that could not be put.
        """
        self.puts.wait(self)
        if self.errors:
            raise self.errors[min(self.errors)]
