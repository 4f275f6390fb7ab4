"""`RestoreLog`: which snapshots a job has begun, and how far each is put, so that the next run goes on."""

from __future__ import annotations

import hashlib
import logging
import operator
import secrets
from collections.abc import Mapping
from typing import Any

from amistore.backends import BlockSink
from amistore.container.plan import PlannedVolume
from amistore.errors import (
    AmistoreError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    is_final,
)
from amistore.model import Snapshot
from amistore.objects.resumelog import NoLog, ResumeLog, read_entry, read_task, write_entry
from amistore.pipeline.snapshots import RestoredSnapshots

__all__ = ["RestoreLog", "client_token"]

_logger = logging.getLogger("amistore")


def client_token(task: str, stored_id: str, generation: int) -> str:
    """A snapshot's client token: the same in each run, another for each attempt to make the snapshot."""
    return hashlib.sha256(f"{task} {stored_id} {generation}".encode()).hexdigest()[:64]


class RestoreLog:
    """The log of snapshots that are made: what earlier runs did, and what this one notes.

    Args:
        log: the log; None for a run that nobody resumes.
        kind: the kind of job, as in `read_task`.
        identity: the facts that all runs share.
        changed: the errors to raise where some of them differ.

    Raises:
        InvalidRequestError: the log is damaged, or another job's.
    """

    def __init__(
        self,
        log: ResumeLog | None,
        kind: str,
        identity: Mapping[str, Any],
        changed: Mapping[str, AmistoreError],
    ) -> None:
        self._kept = log is not None
        self._log = log = NoLog() if log is None else log
        # By the stored id: generation and id of the new snapshot; which segments it has: those before; and
        # the block index before which its holes are filled.
        self._snapshots: dict[str, tuple[int, str]] = {}
        self._put: dict[str, int] = {}
        self._filled: dict[str, int] = {}
        self._digests: dict[tuple[str, int], str] = {}
        entries = log.entries()
        self.fresh = not entries
        if not entries:
            self.task = secrets.token_hex(16)
            log.append(write_entry(kind=kind, task=self.task, **identity))
            return
        self.task = read_task(entries[0], kind, identity, changed)
        try:
            for entry in map(read_entry, entries[1:]):
                if "put" in entry:
                    self._put[entry["volume"]] = operator.index(entry["put"])
                    if "digest" in entry:
                        self._digests[entry["volume"], self._put[entry["volume"]]] = entry["digest"]
                elif "filled" in entry:
                    self._filled[entry["volume"]] = operator.index(entry["filled"])
                elif "snapshot" in entry:
                    self._begin(entry["volume"], operator.index(entry["generation"]), entry["snapshot"])
        except (KeyError, TypeError):
            raise InvalidRequestError("the resume log is damaged") from None

    def begun(self, stored_id: str) -> tuple[int, str | None]:
        """The generation and id of the snapshot that an earlier run began; 0 and None for none."""
        return self._snapshots.get(stored_id, (0, None))

    def note_beginning(self, known: Snapshot, generation: int, size: int) -> None:
        """Note a snapshot before it is begun: the answer with its id may be lost.

        A sink tells it once more only for the same facts.
        """
        facts = {
            "volume": known.snapshot_id,
            "generation": generation,
            "size": size,
            "description": known.description or "",
            "tags": [[tag.key, tag.value] for tag in known.tags],
        }
        self._log.append(write_entry(**facts))

    def note_begun(self, stored_id: str, generation: int, snapshot_id: str, size: int) -> None:
        self._begin(stored_id, generation, snapshot_id)
        self._log.append(
            write_entry(volume=stored_id, generation=generation, snapshot=snapshot_id, size=size)
        )

    def _begin(self, stored_id: str, generation: int, snapshot_id: str) -> None:
        """Note a new snapshot, into which nothing was put yet."""
        if not isinstance(snapshot_id, str):
            raise TypeError(snapshot_id)
        self._snapshots[stored_id] = generation, snapshot_id
        self._put.pop(stored_id, None)
        self._filled.pop(stored_id, None)

    def put(self, stored_id: str) -> int:
        """The sequence number of the first segment that may be missing."""
        return self._put.get(stored_id, 0)

    def note_put(self, stored_id: str, end: int, digest: str | None = None) -> None:
        """Note that all segments before one were put.

        Args:
            stored_id: the volume.
            end: the sequence number of the first segment that may be missing.
            digest: what tells the content of the segment before it, where a later run reads it again.
        """
        self._put[stored_id] = end
        facts = {} if digest is None else {"digest": digest}
        self._log.append(write_entry(volume=stored_id, put=end, **facts))

    def digest(self, stored_id: str, end: int) -> str | None:
        """What was noted of the content of the segment before `end`."""
        return self._digests.get((stored_id, end))

    def filled(self, stored_id: str) -> int:
        """The block index before which all holes are filled."""
        return self._filled.get(stored_id, 0)

    def note_filled(self, stored_id: str, end: int) -> None:
        self._log.append(write_entry(volume=stored_id, filled=end))

    def begin(self, volume: PlannedVolume, restored: RestoredSnapshots, sink: BlockSink) -> int:
        """Start a volume's snapshot, or resume the one that an earlier run began.

        Returns:
            The sequence number of the first segment that may be missing.
        """
        stored_id = volume.snapshot_id
        generation, before = self.begun(stored_id)
        # Asked first: a sink may give the token of a snapshot that was deleted to a new, empty one.
        if before is not None and not _usable(before, sink):
            _logger.warning("snapshot %s cannot be resumed: starting another", before)
            generation += 1
            before = None
        # With the same token: the same snapshot, if it is one that this task began.
        token = client_token(self.task, stored_id, generation)
        if before is None and restored.wanted(stored_id):
            self.note_beginning(restored.known(stored_id), generation, volume.size)
        snapshot_id = restored.begin(volume, client_token=token)
        if snapshot_id is None:
            return 0
        if snapshot_id == before:
            first = self.put(stored_id)
            _logger.info("resuming snapshot %s at segment %d", snapshot_id, first)
            return first
        self.note_begun(stored_id, generation, snapshot_id, volume.size)
        restored.warn_of_holes(volume)
        return 0

    def undo(self, error: BaseException, restored: RestoredSnapshots) -> None:
        """Delete what was begun, if no later run goes on from it."""
        if isinstance(error, NotFoundError) and restored.has(error.snapshot_id):
            error.retryable = True  # the next run begins another
        # What an earlier run has made is not deleted for a source that is damaged by now: the log stays, and
        # `abandon` deletes it. Blocks that the log says were put and that are not there are the log's fault.
        given_up = is_final(error) and (self.fresh or isinstance(error, ChecksumMismatchError))
        if (not self._kept or given_up) and restored.undo():
            self._log.clear()
            if not self.fresh and isinstance(error, ChecksumMismatchError):
                error.retryable = True  # of blocks that an earlier run put: the next one puts all of them

    def end(self) -> None:
        """End the log: all is made."""
        self._log.end()


def _usable(snapshot_id: str, sink: BlockSink) -> bool:
    try:
        return sink.describe_snapshot(snapshot_id).state in ("pending", "completed")
    except NotFoundError:
        return False
