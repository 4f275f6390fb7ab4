"""What each error code of EC2, EBS and S3 means: our class, whether to try again, and the remedy.

Sources: EC2 API reference, "Error codes"; EBS user guide, "Error retries"; S3 API reference, "Error
responses" (List of error codes, and those of tagging). Codes of other servers: MinIO's
``cmd/api-errors.go``, Ceph's "S3 common response status codes".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from amistore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ArchivedObjectError,
    BackendError,
    ChecksumMismatchError,
    CredentialsExpiredError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
    StorageFullError,
    ThrottledError,
)

__all__ = [
    "CODES",
    "DENIED",
    "LATE",
    "NOT_ALLOWED",
    "REFUSED_CONDITION",
    "SENT_BEFORE",
    "STORE_APART",
    "Meaning",
    "meaning_of_status",
]

STORE_APART: Final = (
    "if the AMIs are in another Region, make an AWSBackend for the store alone: its .s3.at(bucket, key) goes "
    "into every call, and amistore.Backend(ebs=cloud.ebs, s3=store.s3, ec2=cloud.ec2) into a TaskEngine"
)
"""How to use a store whose Region is not that of the AMIs."""


@attrs.frozen
class Meaning:
    """What a refusal means.

    Attributes:
        kind: the class of our error.
        retryable: whether another attempt may help.
        remedy: what the caller can do; empty where the service's own text, or `errors.py`, says it.
        code: EC2's code for an `InvalidRequestError`, where it is not the service's own.
    """

    kind: type[BackendError | InvalidRequestError]
    retryable: bool = False
    remedy: str = ""
    code: str = ""


DENIED: Final = Meaning(AccessDeniedError)
_REGION = Meaning(
    InvalidRequestError,
    code="InaccessibleStorageLocation",
    remedy="give the bucket's Region as region_name=, or the address that serves it in endpoint_urls=; "
    + STORE_APART,
)
_KEY = Meaning(AccessDeniedError, remedy="check the access key, its secret and the session token")
_ACCOUNT = Meaning(AccessDeniedError, remedy="ask the account's owner, or the service's support")
_EXPIRED = Meaning(CredentialsExpiredError, retryable=True)
_NOT_FOUND = Meaning(NotFoundError)
_THROTTLED = Meaning(
    ThrottledError, retryable=True, remedy="use fewer workers or runs at once, or have the limit raised"
)
_PASSING = Meaning(BackendError, retryable=True, remedy="call again later")
_FULL = Meaning(StorageFullError, remedy="make room, or have the quota raised")
_LARGE = Meaning(
    StorageFullError,
    remedy="the store, or a proxy before it, takes no body or object of this size: have its limit raised",
)
_CHECKSUM = Meaning(ChecksumMismatchError, retryable=True, remedy="the data changed on its way: call again")
_EXISTS = Meaning(AlreadyExistsError, remedy="choose another name")
_KMS_KEY = Meaning(BackendError, remedy="check the KMS key: its state, kind, Region and account")
_OTHERWISE = Meaning(
    BackendError,
    remedy="the service does not take what amistore sends; for what stores do otherwise see docs/stores.md",
)
# Of what amistore never asks for.
_FOREIGN = Meaning(
    BackendError, remedy="amistore asks for nothing of the kind: check what answers at this address"
)


def _setting(name: str) -> Meaning:
    return Meaning(InvalidRequestError, remedy=f"change ObjectSettings.{name}, or leave it out")


def _invalid(remedy: str) -> Meaning:
    return Meaning(InvalidRequestError, remedy=remedy)


_ROWS: tuple[tuple[Meaning, str], ...] = (
    (
        _THROTTLED,
        "ThrottlingException Throttling RequestThrottledException RequestThrottled RequestLimitExceeded "
        "TooManyRequestsException TooManyRequests SlowDown SlowDownRead SlowDownWrite EC2ThrottledException",
    ),
    # InvalidSessionException: the session of a directory bucket has timed out.
    (
        _EXPIRED,
        "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired InvalidSessionException",
    ),
    (DENIED, "AccessDenied AccessDeniedException UnauthorizedOperation AuthFailure OptInRequired"),
    (
        _KEY,
        "InvalidAccessKeyId InvalidClientTokenId UnrecognizedClientException SignatureDoesNotMatch "
        "InvalidSignatureException InvalidSignature UnsupportedSignature InvalidToken InvalidSecurity "
        "MissingAuthenticationToken MissingSecurityHeader MissingSecurityElement TokenCodeInvalidError "
        "AuthorizationQueryParametersError CredentialsNotSupported",
    ),
    (
        _ACCOUNT,
        "AccountProblem AllAccessDisabled NotSignedUp InvalidPayer UnauthorizedAccess "
        "UnauthorizedAccessError UnexpectedIPError CrossLocationLoggingProhibited "
        "NotDeviceOwnerError UserSuspended",
    ),
    (
        _REGION,
        "AuthorizationHeaderMalformed IllegalLocationConstraintException InvalidLocationConstraint "
        "InvalidRegion IncorrectEndpoint EndpointNotFound PermanentRedirect PermanentRedirectControlError "
        "Redirect TemporaryRedirect",
    ),
    (
        _NOT_FOUND,
        "ResourceNotFoundException InvalidAMIID.NotFound InvalidAMIID.Malformed InvalidAMIID.Unavailable "
        "InvalidSnapshot.NotFound InvalidSnapshotID.Malformed InvalidParameterValue.SnapshotID NotFound",
    ),
    (Meaning(NotFoundError, remedy="check key and bucket"), "NoSuchKey"),
    (Meaning(NotFoundError, remedy="check the version's id"), "NoSuchVersion"),
    (
        Meaning(NotFoundError, remedy="check its name, and the backend's Region and account"),
        "NoSuchBucket NoSuchAccessPoint NoSuchMultiRegionAccessPoint",
    ),
    (Meaning(NotFoundError, remedy="it was completed or aborted: begin another"), "NoSuchUpload"),
    (
        Meaning(NotFoundError, remedy="it is not set, so there is nothing to do"),
        "NoSuchBucketPolicy NoSuchCORSConfiguration NoSuchLifecycleConfiguration NoSuchWebsiteConfiguration "
        "NoSuchTagSet NoSuchConfiguration NoSuchObjectLockConfiguration ObjectLockConfigurationNotFoundError "
        "OwnershipControlsNotFoundError ServerSideEncryptionConfigurationNotFoundError "
        "NoSuchPublicAccessBlockConfiguration NoSuchAsyncRequest NoTransformationDefined",
    ),
    (
        _EXISTS,
        "InvalidAMIName.Duplicate BucketAlreadyExists BucketAlreadyOwnedByYou AccessPointAlreadyOwnedByYou",
    ),
    (Meaning(SourceChangedError, remedy="the object is not what it was: start again"), "PreconditionFailed"),
    (
        Meaning(ArchivedObjectError, remedy="call restore_object, and read it hours later"),
        "InvalidObjectState",
    ),
    (Meaning(BackendError, remedy="wait until it is restored"), "RestoreAlreadyInProgress"),
    (_CHECKSUM, "BadDigest InvalidDigest XAmzContentSHA256Mismatch XAmzContentChecksumMismatch"),
    # RequestTimeout: S3 gave up on a body that came too slowly.
    (
        _PASSING,
        "RequestTimeout RequestTimeoutException InternalError ServiceUnavailable Unavailable IncompleteBody "
        "ConditionalRequestConflict OperationAborted ResponseInterrupted ConnectionClosedByRequester",
    ),
    (
        _FULL,
        "QuotaExceeded InsufficientStorage XMinioStorageFull XMinioAdminBucketQuotaExceeded "
        "TooManyBuckets TooManyAccessPoints TooManyMultiRegionAccessPoints "
        "TooManyMultiRegionAccessPointregionsError",
    ),
    (_LARGE, "EntityTooLarge MaxMessageLengthExceeded InlineDataTooLarge"),
    (_setting("storage_class"), "InvalidStorageClass"),
    (_setting("server_side_encryption"), "InvalidEncryptionAlgorithmError"),
    (_setting("tags"), "InvalidTag TagPolicyException"),
    (_setting("expected_bucket_owner"), "InvalidBucketOwnerAWSAccountID"),
    (_KMS_KEY, "KMS.DisabledException KMS.InvalidKeyUsageException KMS.KMSInvalidStateException"),
    (_KMS_KEY, "KMS.NotFoundException"),
    (
        _invalid("check the bucket's name"),
        "InvalidBucketName InvalidAccessPoint InvalidAccessPointAliasError UserKeyMustBeSpecified",
    ),
    (_invalid("choose another key"), "KeyTooLongError KeyTooLong InvalidURI"),
    (_invalid("give less metadata, or fewer tags"), "MetadataTooLarge RequestHeaderSectionTooLarge"),
    (_invalid("check the address in endpoint_urls="), "InvalidHostHeader InvalidAddressingHeader"),
    (
        _OTHERWISE,
        "InvalidArgument InvalidRequest UnsupportedArgument InvalidPart InvalidPartOrder InvalidRange "
        "EntityTooSmall MalformedXML MethodNotAllowed InvalidHttpMethod NotImplemented MissingContentLength "
        "MissingRequestBodyError UnexpectedContent InvalidBucketState EmptyRequestBody",
    ),
    (
        _FOREIGN,
        "AccessControlListNotSupported AmbiguousGrantByEmailAddress BucketHasAccessPointsAttached "
        "BucketNotEmpty ClientTokenConflict DeviceNotActiveError IllegalVersioningConfigurationException "
        "IncorrectNumberOfFilesInPostRequest InvalidBucketAclWithObjectOwnership InvalidPolicyDocument "
        "InvalidSOAPRequest InvalidTargetBucketForLogging MalformedACLError MalformedPOSTRequest "
        "MalformedPolicy MaxPostPreDataLengthExceededError MissingAttachment NoLoggingStatusForKey "
        "NotModified NotSupported RequestIsNotMultiPartContent RequestTorrentOfBucketError "
        "UnresolvableGrantByEmailAddress",
    ),
)

CODES: Final[Mapping[str, Meaning]] = {code: meaning for meaning, codes in _ROWS for code in codes.split()}
"""The meaning of each code; for all others see `meaning_of_status`."""

LATE: Final = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
"""Of a signature that came too late, or too early: S3's codes."""

NOT_ALLOWED: Final = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"})
"""Where a permission is missing, and not a credential wrong; 403 is botocore's for an answer without code."""

REFUSED_CONDITION: Final = ("PreconditionFailed", "412")
"""Of If-Match and If-None-Match; 412 is botocore's for an answer without code."""

SENT_BEFORE: Final = frozenset({"InvalidPart", "PartAlreadyExist", "NotImplemented"})
"""Of a part that the store has and does not take again: Mega S4's, rclone's, and one that users of Alibaba's
OSS saw (wiserain/rclone 46)."""

_STATUSES: Mapping[int, Meaning] = {
    401: DENIED,
    403: DENIED,
    404: _NOT_FOUND,
    408: _PASSING,
    412: CODES["PreconditionFailed"],
    413: _LARGE,
    429: _THROTTLED,
    501: _OTHERWISE,
    507: _FULL,
}


def meaning_of_status(status: int) -> Meaning:
    """What a refusal means by its status of HTTP, where its code is unknown."""
    return _STATUSES.get(status) or Meaning(BackendError, retryable=status >= 500)
