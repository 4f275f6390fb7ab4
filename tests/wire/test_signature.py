"""Signature Version 4 by AWS's own examples, and with each part of a request changed."""

from __future__ import annotations

import contextlib
import datetime
from typing import Any

import attrs
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from amistore.wire.calls import Call
from amistore.wire.errors import ServiceError
from amistore.wire.signature import Signer, authenticate

NOW = datetime.datetime(2015, 8, 30, 12, 36, tzinfo=datetime.timezone.utc)
SIGNER = Signer(access_key_id="AKIDEXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")


def signed(service: str, names: str, signature: str, **changed: Any) -> Call:
    """A request of the examples, which are of one key and moment."""
    scope = f"AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request"
    headers = {
        "host": "example.amazonaws.com",
        "x-amz-date": "20150830T123600Z",
        "authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signature}",
        **changed.pop("headers", {}),
    }
    parts = {"method": "GET", "path": "/", "query": "", **changed}
    return Call(service=service, headers=headers, request_id="one", **parts)


def who(call: Call, now: datetime.datetime = NOW, signer: Signer = SIGNER) -> Signer:
    given = {signer.access_key_id: signer}
    return authenticate(call, given, region="us-east-1", now=now, real_now=now, maximum_skew=300)


@pytest.mark.parametrize(
    "example",
    [
        signed(
            "service",
            "host;x-amz-date",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        signed(
            "service",
            "host;x-amz-date",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            query="Param2=value2&Param1=value1",
        ),
        signed(
            "service",
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            method="POST",
        ),
        signed(
            "iam",
            "content-type;host;x-amz-date",
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            query="Action=ListUsers&Version=2010-05-08",
            headers={
                "host": "iam.amazonaws.com",
                "content-type": "application/x-www-form-urlencoded; charset=utf-8",
            },
        ),
    ],
)
def test_the_examples_of_aws_are_signed_by_their_key(example: Call) -> None:
    """AWS: "Signature Version 4 test suite" (get-vanilla and others); IAM user guide."""
    assert who(example) is SIGNER


@pytest.fixture(scope="module")
def call() -> Call:
    """A request of EC2 that botocore has signed, now."""
    request = botocore.awsrequest.AWSRequest(
        "POST",
        "http://127.0.0.1:1/a%20b?x=1&y=%2F",
        data=b"Action=DescribeImages",
        headers={"X-Amz-Target": "t"},
    )
    keys = botocore.credentials.Credentials(SIGNER.access_key_id, SIGNER.secret_access_key)
    botocore.auth.SigV4Auth(keys, "ec2", "us-east-1").add_auth(request)
    headers = {name.lower(): text for name, text in request.headers.items()}
    return Call(
        method="POST",
        path="/a%20b",
        query="x=1&y=%2F",
        headers={"host": "127.0.0.1:1", **headers},
        body=b"Action=DescribeImages",
        service="ec2",
        request_id="one",
    )


@pytest.mark.parametrize(
    ("part", "value", "code"),
    [
        ("method", "GET", "AuthFailure"),
        ("path", "/", "AuthFailure"),
        ("query", "x=1", "AuthFailure"),
        ("body", b"Action=DeregisterImage", "AuthFailure"),
        ("service", "ebs", "InvalidSignatureException"),
        ("headers", {"host": "localhost"}, "AuthFailure"),
        ("headers", {"x-amz-target": "another"}, "AuthFailure"),
        ("headers", {"x-amz-unsigned": "x"}, "AuthFailure"),
        ("headers", {"x-amz-security-token": "stolen"}, "AuthFailure"),
        ("headers", {"x-amz-date": "20150830T123600Z"}, "AuthFailure"),
        ("headers", {"x-amz-date": "yesterday"}, "IncompleteSignature"),
        ("headers", {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, "AuthFailure"),
        ("headers", {"authorization": "AWS4-HMAC-SHA256 x"}, "IncompleteSignature"),
        ("headers", {"authorization": ""}, "MissingAuthenticationToken"),
    ],
)
def test_a_request_that_was_changed_on_its_way_is_refused(
    call: Call, part: str, value: Any, code: str
) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    assert who(call, now) is SIGNER
    changed = {**call.headers, **value} if part == "headers" else value
    with pytest.raises(ServiceError) as caught:
        who(attrs.evolve(call, **{part: changed}), now)
    assert caught.value.code == code


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_signature_of_another_time_is_refused(call: Call, seconds: float) -> None:
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    with pytest.raises(ServiceError) as caught:
        who(call, now)
    assert caught.value.code == "RequestExpired"


def test_a_credential_signs_until_it_expires(call: Call) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    for seconds, refused in ((1, False), (0, True)):
        expires = now + datetime.timedelta(seconds=seconds)
        signer = attrs.evolve(SIGNER, expires=expires)
        with pytest.raises(ServiceError) if refused else contextlib.nullcontext():
            assert who(call, now, signer) is signer


@pytest.mark.parametrize("changed", [{"session_token": "not sent"}, {"secret_access_key": "another"}])
def test_a_token_that_is_not_sent_and_another_secret_are_refused(call: Call, changed: dict[str, str]) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    with pytest.raises(ServiceError) as caught:
        who(call, now, attrs.evolve(SIGNER, **changed))  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.status) == ("AuthFailure", 401)
