"""A client whose every request and answer is held against botocore's own model of EC2."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any

import botocore.exceptions
import botocore.validate
import pytest
from tasks.accounts import BUCKET, registered
from testing.models import check_value, session

from amistore import DirectoryBackend, MemoryBackend
from amistore.backends import Backend
from amistore.ec2 import EC2Client


@functools.cache
def model(operation: str) -> Any:
    return session().get_service_model("ec2").operation_model(operation)


class CheckedClient(EC2Client):
    """Fails where a member of an answer is none of the operation's, or of another type."""

    def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        answer = super()._call(operation, parameters)
        report = botocore.validate.ParamValidator().validate(parameters, model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
        metadata = answer["ResponseMetadata"]
        assert metadata["HTTPStatusCode"] == 200
        assert metadata["RequestId"]
        members = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
        if model(operation).output_shape is None:
            assert members == {}
        else:
            check_value(operation, model(operation).output_shape, plain(members))
        return answer


def plain(value: Any) -> Any:
    """Times as the wire has them, so that only those with a time zone pass."""
    if isinstance(value, datetime.datetime):
        assert value.tzinfo is not None
        return value.timestamp()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def refused(call: Any, **parameters: Any) -> tuple[str, int]:
    """Code and status of the error that a call meets."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**parameters)
    response = caught.value.response
    assert str(caught.value).startswith(f"An error occurred ({response['Error']['Code']}) when calling the ")
    assert response["Error"]["Message"] in str(caught.value)
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def accounts(tmp_path: Path, kind: str) -> tuple[Backend, str]:
    """A backend with a bucket and an AMI."""
    cloud = MemoryBackend() if kind == "memory" else DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    return cloud, registered(cloud)
