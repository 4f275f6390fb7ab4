"""Public stores are known by the host of their endpoint."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

import amistore
from amistore.backends import STORES, StoreTraits
from amistore.backends.stores import traits_of
from amistore.backends.traits import AMAZON
from amistore.errors import InvalidValueError


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://0123456789abcdef.r2.cloudflarestorage.com", "cloudflare-r2"),
        ("https://0123456789abcdef.EU.R2.cloudflarestorage.com./", "cloudflare-r2"),
        ("https://storage.googleapis.com", "google-cloud-storage"),
        ("https://storage.europe-west3.rep.googleapis.com", "google-cloud-storage"),
        ("https://s3.us-east-005.backblazeb2.com", "backblaze-b2"),
        ("https://s3.fr-par.scw.cloud", "scaleway"),
        ("https://s3.eu-central-1.s4.mega.io", "mega-s4"),
        ("https://s3.eu-luxembourg-1.megas4.com", "mega-s4"),
        ("https://oss-cn-hangzhou.aliyuncs.com", "alibaba-oss"),
        ("https://s3.eu-de.cloud-object-storage.appdomain.cloud", "ibm-cos"),
        ("https://s3.eu-central-1.wasabisys.com", "wasabi"),
        ("https://notscw.cloud", "amazon-s3"),
        ("https://s3.fr-par.scw.cloud.example.org", "amazon-s3"),
        ("https://s3.eu-central-1.amazonaws.com", "amazon-s3"),
        (None, "amazon-s3"),
    ],
)
def test_the_endpoints_host_tells_the_traits(url: str | None, name: str) -> None:
    assert traits_of(url) == STORES[name]


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_an_endpoint_of_the_environment_tells_them_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = boto3.Session("key", "secret", region_name="us-east-1")
    assert amistore.AWSBackend(session).s3.where == "S3 us-east-1"
    monkeypatch.setenv(name, "https://storage.googleapis.com")
    google = amistore.AWSBackend(session).s3
    assert google.traits == STORES["google-cloud-storage"]
    assert google.where == "S3 https://storage.googleapis.com"  # a log of it belongs to no other store


@pytest.mark.parametrize(
    "url", ["https://s3.us-east-1.amazonaws.com.example.org", "https://example.org/s3.amazonaws.com"]
)
def test_an_endpoint_that_has_amazons_name_in_it_is_another_store(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    session = boto3.Session("key", "secret", region_name="us-east-1")
    assert amistore.AWSBackend(session).s3.where == f"S3 {url}"


def test_an_endpoint_of_the_profile_tells_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        "[profile r2]\nregion = auto\nservices = r2\n"
        "aws_access_key_id = key\naws_secret_access_key = secret\n"
        "[services r2]\ns3 =\n  endpoint_url = https://0123.r2.cloudflarestorage.com\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    backend = amistore.AWSBackend(profile_name="r2")
    assert backend.s3.traits == STORES["cloudflare-r2"]


def test_a_backend_has_the_given_traits_or_those_of_its_endpoint() -> None:
    session = boto3.Session("key", "secret", region_name="us-east-1")
    r2 = {"s3": "https://0123456789abcdef.r2.cloudflarestorage.com"}
    assert amistore.AWSBackend(session, endpoint_urls=r2).s3.traits.equal_parts
    few = StoreTraits(most_parts=5)
    assert amistore.AWSBackend(session, endpoint_urls=r2, traits=few).s3.traits == few
    assert amistore.AWSBackend(session).s3.traits == AMAZON
    with pytest.raises(InvalidValueError, match=r"AWSBackend\.traits takes StoreTraits"):
        amistore.AWSBackend(session, traits="r2")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match=r"give amistore\.backends\.STORES\['garage'\]"):
        amistore.AWSBackend(session, traits="garage")  # type: ignore[arg-type]
    for wrong in ({}, [], 7):
        with pytest.raises(InvalidValueError, match=r"AWSBackend\.traits takes StoreTraits"):
            amistore.AWSBackend(session, traits=wrong)  # type: ignore[arg-type]
