"""The fake and clients of it, for the tests of this folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

from amistore.testing.aws import FakeAWS

if importlib.util.find_spec("boto3") is None and not os.environ.get("AMISTORE_REQUIRE_TOOLS"):
    collect_ignore_glob = ["test_fake_aws_*"]


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS() as fake:
        yield fake


@pytest.fixture
def ebs(aws: FakeAWS) -> Iterator[Any]:
    yield from opened(aws, "ebs")


@pytest.fixture
def ec2(aws: FakeAWS) -> Iterator[Any]:
    yield from opened(aws, "ec2")


def opened(aws: FakeAWS, service: str) -> Iterator[Any]:
    from testing.models import client  # boto3 may be missing

    made = client(aws, service)
    yield made
    made.close()
