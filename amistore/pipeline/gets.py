"""`BlockGets`: a source's blocks, got ahead of the workers that need them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Final

import attrs
from typing_extensions import Self

from amistore.backends import BlockSource, SnapshotBlock
from amistore.backends.blocks import check_answer, check_digest
from amistore.errors import ChecksumMismatchError
from amistore.pipeline.requests import InFlight, Stopped, error_of

__all__ = ["BlockGets", "SegmentGets"]

_LEVEL: Final = 16  # blocks that each segment in work has ahead before another one gets more


class BlockGets(InFlight):
    """Gets a source's blocks ahead of the workers that need them, within a budget of bytes.

    The block that is needed soonest is asked for next: of the segments in work the one with the fewest blocks
    ahead, then of those that wait for a worker. A full budget does not hold up a block that a worker waits
    for, so nothing can stand still.

    Args:
        source: the source of the blocks.
        executor: the executor of the workers; None for threads of our own.
        segments: the most segments that are begun at once.
    """

    _verb = "got"

    def __init__(self, source: BlockSource, executor: Executor | None, segments: int) -> None:
        super().__init__(source, executor, "begin_get", "get_snapshot_block")
        self._source = source
        self._attempts = getattr(source, "attempts", None) if self.begun_by_source else None
        self._budget = max(self._budget, _LEVEL // 2 * segments)
        self._open: list[SegmentGets] = []
        self._held = 0  # blocks asked for and not taken
        self._thread = threading.local()

    @property
    def begun_by_source(self) -> bool:
        """Whether the source's ``begin_get`` is used, whose blocks are not compared with their digests."""
        return self._calls.begun_by_service

    def segment(self, snapshot_id: str, indexes: Iterable[int], tokens: Sequence[str]) -> SegmentGets:
        """The blocks of a segment, for the worker that makes it; segments come in order.

        It begins no get: an interrupt of the caller must not fall between counting and asking.
        """
        made = SegmentGets(self._source, snapshot_id, tuple(indexes), tuple(tokens))
        if self.requests and tokens:
            made.gets = self
            made.answers = [Future() for _ in tokens]
            with self._lock:
                self._open.append(made)
        return made

    def _ask(self) -> None:
        """Begin gets while there is room for them."""
        if getattr(self._thread, "asking", False):  # a call that ends as it is begun: the loop below goes on
            return
        self._thread.asking = True
        try:
            while (chosen := self._choose()) is not None:
                segment, at = chosen
                self._begin(functools.partial(self._land, segment, at), *self._call(segment, at))
        finally:
            self._thread.asking = False

    def _choose(self) -> tuple[SegmentGets, int] | None:
        with self._lock:
            if self._stopped or self._in_flight >= self.requests:
                return None
            left = [each for each in self._open if each.asked < len(each.tokens)]
            if left and self._held >= self._budget:
                self._full = True
                left = [each for each in left if each.asked == each.taken]
            segment = min(left, key=SegmentGets.ahead, default=None)
            if segment is None:
                return None
            self._enter()
            self._held += 1
            segment.asked += 1
            return segment, segment.asked - 1

    def _land(self, segment: SegmentGets, at: int, future: Future[SnapshotBlock]) -> None:
        error = error_of(future)
        if error is None:
            segment.answers[at].set_result(future.result())
        else:
            segment.answers[at].set_exception(error)
        self._ask()

    def take(self, segment: SegmentGets, at: int) -> SnapshotBlock:
        """A block of a segment, in a worker; waits for it."""
        answer = segment.answers[at]
        with self._lock:
            self._workers.add(threading.get_ident())
            segment.taken = at
        self._ask()
        if not answer.done():
            begun = time.monotonic()
            answer.exception()
            with self._lock:
                self._waited += time.monotonic() - begun
        segment.answers[at] = _TAKEN
        with self._lock:
            self._held -= 1
            if at + 1 == len(segment.tokens) and segment in self._open:
                self._open.remove(segment)
        self._ask()
        return answer.result()

    def drop(self, segment: SegmentGets) -> None:
        """Get no more of a segment whose worker has ended, and count what it did not take no more."""
        with self._lock:
            if segment in self._open:
                self._open.remove(segment)
                self._held -= segment.asked - segment.taken - 1
        self._ask()

    def _call(self, segment: SegmentGets, at: int) -> tuple[Any, ...]:
        """The arguments of a block's get: with its attempts, where the source has some."""
        given = (segment.snapshot_id, segment.indexes[at], segment.tokens[at])
        if self._attempts is None:
            return given
        attempts = segment.attempts.setdefault(at, self._attempts(segment.snapshot_id))
        return (*given, attempts)

    def proved(self, segment: SegmentGets, at: int, answer: SnapshotBlock) -> SnapshotBlock:
        """A block compared with its digest, in a worker; one that came damaged is a failed attempt."""
        attempts = segment.attempts.pop(at, None)
        while True:
            try:
                return check_digest(answer, segment.snapshot_id, segment.indexes[at])
            except ChecksumMismatchError as error:
                pause = None if attempts is None or self._stopped else attempts.failed(error)
                if pause is None:
                    raise
            segment.attempts[at] = attempts
            begun = time.monotonic()
            time.sleep(pause)
            answer = self._calls.begin(*self._call(segment, at)).result()
            with self._lock:
                self._waited += time.monotonic() - begun
            answer = check_answer(answer, segment.snapshot_id, segment.indexes[at])

    def _release(self) -> None:
        with self._lock:
            waiting = [answer for each in self._open for answer in each.answers[each.asked :]]
            self._open.clear()
        for answer in waiting:
            answer.set_exception(Stopped())


_TAKEN: Final[Future[Any]] = Future()


@attrs.define(eq=False)
class SegmentGets:
    """A segment's blocks, in order, got in the worker or ahead of it.

    Picklable where the worker gets them.
    """

    source: BlockSource
    snapshot_id: str
    indexes: tuple[int, ...]
    tokens: tuple[str, ...]
    gets: BlockGets | None = None
    answers: list[Future[SnapshotBlock]] = attrs.field(factory=list, repr=False)
    attempts: dict[int, Any] = attrs.field(factory=dict, repr=False)
    """Of the blocks that are asked for, by their place."""
    asked: int = 0
    taken: int = -1
    """The block that the worker takes; -1 before there is a worker."""

    def ahead(self) -> tuple[bool, int]:
        """The order in which segments get further blocks: those in work first, levelled."""
        return self.taken < 0, (self.asked - self.taken) // _LEVEL if self.taken >= 0 else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.gets is not None:
            self.gets.drop(self)

    def __iter__(self) -> Iterator[SnapshotBlock]:
        for at, (index, token) in enumerate(zip(self.indexes, self.tokens, strict=True)):
            if self.gets is None:
                answer = self.source.get_snapshot_block(self.snapshot_id, index, token)
            else:
                answer = self.gets.take(self, at)
            answer = check_answer(answer, self.snapshot_id, index)
            if self.gets is not None and self.gets.begun_by_source:
                answer = self.gets.proved(self, at, answer)
            yield answer
