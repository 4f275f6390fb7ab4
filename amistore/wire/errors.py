"""What a service says instead of an answer."""

from __future__ import annotations

__all__ = ["ServiceError", "invalid", "wrong"]


class ServiceError(Exception):
    """A request that the service refuses.

    Attributes:
        code: the error's name in the service's reference.
        message: the text beside it.
        status: of HTTP.
        reason: the member ``Reason`` of the EBS direct APIs' errors, where there is one.
    """

    def __init__(self, code: str, message: str, *, status: int = 400, reason: str | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.reason = reason


def invalid(message: str, reason: str = "INVALID_PARAMETER_VALUE") -> ServiceError:
    """The EBS direct APIs' ValidationException."""
    return ServiceError("ValidationException", message, reason=reason)


def wrong(message: str, code: str = "InvalidParameterValue", status: int = 400) -> ServiceError:
    """An error of EC2 ("EC2 API reference: Error codes")."""
    return ServiceError(code, message, status=status)
