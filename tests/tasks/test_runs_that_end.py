"""How a task's run ends when something else than the task itself goes wrong."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from tasks.accounts import BUCKET, DISKS, account, disks, held, snapshots, stored

import amistore
from amistore import TaskEngine
from amistore.tasks import runner
from amistore.tasks.journal import Journal
from amistore.testing import FaultyBackend


def test_a_cancelled_task_that_cannot_be_asked_after_stays_and_is_cancelled_later() -> None:
    cloud, image_id = account()
    faulty = FaultyBackend(cloud)
    with TaskEngine(faulty, concurrency=1) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            faulty.add_fault("head_object", "refusal")
            engine.cancel(task)
        with pytest.raises(amistore.AccessDeniedError):
            engine.wait(task)
        assert engine.describe_store_image_tasks()[0].state == "InProgress"
        faulty.clear_faults()
        with pytest.raises(amistore.TaskFailedError, match="cancelled"):
            engine.wait(engine.resume()[0])
        assert cloud.s3.list_multipart_uploads(BUCKET) == []
        # The thread that worked on it still works.
        assert engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).state


def test_a_restore_whose_image_is_there_when_registering_fails_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An owner that was stopped and goes on may be faster by that one call."""
    monkeypatch.setattr(runner, "_PAUSE", 0.0)
    cloud, image_id = account()
    key = stored(cloud, image_id)
    before = snapshots(cloud)
    register = cloud.ec2.register_image

    def beaten(*arguments: Any, **options: Any) -> str:
        register(*arguments, **options)
        raise amistore.AlreadyExistsError("the name is taken")

    monkeypatch.setattr(cloud.ec2, "register_image", beaten)
    with TaskEngine(cloud) as engine:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        assert engine.wait(task).image_id == task.image_id
    assert disks(cloud, str(task.image_id)) == DISKS
    assert len(snapshots(cloud) - before) == len(DISKS)


def test_a_task_that_is_created_while_leases_are_renewed_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "_HEARTBEAT", 0.01)
    caplog.set_level(logging.INFO)
    renewed, created, again = threading.Event(), threading.Event(), threading.Event()
    renew = Journal.renew

    def slow(*arguments: Any) -> Any:
        found = renew(*arguments)
        if not renewed.is_set():
            renewed.set()
            assert created.wait(60)
        else:
            again.set()
        return found

    monkeypatch.setattr(Journal, "renew", slow)
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        assert renewed.wait(60)
        with held(cloud.ebs, "get_snapshot_block") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/two")
            assert reached.wait(60)
            created.set()
            assert again.wait(60)
        assert engine.wait(task).state == "Completed"
    assert "lease" not in caplog.text
