"""HEAD has no body: the reason of a refusal is asked for once, and told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import boto3
import pytest
from backends.aws.accounts import QUICK
from backends.aws.conftest import bucket_of, connect
from backends.aws.proxy import Answer, Fault, FaultProxy, error_answer, fault_proxy
from backends.aws.swift import ACCESS_KEY, SECRET_KEY

import amistore
from amistore import AmistoreError, InvalidRequestError
from amistore.backends import ObjectStore
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.errors import AccessDeniedError, BackendError, CredentialsExpiredError, NotFoundError
from amistore.testing import BucketCase

BARE = {status: Answer(status=status) for status in (400, 401, 403, 405, 501, 503)}


@pytest.fixture
def proxy(moto: Connection) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        yield proxy


@pytest.fixture
def case(proxy: FaultProxy) -> BucketCase:
    case = bucket_of(connect(proxy.url))
    case.store.put_object(case.bucket, "web.bin", [b"an archive"])
    proxy.requests.clear()
    return case


def refused(
    proxy: FaultProxy, case: BucketCase, head: Answer, get: Answer | Fault | None, *, bucket: bool
) -> AmistoreError:
    """What a refused HEAD becomes, of the bucket or of the object in it.

    botocore makes a HEAD of an object that got 400 again, if HEAD of the bucket tells the Region.
    """
    proxy.fail("head_bucket" if bucket else "head_object", head, times=2)
    if get is not None:
        proxy.fail("list_objects" if bucket else "get_object", get)
    with pytest.raises(AmistoreError) as raised:
        case.store.head_bucket(case.bucket) if bucket else case.store.head_object(case.bucket, "web.bin")
    return raised.value


both = pytest.mark.parametrize("bucket", [False, True], ids=["object", "bucket"])

REASONS: list[tuple[str, int, type[AmistoreError], str]] = [
    ("ExpiredToken", 400, CredentialsExpiredError, "renew the credentials"),
    ("InvalidAccessKeyId", 403, AccessDeniedError, "check the access key"),
    ("SignatureDoesNotMatch", 403, AccessDeniedError, "check the access key"),
    ("AuthorizationHeaderMalformed", 400, InvalidRequestError, "give the bucket's Region as region_name="),
    ("AccessDenied", 403, AccessDeniedError, "check the IAM permission s3:"),
    ("RequestTimeTooSkewed", 403, BackendError, "or a clock is wrong"),
    ("NoSuchBucket", 404, NotFoundError, "check its name"),
]


@both
@pytest.mark.parametrize(("code", "status", "kind", "remedy"), REASONS, ids=[row[0] for row in REASONS])
def test_a_head_that_is_refused_says_what_the_answer_to_get_says(
    proxy: FaultProxy,
    case: BucketCase,
    code: str,
    status: int,
    kind: type[AmistoreError],
    remedy: str,
    bucket: bool,
) -> None:
    answer = error_answer(status, code, "told in the body")
    error = refused(proxy, case, BARE[400 if status == 400 else 403], answer, bucket=bucket)
    assert type(error) is kind
    assert f"{code}: told in the body" in str(error)
    assert remedy in str(error)
    assert f"operation head_{'bucket' if bucket else 'object'}, bucket {case.bucket}" in str(error)
    assert bucket or "key web.bin" in str(error)
    assert proxy.requests["list_objects" if bucket else "get_object"] == 1


@both
def test_of_a_get_no_more_than_a_byte_or_a_key_is_asked_for(
    proxy: FaultProxy, case: BucketCase, bucket: bool
) -> None:
    refused(proxy, case, BARE[403], error_answer(403, "AccessDenied"), bucket=bucket)
    assert (
        proxy.headers["get_object"].get("range") == "bytes=0-0"
        if not bucket
        else proxy.requests["list_objects"]
    )
    assert sum(proxy.requests.values()) == 2


@both
@pytest.mark.parametrize("status", [400, 401, 403, 405])
@pytest.mark.parametrize(
    "get",
    [
        None,  # it succeeds: only HEAD is refused
        Answer(status=403),
        Answer(status=403, body=b"<html>Please log in</html>"),
        error_answer(503, "SlowDown"),
        error_answer(429, "TooManyRequests"),
        error_answer(416, "InvalidRange"),
        Fault.RESET_BEFORE,
        Fault.INTERNAL_ERROR,
    ],
    ids=["succeeds", "bare", "page", "slow", "429", "416", "reset", "500"],
)
def test_an_answer_to_get_that_tells_nothing_leaves_what_head_said(
    proxy: FaultProxy, case: BucketCase, status: int, get: Answer | Fault | None, bucket: bool
) -> None:
    error = refused(proxy, case, BARE[status], get, bucket=bucket)
    assert str(error).startswith(f"{status}: ")
    assert isinstance(error, AccessDeniedError) == (status in (401, 403))
    assert isinstance(error, BackendError)
    assert not error.retryable
    assert proxy.requests["list_objects" if bucket else "get_object"] == 1


@both
@pytest.mark.parametrize("status", [404, 408, 429, 500, 501, 503, 507])
def test_nobody_is_asked_twice_where_the_status_tells_it(
    proxy: FaultProxy, case: BucketCase, status: int, bucket: bool
) -> None:
    refused(proxy, case, Answer(status=status), None, bucket=bucket)
    assert sum(proxy.requests.values()) == 1


def test_a_redirect_that_only_get_has_is_told_as_any_other(proxy: FaultProxy, case: BucketCase) -> None:
    there = Answer(status=301, headers={"x-amz-bucket-region": "eu-west-1"})
    error = refused(proxy, case, BARE[400], there, bucket=False)
    assert isinstance(error, InvalidRequestError)
    assert "lies in 'eu-west-1'" in str(error)


def test_a_token_in_the_answer_to_get_is_not_told(proxy: FaultProxy, case: BucketCase) -> None:
    answer = error_answer(400, "InvalidToken", "x-amz-security-token: SECRET is malformed")
    error = refused(proxy, case, BARE[400], answer, bucket=False)
    assert "InvalidToken" in str(error)
    assert "SECRET" not in str(error)


def test_credentials_that_are_renewed_meanwhile_are_used_for_the_next_attempt(
    proxy: FaultProxy, case: BucketCase
) -> None:
    store = retrying(proxy)
    proxy.fail("head_object", BARE[400], times=2)
    proxy.fail("get_object", error_answer(400, "ExpiredToken"))
    assert store.head_object(case.bucket, "web.bin").size == len(b"an archive")
    assert proxy.requests["get_object"] == 1


def retrying(proxy: FaultProxy) -> ObjectStore:
    keys = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
    return amistore.AWSBackend(keys, endpoint_urls={"s3": proxy.url}, retries=QUICK).s3


@pytest.mark.parametrize("times", [1, 3])
def test_an_object_that_is_seen_only_a_little_after_its_completion_is_found(
    proxy: FaultProxy, case: BucketCase, times: int
) -> None:
    proxy.fail("head_object", Answer(status=404), times=times)
    info = retrying(proxy).put_object(case.bucket, "new.bin", [b"an archive"])
    assert info.size == len(b"an archive")
    assert info == case.store.head_object(case.bucket, "new.bin")
    assert proxy.requests["complete_multipart_upload"] == 1


def test_an_object_that_is_never_seen_is_asked_for_a_few_times_and_named(
    proxy: FaultProxy, case: BucketCase
) -> None:
    proxy.fail("head_object", Answer(status=404), times=100)
    with pytest.raises(NotFoundError, match=r"; its upload is completed, .*key new\.bin") as raised:
        retrying(proxy).put_object(case.bucket, "new.bin", [b"an archive"])
    assert raised.value.retryable
    assert proxy.requests["head_object"] == QUICK.attempts


def test_an_object_that_is_not_there_is_asked_for_once(proxy: FaultProxy, case: BucketCase) -> None:
    with pytest.raises(NotFoundError):
        retrying(proxy).head_object(case.bucket, "absent.bin")
    assert sum(proxy.requests.values()) == 1


# ETags as they were reported: Cloudflare weakens what it compresses (gocd/gocd pull request 10515), Apache
# adds -gzip (rails/rails issue 19056), NooBaa escapes the quotes (noobaa/noobaa-core issue 9557), MinIO had
# none (minio/minio issue 9517), and AWS takes too many of them (minio/minio pull request 7442).
DECORATIONS: dict[str, Callable[[str], str]] = {
    "weak": lambda etag: f"W/{etag}",
    "quoted twice": lambda etag: f'"{etag}"',
    "escaped": lambda etag: f"&quot;{etag.strip(chr(34))}&quot;",
    "capitals": str.upper,
    "gzip": lambda etag: f'{etag[:-1]}-gzip"',
    "gzip behind": lambda etag: f"{etag}-gzip",
    "weak gzip": lambda etag: f'W/{etag[:-1]}-gzip"',
    "bare": lambda etag: etag.strip('"'),
}


def decorate(proxy: FaultProxy, how: str, *operations: str) -> None:
    def change(operation: str, answer: Answer) -> Answer:
        if operation not in operations:
            return answer
        headers = {
            name: DECORATIONS[how](value) if name.lower() == "etag" else value
            for name, value in answer.headers.items()
        }

        def changed(found: re.Match[bytes]) -> bytes:
            etag = found[1].decode().replace("&quot;", '"').replace("&#34;", '"')
            return b"<ETag>" + DECORATIONS[how](etag).replace("&", "&amp;").encode() + b"</ETag>"

        body = (
            re.sub(rb"<ETag>(.*?)</ETag>", changed, answer.body) if b"<ETag>" in answer.body else answer.body
        )
        return Answer(status=answer.status, headers=headers, body=body, size=answer.size)

    proxy.change = change


MADE = ("head_object", "get_object", "complete_multipart_upload")
ALL = (*MADE, "upload_part", "list_parts")


@pytest.mark.parametrize("how", DECORATIONS)
@pytest.mark.parametrize(
    "operations",
    [*((operation,) for operation in ALL if operation != "list_parts"), ALL],
    ids=lambda operations: operations[0] if len(operations) == 1 else "all",
)
def test_an_object_whose_etag_is_decorated_is_stored_read_and_deleted(
    proxy: FaultProxy, case: BucketCase, how: str, operations: tuple[str, ...]
) -> None:
    if how == "capitals" and "upload_part" in operations:
        operations = MADE  # moto knows a part by the very ETag that it gave
    decorate(proxy, how, *operations)
    info = case.store.put_object(case.bucket, "key", [b"an archive"])
    with case.store.open_object(case.bucket, "key") as file:
        assert file.read() == b"an archive"
    assert case.store.get_object_range(case.bucket, "key", 3, 7, if_match=info.etag) == b"archive"
    assert case.store.get_object_range(case.bucket, "key", 100, 7, if_match=info.etag) == b""
    assert info == case.store.head_object(case.bucket, "key")


@pytest.mark.parametrize("how", DECORATIONS)
def test_an_object_that_was_really_replaced_is_refused_however_its_etag_is_decorated(
    proxy: FaultProxy, case: BucketCase, how: str
) -> None:
    decorate(proxy, how, *MADE)
    info = case.store.put_object(case.bucket, "key", [b"an archive"])
    case.store.put_object(case.bucket, "key", [b"an Archive"])
    for start in (0, 100):
        with pytest.raises(amistore.SourceChangedError):
            case.store.get_object_range(case.bucket, "key", start, 7, if_match=info.etag)
    with pytest.raises(amistore.SourceChangedError):
        case.store.delete_object(case.bucket, "key", if_match=info.etag)
    assert case.store.get_object_range(case.bucket, "key", 3, 7) == b"Archive"


def test_a_server_that_refuses_if_match_for_the_etag_it_gave_is_read_and_compared(
    proxy: FaultProxy, case: BucketCase
) -> None:
    """A strong comparison fails for every weak ETag (RFC 9110, 13.1.1)."""
    info = case.store.head_object(case.bucket, "web.bin")
    proxy.fail("get_object", error_answer(412, "PreconditionFailed"))
    assert case.store.get_object_range(case.bucket, "web.bin", 3, 7, if_match=info.etag) == b"archive"
    assert proxy.requests["get_object"] == 2
    assert "if-match" not in proxy.headers["get_object"]


def test_a_wrong_etag_of_capitals_in_base64_is_another_object() -> None:
    with fault_proxy(None) as proxy:
        store = AWSObjectStore(connect(proxy.url))
        proxy.fail("get_object", Answer(headers={"ETag": '"aGVsbG8"'}, body=b"x"))
        with pytest.raises(amistore.SourceChangedError):
            store.get_object_range("bucket", "key", 0, 1, if_match="AGVSBG8")
