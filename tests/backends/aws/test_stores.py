"""Public stores are known by the host of their endpoint."""

from __future__ import annotations

import boto3
import pytest

import amistore
from amistore.backends import StoreTraits
from amistore.backends.aws.stores import KNOWN_STORES, traits_of
from amistore.backends.traits import AMAZON
from amistore.errors import InvalidValueError


@pytest.mark.parametrize(
    ("url", "end"),
    [
        ("https://0123456789abcdef.r2.cloudflarestorage.com", "r2.cloudflarestorage.com"),
        ("https://0123456789abcdef.EU.R2.cloudflarestorage.com./", "r2.cloudflarestorage.com"),
        ("https://s3.fr-par.scw.cloud", "scw.cloud"),
        ("https://notscw.cloud", None),
        ("https://s3.fr-par.scw.cloud.example.org", None),
        ("https://s3.eu-central-1.amazonaws.com", None),
        (None, None),
    ],
)
def test_the_endpoints_host_tells_the_traits(url: str | None, end: str | None) -> None:
    assert traits_of(url) == (KNOWN_STORES[end] if end else AMAZON)


def test_a_backend_has_the_given_traits_or_those_of_its_endpoint() -> None:
    session = boto3.Session("key", "secret", region_name="us-east-1")
    r2 = {"s3": "https://0123456789abcdef.r2.cloudflarestorage.com"}
    assert amistore.AWSBackend(session, endpoint_urls=r2).s3.traits.equal_parts
    few = StoreTraits(most_parts=5)
    assert amistore.AWSBackend(session, endpoint_urls=r2, traits=few).s3.traits == few
    assert amistore.AWSBackend(session).s3.traits == AMAZON
    with pytest.raises(InvalidValueError, match=r"AWSBackend\.traits takes StoreTraits"):
        amistore.AWSBackend(session, traits="r2")  # type: ignore[arg-type]
