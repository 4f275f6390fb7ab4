"""Troubles between a client and the services, at the calls a test names."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Container, Iterator
from typing import Literal, get_args

from amistore.wire.calls import Call, block_number

__all__ = ["FaultKind", "FaultRule", "Faults"]

FaultKind = Literal[
    "500",
    "500-after",
    "503",
    "throttle",
    "failed-to-read",
    "late-signature",
    "reset-before-body",
    "reset-before-answer",
    "lost-reply",
    "silence",
    "short-body",
    "flipped-bit",
    "error-inside",
    "slow-drip",
]


class FaultRule:
    """Which calls meet a fault, and how many did.

    Attributes:
        kind: what happens to them.
        fired: how often it did.
    """

    def __init__(
        self,
        operation: str,
        kind: FaultKind,
        *,
        calls: Container[int] | None,
        probability: float | None,
        seed: int,
        times: int | None,
        snapshot_id: str | None,
        block_index: int | None,
    ) -> None:
        self.kind = kind
        self.fired = 0
        self._operation = operation
        self._calls = calls
        self._probability = probability
        # Of its own for each rule of one seed: else one's faults would follow another's.
        self._random = random.Random(f"{seed} {operation} {kind}")  # noqa: S311 - repeatable, not secret
        self._times = times
        self._snapshot_id = snapshot_id
        self._block_index = block_index
        self._seen = 0
        self._lock = threading.Lock()
        self._held_now = threading.Condition(self._lock)
        self._released = False
        self._held: set[socket.socket] = set()

    def release(self) -> None:
        """Let the calls go on that ``silence`` or ``slow-drip`` holds, and those to come."""
        with self._lock:
            self._released = True
            for waker in self._held:
                waker.send(b"!")

    def wait_until_held(self, calls: int = 1, timeout: float = 60) -> None:
        """Wait, in real time, until so many calls are held at once.

        Args:
            calls: how many.
            timeout: seconds.

        Raises:
            TimeoutError: they were not, in that time.
        """
        with self._held_now:
            if not self._held_now.wait_for(lambda: len(self._held) >= calls, timeout):
                raise TimeoutError(f"{len(self._held)} calls are held, not {calls}")

    @contextlib.contextmanager
    def holding(self, waker: socket.socket) -> Iterator[None]:
        """Have `release` write to a socket, on whose other end a call is held."""
        with self._lock:
            self._held.add(waker)
            self._held_now.notify_all()
            if self._released:
                waker.send(b"!")
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(waker)

    def meets(self, call: Call) -> bool:
        """Whether this call, which is counted, is one to meet the fault."""
        if self._operation not in ("*", call.operation):
            return False
        if self._snapshot_id not in (None, call.snapshot_id):
            return False
        if self._block_index is not None and self._block_index != block_number(call):
            return False
        with self._lock:
            self._seen += 1
            wanted = self._calls is None or self._seen in self._calls
            if wanted and self._probability is not None:
                wanted = self._random.random() < self._probability
            if not wanted or (self._times is not None and self.fired >= self._times):
                return False
            self.fired += 1
            return True


class Faults:
    """Rules, of which the first that fits a call decides.

    Args:
        check_operation: raises ValueError for the name of no operation.
    """

    def __init__(self, check_operation: Callable[[str], None]) -> None:
        self._check_operation = check_operation
        self._rules: list[FaultRule] = []

    def add(
        self,
        operation: str,
        kind: FaultKind,
        *,
        calls: Container[int] | None = None,
        probability: float | None = None,
        seed: int = 0,
        times: int | None = None,
        snapshot_id: str | None = None,
        block_index: int | None = None,
    ) -> FaultRule:
        """Add a rule behind those that there are.

        The kinds: ``500``, ``503``, ``throttle`` and ``failed-to-read`` (PutSnapshotBlock's
        "Failed to read block data") and ``late-signature``, as if the request had been signed an hour
        ago, are answers, without any effect; ``500-after`` is one after the
        effect. ``reset-before-body`` and
        ``reset-before-answer`` reset the connection, without any effect; a Query API's operation
        is only known from its body, which then has been read. ``lost-reply`` resets it after
        the effect. ``silence`` never answers: the call ends when the client gives up, by
        `FaultRule.release` (then with a reset) or with the server. ``short-body`` breaks off in
        the body's middle, ``flipped-bit`` changes one bit of it, ``error-inside`` is a status of
        200 around an error. ``slow-drip`` sends a few bytes and holds the rest until
        `FaultRule.release`.

        Args:
            operation: its name in the service's reference, or ``"*"``.
            kind: what happens.
            calls: numbers, from 1, of those among the calls that fit which meet the fault; None
                is every one.
            probability: of each of these calls to meet it.
            seed: of the probability's random numbers.
            times: after so many faults the rule rests.
            snapshot_id: only calls that have it in their path.
            block_index: only calls that have it in their path.

        Raises:
            ValueError: there is no such operation or kind, so that the fault would never happen.
        """
        if operation != "*":
            self._check_operation(operation)
        if kind not in get_args(FaultKind):
            raise ValueError(f"there is no kind {kind!r}, only {', '.join(get_args(FaultKind))}")
        rule = FaultRule(
            operation,
            kind,
            calls=calls,
            probability=probability,
            seed=seed,
            times=times,
            snapshot_id=snapshot_id,
            block_index=block_index,
        )
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules, and let go what they hold."""
        rules, self._rules = self._rules, []
        for rule in rules:
            rule.release()

    def pick(self, call: Call) -> FaultRule | None:
        """The rule whose fault this call meets; each call is to be asked about once."""
        return next((rule for rule in list(self._rules) if rule.meets(call)), None)
