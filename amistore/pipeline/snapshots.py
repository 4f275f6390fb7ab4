"""The snapshots that a restore makes: begun as their volumes come, completed together or deleted."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from amistore.backends import BlockSink
from amistore.container import IndexedVolume
from amistore.errors import BackendError, InvalidRequestError, InvalidValueError, LostBlocksError
from amistore.model import Image, Snapshot
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.pack import choose_snapshots
from amistore.units import GIB

__all__ = ["RestoredSnapshots"]

_logger = logging.getLogger("amistore")


class RestoredSnapshots:
    """New snapshots for those of a stored image.

    Args:
        image: from the container.
        sink: where they are made.
        snapshots: ids, as stored, of those to make; None for all.
        allow_lost: make those with lost blocks too.

    Raises:
        LostBlocksError: blocks of one were lost, without `allow_lost`.
    """

    def __init__(
        self, image: Image, sink: BlockSink, snapshots: Iterable[str] | None, allow_lost: bool
    ) -> None:
        self._image = image
        self._sink = sink
        self._by_name = snapshots is not None
        self._wanted = choose_snapshots(image, snapshots)
        wanted = set(self._wanted)
        lossy = [s.snapshot_id for s in image.snapshots if s.lost_blocks and s.snapshot_id in wanted]
        if lossy and not allow_lost:
            raise LostBlocksError(
                "the archive was recovered from a damaged one, and blocks of this snapshot were lost: "
                "allow_lost=True restores the rest",
                snapshot_id=lossy[0],
            )
        self._started: dict[str, str] = {}

    def get(self, stored_id: str) -> str | None:
        """The id of the new snapshot; None where it is not begun or not wanted."""
        return self._started.get(stored_id)

    def has(self, snapshot_id: str | None) -> bool:
        """Whether it is one that was begun here."""
        return snapshot_id in self._started.values()

    def wanted(self, stored_id: str) -> bool:
        """Whether it is to be made."""
        return stored_id in self._wanted

    def begin(self, stored_id: str, size: int, *, client_token: str | None = None) -> str | None:
        """Start the new snapshot of a volume of `size` bytes, if it is wanted."""
        if stored_id not in self._wanted:
            return None
        known = self._image.snapshot(stored_id)
        with foreign_errors("start_snapshot"):
            started = self._sink.start_snapshot(
                size // GIB, description=known.description or "", tags=known.tags, client_token=client_token
            )
        again = started in self._started.values()
        self._started[stored_id] = started
        try:
            Snapshot(snapshot_id=started)
        except InvalidValueError as error:
            raise BackendError(f"the sink gave no snapshot id: {error}", operation="start_snapshot") from None
        if again:
            raise BackendError(f"the sink gave {started} twice", operation="start_snapshot")
        return started

    def complete(self, volumes: Iterable[IndexedVolume]) -> None:
        """Complete what was begun, after the whole container has verified; wait until it is."""
        waiting = []
        for volume in volumes:
            snapshot_id = self._started.get(volume.snapshot_id)
            if snapshot_id is not None:
                with foreign_errors("complete_snapshot", snapshot_id=snapshot_id):
                    self._sink.complete_snapshot(snapshot_id, volume.blocks, volume.linear)
                waiting.append(snapshot_id)
        for snapshot_id in waiting:
            with foreign_errors("describe_snapshot", snapshot_id=snapshot_id):
                self._sink.wait_snapshot(snapshot_id)

    def undo(self) -> bool:
        """Delete every snapshot that was begun; whether all are gone. What is not is logged by id."""
        gone = True
        interrupt: BaseException | None = None
        for snapshot_id in self._started.values():
            try:
                self._sink.delete_snapshot(snapshot_id)
            except BaseException as error:  # the others are deleted all the same
                _logger.error("snapshot %s is left behind, delete it: %s", snapshot_id, error)
                gone = False
                interrupt = interrupt if isinstance(error, Exception) else error
        if interrupt is not None:
            raise interrupt
        return gone

    def image(self) -> Image:
        """The stored image on its new snapshots.

        Raises:
            InvalidRequestError: a snapshot that was asked for by name is not in the archive.
        """
        absent = sorted(set(self._wanted) - set(self._started)) if self._by_name else []
        if absent:
            raise InvalidRequestError(
                f"{absent[0]} is mapped by the image, but was not packed into this archive",
                code="InvalidSnapshot.NotFound",
            )
        for snapshot_id in self._image.snapshot_ids:
            if snapshot_id not in self._started:
                _logger.warning("the mapping of %s is left out: it was not restored", snapshot_id)
        return self._image.with_snapshots(self._started)
