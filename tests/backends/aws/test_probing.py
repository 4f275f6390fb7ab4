"""A probe finds the traits of each store, and leaves nothing there."""

from __future__ import annotations

import attrs
import pytest
from backends.aws.conftest import bucket_of, connect
from backends.aws.places import Place, place
from backends.aws.proxy import ALWAYS, Fault, error_answer, fault_proxy

import amistore
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.aws.settings import ObjectSettings

__all__ = ["place"]


def test_a_probe_finds_what_each_store_does_and_leaves_nothing(place: Place) -> None:
    objects = place.bucket()
    assert isinstance(objects.store, AWSObjectStore)
    found = objects.store.probe(objects.bucket)
    # Of a checksum that is not told of a store, the server behind its front end may know more.
    assert attrs.evolve(found, checksum=place.traits.checksum) == place.traits
    assert place.traits.checksum in (found.checksum, None)
    assert objects.store.list_keys(objects.bucket) == []
    assert objects.store.list_multipart_uploads(objects.bucket) == []


def test_a_backend_probes_what_its_endpoint_is(moto: Connection) -> None:
    bucket = bucket_of(moto).bucket
    cloud = amistore.AWSBackend(moto.session, endpoint_urls=moto.endpoint_urls)
    assert cloud.probe(bucket) == amistore.backends.StoreTraits(checksum=None)


def test_a_bucket_with_object_lock_is_not_probed(moto: Connection) -> None:
    moto.client("s3").create_bucket(Bucket="locked-probe", ObjectLockEnabledForBucket=True)
    with pytest.raises(amistore.InvalidRequestError, match="Object Lock"):
        AWSObjectStore(moto).probe("locked-probe")
    assert AWSObjectStore(moto).list_multipart_uploads("locked-probe") == []


def test_a_bucket_that_is_missing_or_forbidden_is_told(moto: Connection) -> None:
    with pytest.raises(amistore.NotFoundError):
        AWSObjectStore(moto).probe("missing-probe")
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url))
        assert isinstance(case.store, AWSObjectStore)
        proxy.fail("upload_part", error_answer(403, "AccessDenied"), times=ALWAYS)
        with pytest.raises(amistore.AccessDeniedError):
            case.store.probe(case.bucket)
        assert case.store.list_multipart_uploads(case.bucket) == []


@pytest.mark.parametrize(
    ("operation", "code", "kind"),
    [
        ("upload_part", "ExpiredToken", amistore.CredentialsExpiredError),
        ("complete_multipart_upload", "OperationAborted", amistore.BackendError),
        ("list_parts", "RequestTimeout", amistore.BackendError),
        ("get_tagging", "ExpiredToken", amistore.CredentialsExpiredError),
    ],
)
def test_what_says_nothing_of_the_store_is_no_trait(
    moto: Connection, operation: str, code: str, kind: type[amistore.AmistoreError]
) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url))
        assert isinstance(case.store, AWSObjectStore)
        proxy.fail(operation, error_answer(400, code), nth=2 if operation == "upload_part" else 1)
        with pytest.raises(kind, match=code):
            case.store.probe(case.bucket)


def test_a_probe_sends_the_settings_and_says_what_it_leaves_behind(
    moto: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        settings = ObjectSettings(expected_bucket_owner="111122223333", server_side_encryption="AES256")
        case = bucket_of(connect(proxy.url), settings)
        assert isinstance(case.store, AWSObjectStore)
        proxy.fail("abort_multipart_upload", error_answer(405, "MethodNotAllowed"), times=ALWAYS)
        case.store.probe(case.bucket)
        assert proxy.headers["create_multipart_upload"]["x-amz-server-side-encryption"] == "AES256"
        for operation in ("create_multipart_upload", "upload_part", "delete_object", "list_parts"):
            assert proxy.headers[operation]["x-amz-expected-bucket-owner"] == "111122223333"
    assert "a probe left amistore-probe-" in caplog.text


def test_a_store_that_takes_no_uploads_is_told_with_its_own_words(moto: Connection) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url))
        assert isinstance(case.store, AWSObjectStore)
        proxy.fail("create_multipart_upload", error_answer(501, "NotImplemented", "no uploads"))
        with pytest.raises(amistore.BackendError, match="NotImplemented: no uploads") as raised:
            case.store.probe(case.bucket)
        assert not raised.value.retryable


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("upload_part", Fault.SLOW_DOWN),
        ("complete_multipart_upload", Fault.RESET_AFTER),
        ("list_parts", Fault.INTERNAL_ERROR),
        ("get_tagging", Fault.SLOW_DOWN),
    ],
)
def test_a_fault_is_no_trait(moto: Connection, operation: str, fault: Fault) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url))
        assert isinstance(case.store, AWSObjectStore)
        proxy.fail(operation, fault)
        with pytest.raises(amistore.BackendError) as raised:
            case.store.probe(case.bucket)
        assert raised.value.retryable
        assert case.store.list_multipart_uploads(case.bucket) == []


@pytest.mark.xdist_group("seaweedfs")
def test_a_wrong_key_is_told_as_such(seaweedfs: Connection) -> None:
    bucket = bucket_of(seaweedfs).bucket
    wrong = connect(seaweedfs.endpoint_urls["s3"], access_key="wrong", secret_key="wrongwrong")
    with pytest.raises(amistore.AccessDeniedError, match="InvalidAccessKeyId"):
        AWSObjectStore(wrong).probe(bucket)
