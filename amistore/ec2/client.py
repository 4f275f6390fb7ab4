"""`EC2Client`: a task engine with the methods, members and errors of boto3's EC2 client."""

from __future__ import annotations

import types
import uuid
from typing import Any, Final

import attrs

from amistore.ec2 import models
from amistore.ec2.errors import ClientError, ParamValidationError
from amistore.ec2.operations import answer
from amistore.errors import InvalidRequestError
from amistore.tasks import TaskEngine
from amistore.wire.errors import ServiceError
from amistore.wire.members import OPERATIONS, faults

__all__ = ["ClientMeta", "EC2Client"]


@attrs.frozen(kw_only=True)
class ClientMeta:
    """A client's own facts.

    Attributes:
        region_name: the Region of the engine's images; None where there are no Regions.
    """

    region_name: str | None


class EC2Client:
    """EC2's operations on a task engine; parameters and answers are those of boto3's client.

    Answers have exactly boto3's members, without those that have no value here. The caller closes the engine.
    Errors are botocore's ``ClientError``, with EC2's code in ``response["Error"]["Code"]``, and
    ``ParamValidationError``; without botocore they have the same shape. `exceptions` has ``ClientError``.

    Args:
        engine: the task engine that runs the calls.
    """

    exceptions: Final = types.SimpleNamespace(ClientError=ClientError)

    def __init__(self, engine: TaskEngine) -> None:
        if not isinstance(engine, TaskEngine):
            raise InvalidRequestError(
                f"a client needs an amistore.TaskEngine(backend), not a {type(engine).__name__}"
            )
        self._engine = engine
        self.meta = ClientMeta(region_name=engine.backend.ec2.region_name)

    def create_store_image_task(self, **parameters: Any) -> dict[str, Any]:
        """Store an AMI as an object: ``ImageId``, ``Bucket``, ``S3ObjectTags``, ``DryRun``."""
        return self._call("CreateStoreImageTask", parameters)

    def describe_store_image_tasks(self, **parameters: Any) -> dict[str, Any]:
        """Store tasks: ``ImageIds``, ``Filters``, ``MaxResults``, ``NextToken``, ``DryRun``."""
        return self._call("DescribeStoreImageTasks", parameters)

    def create_restore_image_task(self, **parameters: Any) -> dict[str, Any]:
        """Make an AMI of an object: ``Bucket``, ``ObjectKey``, ``Name``, ``TagSpecifications``, ``DryRun``.

        Where the registry cannot reserve ids, this returns once the AMI is registered.
        """
        return self._call("CreateRestoreImageTask", parameters)

    def describe_images(self, **parameters: Any) -> dict[str, Any]:
        """AMIs, pending and failed ones too: ``ImageIds``, ``Owners``, ``Filters``, and more."""
        return self._call("DescribeImages", parameters)

    def describe_snapshots(self, **parameters: Any) -> dict[str, Any]:
        """Snapshots and their progress: ``SnapshotIds``, ``OwnerIds``, ``Filters``, and more."""
        return self._call("DescribeSnapshots", parameters)

    def deregister_image(self, **parameters: Any) -> dict[str, Any]:
        """Remove an AMI: ``ImageId``, ``DeleteAssociatedSnapshots``, ``DryRun``."""
        return self._call("DeregisterImage", parameters)

    def delete_snapshot(self, **parameters: Any) -> dict[str, Any]:
        """Delete a snapshot that no AMI is on: ``SnapshotId``, ``DryRun``."""
        return self._call("DeleteSnapshot", parameters)

    def can_paginate(self, operation_name: str) -> bool:
        """Whether `get_paginator` has one for a method."""
        return operation_name in _PAGED

    def get_paginator(self, operation_name: str) -> Any:
        """Give botocore's paginator for a method, such as ``"describe_store_image_tasks"``.

        Raises:
            ImportError: botocore is not installed.
            ValueError: the method has no pages.
        """
        if not self.can_paginate(operation_name):
            raise ValueError(f"Operation cannot be paginated: {operation_name}")
        return models.paginator(self, _PAGED[operation_name])

    def get_waiter(self, waiter_name: str) -> Any:
        """Give botocore's waiter of a name, such as ``"store_image_task_complete"``, with its delays.

        Raises:
            ImportError: botocore is not installed.
            ValueError: there is no such waiter here.
        """
        return models.waiter(self, waiter_name)

    def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        found = faults(OPERATIONS[operation], parameters)
        if found:
            raise ParamValidationError(report="\n".join(found))
        try:
            members = answer(self._engine, operation, parameters)
        except ServiceError as error:
            response = {
                "Error": {"Code": error.code, "Message": error.message},
                "ResponseMetadata": _metadata(error.status),
            }
            raise ClientError(response, operation) from error.__cause__
        return {**members, "ResponseMetadata": _metadata(200)}


_PAGED: Final = {
    "describe_images": "DescribeImages",
    "describe_snapshots": "DescribeSnapshots",
    "describe_store_image_tasks": "DescribeStoreImageTasks",
}


def _metadata(status: int) -> dict[str, Any]:
    return {
        "RequestId": str(uuid.uuid4()),
        "HTTPStatusCode": status,
        "HTTPHeaders": {},
        "RetryAttempts": 0,
    }
