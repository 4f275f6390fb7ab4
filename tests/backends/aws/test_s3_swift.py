"""The contract and the races, on OpenStack Swift."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from backends.aws.conftest import bucket_of, connect

from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.aws.settings import ObjectSettings
from amistore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    BackendError,
    ChecksumMismatchError,
    NotFoundError,
    SourceChangedError,
)
from amistore.testing import BucketCase, ObjectStoreContract

pytestmark = pytest.mark.xdist_group("swift")


@pytest.fixture
def objects(swift_connection: Connection) -> BucketCase:
    return bucket_of(swift_connection)


class TestSwiftObjectStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self, swift_connection: Connection) -> BucketCase:
        return bucket_of(swift_connection)

    def test_metadata_is_kept(self, objects: BucketCase) -> None:
        """Swift keeps 256 characters of a value, and refuses more."""
        metadata = {"name": "größe 日本", "empty": "", "long": "x" * 256, "line": "a\tb", "Case_of.Keys": " "}
        objects.store.put_object(objects.bucket, "key", [b"x"], metadata=metadata)
        assert dict(objects.store.head_object(objects.bucket, "key").metadata) == metadata
        with pytest.raises(BackendError, match="longer than 256"):
            objects.store.put_object(objects.bucket, "key", [b"x"], metadata={"long": "x" * 257})

    def test_tags_are_kept(self, objects: BucketCase) -> None:
        """Swift has no tags, and refuses them before anything is sent."""
        with pytest.raises(BackendError, match="tagging is not supported"):
            objects.store.put_object(objects.bucket, "key", [b"x"], tags={"team": "platform"})
        assert objects.store.list_multipart_uploads(objects.bucket) == []

    def test_an_object_is_deleted_by_its_etag(self, objects: BucketCase) -> None:
        """Swift compares another ETag than it shows of an uploaded object; it stays."""
        info = objects.store.put_object(objects.bucket, "key", [b"x"])
        with pytest.raises(SourceChangedError):
            objects.store.delete_object(objects.bucket, "key", if_match=info.etag)
        assert objects.store.head_object(objects.bucket, "key") == info

    def test_a_completed_upload_is_gone(self, objects: BucketCase) -> None:
        """Swift goes on listing a completed upload's parts, which are the object's; they stay it."""
        upload, part = self._part(objects, 1, b"x")
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        assert objects.store.list_multipart_uploads(objects.bucket) == []
        objects.store.abort_multipart_upload(objects.bucket, "key", upload)
        assert objects.store.get_object_range(objects.bucket, "key", 0, 2) == b"x"


def test_one_of_fifty_racing_creates_wins_and_nothing_is_left_behind(objects: BucketCase) -> None:
    store, bucket = objects.store, objects.bucket
    racers = 50
    barrier = threading.Barrier(racers)

    def create(number: int) -> object:
        content = b"%d" % number

        def pieces():
            barrier.wait()
            yield content

        try:
            return store.put_object(bucket, "key", pieces(), if_none_match=True)
        except BackendError as error:
            return error

    with ThreadPoolExecutor(racers) as pool:
        outcomes = list(pool.map(create, range(racers)))
    lost = [outcome for outcome in outcomes if isinstance(outcome, BackendError)]
    assert len(lost) == racers - 1
    assert all(isinstance(error, AlreadyExistsError) or error.retryable for error in lost)
    winner = next(number for number in range(racers) if outcomes[number] not in lost)
    assert store.get_object_range(bucket, "key", 0, 10) == b"%d" % winner
    assert store.list_multipart_uploads(bucket) == []


def test_the_server_itself_refuses_a_second_create(
    objects: BucketCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the look before, so it is If-None-Match that is refused."""
    objects.store.put_object(objects.bucket, "key", [b"first"])
    monkeypatch.setattr(AWSObjectStore, "_refuse_existing", lambda *arguments: None)
    with pytest.raises(AlreadyExistsError):
        objects.store.put_object(objects.bucket, "key", [b"other"], if_none_match=True)
    assert objects.store.get_object_range(objects.bucket, "key", 0, 9) == b"first"


def test_swift_checks_the_checksum_of_a_part(objects: BucketCase, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = objects.store.create_multipart_upload(objects.bucket, "key")
    monkeypatch.setattr("amistore.backends.aws.s3_integrity.zlib.crc32", lambda piece, value: 7)
    with pytest.raises(ChecksumMismatchError) as raised:
        objects.store.upload_part(objects.bucket, "key", upload, 1, b"content")
    assert raised.value.retryable
    assert objects.store.list_parts(objects.bucket, "key", upload) == []


def test_what_swift_has_not_is_refused_at_once(swift_connection: Connection) -> None:
    for settings in (
        ObjectSettings(tags={"team": "images"}),
        ObjectSettings(server_side_encryption="aws:kms"),
    ):
        case = bucket_of(swift_connection, settings)
        with pytest.raises(BackendError, match="NotImplemented") as raised:
            case.store.put_object(case.bucket, "key", [b"x"])
        assert not raised.value.retryable
        with pytest.raises(NotFoundError):
            case.store.head_object(case.bucket, "key")


def test_wrong_keys_are_access_denied_and_not_told(swift: str, objects: BucketCase) -> None:
    store = AWSObjectStore(connect(swift, secret_key="not-the-secret"))
    with pytest.raises(AccessDeniedError) as raised:
        store.create_multipart_upload(objects.bucket, "key")
    assert not raised.value.retryable
    assert "SignatureDoesNotMatch" in str(raised.value)
    assert "not-the-secret" not in f"{raised.value!r} {raised.value.__dict__} {store!r}"


def test_a_bucket_of_swift_gives_no_warnings(objects: BucketCase) -> None:
    assert isinstance(objects.store, AWSObjectStore)
    assert objects.store.bucket_warnings(objects.bucket) == ()
    with pytest.raises(NotFoundError):
        objects.store.bucket_warnings("amistore-no-such-bucket")


def test_uploads_of_keys_that_xml_and_urls_spell_differently_are_listed(objects: BucketCase) -> None:
    store, bucket = objects.store, objects.bucket
    keys = ["a b+c%20", "größe", "line\nbreak", "x/<&>"]
    for key in keys:
        store.create_multipart_upload(bucket, key)
    assert sorted(upload.key for upload in store.list_multipart_uploads(bucket)) == sorted(keys)


def test_parts_are_listed_over_pages(objects: BucketCase) -> None:
    """Of eight here."""
    store, bucket = objects.store, objects.bucket
    upload = store.create_multipart_upload(bucket, "key")
    parts = [store.upload_part(bucket, "key", upload, number, b"x") for number in range(1, 19)]
    assert store.list_parts(bucket, "key", upload) == parts
    assert store.complete_multipart_upload(bucket, "key", upload, parts).size == 18
