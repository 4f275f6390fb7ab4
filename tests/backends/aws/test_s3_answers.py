"""Answers as S3 documents them, and wrong ones: what they become."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator

import attrs
import pytest
from backends.aws.conftest import connect
from backends.aws.proxy import Answer, FaultProxy, error_answer, fault_proxy
from hypothesis import given
from hypothesis import strategies as st

import amistore
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.aws.s3_metadata import decode_metadata, encode_metadata
from amistore.backends.aws.settings import ObjectSettings
from amistore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ArchivedObjectError,
    BackendError,
    ChecksumMismatchError,
    InvalidRequestError,
    InvalidValueError,
    NotFoundError,
    SourceChangedError,
)

OBJECT = bytes(range(100))
ETAG = {"ETag": '"one"'}


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with fault_proxy(None) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy) -> AWSObjectStore:
    return AWSObjectStore(connect(proxy.url), ObjectSettings(expected_bucket_owner="111122223333"))


def xml(name: str, **members: object) -> Answer:
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in members.items())
    return Answer(headers={"Content-Type": "application/xml"}, body=f"<{name}>{inner}</{name}>".encode())


def ranged(first: int, last: int, size: int = 100, *, status: int = 206, body: bytes | None = None) -> Answer:
    content = OBJECT[first : last + 1] if body is None else body
    headers = {**ETAG, "Content-Range": f"bytes {first}-{last}/{size}"}
    return Answer(status=status, headers=headers, body=content)


@pytest.mark.parametrize(
    "answer",
    [
        ranged(10, 19),
        ranged(10, 19, status=200),  # as rclone answers
        Answer(headers=ETAG, body=OBJECT),  # a server without ranges
    ],
)
def test_a_range_that_is_proven_right_is_given(
    proxy: FaultProxy, store: AWSObjectStore, answer: Answer
) -> None:
    proxy.fail("get_object", answer)
    assert store.get_object_range("bucket", "key", 10, 10, if_match="one") == OBJECT[10:20]


@pytest.mark.parametrize(
    "answer",
    [
        ranged(11, 20),  # another place
        ranged(10, 18),  # shorter than the object allows
        ranged(10, 20),
        ranged(10, 19, body=OBJECT[10:19]),  # less than it says
        ranged(10, 14, 15, body=b"123"),
        Answer(status=206, headers={**ETAG, "Content-Range": "pages 1-2/3"}, body=OBJECT[10:20]),
    ],
)
def test_a_range_that_is_not_proven_right_is_refused(
    proxy: FaultProxy, store: AWSObjectStore, answer: Answer
) -> None:
    proxy.fail("get_object", answer)
    with pytest.raises(BackendError) as raised:
        store.get_object_range("bucket", "key", 10, 10, if_match="one")
    assert raised.value.operation == "get_object_range"


def test_a_server_without_ranges_is_not_asked_for_a_far_one(proxy: FaultProxy, store: AWSObjectStore) -> None:
    proxy.fail("get_object", Answer(headers=ETAG, body=OBJECT))
    with pytest.raises(BackendError, match="does not give ranges"):
        store.get_object_range("bucket", "key", 1 << 30, 10)


def test_a_range_of_another_version_is_refused_also_where_if_match_is_ignored(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    answer = ranged(10, 19)
    proxy.fail("get_object", attrs.evolve(answer, headers={**answer.headers, "ETag": '"two"'}))
    with pytest.raises(SourceChangedError):
        store.get_object_range("bucket", "key", 10, 10, if_match="one")


def test_a_range_that_does_not_say_of_which_version_it_is_is_worth_another_attempt(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    answer = ranged(10, 19)
    headers = {name: value for name, value in answer.headers.items() if name != "ETag"}
    proxy.fail("get_object", attrs.evolve(answer, headers=headers))
    with pytest.raises(BackendError, match="no ETag") as caught:
        store.get_object_range("bucket", "key", 10, 10, if_match="one")
    assert caught.value.retryable


def test_a_range_behind_the_end_is_empty_only_if_it_is_behind_the_end(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    proxy.fail("get_object", error_answer(416, "InvalidRange"), times=2)
    proxy.fail("head_object", Answer(headers=ETAG, size=100), times=3)
    assert store.get_object_range("bucket", "key", 100, 10, if_match="one") == b""
    with pytest.raises(BackendError, match="refuses a range"):
        store.get_object_range("bucket", "key", 99, 10, if_match="one")
    proxy.fail("get_object", error_answer(416, "InvalidRange"))
    with pytest.raises(SourceChangedError):
        store.get_object_range("bucket", "key", 100, 10, if_match="two")


# GetObject and HeadObject (API reference): InvalidObjectState, x-amz-storage-class, x-amz-restore,
# x-amz-archive-status.
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-amz-storage-class": "GLACIER"}, "in GLACIER: call restore_object"),
        ({"x-amz-storage-class": "DEEP_ARCHIVE"}, "in DEEP_ARCHIVE: call restore_object"),
        (
            {"x-amz-storage-class": "INTELLIGENT_TIERING", "x-amz-archive-status": "DEEP_ARCHIVE_ACCESS"},
            "in DEEP_ARCHIVE_ACCESS: call restore_object",
        ),
        (
            {"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="true"'},
            "is being restored from GLACIER",
        ),
    ],
)
def test_an_archived_object_says_how_to_read_it(
    proxy: FaultProxy, store: AWSObjectStore, headers: dict[str, str], message: str
) -> None:
    proxy.fail("head_object", Answer(headers={**ETAG, **headers}, size=100), times=2)
    proxy.fail("get_object", error_answer(403, "InvalidObjectState"))
    with (
        pytest.raises(ArchivedObjectError, match=message) as raised,
        store.open_object("bucket", "key") as file,
    ):
        file.read(1)
    assert not raised.value.retryable
    assert isinstance(raised.value, amistore.ArchivedObjectError)


@pytest.mark.parametrize("answer", [Answer(status=202), error_answer(409, "RestoreAlreadyInProgress")])
def test_a_restore_is_asked_for_and_one_on_its_way_is_fine(
    proxy: FaultProxy, store: AWSObjectStore, answer: Answer
) -> None:
    proxy.fail("post_restore", answer)
    store.restore_object("bucket", "key", days=7, tier="Bulk")
    assert proxy.requests["post_restore"] == 1


@pytest.mark.parametrize("storage_class", [None, "STANDARD_IA", "GLACIER_IR", "INTELLIGENT_TIERING"])
def test_an_object_that_can_be_read_needs_no_restore(
    proxy: FaultProxy, store: AWSObjectStore, storage_class: str | None
) -> None:
    """RestoreObject (API reference): 403 InvalidObjectState."""
    proxy.fail("post_restore", error_answer(403, "InvalidObjectState", "Restore is not allowed"))
    headers = {"x-amz-storage-class": storage_class} if storage_class else {}
    proxy.fail("head_object", Answer(headers={**ETAG, **headers}, size=100))
    named = storage_class or "STANDARD"
    with pytest.raises(InvalidRequestError, match=f"lies in {named} and can be read as it is") as raised:
        store.restore_object("bucket", "key", days=7)
    assert "Restore is not allowed" not in str(raised.value)


def test_an_archived_object_that_cannot_be_restored_now_says_what_s3_says(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    proxy.fail("post_restore", error_answer(403, "InvalidObjectState", "not now"))
    proxy.fail("head_object", Answer(headers={**ETAG, "x-amz-storage-class": "GLACIER"}, size=100))
    with pytest.raises(ArchivedObjectError, match="not now"):
        store.restore_object("bucket", "key", days=7)


def test_a_restore_that_is_refused_says_so(proxy: FaultProxy, store: AWSObjectStore) -> None:
    proxy.fail("post_restore", error_answer(403, "AccessDenied"))
    with pytest.raises(AccessDeniedError, match="s3:RestoreObject"):
        store.restore_object("bucket", "key", days=7)


PARTS = '<PartNumber>1</PartNumber><ETag>"e"</ETag><Size>5</Size><ChecksumCRC32>AAAAAA==</ChecksumCRC32>'
COMPLETED = amistore.backends.UploadedPart(part_number=1, size=5, etag="e")


# CompleteMultipartUpload (API reference): 412 and 409 of If-None-Match, and "200 OK with an error inside".
@pytest.mark.parametrize(
    ("answer", "error", "retryable"),
    [
        (error_answer(412, "PreconditionFailed"), AlreadyExistsError, False),
        (error_answer(409, "ConditionalRequestConflict"), BackendError, True),
        (error_answer(200, "InternalError"), BackendError, True),
        (error_answer(200, "PreconditionFailed"), AlreadyExistsError, False),
        (error_answer(400, "InvalidPart"), BackendError, False),
        (error_answer(403, "AccessDenied"), AccessDeniedError, False),
    ],
)
def test_a_completion_that_fails_is_told_apart(
    proxy: FaultProxy, store: AWSObjectStore, answer: Answer, error: type[BackendError], retryable: bool
) -> None:
    proxy.fail("list_parts", xml("ListPartsResult", Part=PARTS))
    proxy.fail("head_object", Answer(status=404))
    proxy.fail("complete_multipart_upload", answer)
    with pytest.raises(error) as raised:
        store.complete_multipart_upload("bucket", "key", "upload", [COMPLETED], if_none_match=True)
    assert raised.value.retryable == retryable
    assert type(raised.value) is error


def test_what_is_not_there_is_named_though_the_answer_to_head_has_no_text(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    proxy.fail("head_bucket", Answer(status=404))
    with pytest.raises(NotFoundError, match=r"^no such bucket: check .*account .*, bucket archives\)$"):
        store.head_bucket("archives")
    proxy.fail("head_object", Answer(status=404))
    with pytest.raises(NotFoundError, match=r"^no such object.*, bucket archives, key web\.bin\)$"):
        store.head_object("archives", "web.bin")


def test_an_object_of_another_size_or_upload_is_not_taken_for_ours(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    for etag, size, error in (('"one-1"', 4, BackendError), ('"two-1"', 5, SourceChangedError)):
        proxy.fail("list_parts", xml("ListPartsResult", Part=PARTS))
        proxy.fail("complete_multipart_upload", xml("CompleteMultipartUploadResult", ETag='"one-1"'))
        proxy.fail("head_object", Answer(headers={"ETag": etag}, size=size))
        with pytest.raises(error):
            store.complete_multipart_upload("bucket", "key", "upload", [COMPLETED])


@pytest.mark.parametrize(
    ("headers", "stored"),
    [
        ({"ETag": '"opaque"', "x-amz-checksum-crc32": "NhCmhg=="}, True),
        ({"ETag": '"opaque"', "x-amz-checksum-crc32": "AAAAAA=="}, False),
        ({"ETag": '"5d41402abc4b2a76b9719d911017c592"'}, True),  # MD5 of "hello"
        ({"ETag": '"00000000000000000000000000000000"'}, False),
        ({"ETag": '"00000000000000000000000000000000"', "x-amz-server-side-encryption": "aws:kms"}, True),
        ({"ETag": '"opaque"'}, True),
    ],
)
def test_a_part_counts_as_stored_only_as_it_was_sent(
    proxy: FaultProxy, store: AWSObjectStore, headers: dict[str, str], stored: bool
) -> None:
    proxy.fail("upload_part", Answer(headers=headers), times=2)
    uploads = [
        lambda: store.upload_part("bucket", "key", "upload", 1, memoryview(b"hello")),
        lambda: store.upload_part_file("bucket", "key", "upload", 1, io.BytesIO(b"hello")),
    ]
    for upload in uploads:
        if stored:
            assert upload().size == 5
        else:
            with pytest.raises(ChecksumMismatchError) as raised:
                upload()
            assert raised.value.retryable


def test_an_abort_goes_on_until_no_part_is_left(proxy: FaultProxy, store: AWSObjectStore) -> None:
    proxy.fail("abort_multipart_upload", Answer(status=204), times=3)
    proxy.fail("list_parts", xml("ListPartsResult", Part=PARTS), times=2)
    proxy.fail("list_parts", error_answer(404, "NoSuchUpload"), nth=3)
    store.abort_multipart_upload("bucket", "key", "upload")
    assert proxy.requests["abort_multipart_upload"] == 3


def test_an_abort_that_leaves_parts_names_the_upload(proxy: FaultProxy, store: AWSObjectStore) -> None:
    proxy.fail("abort_multipart_upload", Answer(status=204), times=100)
    proxy.fail("list_parts", xml("ListPartsResult", Part=PARTS), times=100)
    with pytest.raises(BackendError, match="upload the-upload-id still has parts") as raised:
        store.abort_multipart_upload("bucket", "key", "the-upload-id")
    assert raised.value.retryable
    assert proxy.requests["abort_multipart_upload"] < 10


def test_uploads_are_listed_over_pages_and_a_server_that_goes_in_circles_is_left(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    first = xml(
        "ListMultipartUploadsResult",
        EncodingType="url",
        IsTruncated="true",
        NextKeyMarker="a%2Bb+c",
        NextUploadIdMarker="1",
        Upload="<Key>a%2Bb+c</Key><UploadId>1</UploadId>",
    )
    last = xml("ListMultipartUploadsResult", Upload="<Key>a+b</Key><UploadId>2</UploadId>")
    proxy.fail("list_multipart_uploads", first)
    proxy.fail("list_multipart_uploads", last, nth=2)
    found = store.list_multipart_uploads("bucket", "a+b")
    assert [(upload.key, upload.upload_id) for upload in found] == [("a+b", "2"), ("a+b c", "1")]
    proxy.fail("list_multipart_uploads", first, times=10)
    with pytest.raises(BackendError, match="again and again"):
        store.list_multipart_uploads("bucket")
    other = attrs.evolve(first, body=first.body.replace(b"Marker>a", b"Marker>b"))
    for number in range(1, 100):  # two markers in turn
        proxy.fail("list_multipart_uploads", other if number % 2 else first, nth=number)
    with pytest.raises(BackendError, match="again and again"):
        store.list_multipart_uploads("bucket")


def test_uploads_that_are_invented_for_ever_end(
    monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy, store: AWSObjectStore
) -> None:
    monkeypatch.setattr("amistore.backends.aws.listing._MOST_UPLOADS", 20)
    for number in range(1, 100):
        page = xml(
            "ListMultipartUploadsResult",
            IsTruncated="true",
            NextKeyMarker=f"k{number}",
            Upload=f"<Key>k{number}</Key><UploadId>1</UploadId>",
        )
        proxy.fail("list_multipart_uploads", page, nth=number)
    with pytest.raises(BackendError, match="more than 20 uploads"):
        store.list_multipart_uploads("bucket")


def test_objects_are_listed_over_pages_and_a_server_that_goes_in_circles_or_gives_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy, store: AWSObjectStore
) -> None:
    def page(key: str, token: str = "") -> Answer:
        more = {"IsTruncated": "true", "NextContinuationToken": token} if token else {}
        found = {"Contents": f"<Key>{key}</Key>"} if key else {}
        return xml("ListBucketResult", EncodingType="url", **found, **more)

    def listed(*answers: Answer) -> list[str]:
        for number, answer in enumerate(answers, 1):
            proxy.fail("list_objects", answer, nth=number)
        return [location.key for location in store.list_objects("bucket", "a+")]

    assert listed(page("a%2Bb+c", "1"), page("", "2"), page("other", "3"), page("a%2Bd")) == ["a+b c", "a+d"]
    with pytest.raises(BackendError, match="again and again") as caught:
        listed(page("a%2B1", "1"), page("a%2B2", "2"), page("a%2B3", "1"))
    assert (caught.value.operation, caught.value.bucket) == ("list_keys", "bucket")
    with monkeypatch.context() as patched:
        patched.setattr("amistore.backends.aws.listing._MOST_KEYS", 2)
        with pytest.raises(BackendError, match="more than 2 objects: give a longer prefix"):
            listed(*(page(f"a%2B{number}", str(number)) for number in range(1, 9)))
    with pytest.raises(BackendError, match="no NextContinuationToken"):
        listed(xml("ListBucketResult", IsTruncated="true"))
    monkeypatch.setattr("amistore.backends.aws.listing.MOST_EMPTY_PAGES", 3)
    with pytest.raises(BackendError, match="again and again"):
        listed(*(page("", str(number)) for number in range(1, 9)))


@pytest.mark.parametrize("markers", [["1"] * 9, ["2", "1"] * 9, ["0"], [""], ["1", "2", "10001"], ["-1"]])
def test_parts_that_are_listed_in_circles_are_left(
    proxy: FaultProxy, store: AWSObjectStore, markers: list[str]
) -> None:
    for number, marker in enumerate(markers, 1):
        page = xml("ListPartsResult", IsTruncated="true", NextPartNumberMarker=marker, Part=PARTS)
        proxy.fail("list_parts", page, nth=number)
    with pytest.raises(BackendError):
        store.list_parts("bucket", "key", "upload")
    assert proxy.requests["list_parts"] <= 3


def test_more_parts_than_an_upload_can_have_are_refused(
    monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy, store: AWSObjectStore
) -> None:
    monkeypatch.setattr("amistore.backends.aws.listing._MOST_PARTS", 20)
    for number in range(1, 100):
        part = PARTS.replace("Number>1<", f"Number>{number}<")
        page = xml("ListPartsResult", IsTruncated="true", NextPartNumberMarker=str(number), Part=part)
        proxy.fail("list_parts", page, nth=number)
    with pytest.raises(BackendError, match="more than 20 parts"):
        store.list_parts("bucket", "key", "upload")


def test_a_part_that_is_listed_twice_is_one_and_one_that_was_replaced_is_told_beside_its_like(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    """As SeaweedFS lists each upload of a number, until the upload is completed."""
    second = PARTS.replace("Number>1<", "Number>2<")
    other = PARTS.replace('"e"', '"f"')
    page = xml("ListPartsResult", Part="</Part><Part>".join([second, PARTS, other, PARTS]))
    proxy.fail("list_parts", page)
    found = store.list_parts("bucket", "key", "upload")
    assert [part.part_number for part in found] == [1, 1, 2]
    assert {part.etag for part in found[:2]} == {"e", "f"}


def test_uploads_that_are_listed_in_another_order_come_by_key(
    proxy: FaultProxy, store: AWSObjectStore
) -> None:
    listed = [("b", "1"), ("a", "3"), ("a", "2")]
    uploads = [f"<Key>{key}</Key><UploadId>{upload_id}</UploadId>" for key, upload_id in listed]
    page = xml("ListMultipartUploadsResult", Upload="</Upload><Upload>".join(uploads))
    proxy.fail("list_multipart_uploads", page)
    found = [(upload.key, upload.upload_id) for upload in store.list_multipart_uploads("bucket")]
    assert found == [("a", "3"), ("a", "2"), ("b", "1")]


def test_the_expected_owner_is_sent_with_every_call(proxy: FaultProxy, store: AWSObjectStore) -> None:
    part = [COMPLETED]
    calls = [
        lambda: store.head_object("bucket", "key"),
        lambda: store.get_object_range("bucket", "key", 0, 1),
        lambda: store.delete_object("bucket", "key"),
        lambda: store.create_multipart_upload("bucket", "key"),
        lambda: store.upload_part("bucket", "key", "upload", 1, b"x"),
        lambda: store.list_parts("bucket", "key", "upload"),
        lambda: store.complete_multipart_upload("bucket", "key", "upload", part),
        lambda: store.abort_multipart_upload("bucket", "key", "upload"),
        lambda: store.list_multipart_uploads("bucket"),
        lambda: store.restore_object("bucket", "key", days=1),
    ]
    proxy.fail("list_parts", xml("ListPartsResult", Part=PARTS), nth=2)  # so that complete goes on
    proxy.fail("head_bucket", Answer())
    for call in calls:
        with pytest.raises(BackendError):
            call()
    store.bucket_warnings("bucket")
    assert len(proxy.headers) == 13
    assert {headers.get("x-amz-expected-bucket-owner") for headers in proxy.headers.values()} == {
        "111122223333"
    }


def test_a_bucket_in_another_region_is_refused(proxy: FaultProxy, store: AWSObjectStore) -> None:
    proxy.fail("head_bucket", Answer(headers={"x-amz-bucket-region": "us-gov-east-1"}))
    with pytest.raises(InvalidRequestError, match="us-gov-east-1"):
        store.bucket_warnings("bucket")


def test_what_may_not_be_asked_of_a_bucket_is_said(proxy: FaultProxy, store: AWSObjectStore) -> None:
    proxy.fail("head_bucket", Answer(headers={"x-amz-bucket-region": "us-east-1"}), times=2)
    proxy.fail("get_publicAccessBlock", error_answer(403, "AccessDenied"))
    absent = error_answer(404, "ServerSideEncryptionConfigurationNotFoundError")
    proxy.fail("get_encryption", absent)
    assert store.bucket_warnings("bucket") == (
        "access denied; cannot check whether the bucket does not block public access",
        "the bucket has no default encryption",
    )
    assert store.bucket_warnings("bucket") == ()  # 501


@pytest.mark.parametrize(
    "settings",
    [
        {"expected_bucket_owner": "1234"},
        {"server_side_encryption": "rot13"},
        {"sse_kms_key_id": "alias/disks"},
        {"server_side_encryption": "AES256", "bucket_key_enabled": True},
        {"tags": {str(number): "" for number in range(11)}},
        {"tags": {"": "x"}},
        {"tags": {"a" * 129: "x"}},
        {"tags": {"a": "x" * 257}},
        {"tags": {"aws:created": "x"}},
        {"storage_class": "cold one"},
        {"storage_class": 5},
        {"expected_bucket_owner": 111122223333},
        {"server_side_encryption": ["AES256"]},
        {"server_side_encryption": "aws:kms", "sse_kms_key_id": 5},
        {"server_side_encryption": "aws:kms", "sse_kms_key_id": ""},
        {"server_side_encryption": "aws:kms", "bucket_key_enabled": "yes"},
        {"tags": None},
        {"tags": 5},
        {"tags": ["a"]},
        {"tags": {1: "x"}},
        {"tags": {"a": None}},
    ],
)
def test_settings_that_s3_would_refuse_are_refused_at_once(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidValueError, match=r"ObjectSettings\.") as raised:
        ObjectSettings(**settings)  # type: ignore[arg-type]
    assert raised.value.field.removeprefix("ObjectSettings.") in settings


@pytest.mark.parametrize("key", ["", "x" * 1025, "ä" * 513, "\ud800"])
def test_an_impossible_key_is_refused_before_it_is_sent(
    proxy: FaultProxy, store: AWSObjectStore, key: str
) -> None:
    with pytest.raises(InvalidRequestError):
        store.delete_object("bucket", key)
    assert not proxy.requests


def test_metadata_that_is_too_long_or_no_text_is_refused(proxy: FaultProxy, store: AWSObjectStore) -> None:
    assert encode_metadata({"k": "x" * 2047})
    for metadata in ({"k": "x" * 2048}, {"k": "ä" * 400}, {"k": "\ud800"}, {"k": 1}):
        with pytest.raises(InvalidRequestError):
            store.create_multipart_upload("bucket", "key", metadata=metadata)  # type: ignore[arg-type]
    assert not proxy.requests


HOSTILE = {
    "name": "größe 日本",
    "Name": "other case",
    "": "no name",
    "a.b": " spaces  here ",
    ".41": "looks coded",
    "mark": "UTF-8''x",
    "mime": "=?UTF-8?Q?x?=",
    "control": "\x00\r\nX-Injected: 1",
    "empty": "",
}


def test_metadata_comes_back_as_it_was_also_from_capitalised_headers() -> None:
    encoded = encode_metadata(HOSTILE)
    assert len(encoded) == len(HOSTILE)
    assert all(re.fullmatch(r"[a-z0-9.-]+", key) for key in encoded)
    assert all(value.isascii() and value.isprintable() and value for value in encoded.values())
    assert decode_metadata({key.title(): value for key, value in encoded.items()}) == HOSTILE


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), st.text(max_size=9), max_size=5))
def test_any_metadata_comes_back_as_it_was(metadata: dict[str, str]) -> None:
    try:
        encoded = encode_metadata(metadata)
    except InvalidRequestError:
        assert any("\ud800" <= character <= "\udfff" for text in metadata.values() for character in text)
        return
    assert decode_metadata({key.title(): value for key, value in encoded.items()}) == metadata


def test_metadata_of_other_writers_stays_as_it_is() -> None:
    foreign = {"v1.2": "UTF-8''50%", "a_b": "UTF-8''a b", "plain": "x"}
    assert decode_metadata(foreign) == foreign


def test_a_store_is_sent_to_another_process_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    connection = Connection(None, "us-east-1", None)
    store = AWSObjectStore(connection, ObjectSettings(tags={"a": "b"}))
    connection.client("s3")
    pickled = pickle.dumps(store)
    assert b"the-secret" not in pickled
    assert pickle.loads(pickled)._settings == store._settings
