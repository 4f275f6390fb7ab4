"""EC2's error code for each of our errors, and the exceptions that scripts catch.

`refusal` alone has the mapping. The exceptions are botocore's if it is installed, so that a script's ``except
ClientError`` catches them, else of the same shape.
Source of the codes: EC2 API reference, "Error codes for the Amazon EC2 API". Which code EC2
itself gives in which case is documented nowhere; docs/tasks-boto3.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from amistore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    AmistoreError,
    ArchivedObjectError,
    ArchiveError,
    InvalidRequestError,
    InvalidValueError,
    NotFoundError,
    ThrottledError,
)
from amistore.wire.errors import ServiceError

__all__ = ["ClientError", "ParamValidationError", "refusal"]


_STATUS: Final[Mapping[str, int]] = {
    "UnauthorizedOperation": 403,
    "DryRunOperation": 412,
    "InternalError": 500,
    "RequestLimitExceeded": 503,
}


def refusal(error: AmistoreError) -> ServiceError:
    """EC2's error for an error of ours."""
    code = _code(error)
    # The text of a request's error would tell the code twice; that of others tells on what they were met.
    message = error.message if isinstance(error, InvalidRequestError) else str(error)
    return ServiceError(code, message, status=_STATUS.get(code, 400))


def _code(error: AmistoreError) -> str:
    match error:
        case InvalidRequestError(code=str(code)):
            return code
        case InvalidValueError():
            return "InvalidParameterValue"
        case InvalidRequestError():
            return "InvalidRequest"
        case NotFoundError(snapshot_id=str()):  # before the image that names it
            return "InvalidSnapshot.NotFound"
        case NotFoundError(image_id=str()):
            return "InvalidAMIID.NotFound"
        case AlreadyExistsError(bucket=None):
            return "InvalidAMIName.Duplicate"
        case _:
            return next((code for kind, code in _OTHERS.items() if isinstance(error, kind)), "InternalError")


_OTHERS: Final[Mapping[type[AmistoreError], str]] = {
    # "The specified Amazon S3 URL cannot be reached": a bucket, an object, one that is archived.
    NotFoundError: "InaccessibleStorageLocation",
    ArchivedObjectError: "InaccessibleStorageLocation",
    AlreadyExistsError: "InvalidRequest",  # the object; EC2 has no code of its own for it
    AccessDeniedError: "UnauthorizedOperation",
    ThrottledError: "RequestLimitExceeded",
    ArchiveError: "InvalidManifest",  # "The specified AMI has an unparsable manifest"
}


class _ClientError(AmistoreError):
    """As botocore's: `response` has the ``Error`` with its ``Code`` and ``Message``."""

    def __init__(self, error_response: dict[str, Any], operation_name: str) -> None:
        error = error_response["Error"]
        super().__init__(
            f"An error occurred ({error['Code']}) when calling the {operation_name} operation: "
            f"{error['Message']}"
        )
        self.response = error_response
        self.operation_name = operation_name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.response, self.operation_name)


class _ParamValidationError(AmistoreError):
    """As botocore's: a request's members are unknown, missing or of another type."""

    def __init__(self, *, report: str) -> None:
        super().__init__(f"Parameter validation failed:\n{report}")
        self.kwargs = {"report": report}


if TYPE_CHECKING:
    ClientError = _ClientError
    ParamValidationError = _ParamValidationError
else:
    try:
        from botocore.exceptions import ClientError, ParamValidationError
    except ModuleNotFoundError:
        ClientError, ParamValidationError = _ClientError, _ParamValidationError
