"""A signature that came late is made afresh; a clock that is wrong is told, and a task waits for it."""

from __future__ import annotations

import datetime
import email.utils
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import botocore.auth
import images
import pytest
from backends.aws.accounts import QUICK
from backends.aws.cases import add_web, with_memory
from backends.aws.conftest import connect
from backends.aws.proxy import Answer, fault_proxy
from tasks.accounts import held

import amistore
from amistore import TaskEngine
from amistore.backends.aws.errors import service_error
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.testing.aws import FakeAWS
from amistore.testing.aws.faults import FaultKind
from amistore.wire.errors import ServiceError

BLOCKS = {index: images.block(index) for index in range(20)}


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS() as fake:
        yield fake


def test_one_late_signature_of_each_operation_ends_no_task(aws: FakeAWS, tmp_path: Path) -> None:
    assert "late-signature" in get_args(FaultKind)
    operations = (
        *("DescribeImages", "DescribeSnapshots", "ListSnapshotBlocks", "GetSnapshotBlock"),
        *("StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "RegisterImage"),
    )
    rules = [aws.faults.add(each, "late-signature", times=1) for each in operations]
    cloud, image_id = with_memory(aws), add_web(aws, BLOCKS)
    with TaskEngine(cloud, journal=tmp_path / "tasks.db") as engine:
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket="archive"))
        place: dict[str, Any] = {"bucket": "archive", "object_key": task.object_key, "name": "web-2"}
        restored = engine.wait(engine.create_restore_image_task(**place))
    assert [rule.fired for rule in rules] == [1] * len(rules)
    (snapshot_id,) = cloud.ec2.describe_image(str(restored.image_id)).snapshot_ids
    assert aws.read_snapshot(snapshot_id) == BLOCKS


@pytest.mark.parametrize(("minutes", "told"), [(17, "17 minutes behind"), (-61, "61 minutes ahead of")])
def test_a_wrong_clock_is_told_with_both_times_at_once_and_the_task_goes_on_when_it_is_mended(
    aws: FakeAWS, tmp_path: Path, minutes: int, told: str
) -> None:
    cloud, image_id = with_memory(aws), add_web(aws, BLOCKS)
    with TaskEngine(cloud, journal=tmp_path / "tasks.db") as engine:
        with held(cloud.s3, "create_multipart_upload") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket="archive")
            assert reached.wait(60)
            aws.behaviour.seconds_ahead = 60 * minutes
        with pytest.raises(
            amistore.CredentialsExpiredError, match=f"clock is {told} the service's"
        ) as caught:
            engine.wait(task)
        assert caught.value.attempts == 1
        times = [time.strftime("%Y-%m-%d", time.gmtime(time.time() + add)) for add in (0, 60 * minutes)]
        assert all(each in str(caught.value) for each in times)
        assert engine.describe_store_image_tasks()[0].state == "InProgress"
        assert len(cloud.s3.list_multipart_uploads("archive")) == 1
        aws.behaviour.seconds_ahead = 0
        engine.resume()
        assert engine.wait(task).state == "Completed"


def test_a_wrong_clock_is_told_of_a_block_too(aws: FakeAWS) -> None:
    cloud, image_id = with_memory(aws), add_web(aws, BLOCKS)
    (snapshot_id,) = cloud.ec2.describe_image(image_id).snapshot_ids
    token = cloud.ebs.list_snapshot_blocks(snapshot_id).blocks[0].block_token
    aws.behaviour.seconds_ahead = 1200
    with pytest.raises(amistore.CredentialsExpiredError, match="clock is 20 minutes behind"):
        cloud.ebs.get_snapshot_block(snapshot_id, 0, token)


@pytest.mark.parametrize("attempts_at", ["EBS", "EC2"])
def test_signatures_that_are_always_late_leave_the_task_unfinished(
    aws: FakeAWS, tmp_path: Path, attempts_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As parts are on a line so slow that S3 has them a quarter of an hour after they were signed."""
    monkeypatch.setattr("amistore.tasks.run._PAUSE", 0.0)
    cloud, image_id = with_memory(aws), add_web(aws, BLOCKS)
    with TaskEngine(cloud, journal=tmp_path / "tasks.db") as engine:
        with held(cloud.s3, "create_multipart_upload") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket="archive")
            assert reached.wait(60)
            aws.faults.add("GetSnapshotBlock", "late-signature")
            if attempts_at == "EC2":  # met by the task's second run
                aws.faults.add("DescribeImages", "late-signature")
        with pytest.raises(amistore.BackendError, match=r"Signature expired|RequestExpired") as caught:
            engine.wait(task)
        assert caught.value.attempts == QUICK.attempts
        aws.faults.clear()
        engine.resume()
        assert engine.wait(task).state == "Completed"


EXPIRED = amistore.CredentialsExpiredError


@pytest.mark.parametrize(
    ("code", "message", "kind", "retryable"),
    [
        ("RequestTimeTooSkewed", "The difference is too large.", amistore.BackendError, True),
        ("RequestInTheFuture", "", amistore.BackendError, True),
        ("InvalidSignatureException", "Signature expired: 1 is now earlier", amistore.BackendError, True),
        ("SignatureDoesNotMatch", "Signature not yet current: 1", amistore.BackendError, True),
        ("RequestExpired", "Request has expired.", EXPIRED, True),
        ("ExpiredToken", "The provided token has expired.", EXPIRED, True),
        ("SignatureDoesNotMatch", "The signature we calculated", amistore.AccessDeniedError, False),
        ("InvalidSignatureException", "The signature we calculated", amistore.AccessDeniedError, False),
        ("AuthFailure", "AWS was not able to validate", amistore.AccessDeniedError, False),
        ("403", "", amistore.AccessDeniedError, False),
    ],
)
def test_what_says_that_a_signature_is_late_is_told_from_a_wrong_one(
    code: str, message: str, kind: type[amistore.BackendError], retryable: bool
) -> None:
    now = email.utils.formatdate(time.time(), usegmt=True)
    refused = ServiceError(code, message, status=403)
    found = cast(amistore.BackendError, service_error(refused, "upload_part", date=now))
    assert (type(found), found.retryable) == (kind, retryable)
    assert "clock is" not in str(found).replace("a clock is wrong", "")
    then = email.utils.formatdate(time.time() + 3600, usegmt=True)
    wrong = cast(amistore.BackendError, service_error(refused, "upload_part", date=then))
    assert not wrong.retryable
    assert isinstance(wrong, EXPIRED if retryable else amistore.AccessDeniedError)
    assert "this machine's clock is 60 minutes behind the service's" in str(wrong)
    assert str(pickle.loads(pickle.dumps(wrong))) == str(wrong)


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_an_answer_without_a_date_says_nothing_of_the_clock(date: str) -> None:
    found = service_error(ServiceError("RequestTimeTooSkewed", "", status=403), "upload_part", date=date)
    assert cast(amistore.BackendError, found).retryable


def test_a_permission_that_is_missing_is_no_matter_of_the_clock() -> None:
    then = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert "clock" not in str(
        service_error(ServiceError("AccessDenied", "no such right", status=403), "head_object", date=then)
    )


def test_a_refusal_of_what_was_signed_long_ago_is_tried_again_also_where_it_has_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S3 has no text for HEAD."""
    now, signed = botocore.auth.get_current_datetime, []

    def late_once(*given: Any, **named: Any) -> datetime.datetime:
        signed.append(1)
        return now(*given, **named) - datetime.timedelta(minutes=6 if len(signed) == 1 else 0)

    monkeypatch.setattr(botocore.auth, "get_current_datetime", late_once)
    with fault_proxy(None) as proxy:
        store = AWSObjectStore(connect(proxy.url))
        proxy.fail("head_object", Answer(status=403))
        proxy.fail("head_object", Answer(headers={"ETag": '"one"'}), nth=2)
        proxy.fail("head_object", Answer(status=403), nth=3)
        with pytest.raises(amistore.BackendError, match="came too late") as late:
            store.head_object("bucket", "key")
        assert (type(late.value), late.value.retryable) == (amistore.BackendError, True)
        assert store.head_object("bucket", "key").etag == "one"
        with pytest.raises(amistore.AccessDeniedError):
            store.head_object("bucket", "key")
