"""R16: no secret of a backend is in a log, an error, a repr or the journal of tasks, whatever goes wrong."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from backends.aws import moves
from backends.aws.accounts import QUICK
from tasks.accounts import BUCKET, account

import amistore
from amistore import AWSBackend, DirectoryBackend, TaskEngine
from amistore.backends import Backend
from amistore.tasks import run
from amistore.testing.aws import FakeAWS

TOKEN = "canary-session-token"
SIGNATURE = "canary-signature"
PASSWORD = "canary-password"
KINDS = ("500", "throttle", "lost-reply", "short-body", "error-inside", "reset-before-answer")


class Told:
    """All that can be read of engines: collected while they work, and searched at the end."""

    def __init__(self, caplog: pytest.LogCaptureFixture, path: Path) -> None:
        caplog.set_level(logging.DEBUG)  # of the root, so botocore and urllib3 tell all they do
        self._caplog = caplog
        self._path = path
        self._texts: list[str] = []

    def call(self, engine: TaskEngine, call: Callable[..., Any], *arguments: object, **options: Any) -> Any:
        """Note the errors of a call, and what lies in the journal's files after it."""
        try:
            return call(*arguments, **options)
        except amistore.AmistoreError as error:
            self._texts += [repr(error), str(error), str(vars(error)), *traceback.format_exception(error)]
            return None
        finally:
            self._texts += map(
                repr, (engine, vars(engine), engine._runner, vars(engine._runner), engine.backend)
            )
            self._texts += map(
                repr, (engine.describe_store_image_tasks(), engine.describe_restore_image_tasks())
            )
            files = list(self._path.parent.glob(f"{self._path.name}*"))
            assert any(path.name.endswith("-wal") for path in files)
            self._texts += [path.read_bytes().decode("latin-1") for path in files if path.is_file()]

    def check(self, *secrets: str) -> None:
        formatter = logging.Formatter()
        texts = [*self._texts, self._caplog.text, *map(formatter.format, self._caplog.records)]
        assert len(texts) > 20
        for secret in secrets:
            told = [text[max(0, text.index(secret) - 200) :] for text in texts if secret in text]
            assert not told, told[0][:400]


def test_no_credential_is_told_while_tasks_go_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PAUSE", 0.0)
    told = Told(caplog, tmp_path / "tasks.db")
    with FakeAWS() as aws:
        credential = aws.add_credential(session_token=TOKEN)
        image_id = moves.add_ami(aws)
        options = aws.client_options(credential)
        url = options.pop("endpoint_url")
        cloud = AWSBackend(boto3.Session(**options), endpoint_urls={"ec2": url, "ebs": url}, retries=QUICK)
        store = DirectoryBackend(tmp_path / "cloud").s3
        store.create_bucket(BUCKET)
        for number, kind in enumerate(KINDS):
            aws.faults.add("*", kind, probability=0.02, seed=number)  # type: ignore[arg-type]
        backend = Backend(ebs=cloud.ebs, s3=store, ec2=cloud.ec2)
        with TaskEngine(backend, journal=tmp_path / "tasks.db") as engine:
            aws.faults.add("GetSnapshotBlock", "500", calls=range(5, 60))
            told.call(engine, engine.create_store_image_task, image_id=image_id, bucket=BUCKET)
            told.call(engine, engine.wait)
            aws.faults.clear()
            task = engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/again")
            told.call(engine, engine.wait, task)
            aws.faults.add("PutSnapshotBlock", "500", calls=range(5, 60))
            told.call(
                engine,
                engine.create_restore_image_task,
                bucket=BUCKET,
                object_key=task.object_key,
                name="web-2",
            )
            told.call(engine, engine.wait)
            aws.remove_credential(credential)
            told.call(
                engine,
                engine.create_restore_image_task,
                bucket=BUCKET,
                object_key=task.object_key,
                name="web-3",
            )
            told.call(engine, engine.sweep)
    told.check(TOKEN, credential.secret_access_key)


@pytest.mark.parametrize(
    "error",
    [
        OSError(f"Max retries exceeded with url: /key?X-Amz-Signature={SIGNATURE}&X-Amz-Expires=60"),
        amistore.BackendError(f"no answer from https://host/key?X-Amz-Signature={SIGNATURE}", retryable=True),
        amistore.BackendError(f"proxy http://user:{PASSWORD}@proxy:3128 refuses"),
        amistore.SourceChangedError(f"proxy http://user:{PASSWORD}@proxy:3128 has another object"),
    ],
)
def test_what_a_backends_error_says_of_a_signed_url_is_hidden(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal and the log outlive the error, and others read them."""
    monkeypatch.setattr(run, "_PAUSE", 0.0)
    caplog.set_level(logging.DEBUG)
    cloud, image_id = account()

    def upload_part(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(cloud.s3, "upload_part", upload_part)
    path = tmp_path / "tasks.db"
    with TaskEngine(cloud, journal=path) as engine:
        engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.AmistoreError, match=r"\*\*\*") as caught:
            engine.wait()
        (task,) = engine.describe_store_image_tasks()
        files = [each.read_bytes().decode("latin-1") for each in tmp_path.glob("tasks.db*") if each.is_file()]
    if isinstance(error, amistore.SourceChangedError):  # which is final, and noted
        assert "***" in str(task.failure_reason)
    for text in (str(caught.value), repr(task), caplog.text, *files):
        assert SIGNATURE not in text
        assert PASSWORD not in text
