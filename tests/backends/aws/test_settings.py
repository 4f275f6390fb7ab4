"""What AWSBackend is given is looked at when it is made, and not when it is used hours later."""

from __future__ import annotations

from typing import Any

import boto3
import pytest

import amistore
from amistore import InvalidRequestError, InvalidValueError, RetryPolicy, SnapshotSettings

ARN = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-00000000aeb5"


@pytest.mark.parametrize(
    ("name", "given", "refused"),
    [
        ("session", {"aws_access_key_id": "key"}, {"aws_access_key_id": "key"}),
        ("region_name", 5, 5),
        ("region_name", "us east 1", "us east 1"),
        ("region_name", "evil.example/", "evil.example/"),
        ("profile_name", "", ""),
        ("profile_name", 5, 5),
        ("requester_pays", "yes", "yes"),
        ("endpoint_urls", "https://s3.example.org", "https://s3.example.org"),
        ("endpoint_urls", {"s3": None}, None),
        ("endpoint_urls", {"s3": 5}, 5),
        ("objects", {"tags": {}}, {"tags": {}}),
        ("snapshots", True, True),
        ("retries", 3, 3),
        ("image_tags", {"a": "b"}, "a"),
        ("image_tags", 5, 5),
        ("image_tags", [("a", "b")], ("a", "b")),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_with_its_name_and_value(
    name: str, given: object, refused: object
) -> None:
    arguments: dict[str, Any] = {"session": boto3.Session(region_name="us-east-1"), name: given}
    with pytest.raises(InvalidValueError, match=f"AWSBackend.{name} ") as raised:
        amistore.AWSBackend(**arguments)
    assert raised.value.field == f"AWSBackend.{name}"
    assert raised.value.value == refused


@pytest.mark.parametrize(
    "url", ["", "s3.example.org", "https://", "https://host:port", "http://[::1", "https://[", "//host"]
)
def test_an_endpoint_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="endpoint"):
        amistore.AWSBackend(region_name="us-east-1", endpoint_urls={"s3": url})


@pytest.mark.parametrize(
    ("given", "name", "refused"),
    [
        ({"encrypted": "yes"}, "encrypted", "yes"),
        ({"kms_key_arn": 5}, "kms_key_arn", 5),
        ({"kms_key_arn": ""}, "kms_key_arn", ""),
        ({"kms_key_arn": ARN, "encrypted": False}, "kms_key_arn", ARN),
        ({"tags": 5}, "tags", 5),
        ({"tags": {"a": "b"}}, "tags", {"a": "b"}),
        ({"tags": [amistore.Tag(key="a", value="1"), amistore.Tag(key="a", value="2")]}, "tags", "a"),
    ],
    ids=str,
)
def test_a_wrong_setting_of_snapshots_is_refused_with_its_name_and_value(
    given: dict[str, Any], name: str, refused: object
) -> None:
    with pytest.raises(InvalidValueError, match=rf"SnapshotSettings\.{name} ") as raised:
        SnapshotSettings(**given)
    assert raised.value.field == f"SnapshotSettings.{name}"
    assert raised.value.value == refused


@pytest.mark.parametrize(
    "given",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"attempts": True},
        {"base_delay": -1},
        {"max_delay": "1"},
        {"operation_limit": 0.0},
        {"operation_limit": float("nan")},
        {"budget": None},
    ],
    ids=str,
)
def test_a_wrong_limit_of_retries_is_refused_with_its_name_and_value(given: dict[str, Any]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(
        InvalidValueError, match=f"RetryPolicy.{name} must be a.* number from .* on"
    ) as raised:
        RetryPolicy(**given)
    assert raised.value.field == f"RetryPolicy.{name}"
    assert raised.value.value is value


def test_settings_that_are_right_are_taken() -> None:
    tags = [amistore.Tag(key="b", value="1"), amistore.Tag(key="a", value="2")]
    assert len(SnapshotSettings(kms_key_arn=ARN, tags=iter(tags)).tags) == 2
    assert RetryPolicy(attempts=1, operation_limit=float("inf"), base_delay=0).attempts == 1
    amistore.AWSBackend(region_name="us-gov-east-1", image_tags=iter(tags), retries=RetryPolicy())
