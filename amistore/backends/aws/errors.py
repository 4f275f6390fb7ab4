"""botocore's errors in our tree: what is missing where access is denied, and what else to do.

Codes are in `error_codes.py`.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import re
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.exceptions
import botocore.parsers
from urllib3.util.ssl_match_hostname import CertificateError

from amistore.backends.aws.actions import ACTIONS, KMS_READ, KMS_WRITE
from amistore.backends.aws.error_codes import (
    CODES,
    DENIED,
    LATE,
    NOT_ALLOWED,
    Meaning,
    meaning_of_status,
)
from amistore.backends.aws.settings import setting_of, settings_of
from amistore.backends.redaction import hide_secrets
from amistore.errors import (
    AccessDeniedError,
    AmistoreError,
    BackendError,
    ChecksumMismatchError,
    CredentialsExpiredError,
    InvalidRequestError,
    InvalidTokenError,
    NotFoundError,
    ThrottledError,
)
from amistore.units import counted
from amistore.wire.errors import ServiceError

__all__ = [
    "aws_errors",
    "code_of",
    "connection_error",
    "member_of",
    "service_error",
]


_RENEW = "; renew the credentials and call again: a log or a task is resumed"
# The same as the codes of `LATE` in the text of EBS and STS.
_LATE_TEXT = re.compile("signature (expired|not yet current)", re.IGNORECASE)
_MOST_SKEW = 300.0  # seconds; EBS allows so many, S3 and EC2 three times as many
# What botocore says of a session of AWS SSO, of `aws login` or of a role that has ended; its text is its own.
_SESSION_ENDED = tuple(
    getattr(botocore.exceptions, name)
    for name in ("SSOError", "TokenRetrievalError", "LoginError", "RefreshWithMFAUnsupportedError")
    if hasattr(botocore.exceptions, name)  # LoginError came with botocore 1.41
)
_NO_CREDENTIALS = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
_CREDENTIALS = (
    *_NO_CREDENTIALS,
    *_SESSION_ENDED,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.MetadataRetrievalError,
)
# Providers of botocore's that ask the machine's metadata service, which may be busy.
_METADATA = frozenset({"iam-role", "container-role"})
# EBS direct APIs reference, ValidationException and ResourceNotFoundException: Reason.
_TOKENS = frozenset({"INVALID_BLOCK_TOKEN", "INVALID_PAGE_TOKEN"})
# INVALID_SNAPSHOT_ID is also said of a snapshot that is there, but completed, archived or on an Outpost.
_ABSENT = "does not exist"  # as awslabs/coldsnap issue 43 quotes it
_UNREAD = "Failed to read block data"  # of Put: the body arrived damaged or not at all
_OF_HEADERS = frozenset({"InvalidArgument", "InvalidRequest", "UnsupportedArgument", "NotImplemented"})
_ABSENT_BUCKET = "no such bucket: check its name, and the backend's Region and account"
_ABSENT_OBJECT = "no such object, version or bucket: check key, version and bucket"


@contextlib.contextmanager
def aws_errors(operation: str, **facts: Any) -> Iterator[None]:
    """Turn the exceptions of botocore and urllib3 into our errors, with the call's arguments."""
    try:
        yield
    except BackendError as error:
        error.locate(operation=operation, **facts)
        raise
    except AmistoreError:
        raise
    except botocore.exceptions.ClientError as error:
        raise _answered(error, operation, **facts) from None
    except _CREDENTIALS as error:
        raise _credentials_error(error, operation, **facts) from None
    except (
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.ConnectionError,
        botocore.exceptions.IncompleteReadError,
    ) as error:
        raise connection_error(error, error.kwargs.get("endpoint_url"), operation, **facts) from None
    except botocore.exceptions.ParamValidationError as error:
        raise InvalidRequestError(f"{operation}: {error}", code="InvalidParameterValue") from None
    except botocore.parsers.ResponseParserError:
        # An answer that broke off, or a proxy's page; its text is in botocore's message.
        message = "the answer cannot be read: it is no XML or JSON of this operation"
        raise BackendError(message, retryable=True, operation=operation, **facts) from None
    except botocore.exceptions.BotoCoreError as error:
        raise BackendError(f"{type(error).__name__}: {error}", operation=operation, **facts) from None
    except Exception as error:
        # botocore parses what a service, or a proxy before it, answers, and says so in many ways.
        raise BackendError(
            f"the answer cannot be read: {type(error).__name__}", retryable=True, operation=operation, **facts
        ) from error


def _answered(error: Any, operation: str, **facts: Any) -> AmistoreError:
    """Our error for botocore's ClientError."""
    about = error.response.get("ResponseMetadata", {})
    described = error.response.get("Error", {})
    message = str(described.get("Message", ""))
    # S3 may tell the header apart (versitygw issue 2108).
    header = str(described.get("Header") or described.get("ArgumentName") or "")
    if header and header.lower() not in message.lower():
        message = f"{message}: {header}" if message else header
    refused = ServiceError(
        str(described.get("Code", "")),
        message,
        status=about.get("HTTPStatusCode", 0),
        reason=str(error.response.get("Reason", "")),
    )
    headers = about.get("HTTPHeaders", {})
    date, retry_after = headers.get("date", ""), headers.get("retry-after", "")
    return service_error(refused, operation, date=date, retry_after=retry_after, **facts)


def _credentials_error(error: Any, operation: str, **facts: Any) -> AccessDeniedError:
    """Our error for botocore's about missing or expired credentials."""
    if isinstance(error, _NO_CREDENTIALS):
        remedy = "give a session= or profile_name=, set AWS_PROFILE, or log in (aws sso login)"
        told = f"no credentials: {error}; {remedy}"
        return AccessDeniedError(told, operation=operation, **facts)
    if isinstance(error, _SESSION_ENDED):
        return CredentialsExpiredError(f"{error}{_RENEW}", operation=operation, **facts)
    asked = error.kwargs.get("provider") in _METADATA
    busy = asked or isinstance(error, botocore.exceptions.MetadataRetrievalError)
    whence = "of the machine's metadata service " if busy else ""
    # The text of a command's failure may be secret.
    told = f"credentials {whence}could not be obtained: {type(error).__name__}{_RENEW}"
    return CredentialsExpiredError(told, retryable=busy, operation=operation, **facts)


def connection_error(error: Exception, url: str | None, operation: str, **facts: Any) -> BackendError:
    """Our error for a failed connection.

    It names only the class of the original, whose text may hold a presigned URL with its signature; a proxy's
    refusal holds none and is shown.
    """
    to = f" to {_origin(url)}" if url else ""
    refusal = f": {error}" if type(error) is OSError and not error.errno else ""
    distrust = _certificate_trouble(error)
    return BackendError(
        f"the connection{to} failed: {type(error).__name__}{refusal}{distrust}",
        retryable=not distrust,
        operation=operation,
        **facts,
    )


def _certificate_trouble(error: BaseException) -> str:
    """Why a server's certificate cannot be trusted, and the remedy; empty for all other errors.

    Another attempt does not help with such an error.
    """
    cause: object = error
    if isinstance(error, botocore.exceptions.SSLError):
        cause = next(iter(error.kwargs["error"].args), None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f": {cause.verify_message}; AWS_CA_BUNDLE names the PEM file of another authority to trust"
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return ": the server does not speak TLS at this address"
    if isinstance(cause, CertificateError):  # urllib3's, of another host
        return f": {cause}"
    if isinstance(cause, FileNotFoundError):
        return ": the PEM file that AWS_CA_BUNDLE, or the profile's ca_bundle, names is not there"
    return ""


def _origin(url: str) -> str:
    """Scheme, host and port of a URL, without its query, which may hold a signature."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def code_of(error: botocore.exceptions.ClientError) -> str:
    """The service's code; botocore's, the status, where the answer has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def member_of(answer: Mapping[str, Any], name: str) -> Any:
    """A member that each whole answer of an operation has.

    botocore leaves out what it does not find: in an answer that broke off, in another program's page, in an
    error with a status of 200.

    Raises:
        BackendError: the member is missing; `retryable`.
    """
    if name not in answer:
        raise BackendError(f"the answer has no {name}: it is not one of this operation", retryable=True)
    return answer[name]


def service_error(
    refused: ServiceError, operation: str, *, date: str = "", retry_after: str = "", **facts: Any
) -> AmistoreError:
    """Our error for a service's error.

    Args:
        refused: the service's error.
        operation: our verb, such as ``"get_snapshot_block"``.
        date: the answer's ``Date`` header.
        retry_after: the answer's ``Retry-After`` header.
        facts: the call's arguments, as attributes of the error.
    """
    code, text = refused.code, _told(refused)
    late = code in LATE or (CODES.get(code, DENIED).kind is AccessDeniedError and _is_late(refused.message))
    meaning = _meaning(refused)
    if late or meaning.kind is CredentialsExpiredError:
        return _expired(text, late, _clock_error(date), operation, **facts)
    if code == "404":  # of HEAD, whose answer has no text
        text = _ABSENT_OBJECT if facts.get("key") is not None else _ABSENT_BUCKET
    elif remedy := _of_header(refused, operation) or meaning.remedy:
        text = f"{text.rstrip('.')}; {remedy}"
    if issubclass(meaning.kind, InvalidRequestError):
        where = ", ".join(f"{name} {value}" for name, value in {"operation": operation, **facts}.items())
        return meaning.kind(f"{text} ({where})", code=meaning.code or code)
    if meaning.kind is AccessDeniedError:
        text += _missing(refused, operation) + _possible_clock_error(refused, date)
    error = meaning.kind(text, retryable=meaning.retryable, operation=operation, **facts)
    if isinstance(error, ThrottledError) and (wait := _seconds(retry_after)):
        error.retry_after = wait
        error.message += f"; it asks to wait for {wait:.0f} s"
    return error


def _told(refused: ServiceError) -> str:
    """What the service says."""
    text = refused.code or f"HTTP {refused.status}"
    if refused.reason:
        text += f" ({refused.reason})"
    if refused.message:
        text += f": {refused.message}"
    return hide_secrets(text)  # a proxy's page may repeat the request


def _possible_clock_error(refused: ServiceError, date: str) -> str:
    """How wrong the clock is, where that may be the reason: EC2's AuthFailure does not say so."""
    clock = _clock_error(date)
    return f"; {clock}" if clock and (refused.code not in NOT_ALLOWED or not refused.message) else ""


def _meaning(refused: ServiceError) -> Meaning:
    """What a refusal means: by EBS's reason, by its code, by its status.

    Codes come before statuses, since botocore makes a 500 of an error inside a 200.
    """
    message, reason = refused.message, refused.reason
    if reason in _TOKENS:
        return Meaning(InvalidTokenError, retryable=True)
    if reason == "SNAPSHOT_NOT_FOUND" or (reason == "INVALID_SNAPSHOT_ID" and _ABSENT in message):
        return Meaning(NotFoundError)
    if refused.code in CODES:
        return CODES[refused.code]
    if reason == "INVALID_BLOCK":
        return Meaning(ChecksumMismatchError, retryable=True)
    if reason == "WRITE_REQUEST_TIMEOUT" or _UNREAD in message:
        return Meaning(BackendError, retryable=True)
    return meaning_of_status(refused.status)


def _of_header(refused: ServiceError, operation: str) -> str:
    """The setting that leaves out a header which the server does not know; empty for all other refusals."""
    if refused.code not in _OF_HEADERS and refused.status != 501:
        return ""
    if named := setting_of(refused.message):
        return named
    is_unnamed = refused.status == 501 and "header" in refused.message.lower()
    return settings_of(operation) if is_unnamed else ""


def _is_late(message: str) -> bool:
    return _LATE_TEXT.search(message) is not None


def _seconds(retry_after: str) -> float | None:
    """The seconds of ``Retry-After`` (RFC 9110, 10.2.3); None where it says none."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        until = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return max(until - datetime.datetime.now(datetime.timezone.utc).timestamp(), 0.0)


def _expired(text: str, late: bool, clock: str, operation: str, **facts: Any) -> BackendError:
    """Our error for a signature or credentials that were too old on arrival.

    After a machine has slept a fresh signature may do: renewable credentials are renewed for it.
    """
    if clock:
        told = f"{text}; {clock}: set it right and call again; a log or a task is resumed"
        return CredentialsExpiredError(told, operation=operation, **facts)
    if late:
        told = (
            f"{text.rstrip('.')}; the request came too late, after a sleep or on a slow line, or a clock is "
            "wrong, this machine's or the service's"
        )
        return BackendError(told, retryable=True, operation=operation, **facts)
    return CredentialsExpiredError(f"{text}{_RENEW}", retryable=True, operation=operation, **facts)


def _clock_error(date: str) -> str:
    """How far this machine's clock differs from an answer's date; empty if it is right."""
    now = datetime.datetime.now(datetime.timezone.utc)
    try:
        there = email.utils.parsedate_to_datetime(date).astimezone(datetime.timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return ""
    behind = (there - now).total_seconds()
    if abs(behind) <= _MOST_SKEW:
        return ""
    return (
        f"this machine's clock is {counted(round(abs(behind) / 60), 'minute')} "
        f"{'behind' if behind > 0 else 'ahead of'} the service's ({now:%Y-%m-%d %H:%M:%S} here, "
        f"{there:%Y-%m-%d %H:%M:%S} there, UTC)"
    )


def _missing(refused: ServiceError, operation: str) -> str:
    """The IAM action that the caller lacks, unless the service's text names it."""
    named = re.search(r"\b(?:ec2|ebs|s3|kms|sts):[A-Za-z]+", refused.message)
    if named or refused.code not in NOT_ALLOWED:
        return ""
    actions = ACTIONS.get(operation, ())
    if refused.reason == "DEPENDENCY_ACCESS_DENIED":  # of the EBS direct APIs: KMS
        reads = operation in ("list_snapshot_blocks", "get_snapshot_block")
        return f"; check {' and '.join(KMS_READ if reads else KMS_WRITE)} on the snapshot's KMS key"
    return f"; check the IAM permission {' and '.join(actions)}" if actions else ""
