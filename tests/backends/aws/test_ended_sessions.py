"""Credentials that cannot be renewed in the middle of a run: told by one class, and what was done stays."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import botocore.credentials
import botocore.exceptions as missing
import botocore.session
import images
import pytest
from backends.aws.cases import add_web, with_memory
from tasks.accounts import held

import amistore
from amistore import Backend, TaskEngine
from amistore.backends.aws.errors import aws_errors
from amistore.testing.aws import FakeAWS

BLOCKS = {index: images.block(index) for index in range(20)}
METADATA = missing.CredentialRetrievalError(provider="iam-role", error_msg="did not contain: access_key")
ENDED = [
    missing.UnauthorizedSSOTokenError(),
    missing.SSOTokenLoadError(error_msg="Token for https://sso does not exist"),
    missing.TokenRetrievalError(provider="sso", error_msg="Token has expired and refresh failed"),
    missing.RefreshWithMFAUnsupportedError(),
    missing.CredentialRetrievalError(provider="custom-process", error_msg="exit 1"),
    missing.CredentialRetrievalError(provider="assume-role", error_msg="did not contain: access_key"),
    *(
        getattr(missing, name)(error_msg="x")
        for name in ("LoginRefreshRequired", "LoginTokenLoadError")
        if hasattr(missing, name)  # botocore 1.41
    ),
]


@pytest.mark.parametrize("error", ENDED, ids=lambda error: type(error).__name__)
def test_a_session_that_has_ended_is_credentials_that_have(error: Exception) -> None:
    told = "renew the credentials"
    with pytest.raises(amistore.CredentialsExpiredError, match=told) as caught, aws_errors("head_object"):
        raise error
    assert not caught.value.retryable
    assert "exit 1" not in str(caught.value)  # a command's own words may be secret


@pytest.mark.parametrize("error", [METADATA, missing.MetadataRetrievalError(error_msg="timed out")])
def test_metadata_that_does_not_answer_is_asked_again(error: Exception) -> None:
    with pytest.raises(amistore.CredentialsExpiredError) as caught, aws_errors("get_snapshot_block"):
        raise error
    assert caught.value.retryable


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS() as fake:
        yield fake


def renewing(aws: FakeAWS, fail: Callable[[], None]) -> tuple[Backend, Callable[[], None]]:
    """A backend whose credentials are renewed by a function, and what ends them."""

    def renew() -> dict[str, str | None]:
        fail()
        later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        key = aws.credential
        return {
            "access_key": key.access_key_id,
            "secret_key": key.secret_access_key,
            "token": None,
            "expiry_time": later.isoformat(),
        }

    made = botocore.credentials.RefreshableCredentials.create_from_metadata
    credentials = made(metadata=renew(), refresh_using=renew, method="sso")
    session = botocore.session.get_session()
    session._credentials = credentials

    def end() -> None:
        credentials._expiry_time = datetime.datetime.now(datetime.timezone.utc)

    return with_memory(aws, boto3.Session(botocore_session=session, region_name=aws.region)), end


def test_a_task_whose_session_ends_stays_and_goes_on_after_a_login(aws: FakeAWS, tmp_path: Path) -> None:
    ended: list[Exception] = []

    def fail() -> None:
        if ended:
            raise ended[0]

    cloud, end = renewing(aws, fail)
    with TaskEngine(cloud, journal=tmp_path / "tasks.db") as engine:
        with held(cloud.s3, "create_multipart_upload") as reached:
            task = engine.create_store_image_task(image_id=add_web(aws, BLOCKS), bucket="archive")
            assert reached.wait(60)
            ended.append(missing.UnauthorizedSSOTokenError())
            end()
        with pytest.raises(amistore.CredentialsExpiredError, match="run aws sso login"):
            engine.wait(task)
        assert engine.describe_store_image_tasks()[0].state == "InProgress"
        ended.clear()
        engine.resume()
        assert engine.wait(task).state == "Completed"


def test_a_task_goes_on_when_the_metadata_service_answers_again(aws: FakeAWS, tmp_path: Path) -> None:
    failing: list[Exception] = []

    def fail() -> None:
        if failing:
            raise failing.pop()

    cloud, end = renewing(aws, fail)
    with TaskEngine(cloud, journal=tmp_path / "tasks.db", workers=1) as engine:
        with held(cloud.s3, "create_multipart_upload") as reached:
            task = engine.create_store_image_task(image_id=add_web(aws, BLOCKS), bucket="archive")
            assert reached.wait(60)
            failing += [METADATA, METADATA]
            end()
        assert engine.wait(task).state == "Completed"
    assert not failing


def test_a_machine_that_has_no_credentials_yet_is_asked_again_for_them(
    aws: FakeAWS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one that is starting, whose metadata service does not answer yet."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    cloud, image_id = with_memory(aws, boto3.Session(region_name=aws.region)), add_web(aws, BLOCKS)
    with pytest.raises(amistore.AccessDeniedError, match="no credentials"):
        cloud.ec2.describe_image(image_id)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", aws.credential.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws.credential.secret_access_key)
    assert cloud.ec2.describe_image(image_id).image_id == image_id
