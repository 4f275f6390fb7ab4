"""EC2's operations on a task engine: plain members in, plain members out.

`answer` is all that an interface to the engine needs: boto3's names (`client.py`), or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from amistore.ec2.errors import refusal
from amistore.errors import AmistoreError, InvalidRequestError, NotFoundError
from amistore.model import Image, Snapshot, Tag
from amistore.model.fields import to_wire
from amistore.tasks import StoreImageTask, TagSpecification, TaskEngine
from amistore.tasks.requests import dry_run_succeeded
from amistore.wire.describing import IMAGE_FILTERS, SNAPSHOT_FILTERS, fitting, owned, page
from amistore.wire.members import OPERATIONS, answered

__all__ = ["answer"]

Members = Mapping[str, Any]


def answer(engine: TaskEngine, operation: str, request: Members) -> dict[str, Any]:
    """Carry a request out.

    Args:
        engine: the task engine.
        operation: EC2's name of an operation that the engine has.
        request: the request's members, without faults (`members.faults`).

    Raises:
        ServiceError: EC2's error; its cause is our error, if there is one.
    """
    # boto3 sends nothing for an empty list.
    asked = {name: value for name, value in request.items() if value not in ([], ())}
    try:
        return answered(OPERATIONS[operation], _ANSWERS[operation](engine, asked))
    except AmistoreError as error:
        raise refusal(error) from error


def _create_store_image_task(engine: TaskEngine, asked: Members) -> Members:
    task = engine.create_store_image_task(
        image_id=asked["ImageId"],
        bucket=asked["Bucket"],
        s3_object_tags=_tags(asked.get("S3ObjectTags", ())),
        on_quota="refuse",
        dry_run=asked.get("DryRun", False),
    )
    return {"ObjectKey": task.object_key}


def _describe_store_image_tasks(engine: TaskEngine, asked: Members) -> Members:
    filters: dict[str, list[str]] = {}
    for each in asked.get("Filters", ()):
        if each.get("Name") in filters:
            raise InvalidRequestError(f"the filter {each['Name']} is given twice", code="InvalidFilter")
        filters[each.get("Name", "")] = each.get("Values", [])
    found = engine.describe_store_image_tasks(
        image_ids=asked.get("ImageIds"),
        filters=filters,
        max_results=asked.get("MaxResults"),
        next_token=asked.get("NextToken"),
        dry_run=asked.get("DryRun", False),
    )
    return {"StoreImageTaskResults": [_task(each) for each in found], "NextToken": found.next_token}


def _task(task: StoreImageTask) -> Members:
    return {
        "AmiId": task.ami_id,
        "TaskStartTime": task.task_start_time,
        "Bucket": task.bucket,
        "S3objectKey": task.s3_object_key,
        "ProgressPercentage": task.progress_percentage,
        "StoreTaskState": task.store_task_state,
        "StoreTaskFailureReason": task.store_task_failure_reason,
    }


def _create_restore_image_task(engine: TaskEngine, asked: Members) -> Members:
    task = engine.create_restore_image_task(
        bucket=asked["Bucket"],
        object_key=asked["ObjectKey"],
        name=asked.get("Name"),
        tag_specifications=[
            TagSpecification(resource_type=each.get("ResourceType", ""), tags=_tags(each.get("Tags", ())))
            for each in asked.get("TagSpecifications", ())
        ],
        on_quota="refuse",
        dry_run=asked.get("DryRun", False),
    )
    if task.image_id is None:
        # EC2 answers at once with an id, which scripts go on with. A registry that gives ids only
        # at the end cannot; to wait for it is slow, but what follows works as it is written.
        task = engine.wait(task)
    return {"ImageId": task.image_id}


def _describe_images(engine: TaskEngine, asked: Members) -> Members:
    _refuse(asked, "ExecutableUsers")
    found = [_image(each) for each in engine.describe_images(asked.get("ImageIds"))]
    if not asked.get("IncludeDisabled") and "ImageIds" not in asked:
        found = [each for each in found if each["State"] != "disabled"]
    found = owned(found, asked.get("Owners", ()), "ImageOwnerAlias")
    found = list(filter(fitting(asked.get("Filters", ()), IMAGE_FILTERS), found))
    shown, token = page(found, asked, key="ImageId", ids="ImageIds")
    _end_dry_run(asked)
    return {"Images": shown, "NextToken": token}


def _image(image: Image) -> Members:
    return {"BlockDeviceMappings": [], **to_wire(image), "State": image.state}


def _describe_snapshots(engine: TaskEngine, asked: Members) -> Members:
    _refuse(asked, "RestorableByUserIds")
    found = [_snapshot(each) for each in engine.describe_snapshots(asked.get("SnapshotIds"))]
    found = owned(found, asked.get("OwnerIds", ()), "OwnerAlias")
    found = list(filter(fitting(asked.get("Filters", ()), SNAPSHOT_FILTERS), found))
    shown, token = page(found, asked, key="SnapshotId", ids="SnapshotIds")
    _end_dry_run(asked)
    return {"Snapshots": shown, "NextToken": token}


def _snapshot(snapshot: Snapshot) -> Members:
    return {**to_wire(snapshot), "State": snapshot.state}


def _deregister_image(engine: TaskEngine, asked: Members) -> Members:
    image_id = asked["ImageId"]
    (image,) = engine.describe_images([image_id])
    _end_dry_run(asked)
    try:
        engine.backend.ec2.deregister_image(image_id)
    except NotFoundError:
        raise InvalidRequestError(
            f"{image_id} is {image.state}: a restore task has it", code="InvalidAMIID.Unavailable"
        ) from None
    if not asked.get("DeleteAssociatedSnapshots"):
        return {"Return": True}
    results = [{"SnapshotId": each, "ReturnCode": _deleted(engine, each)} for each in image.snapshot_ids]
    return {"Return": True, "DeleteSnapshotResults": results}


def _deleted(engine: TaskEngine, snapshot_id: str) -> str:
    """The result for a snapshot in DeregisterImage's answer."""
    if _images_on(engine, snapshot_id):
        return "skipped"
    try:
        engine.backend.ebs.delete_snapshot(snapshot_id)
    except AmistoreError:
        return "internal-error"
    return "success"


def _delete_snapshot(engine: TaskEngine, asked: Members) -> Members:
    snapshot_id = asked["SnapshotId"]
    engine.describe_snapshots([snapshot_id])
    images = _images_on(engine, snapshot_id)
    if images:
        raise InvalidRequestError(
            f"{snapshot_id} is in use by {', '.join(images)}: deregister what uses it",
            code="InvalidSnapshot.InUse",
        )
    _end_dry_run(asked)
    engine.backend.ebs.delete_snapshot(snapshot_id)
    return {}


def _images_on(engine: TaskEngine, snapshot_id: str) -> list[str]:
    """The images that need a snapshot, also those being restored."""
    return [
        image.image_id
        for image in engine.describe_images()
        if image.state != "failed" and snapshot_id in image.snapshot_ids
    ]


def _tags(tags: Any) -> list[Tag]:
    return [Tag(key=tag.get("Key", ""), value=tag.get("Value", "")) for tag in tags]


def _refuse(asked: Members, parameter: str) -> None:
    if parameter in asked:
        raise InvalidRequestError(
            f"{parameter} is not possible: whom images and snapshots are shared with is not known here",
            code="UnsupportedOperation",
        )


def _end_dry_run(asked: Members) -> None:
    if asked.get("DryRun"):
        raise dry_run_succeeded()


_ANSWERS: Final[Mapping[str, Callable[[TaskEngine, Members], Members]]] = {
    "CreateStoreImageTask": _create_store_image_task,
    "DescribeStoreImageTasks": _describe_store_image_tasks,
    "CreateRestoreImageTask": _create_restore_image_task,
    "DescribeImages": _describe_images,
    "DescribeSnapshots": _describe_snapshots,
    "DeregisterImage": _deregister_image,
    "DeleteSnapshot": _delete_snapshot,
}
