"""`TaskDescriptions`: descriptions of an engine's tasks, and of the images and snapshots that they make."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from amistore import forks
from amistore.backends import Backend
from amistore.errors import InvalidRequestError
from amistore.model import Image, Snapshot
from amistore.tasks.journal import Journal
from amistore.tasks.pages import PageRequest
from amistore.tasks.record import Kind
from amistore.tasks.requests import dry_run_succeeded
from amistore.tasks.restore import RestoreRecord
from amistore.tasks.restored import describe_images, describe_snapshots
from amistore.tasks.store import StoreRecord
from amistore.tasks.task import RestoreImageTask, StoreImageTask, TaskPage

__all__ = ["TaskDescriptions"]

_DAYS: Final = 31  # EC2 user guide, "Store and restore an AMI using S3", DescribeStoreImageTasks


class TaskDescriptions:
    """The describing half of `TaskEngine`, which changes nothing.

    Args:
        backend: the backend with the images and snapshots.
        journal: the journal with the tasks.
        place: the backend's name in the journal.
        clock: a function that returns the seconds since 1970.
    """

    def __init__(self, backend: Backend, journal: Journal, place: str, clock: Callable[[], float]) -> None:
        self.backend = backend
        self._journal = journal
        self._place = place
        self._clock = clock
        self._process = os.getpid()
        self._closed = False

    def describe_store_image_tasks(
        self,
        *,
        image_ids: Sequence[str] | None = None,
        filters: Mapping[str, Sequence[str]] | None = None,
        max_results: int | None = None,
        next_token: str | None = None,
        dry_run: bool = False,
    ) -> TaskPage[StoreImageTask]:
        """Store tasks of the last 31 days, newest first: DescribeStoreImageTasks.

        Args:
            image_ids: the ids of the AMIs whose tasks are described, 20 at most; filters are then ignored.
            filters: the filters ``task-state`` and ``bucket``, each with a list of values.
            max_results: the number of tasks in a page, 1 to 200, not together with `image_ids`; None for 200.
            next_token: the token from the page before; all other arguments must be the same.
            dry_run: whether only to check the parameters and raise ``DryRunOperation``.

        Raises:
            InvalidRequestError: a parameter breaks a rule; `code` is EC2's.
        """
        return self._page(StoreRecord.kind, image_ids, filters, max_results, next_token, dry_run)

    def describe_restore_image_tasks(
        self,
        *,
        image_ids: Sequence[str] | None = None,
        filters: Mapping[str, Sequence[str]] | None = None,
        max_results: int | None = None,
        next_token: str | None = None,
        dry_run: bool = False,
    ) -> TaskPage[RestoreImageTask]:
        """Restore tasks of the last 31 days, newest first; arguments as in `describe_store_image_tasks`.

        EC2 has no such call: there, the AMI and its snapshots show a restore's progress.
        """
        return self._page(RestoreRecord.kind, image_ids, filters, max_results, next_token, dry_run)

    def describe_images(self, image_ids: Sequence[str] | None = None) -> tuple[Image, ...]:
        """The registry's images, and those that restores of the last 31 days make or failed to make.

        An image of a restore is described as soon as its id is reserved. Its state is ``pending`` until the
        registry has it, or ``failed``, with ``StateReason`` in `extra`. Where ids are not reserved, it is
        described once it is registered.

        Args:
            image_ids: the ids of the images to describe, in this order; None for all, by id.

        Raises:
            NotFoundError: no such image.
            InvalidRequestError: an id is malformed; ``InvalidAMIID.Malformed``.
        """
        self._check_open()
        return describe_images(self.backend, self._restores(), image_ids)

    def describe_snapshots(self, snapshot_ids: Sequence[str] | None = None) -> tuple[Snapshot, ...]:
        """Snapshots, also those that restores of the last 31 days make or failed to make.

        Their state is ``pending``, ``completed`` or ``error``; `extra` has EC2's ``Progress``, such
        as ``"42%"``, and the ``StateMessage`` of an error.

        Args:
            snapshot_ids: the ids of the snapshots to describe, in this order; None for those of all images
                and restores, by id, since a store of snapshots has no list of its own.

        Raises:
            NotFoundError: no such snapshot.
            InvalidRequestError: an id is malformed; ``InvalidSnapshotID.Malformed``.
        """
        self._check_open()
        return describe_snapshots(self.backend, self._restores(), snapshot_ids)

    def _restores(self) -> list[RestoreRecord]:
        found = self._journal.page(self._place, RestoreRecord.kind, since=self._oldest())
        return [record for record in found if isinstance(record, RestoreRecord)]

    def _oldest(self) -> int:
        """The earliest start of a task that is still described, in milliseconds since 1970."""
        return int((self._clock() - datetime.timedelta(days=_DAYS).total_seconds()) * 1000)

    def _page(
        self,
        kind: Kind,
        image_ids: Sequence[str] | None,
        filters: Mapping[str, Sequence[str]] | None,
        max_results: int | None,
        next_token: str | None,
        dry_run: bool,
    ) -> TaskPage[Any]:
        self._check_open()
        request = PageRequest.of(kind, image_ids, filters, max_results, next_token)
        if dry_run:
            raise dry_run_succeeded()
        return request.read(self._journal, self._place, oldest=self._oldest())

    def _check_open(self) -> None:
        forks.check_owner(self._process, "this TaskEngine")
        if self._closed:
            raise InvalidRequestError("the engine is closed: make another, and resume its tasks")
