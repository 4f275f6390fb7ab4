"""S3's published error codes, and those of other servers: our class, whether to try again, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
from backends.aws.conftest import connect
from backends.aws.proxy import Answer, FaultProxy, error_answer, fault_proxy

import amistore
from amistore import AmistoreError, RetryPolicy
from amistore.backends import StoreTraits
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.retries import Retrier
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

OTHERWISE = "does not take what amistore sends"
FOREIGN = "amistore asks for nothing of the kind"
KEY, ACCOUNT, REGION = "check the access key", "ask the account's owner", "give the bucket's Region"
FULL, LARGE = "make room, or have the quota raised", "takes no body or object of this size"
NAME, UNSET, LATER = "check the bucket's name", "it is not set", "call again later"

# S3 API reference, "Error responses": List of error codes, and those of tagging; at the end what MinIO, Ceph
# and others add. Status, then class, whether to try again, words, and the codes.
ROWS: list[tuple[int, type[AmistoreError], bool, str, str]] = [
    (400, AccessDeniedError, False, KEY, "AuthorizationQueryParametersError CredentialsNotSupported"),
    (400, AccessDeniedError, False, KEY, "InvalidToken MissingSecurityHeader MissingSecurityElement"),
    (400, AccessDeniedError, False, KEY, "InvalidSignature UnsupportedSignature TokenCodeInvalidError"),
    (403, AccessDeniedError, False, KEY, "InvalidAccessKeyId SignatureDoesNotMatch InvalidSecurity"),
    (403, AccessDeniedError, False, KEY, "MissingAuthenticationToken"),
    (403, AccessDeniedError, False, "check the IAM permission s3:GetObjectTagging", "AccessDenied"),
    (403, AccessDeniedError, False, ACCOUNT, "AccountProblem AllAccessDisabled NotSignedUp InvalidPayer"),
    (403, AccessDeniedError, False, ACCOUNT, "UnauthorizedAccessError UnexpectedIPError UserSuspended"),
    (403, AccessDeniedError, False, ACCOUNT, "CrossLocationLoggingProhibited"),
    (400, AccessDeniedError, False, ACCOUNT, "NotDeviceOwnerError"),
    (400, CredentialsExpiredError, True, "renew the credentials", "ExpiredToken TokenRefreshRequired"),
    (400, CredentialsExpiredError, True, "renew the credentials", "InvalidSessionException"),
    (403, BackendError, True, "or a clock is wrong", "RequestTimeTooSkewed"),
    (400, InvalidRequestError, False, REGION, "AuthorizationHeaderMalformed InvalidLocationConstraint"),
    (400, InvalidRequestError, False, REGION, "IllegalLocationConstraintException EndpointNotFound"),
    (400, InvalidRequestError, False, REGION, "IncorrectEndpoint"),
    (403, InvalidRequestError, False, REGION, "InvalidRegion"),
    (404, NotFoundError, False, "check key and bucket", "NoSuchKey"),
    (404, NotFoundError, False, "check the version's id", "NoSuchVersion"),
    (404, NotFoundError, False, "Region and account", "NoSuchBucket NoSuchAccessPoint"),
    (404, NotFoundError, False, "Region and account", "NoSuchMultiRegionAccessPoint"),
    (404, NotFoundError, False, "no such upload", "NoSuchUpload"),
    (404, NotFoundError, False, UNSET, "NoSuchBucketPolicy NoSuchCORSConfiguration NoSuchTagSet"),
    (404, NotFoundError, False, UNSET, "NoSuchLifecycleConfiguration NoSuchWebsiteConfiguration"),
    (404, NotFoundError, False, UNSET, "NoSuchObjectLockConfiguration NoSuchConfiguration"),
    (404, NotFoundError, False, UNSET, "ObjectLockConfigurationNotFoundError NoTransformationDefined"),
    (404, NotFoundError, False, UNSET, "OwnershipControlsNotFoundError NoSuchPublicAccessBlockConfiguration"),
    (400, NotFoundError, False, UNSET, "ServerSideEncryptionConfigurationNotFoundError NoSuchAsyncRequest"),
    (409, AlreadyExistsError, False, "choose another name", "BucketAlreadyExists BucketAlreadyOwnedByYou"),
    (409, AlreadyExistsError, False, "choose another name", "AccessPointAlreadyOwnedByYou"),
    (412, SourceChangedError, False, "start again", "PreconditionFailed"),
    (403, ArchivedObjectError, False, "call restore_object", "InvalidObjectState"),
    (409, BackendError, False, "wait until it is restored", "RestoreAlreadyInProgress"),
    (400, ChecksumMismatchError, True, "the data changed on its way", "BadDigest InvalidDigest"),
    (503, ThrottledError, True, "use fewer workers", "SlowDown"),
    (400, BackendError, True, LATER, "RequestTimeout IncompleteBody ResponseInterrupted"),
    (400, BackendError, True, LATER, "ConnectionClosedByRequester"),
    (409, BackendError, True, LATER, "OperationAborted ConditionalRequestConflict"),
    (500, BackendError, True, LATER, "InternalError"),
    (503, BackendError, True, LATER, "ServiceUnavailable"),
    (400, StorageFullError, False, LARGE, "EntityTooLarge MaxMessageLengthExceeded InlineDataTooLarge"),
    (400, StorageFullError, False, FULL, "TooManyBuckets TooManyAccessPoints"),
    (400, StorageFullError, False, FULL, "TooManyMultiRegionAccessPoints"),
    (400, StorageFullError, False, FULL, "TooManyMultiRegionAccessPointregionsError"),
    (400, InvalidRequestError, False, "change ObjectSettings.storage_class", "InvalidStorageClass"),
    (
        400,
        InvalidRequestError,
        False,
        "change ObjectSettings.server_side_encryption",
        "InvalidEncryptionAlgorithmError",
    ),
    (400, InvalidRequestError, False, "change ObjectSettings.tags", "InvalidTag TagPolicyException"),
    (
        400,
        InvalidRequestError,
        False,
        "change ObjectSettings.expected_bucket_owner",
        "InvalidBucketOwnerAWSAccountID",
    ),
    (400, BackendError, False, "check the KMS key", "KMS.DisabledException KMS.InvalidKeyUsageException"),
    (400, BackendError, False, "check the KMS key", "KMS.KMSInvalidStateException KMS.NotFoundException"),
    (400, InvalidRequestError, False, NAME, "InvalidBucketName InvalidAccessPoint UserKeyMustBeSpecified"),
    (400, InvalidRequestError, False, NAME, "InvalidAccessPointAliasError"),
    (400, InvalidRequestError, False, "choose another key", "KeyTooLongError InvalidURI"),
    (400, InvalidRequestError, False, "give less metadata", "MetadataTooLarge RequestHeaderSectionTooLarge"),
    (400, InvalidRequestError, False, "endpoint_urls=", "InvalidHostHeader InvalidAddressingHeader"),
    (400, BackendError, False, OTHERWISE, "InvalidArgument InvalidRequest UnsupportedArgument"),
    (400, BackendError, False, OTHERWISE, "InvalidPart InvalidPartOrder EntityTooSmall MalformedXML"),
    (400, BackendError, False, OTHERWISE, "MissingRequestBodyError UnexpectedContent InvalidHttpMethod"),
    (405, BackendError, False, OTHERWISE, "MethodNotAllowed"),
    (409, BackendError, False, OTHERWISE, "InvalidBucketState"),
    (411, BackendError, False, OTHERWISE, "MissingContentLength"),
    (416, BackendError, False, OTHERWISE, "InvalidRange"),
    (501, BackendError, False, OTHERWISE, "NotImplemented"),
    (400, BackendError, False, FOREIGN, "AccessControlListNotSupported AmbiguousGrantByEmailAddress"),
    (400, BackendError, False, FOREIGN, "BucketHasAccessPointsAttached DeviceNotActiveError"),
    (400, BackendError, False, FOREIGN, "IllegalVersioningConfigurationException InvalidPolicyDocument"),
    (400, BackendError, False, FOREIGN, "IncorrectNumberOfFilesInPostRequest InvalidSOAPRequest"),
    (400, BackendError, False, FOREIGN, "InvalidBucketAclWithObjectOwnership MalformedACLError"),
    (400, BackendError, False, FOREIGN, "InvalidTargetBucketForLogging MalformedPOSTRequest MalformedPolicy"),
    (400, BackendError, False, FOREIGN, "MaxPostPreDataLengthExceededError MissingAttachment"),
    (400, BackendError, False, FOREIGN, "NoLoggingStatusForKey NotSupported RequestTorrentOfBucketError"),
    (400, BackendError, False, FOREIGN, "UnresolvableGrantByEmailAddress"),
    (409, BackendError, False, FOREIGN, "BucketNotEmpty ClientTokenConflict"),
    (412, BackendError, False, FOREIGN, "RequestIsNotMultiPartContent"),
    # Of other servers
    (400, ChecksumMismatchError, True, "the data changed on its way", "XAmzContentSHA256Mismatch"),
    (400, ChecksumMismatchError, True, "the data changed on its way", "XAmzContentChecksumMismatch"),
    (507, StorageFullError, False, FULL, "XMinioStorageFull InsufficientStorage"),
    (400, StorageFullError, False, FULL, "XMinioAdminBucketQuotaExceeded"),
    (403, StorageFullError, False, FULL, "QuotaExceeded"),
    (503, ThrottledError, True, "use fewer workers", "SlowDownRead SlowDownWrite"),
    (429, ThrottledError, True, "use fewer workers", "TooManyRequests"),
    (400, InvalidRequestError, False, "choose another key", "KeyTooLong"),
    # Codes that nobody has published: the status tells.
    (401, AccessDeniedError, False, "Unpublished", "Unpublished"),
    (403, AccessDeniedError, False, "Unpublished", "Unpublished"),
    (404, NotFoundError, False, "Unpublished", "Unpublished"),
    (408, BackendError, True, LATER, "Unpublished"),
    (413, StorageFullError, False, LARGE, "Unpublished"),
    (429, ThrottledError, True, "use fewer workers", "Unpublished"),
    (507, StorageFullError, False, FULL, "Unpublished"),
    (502, BackendError, True, "Unpublished", "Unpublished"),
    (400, BackendError, False, "Unpublished", "Unpublished"),
]
EACH = [(code, *row[:4]) for row in ROWS for code in row[4].split()]


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with fault_proxy(None) as proxy:
        yield proxy


def told(proxy: FaultProxy, answer: Answer, operation: str = "get_tagging") -> AmistoreError:
    proxy.fail(operation, answer)
    store = AWSObjectStore(connect(proxy.url))
    with pytest.raises(AmistoreError) as raised:
        if operation == "get_tagging":
            store.get_object_tagging("archive", "web.bin")
        else:
            store.create_multipart_upload("archive", "web.bin", tags={"team": "a"})
    return raised.value


@pytest.mark.parametrize(
    ("code", "status", "kind", "retryable", "words"), EACH, ids=[f"{row[0]}-{row[1]}" for row in EACH]
)
def test_an_error_code_of_s3_gives_its_class_whether_to_try_again_and_a_remedy(
    proxy: FaultProxy, code: str, status: int, kind: type[AmistoreError], retryable: bool, words: str
) -> None:
    error = told(proxy, error_answer(status, code, "As the server says."))
    assert error.__class__ is kind or (code == "NoSuchUpload" and isinstance(error, kind))
    assert getattr(error, "retryable", False) == retryable
    text = str(error)
    assert code in text
    assert words in text
    assert "As the server says" in text or code == "NoSuchUpload"
    assert "operation get_object_tagging, bucket archive, key web.bin" in text


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_says_where_to_and_how_to_give_it(proxy: FaultProxy, status: int) -> None:
    error = told(proxy, error_answer(status, "PermanentRedirect"))
    assert isinstance(error, InvalidRequestError)
    assert f"HTTP {status}" in str(error)
    assert "the bucket's Region as region_name=" in str(error)


def test_an_error_of_a_region_has_ec2s_code_for_it(proxy: FaultProxy) -> None:
    error = told(proxy, error_answer(400, "AuthorizationHeaderMalformed"))
    assert isinstance(error, InvalidRequestError)
    assert error.code == "InaccessibleStorageLocation"


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (413, StorageFullError, f"; the store, or a proxy before it, {LARGE}"),
        (429, ThrottledError, "; use fewer workers"),
        (507, StorageFullError, f"; {FULL}"),
    ],
)
def test_a_page_of_a_proxy_is_told_by_its_status(
    proxy: FaultProxy, status: int, kind: type[AmistoreError], words: str
) -> None:
    """nginx answers so: client_max_body_size, limit_req."""
    for page in (b"<html><hr><center>nginx</center></html>", b"<html><body>nginx</body></html>", b""):
        error = told(proxy, Answer(status=status, headers={"Content-Type": "text/html"}, body=page))
        assert type(error) is kind
        assert str(status) in str(error)
        assert words in str(error)


UNKNOWN = "A header you provided implies functionality that is not implemented"


TAGS = "ObjectSettings.tags"
NO_CHECKSUM = "StoreTraits(checksum=None)"


# Cloudflare R2: jhaals/yopass issue 3657. Backblaze B2: home-assistant/core issue 143995, io7m-com/exfilac
# issue 35, codelitdev/medialit issue 158. S3 itself: versity/versitygw issue 2108.
@pytest.mark.parametrize(
    ("status", "code", "message", "more", "remedy"),
    [
        (
            501,
            "NotImplemented",
            "Header 'x-amz-tagging' with value 'a=b' not implemented",
            "",
            TAGS,
        ),
        (501, "NotImplemented", UNKNOWN, "<Header>x-amz-tagging</Header>", TAGS),
        (
            400,
            "InvalidArgument",
            "Unsupported header 'x-amz-tagging' received for this API call.",
            "",
            TAGS,
        ),
        (
            400,
            "InvalidArgument",
            "Unsupported header 'x-amz-sdk-checksum-algorithm' received for this API call.",
            "",
            NO_CHECKSUM,
        ),
        (400, "InvalidArgument", "Unsupported header x-amz-checksum-crc32", "", NO_CHECKSUM),
        (
            400,
            "InvalidRequest",
            "The algorithm type you specified in x-amz-checksum- header is invalid.",
            "",
            NO_CHECKSUM,
        ),
        (
            501,
            "NotImplemented",
            UNKNOWN,
            "<Header>X-Amz-Checksum-Algorithm</Header>",
            NO_CHECKSUM,
        ),
        (
            400,
            "InvalidArgument",
            "no",
            "<ArgumentName>x-amz-server-side-encryption</ArgumentName>",
            "ObjectSettings.server_side_encryption",
        ),
        (
            400,
            "InvalidArgument",
            "no",
            "<ArgumentName>x-amz-server-side-encryption-aws-kms-key-id</ArgumentName>",
            "ObjectSettings.sse_kms_key_id",
        ),
        (
            501,
            "NotImplemented",
            "x-amz-server-side-encryption-bucket-key-enabled",
            "",
            "ObjectSettings.bucket_key_enabled",
        ),
        (501, "NotImplemented", "If-None-Match", "", "StoreTraits(conditional_completion=False)"),
        (501, "NotImplemented", "x-amz-storage-class", "", "ObjectSettings.storage_class"),
        (501, "NotImplemented", "x-amz-expected-bucket-owner", "", "ObjectSettings.expected_bucket_owner"),
    ],
)
def test_a_header_that_the_server_does_not_know_names_the_setting_that_leaves_it_out(
    proxy: FaultProxy, status: int, code: str, message: str, more: str, remedy: str
) -> None:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()
    error = told(proxy, Answer(status=status, body=text), "create_multipart_upload")
    assert type(error) is BackendError
    assert re_end(str(error), remedy)
    assert OTHERWISE not in str(error)


def re_end(text: str, words: str) -> bool:
    """Whether the message, without the facts behind it, ends so."""
    return text.partition(" (operation ")[0].endswith(words)


def test_a_header_that_is_not_named_is_one_of_those_that_the_call_sends(proxy: FaultProxy) -> None:
    error = told(proxy, error_answer(501, "NotImplemented", UNKNOWN), "create_multipart_upload")
    for setting in ("tags", "storage_class", "server_side_encryption", NO_CHECKSUM):
        assert setting in str(error)
    other = told(proxy, error_answer(501, "NotImplemented", UNKNOWN))
    assert "expected_bucket_owner" in str(other)
    assert "tags" not in str(other).partition(" (operation")[0]


def test_a_checksum_that_differs_is_no_matter_of_settings(proxy: FaultProxy) -> None:
    error = told(proxy, error_answer(400, "BadDigest", "The x-amz-checksum-crc32 does not match"))
    assert "ObjectSettings" not in str(error)


def test_leaving_out_what_is_named_leaves_out_the_header(proxy: FaultProxy) -> None:
    store = AWSObjectStore(connect(proxy.url), traits=StoreTraits(checksum=None))
    for call in (
        lambda: store.create_multipart_upload("archive", "web.bin"),
        lambda: store.upload_part("archive", "web.bin", "upload", 1, b"x"),
    ):
        with pytest.raises(BackendError):
            call()
    sent = proxy.headers["create_multipart_upload"] | proxy.headers["upload_part"]
    known = {"x-amz-date", "x-amz-content-sha256", "x-amz-user-agent"}
    assert {name for name in sent if name.startswith("x-amz-")} <= known


class Clock:
    """Time that goes on only where someone sleeps."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []

    def now(self) -> float:
        return sum(self.sleeps)

    def retrier(self) -> Retrier:
        return Retrier(RetryPolicy(), clock=self.now, sleep=self.sleeps.append, draw=lambda: 0.0)


@pytest.mark.parametrize(("status", "code"), [(429, "TooManyRequests"), (503, "SlowDown")])
@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("7", 7.0),
        ("86400", 20.0),  # no longer than the policy's longest pause
        ("Fri, 01 Jan 2100 00:00:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.25),
        ("0", 0.25),
        ("-5", 0.25),
        ("soon", 0.25),
        ("9" * 400, 20.0),
        ("", 0.25),
    ],
)
def test_a_store_that_asks_to_wait_is_asked_again_after_that_time(
    proxy: FaultProxy, status: int, code: str, asked: str, waited: float
) -> None:
    refusal = error_answer(status, code)
    headers = {**refusal.headers, "Retry-After": asked}
    proxy.fail("head_object", Answer(status=status, headers=headers))
    proxy.fail("head_object", Answer(headers={"ETag": '"one"'}, size=5), nth=2)
    clock = Clock()
    keys = boto3.Session("a", "b", region_name="us-east-1")
    store = amistore.AWSBackend(keys, endpoint_urls={"s3": proxy.url}, retries=clock.retrier()).s3
    if status == 503:  # HEAD has no code that says so
        proxy.fail("get_object", Answer(status=status, headers=headers, body=refusal.body))
        proxy.fail("get_object", Answer(headers={"ETag": '"one"'}, body=b"x"), nth=2)
        assert store.get_object_range("archive", "web.bin", 0, 1) == b"x"
    else:
        assert store.head_object("archive", "web.bin").etag == "one"
    assert clock.sleeps[0] == pytest.approx(waited)
    assert max(clock.sleeps) <= 20.0


def test_a_store_that_asks_to_wait_for_ever_is_given_up_and_says_so(proxy: FaultProxy) -> None:
    proxy.fail("head_object", Answer(status=429, headers={"Retry-After": "3600"}), times=100)
    clock = Clock()
    keys = boto3.Session("a", "b", region_name="us-east-1")
    store = amistore.AWSBackend(keys, endpoint_urls={"s3": proxy.url}, retries=clock.retrier()).s3
    with pytest.raises(ThrottledError, match="it asks to wait for 3600 s") as raised:
        store.head_object("archive", "web.bin")
    assert raised.value.retry_after == 3600.0
    assert raised.value.attempts == 5
    assert clock.now() <= 120.0
