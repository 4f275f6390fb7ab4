"""`TaskDescriptions`: descriptions of an engine's tasks, and of the images and snapshots that they make.

EC2 has no call that describes a restore task: "If the task fails, the AMI and snapshots are
moved to a failed state" (EC2 user guide, "Store and restore an AMI using S3"). The registry's descriptions
are passed on; the journal adds what tasks make or failed to make: pending, then available, or failed for 31
days.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs

from amistore import forks
from amistore.backends import Backend
from amistore.errors import NotFoundError
from amistore.model import Image, Snapshot
from amistore.model.fields import from_wire
from amistore.tasks.journal import Journal
from amistore.tasks.requests import (
    PageRequest,
    check_image_id,
    check_snapshot_id,
    dry_run_succeeded,
    engine_closed,
    listed,
)
from amistore.tasks.restore import RestoreRecord
from amistore.tasks.store import StoreRecord
from amistore.tasks.task import RestoreImageTask, SnapshotProgress, StoreImageTask, TaskPage, tags_of

__all__ = ["TaskDescriptions"]

_KEPT: Final = 31 * 86_400  # seconds; EC2 user guide, "Store and restore an AMI using S3"


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
        asked = image_ids, filters, max_results, next_token, self._oldest()
        return self._page(PageRequest.of(StoreRecord.kind, *asked), dry_run)

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
        asked = image_ids, filters, max_results, next_token, self._oldest()
        return self._page(PageRequest.of(RestoreRecord.kind, *asked), dry_run)

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
        made = {record.image_id: record for record in self._restores() if record.state != "Completed"}
        if image_ids is None:
            registered = {image.image_id: image for image in self.backend.ec2.describe_images()}
            unknown = {each: _image(made[each]) for each in made if each and each not in registered}
            return tuple(image for _, image in sorted({**unknown, **registered}.items()))
        found = []
        for image_id in dict.fromkeys(map(check_image_id, listed(image_ids, "image ids"))):
            try:
                found.append(self.backend.ec2.describe_image(image_id))
            except NotFoundError:
                if image_id not in made:
                    raise
                found.append(_image(made[image_id]))
        return tuple(found)

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
        made = {
            each.snapshot_id: (record, each) for record in self._restores() for each in record.snapshots()
        }
        if snapshot_ids is not None:
            wanted = dict.fromkeys(map(check_snapshot_id, listed(snapshot_ids, "snapshot ids")))
            return tuple(_snapshot(self.backend, each, made.get(each)) for each in wanted)
        mapped = {each for image in self.backend.ec2.describe_images() for each in image.snapshot_ids}
        found = []
        for snapshot_id in sorted(mapped.union(filter(None, made))):
            with contextlib.suppress(NotFoundError):  # deleted, and its image or task still names it
                found.append(_snapshot(self.backend, snapshot_id, made.get(snapshot_id)))
        return tuple(found)

    def _restores(self) -> list[RestoreRecord]:
        """Read before the registry: an image in progress may be registered by then."""
        request = PageRequest(kind=RestoreRecord.kind, since=self._oldest())
        found = self._journal.page(self._place, request)
        return [record for record in found if isinstance(record, RestoreRecord)]

    def _oldest(self) -> int:
        """The earliest start of a task that is still described, in milliseconds since 1970."""
        return int((self._clock() - _KEPT) * 1000)

    def _page(self, request: PageRequest, dry_run: bool) -> TaskPage[Any]:
        self._check_open()
        if dry_run:
            raise dry_run_succeeded()
        found = self._journal.page(self._place, attrs.evolve(request, limit=(request.limit or 0) + 1))
        shown = found[: request.limit]
        token = request.token(shown[-1].sequence) if len(found) > len(shown) else None
        return TaskPage(tuple(record.task() for record in shown), token)

    def _check_open(self) -> None:
        forks.check_owner(self._process, "this TaskEngine")
        if self._closed:
            raise engine_closed()


def _image(record: RestoreRecord) -> Image:
    image = from_wire(Image, record.image)
    image = image.with_snapshots(
        {each.stored_id: each.snapshot_id for each in record.volumes if each.snapshot_id is not None}
    )
    reason = {"StateReason": {"Code": "Server.InternalError", "Message": record.failure_reason}}
    return attrs.evolve(
        image.with_tags(tags_of(record.image_tags)),
        image_id=str(record.image_id),
        name=record.name,
        source_image_id=record.source_image_id,
        source_image_region=record.region,
        state="failed" if record.state == "Failed" else "pending",
        extra=reason if record.state == "Failed" else {},
    )


def _snapshot(
    backend: Backend, snapshot_id: str, restored: tuple[RestoreRecord, SnapshotProgress] | None
) -> Snapshot:
    if restored is None:
        found = backend.ebs.describe_snapshot(snapshot_id)
        return _progressed(found, 100) if found.state == "completed" else found
    record, made = restored
    promised = Snapshot(
        snapshot_id=snapshot_id,
        volume_size=made.volume_size,
        tags=tags_of(record.snapshot_tags),
        state="pending",
    )
    if record.state == "Failed":  # and its data is deleted, or will be
        promised = attrs.evolve(promised, state="error", extra={"StateMessage": record.failure_reason})
        return _progressed(promised, made.progress_percentage)
    try:
        found = backend.ebs.describe_snapshot(snapshot_id)
    except NotFoundError:
        if record.state == "Completed":
            raise  # somebody has deleted it since
        found = promised
    return _progressed(found, 100 if found.state == "completed" else made.progress_percentage)


def _progressed(snapshot: Snapshot, percentage: int) -> Snapshot:
    """The snapshot with EC2's member ``Progress``, which is no fact of an archive and has no field."""
    return attrs.evolve(snapshot, extra={**snapshot.extra, "Progress": f"{percentage}%"})
