"""Every verb, with a fault in its way: a typed error that says whether to try again, never wrong bytes."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from backends.aws.conftest import bucket_of, connect, require
from backends.aws.proxy import Fault, FaultProxy, fault_proxy

from amistore.backends.aws import connection as connection_module
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    ChecksumMismatchError,
    NotFoundError,
    ThrottledError,
)
from amistore.testing import BucketCase
from amistore.testing.aws.certificate import make_certificate

pytestmark = pytest.mark.xdist_group("swift")

CONTENT = bytes(range(256)) * 8


@attrs.frozen(kw_only=True)
class Case:
    """A store behind a proxy, in a bucket with an object and an upload of one part."""

    proxy: FaultProxy
    store: AWSObjectStore
    bucket: str
    upload: str

    def call(self, verb: str) -> object:
        store, bucket = self.store, self.bucket
        calls: dict[str, Callable[[], object]] = {
            "head_object": lambda: store.head_object(bucket, "key"),
            "get_object": lambda: store.get_object_range(bucket, "key", 0, 10_000),
            "delete_object": lambda: store.delete_object(bucket, "key"),
            "create_multipart_upload": lambda: store.create_multipart_upload(bucket, "new"),
            "upload_part": lambda: store.upload_part(bucket, "new", self.upload, 2, CONTENT),
            "list_parts": lambda: store.list_parts(bucket, "new", self.upload),
            "complete_multipart_upload": lambda: store.complete_multipart_upload(
                bucket, "new", self.upload, store.list_parts(bucket, "new", self.upload), if_none_match=True
            ),
            "abort_multipart_upload": lambda: store.abort_multipart_upload(bucket, "new", self.upload),
            "list_multipart_uploads": lambda: store.list_multipart_uploads(bucket),
        }
        return calls[verb]()


VERBS = [
    "head_object",
    "get_object",
    "delete_object",
    "create_multipart_upload",
    "upload_part",
    "list_parts",
    "complete_multipart_upload",
    "abort_multipart_upload",
    "list_multipart_uploads",
]
# The others' answers have no body, or, of parts after an abort, a status that says all.
WITH_ANSWER = [
    "get_object",
    "create_multipart_upload",
    "list_parts",
    "complete_multipart_upload",
    "list_multipart_uploads",
]


@pytest.fixture(scope="module")
def proxied(swift: str) -> Iterator[tuple[FaultProxy, BucketCase]]:
    with fault_proxy(swift) as proxy:
        yield proxy, bucket_of(connect(proxy.url))


@pytest.fixture
def case(proxied: tuple[FaultProxy, BucketCase]) -> Iterator[Case]:
    proxy, objects = proxied
    assert isinstance(objects.store, AWSObjectStore)
    try:
        objects.store.head_object(objects.bucket, "key")
    except NotFoundError:  # at first, and where the test before has deleted it
        objects.store.put_object(objects.bucket, "key", [CONTENT])
    upload = objects.store.create_multipart_upload(objects.bucket, "new")
    objects.store.upload_part(objects.bucket, "new", upload, 1, CONTENT)
    yield Case(proxy=proxy, store=objects.store, bucket=objects.bucket, upload=upload)
    objects.store.abort_multipart_upload(objects.bucket, "new", upload)
    objects.store.delete_object(objects.bucket, "new")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "fault",
    [Fault.INTERNAL_ERROR, Fault.SLOW_DOWN, Fault.RESET_BEFORE, Fault.RESET_AFTER, Fault.LOST_REPLY],
)
def test_a_fault_is_an_error_to_try_again_after_one_attempt(case: Case, verb: str, fault: Fault) -> None:
    before = case.proxy.requests[verb]
    case.proxy.fail(verb, fault)
    with pytest.raises(BackendError) as raised:
        case.call(verb)
    assert raised.value.retryable
    assert raised.value.bucket == case.bucket
    assert case.proxy.requests[verb] == before + 1
    assert isinstance(raised.value, ThrottledError) == (fault is Fault.SLOW_DOWN and verb != "head_object")
    assert "testsecret" not in str(raised.value) and "Signature" not in str(raised.value)


@pytest.mark.parametrize("verb", WITH_ANSWER)
def test_an_answer_that_breaks_off_is_an_error_to_try_again(case: Case, verb: str) -> None:
    case.proxy.fail(verb, Fault.SHORT_BODY)
    with pytest.raises(BackendError) as raised:
        case.call(verb)
    assert raised.value.retryable


@pytest.mark.parametrize(
    "verb", ["create_multipart_upload", "list_parts", "complete_multipart_upload", "list_multipart_uploads"]
)
def test_an_error_inside_a_200_is_an_error_to_try_again(case: Case, verb: str) -> None:
    case.proxy.fail(verb, Fault.ERROR_IN_200)
    with pytest.raises(BackendError, match="InternalError") as raised:
        case.call(verb)
    assert raised.value.retryable
    with pytest.raises(NotFoundError):
        case.store.head_object(case.bucket, "new")


def test_the_wait_for_an_answer_ends(swift: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PART_TIMEOUT", 0.5)
    with fault_proxy(swift) as proxy:
        objects = bucket_of(connect(proxy.url))
        for operation in ("create_multipart_upload", "get_object"):
            proxy.fail(operation, Fault.SILENT)
        with pytest.raises(BackendError, match="ReadTimeoutError") as raised:
            objects.store.create_multipart_upload(objects.bucket, "key")
        assert raised.value.retryable
        with pytest.raises(BackendError, match="ReadTimeoutError") as raised:
            objects.store.get_object_range(objects.bucket, "key", 0, 1)
        assert raised.value.retryable


def test_a_bit_flipped_on_the_way_to_the_server_is_noticed(case: Case) -> None:
    case.proxy.fail("upload_part", Fault.FLIPPED_REQUEST)
    with pytest.raises(ChecksumMismatchError) as raised:
        case.call("upload_part")
    assert raised.value.retryable
    assert [part.part_number for part in case.store.list_parts(case.bucket, "new", case.upload)] == [1]


def test_over_tls_a_part_is_not_signed_but_its_checksum_is_verified(
    swift: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("openssl", shutil.which("openssl"))
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with fault_proxy(swift, certificate=certificate) as proxy:
        objects = bucket_of(connect(proxy.url))
        upload = objects.store.create_multipart_upload(objects.bucket, "key")
        objects.store.upload_part_file(objects.bucket, "key", upload, 1, io.BytesIO(CONTENT))
        assert proxy.headers["upload_part"]["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert proxy.headers["upload_part"]["x-amz-checksum-crc32"]
        proxy.fail("upload_part", Fault.FLIPPED_REQUEST)
        with pytest.raises(ChecksumMismatchError):
            objects.store.upload_part_file(objects.bucket, "key", upload, 2, io.BytesIO(CONTENT))
        assert len(objects.store.list_parts(objects.bucket, "key", upload)) == 1


def test_over_plain_http_a_part_is_signed(case: Case) -> None:
    case.call("upload_part")
    assert len(case.proxy.headers["upload_part"]["x-amz-content-sha256"]) == 64


def test_after_a_lost_reply_of_complete_the_object_is_there_once(case: Case) -> None:
    case.proxy.fail("complete_multipart_upload", Fault.LOST_REPLY)
    with pytest.raises(BackendError) as raised:
        case.call("complete_multipart_upload")
    assert raised.value.retryable
    assert case.store.get_object_range(case.bucket, "new", 0, 10_000) == CONTENT
    with pytest.raises(AlreadyExistsError):
        case.call("complete_multipart_upload")


def test_a_part_whose_reply_was_lost_is_sent_again(case: Case) -> None:
    case.proxy.fail("upload_part", Fault.LOST_REPLY)
    with pytest.raises(BackendError):
        case.call("upload_part")
    case.call("upload_part")
    assert len(case.store.list_parts(case.bucket, "new", case.upload)) == 2


def test_put_object_leaves_nothing_behind_when_a_part_fails(case: Case) -> None:
    before = case.store.list_multipart_uploads(case.bucket)
    case.proxy.fail("upload_part", Fault.RESET_AFTER, nth=2)
    with pytest.raises(BackendError):
        case.store.put_object(case.bucket, "other", [CONTENT] * 3, part_size=len(CONTENT))
    assert case.store.list_multipart_uploads(case.bucket) == before
    with pytest.raises(NotFoundError):
        case.store.head_object(case.bucket, "other")


def test_connections_are_used_again(case: Case) -> None:
    case.call("get_object")
    before = case.proxy.connections
    for _ in range(20):
        case.call("get_object")
    assert case.proxy.connections == before
