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

__all__ = ["place"]


def test_a_probe_finds_what_each_store_does_and_leaves_nothing(place: Place) -> None:
    objects = place.bucket()
    assert isinstance(objects.store, AWSObjectStore)
    found = objects.store.probe(objects.bucket)
    # Of a checksum that is not told of a store, the server behind its front end may know more.
    assert attrs.evolve(found.traits, checksum=place.traits.checksum) == place.traits
    assert place.traits.checksum in (found.traits.checksum, None)
    assert found.assumed == ("least_part", "largest_part", "largest_object", "addressing")
    assert objects.store.list_keys(objects.bucket) == []
    assert objects.store.list_multipart_uploads(objects.bucket) == []


def test_a_backend_probes_what_its_endpoint_is(moto: Connection) -> None:
    bucket = bucket_of(moto).bucket
    cloud = amistore.AWSBackend(moto.session, endpoint_urls=moto.endpoint_urls)
    assert cloud.probe(bucket).traits == amistore.backends.StoreTraits(checksum=None)


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


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.INTERNAL_ERROR, Fault.RESET_AFTER])
@pytest.mark.parametrize("operation", ["upload_part", "complete_multipart_upload", "list_parts"])
def test_a_fault_is_no_trait(moto: Connection, operation: str, fault: Fault) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url))
        assert isinstance(case.store, AWSObjectStore)
        proxy.fail(operation, fault)
        with pytest.raises(amistore.BackendError) as raised:
            case.store.probe(case.bucket)
        assert raised.value.retryable
        assert case.store.list_multipart_uploads(case.bucket) == []
