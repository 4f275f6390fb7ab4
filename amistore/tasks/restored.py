"""Images and snapshots of restores: pending, then available, or failed for 31 days.

EC2 has no call that describes a restore task: "If the task fails, the AMI and snapshots are
moved to a failed state" (EC2 user guide, "Store and restore an AMI using S3"). The registry's descriptions
are passed on; the journal adds what tasks make or failed to make.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from amistore.backends import Backend
from amistore.errors import NotFoundError
from amistore.model import Image, Snapshot
from amistore.model.fields import from_wire
from amistore.tasks.requests import check_image_id, check_snapshot_id, listed
from amistore.tasks.restore import RestoreRecord, tags_of
from amistore.tasks.task import SnapshotProgress

__all__ = ["describe_images", "describe_snapshots"]


def describe_images(
    backend: Backend, restores: Iterable[RestoreRecord], image_ids: Sequence[str] | None
) -> tuple[Image, ...]:
    """Describe the registry's images, and those of restores that are in progress or have failed.

    Args:
        backend: the tasks' backend.
        restores: the restore tasks, read before the registry: an image in progress may be registered by now.
        image_ids: the ids of the images to describe; None for all, by id.

    Raises:
        NotFoundError: neither the registry nor a task knows an id.
    """
    made = {str(each.image_id): each for each in restores if each.image_id and each.state != "Completed"}
    if image_ids is None:
        registered = {image.image_id: image for image in backend.ec2.describe_images()}
        unregistered = {each: _image(made[each]) for each in made if each not in registered}
        return tuple(image for _, image in sorted({**unregistered, **registered}.items()))
    found = []
    for image_id in dict.fromkeys(map(check_image_id, listed(image_ids, "image ids"))):
        try:
            found.append(backend.ec2.describe_image(image_id))
        except NotFoundError:
            if image_id not in made:
                raise
            found.append(_image(made[image_id]))
    return tuple(found)


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


def describe_snapshots(
    backend: Backend, restores: Iterable[RestoreRecord], snapshot_ids: Sequence[str] | None
) -> tuple[Snapshot, ...]:
    """Describe snapshots, or those of all images and restores, by id.

    Args:
        backend: the tasks' backend.
        restores: the restore tasks, read before the snapshots.
        snapshot_ids: the ids of the snapshots to describe; None for all.

    Raises:
        NotFoundError: neither the store of snapshots nor a task knows an id.
    """
    made = {
        snapshot.snapshot_id: (record, snapshot)
        for record in restores
        for snapshot in record.snapshots()
        if snapshot.snapshot_id is not None
    }
    if snapshot_ids is not None:
        wanted = dict.fromkeys(map(check_snapshot_id, listed(snapshot_ids, "snapshot ids")))
        return tuple(_snapshot(backend, each, *made.get(each, (None, None))) for each in wanted)
    mapped = [each for image in backend.ec2.describe_images() for each in image.snapshot_ids]
    found = []
    for snapshot_id in sorted({*mapped, *made}):
        try:
            found.append(_snapshot(backend, snapshot_id, *made.get(snapshot_id, (None, None))))
        except NotFoundError:
            continue  # deleted, and its image or task still names it
    return tuple(found)


def _snapshot(
    backend: Backend, snapshot_id: str, record: RestoreRecord | None, made: SnapshotProgress | None
) -> Snapshot:
    if record is None or made is None:
        found = backend.ebs.describe_snapshot(snapshot_id)
        return _progressed(found, 100) if found.state == "completed" else found
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
