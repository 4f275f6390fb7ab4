"""`FaultyBackend`: any backend with injected faults, to test how they are handled.

Wrap your backend in it, and it in `amistore.RetryingBackend`::

    faulty = FaultyBackend(MemoryBackend())
    fault = faulty.add_fault("put_snapshot_block", "lost-reply", calls=[3])
    faulty.add_fault("*", "error", probability=0.05, seed=7)
    backend = RetryingBackend(faulty)
    ...
    assert fault.fired == 1
    assert max(faulty.calls.values()) <= 5  # attempts

With the same seed the same calls fail, in any order of threads: a draw depends on the verb, on the block,
part or range, and on how often that was asked for. Ids, which are new in each run, do not matter.
"""

from __future__ import annotations

import collections
import inspect
import random
import threading
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, Literal, TypeVar, cast

import attrs

from amistore import forks
from amistore.backends import Backend, BlockStore, ImageRegistry, ObjectStore, SnapshotBlock
from amistore.backends.forwarding import Forwarding
from amistore.backends.interface import Interface, verbs
from amistore.errors import AccessDeniedError, BackendError, ThrottledError

__all__ = ["BackendFault", "BackendFaultKind", "FaultyBackend"]

R = TypeVar("R")
S = TypeVar("S", bound=Interface)

BackendFaultKind = Literal["error", "throttle", "refusal", "lost-reply", "short", "flipped"]

_CONTENT = ("get_snapshot_block", "get_object_range")
_SIGNATURES: Final[Mapping[str, inspect.Signature]] = {
    verb: inspect.signature(declared)
    for kind in (BlockStore, ObjectStore, ImageRegistry)
    for verb, declared in verbs(kind).items()
}
_VERBS: Final = frozenset(_SIGNATURES) - {
    "upload_part_file",
    "fidelity",
}  # UploadPart again, and no call at all
# The arguments that tell a verb's calls apart: ids, which are new in each run, and where in those.
_IDS = (
    "snapshot_id",
    "next_token",
    "client_token",
    "bucket",
    "key",
    "upload_id",
    "prefix",
    "name",
    "image_id",
)
_PARTS = ("block_index", "start", "length", "part_number")


@attrs.define(eq=False)
class BackendFault:
    """A fault in some calls; made by `FaultyBackend.add_fault`.

    Attributes:
        verb: the calls' verb, or ``"*"`` for all.
        kind: the kind of fault.
        calls: the numbers, from 1, of the calls of that verb since the fault was added; None for all.
        probability: the probability that such a call fails.
        seed: the seed of the random draws.
        times: the most faults to inject.
        fired: the number of faults injected so far.
    """

    verb: str
    kind: BackendFaultKind
    calls: Container[int] | None
    probability: float | None
    seed: int
    times: int | None
    fired: int = 0
    _seen: int = 0

    def meets(self, verb: str, place: tuple[object, ...], attempt: int) -> bool:
        """Whether this call fails; ask once for each call, in one thread at a time."""
        if self.verb not in ("*", verb) or (self.kind in ("short", "flipped") and verb not in _CONTENT):
            return False
        self._seen += 1
        wanted = self.calls is None or self._seen in self.calls
        if wanted and self.probability is not None:
            draw = random.Random(f"{self.seed} {self.kind} {verb} {place} {attempt}")  # noqa: S311 - repeatable
            wanted = draw.random() < self.probability
        return wanted and (self.times is None or self.fired < self.times)


class FaultyBackend(Forwarding[Backend], Backend):
    """A backend whose calls fail on demand.

    Args:
        inner: any backend, which is not changed.

    Attributes:
        calls: the number of calls, failed ones included, by verb and by what distinguishes its calls
            (snapshot and block, page, key and part, range).
    """

    def __init__(self, inner: Backend) -> None:
        self.calls: collections.Counter[tuple[object, ...]] = collections.Counter()
        self._attempts: collections.Counter[tuple[object, ...]] = collections.Counter()
        self._faults: list[BackendFault] = []
        self._renew_lock()
        forks.register(self, FaultyBackend._renew_lock)
        Forwarding.__init__(self, inner)
        Backend.__init__(
            self,
            ebs=_FaultyBlockStore.around(inner.ebs, self),
            s3=_FaultyObjectStore.around(inner.s3, self),
            ec2=_FaultyImageRegistry.around(inner.ec2, self),
        )

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def add_fault(
        self,
        verb: str,
        kind: BackendFaultKind,
        *,
        calls: Container[int] | None = None,
        probability: float | None = None,
        seed: int = 0,
        times: int | None = None,
    ) -> BackendFault:
        """Make calls fail; of several faults the first that fits a call is injected.

        The kinds: ``error`` is a retryable error without any effect, ``throttle`` a `ThrottledError`,
        ``refusal`` an `AccessDeniedError`. ``lost-reply`` is a retryable error after the effect. ``short``
        returns half of the content, ``flipped`` the content with one bit changed; both are for
        `get_snapshot_block` and `get_object_range` only. Without checksums a source misses ``flipped``.

        Args:
            verb: the verb, such as ``"put_snapshot_block"``; ``"*"`` for all.
            kind: the kind of fault.
            calls: the numbers, from 1, of the calls from now on that fail; None for all.
            probability: the probability that such a call fails.
            seed: the seed of the random draws.
            times: the most faults to inject.

        Raises:
            ValueError: there is no such verb, or it has no content to damage.
        """
        if verb not in _VERBS | {"*"} or (kind in ("short", "flipped") and verb not in (*_CONTENT, "*")):
            raise ValueError(f"{kind} cannot happen to {verb!r}")
        fault = BackendFault(verb, kind, calls, probability, seed, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults.clear()

    def make(
        self, verb: str, ids: tuple[object, ...], place: tuple[object, ...], function: Callable[[], R]
    ) -> R:
        """Make a call on `place` of what has the `ids`, or let it go wrong."""
        with self._lock:
            call, attempted = (verb, *ids, *place), (verb, *place)
            self.calls[call] += 1
            self._attempts[attempted] += 1
            attempt = self._attempts[attempted]
            # Each is asked, so that the numbers of its calls do not depend on the others.
            met = [fault for fault in self._faults if fault.meets(verb, place, attempt)]
            for fault in met[:1]:
                fault.fired += 1
        kind = met[0].kind if met else None
        if kind == "error":
            raise BackendError("a fault of the test", retryable=True, operation=verb)
        if kind == "throttle":
            raise ThrottledError("a fault of the test: too many calls", retryable=True, operation=verb)
        if kind == "refusal":
            raise AccessDeniedError("a fault of the test: refused", operation=verb)
        result = function()
        if kind == "lost-reply":
            raise BackendError("a fault of the test: the reply is lost", retryable=True, operation=verb)
        if kind in ("short", "flipped"):
            return cast(R, _damaged(result, kind))
        return result


def _damaged(result: Any, kind: str) -> Any:
    """Content of a block or a range, made short or changed by a bit."""
    if isinstance(result, SnapshotBlock):
        return attrs.evolve(result, content=_damaged(bytes(result.content), kind), proved=False)
    middle = len(result) // 2
    if kind == "short" or not result:
        return result[:middle]
    return result[:middle] + bytes([result[middle] ^ 1]) + result[middle + 1 :]


class _Faulty(Forwarding[S]):
    def __init__(self, inner: S, backend: FaultyBackend) -> None:
        super().__init__(inner)
        self._backend = backend

    def _call(self, verb: str, function: Callable[..., R], /, *arguments: Any, **options: Any) -> R:
        if verb == "fidelity":
            return function(*arguments, **options)
        bound = _SIGNATURES[verb].bind(self, *arguments, **options)
        bound.apply_defaults()
        given = bound.arguments
        if "image" in given and "name" in given:
            given["name"] = given["name"] or given["image"].name
        ids = tuple(given[name] for name in _IDS if name in given)
        place = tuple(given[name] for name in _PARTS if name in given)
        verb = "upload_part" if verb == "upload_part_file" else verb
        return self._backend.make(verb, ids, place, lambda: function(*arguments, **options))


class _FaultyBlockStore(_Faulty[BlockStore], BlockStore):
    pass


class _FaultyObjectStore(_Faulty[ObjectStore], ObjectStore):
    pass


class _FaultyImageRegistry(_Faulty[ImageRegistry], ImageRegistry):
    pass
