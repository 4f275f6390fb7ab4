"""What the log says of tasks: one line for each change of state, with the task's id."""

from __future__ import annotations

import logging

import pytest
from tasks.accounts import BUCKET, account, held

import amistore
from amistore import TaskEngine


def told(caplog: pytest.LogCaptureFixture, task_id: str) -> list[tuple[str, str]]:
    """Level and state of each line about a task."""
    records = [each for each in caplog.records if getattr(each, "task_id", None) == task_id]
    for record in records:
        assert record.getMessage().startswith(f"{task_id}: {record.task_state}")
        assert "\n" not in record.getMessage()
    return [(record.levelname, record.task_state) for record in records]


def test_a_task_is_told_from_its_creation_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "amistore")
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
    assert told(caplog, task.task_id) == [("INFO", "queued"), ("INFO", "running"), ("INFO", "completed")]
    assert f"queued: {image_id} to {BUCKET}/{image_id}.bin" in caplog.text
    assert f"content id {task.content_id}" in caplog.text


def test_a_task_that_is_cancelled_is_told_failed_and_cleaned_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "amistore")
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            engine.cancel(task)
        with pytest.raises(amistore.TaskFailedError):
            engine.wait(task)
    assert told(caplog, task.task_id) == [
        ("INFO", "queued"),
        ("INFO", "running"),
        ("INFO", "cancelled"),
        ("INFO", "cleaned up"),
    ]


def test_a_task_that_was_left_is_told_stopped_and_taken_over(
    caplog: pytest.LogCaptureFixture, tmp_path
) -> None:
    caplog.set_level(logging.INFO, "amistore")
    cloud, image_id = account()
    journal = tmp_path / "tasks.db"
    engine = TaskEngine(cloud, journal=journal)
    with held(cloud.ebs, "get_snapshot_block") as reached:
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert reached.wait(60)
        engine._runner._closing = True
    engine.close()
    with TaskEngine(cloud, journal=journal) as engine:
        engine.wait(task)
    assert told(caplog, task.task_id) == [
        ("INFO", "queued"),
        ("INFO", "running"),
        ("INFO", "stopped"),
        ("INFO", "taken over"),
        ("INFO", "running"),
        ("INFO", "completed"),
    ]
