"""Where a connection may go to."""

from __future__ import annotations

import boto3
import pytest

import amistore
from amistore import AWSBackend


def session() -> boto3.Session:
    return boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-2")


@pytest.mark.parametrize("service", ["ebs", "ec2", "s3"])
@pytest.mark.parametrize(
    "url",
    [
        "http://objects.example.org",
        "http://192.168.1.7:9000",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "http://127.0.0.1@objects.example.org",
        "http://[2001:db8::1]:9000",
        "ftp://127.0.0.1",
        "127.0.0.1:9000",
        "",
    ],
)
def test_plain_http_is_refused_but_on_loopback(service: str, url: str) -> None:
    with pytest.raises(amistore.InvalidRequestError):
        AWSBackend(session(), endpoint_urls={service: url})


@pytest.mark.parametrize(
    "url",
    ["https://objects.example.org", "http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"],
)
def test_tls_to_anywhere_and_plain_http_to_this_machine_are_taken(url: str) -> None:
    AWSBackend(session(), endpoint_urls={"s3": url})
