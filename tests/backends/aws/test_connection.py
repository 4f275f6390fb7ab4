"""Where a connection may go to."""

from __future__ import annotations

import socket
from collections.abc import Callable

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


@pytest.mark.parametrize("url", ["https://example.org/?token=canary", "https://user:canary@example.org"])
def test_an_endpoint_with_a_secret_is_refused_and_not_told(url: str) -> None:
    with pytest.raises(amistore.InvalidRequestError) as caught:
        AWSBackend(session(), endpoint_urls={"s3": url})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda cloud: cloud.ec2.describe_images(),
        lambda cloud: cloud.ebs.get_snapshot_block("snap-0123456789abcdef0", 0, "token"),
        lambda cloud: cloud.s3.head_bucket("bucket"),
    ],
    ids=["ec2", "ebs", "s3"],
)
def test_an_endpoint_that_cannot_be_reached_is_named(
    call: Callable[[AWSBackend], object],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    urls = dict.fromkeys(("ec2", "ebs", "s3"), f"http://{host}/path")
    cloud = AWSBackend(session(), endpoint_urls=urls, retries=amistore.RetryPolicy(attempts=1))
    with pytest.raises(amistore.BackendError, match=f"the connection to http://{host} failed: "):
        call(cloud)
