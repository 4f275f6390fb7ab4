"""The account of requests and answers that tests read."""

from __future__ import annotations

import collections
import threading

import attrs

from amistore.wire.calls import Call, block_number

__all__ = ["CallLog", "LoggedCall"]


@attrs.frozen(kw_only=True)
class LoggedCall:
    """One request that came, without anything secret.

    Attributes:
        status: of HTTP; None where no answer was sent.
        fault: the kind of the fault it met.
    """

    operation: str
    snapshot_id: str | None
    block_index: int | None
    status: int | None
    fault: str | None


class CallLog:
    """Counts of requests and connections.

    Attributes:
        counts: requests by operation.
        blocks: requests by operation, snapshot and block index.
        entries: the requests in the order of their ends.
        connections: that were opened.
        in_flight, most_in_flight: requests being served now, and at most at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was, and count from nothing."""
        with self._lock:
            self.counts: collections.Counter[str] = collections.Counter()
            self.blocks: collections.Counter[tuple[str, str, int]] = collections.Counter()
            self.entries: list[LoggedCall] = []
            self.connections = 0
            self.most_in_flight = self.in_flight

    def connected(self) -> None:
        with self._lock:
            self.connections += 1

    def began(self) -> None:
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def counted(self, call: Call) -> None:
        index = block_number(call)
        with self._lock:
            self.counts[call.operation] += 1
            if call.snapshot_id is not None and index is not None:
                self.blocks[call.operation, call.snapshot_id, index] += 1

    def ended(self, call: Call | None, status: int | None, fault: str | None) -> None:
        with self._lock:
            self.in_flight -= 1
            if call is not None:
                self.entries.append(
                    LoggedCall(
                        operation=call.operation,
                        snapshot_id=call.snapshot_id,
                        block_index=block_number(call),
                        status=status,
                        fault=fault,
                    )
                )
