"""What is left unfinished: told where it is left, where it is waited for, and kept where room is missing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tasks.accounts import BUCKET, account, held, registered, snapshots, stored

import amistore
from amistore import DirectoryBackend, TaskEngine
from amistore.tasks.task import TaskPage


def left(cloud: DirectoryBackend) -> amistore.StoreImageTask:
    """A task whose engine was closed in the middle of it."""
    engine = TaskEngine(cloud)
    with held(type(cloud.ebs), "get_snapshot_block") as reached:
        task = engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
        assert reached.wait(60)
        engine._runner._closing = True
    engine.close()
    return task


@pytest.fixture
def cloud(tmp_path: Path) -> DirectoryBackend:
    made = DirectoryBackend(tmp_path / "cloud")
    made.s3.create_bucket(BUCKET)
    return made


def test_closing_tells_which_tasks_are_unfinished(
    cloud: DirectoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    task = left(cloud)
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warnings == [f"unfinished; resume() continues: {task.task_id}"]


def test_waiting_for_all_tells_of_tasks_that_nobody_works_on(
    cloud: DirectoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    task = left(cloud)
    caplog.clear()
    with TaskEngine(cloud) as engine:
        assert engine.wait() == ()
        assert f"no engine runs these tasks; resume() continues them: {task.task_id}" in caplog.text
        caplog.clear()
        engine.resume()
        engine.wait()
        engine.wait()
    assert "nobody works" not in caplog.text


def test_a_failure_is_told_once_and_what_succeeds_beside_it_is_given() -> None:
    cloud, image_id = account()
    other = registered(cloud, "other")
    with TaskEngine(cloud, concurrency=1) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            first = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            engine.cancel(first)
            second = engine.create_store_image_task(image_id=other, bucket=BUCKET)
        with pytest.raises(amistore.TaskFailedError):
            engine.wait()
        assert [task.task_id for task in engine.wait()] == [second.task_id]


def test_a_failure_that_was_told_by_its_task_is_not_told_again_and_a_new_task_is_waited_for() -> None:
    cloud, image_id = account()
    other = registered(cloud, "other")
    with TaskEngine(cloud, concurrency=1) as engine:
        with held(cloud.ebs, "get_snapshot_block") as reached:
            first = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            engine.cancel(first)
        made: list[amistore.tasks.Task] = []

        def create(task: amistore.tasks.Task) -> None:
            if task.state == "Failed" and not made:
                made.append(engine.create_store_image_task(image_id=other, bucket=BUCKET))

        with pytest.raises(amistore.TaskFailedError):
            engine.wait(first, progress=create)
        assert [task.task_id for task in engine.wait()] == [made[0].task_id]


def test_a_task_without_room_is_kept_and_gone_on_with_when_there_is_some() -> None:
    cloud, image_id = account()
    upload_part = cloud.s3.upload_part

    def full(*arguments: object, **options: object) -> object:
        raise amistore.StorageFullError("no room")

    with TaskEngine(cloud) as engine:
        cloud.s3.upload_part = full
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.StorageFullError):
            engine.wait(task)
        assert engine.describe_store_image_tasks()[0].state == "InProgress"
        cloud.s3.upload_part = upload_part
        assert [each.task_id for each in engine.resume()] == [task.task_id]
        assert engine.wait(task).state == "Completed"


def test_a_task_without_room_can_be_given_up() -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    before = snapshots(cloud)

    def full(*arguments: object, **options: object) -> object:
        raise amistore.StorageFullError("no room")

    with TaskEngine(cloud) as engine:
        cloud.ebs.put_snapshot_block = full
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        with pytest.raises(amistore.StorageFullError):
            engine.wait(task)
        engine.cancel(task)
        with pytest.raises(amistore.TaskFailedError, match="cancelled"):
            engine.wait(task)
    assert snapshots(cloud) == before


def test_a_restore_whose_name_was_taken_while_it_was_left_fails_before_more_is_put(
    cloud: DirectoryBackend,
) -> None:
    key = stored(cloud, registered(cloud))
    engine = TaskEngine(cloud, workers=1)
    with held(type(cloud.ebs), "put_snapshot_block") as reached:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        assert reached.wait(60)
        engine._runner._closing = True
    engine.close()
    registered(cloud, "web-2")
    with TaskEngine(cloud) as engine, held(type(cloud.ebs), "put_snapshot_block") as reached:
        with pytest.raises(amistore.TaskFailedError, match="an image named 'web-2' exists"):
            engine.wait(task)
        assert not reached.is_set()


def test_a_task_prints_as_a_line_and_a_page_as_lines() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud, clock=lambda: 1_700_000_000.0) as engine:
        engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        page = engine.describe_store_image_tasks()
        restore = engine.create_restore_image_task(bucket=BUCKET, object_key=f"{image_id}.bin", name="a[b]")
        engine.wait()
    told = f"{image_id} to {BUCKET}/{image_id}.bin"
    line = f"{page[0].task_id:25}  2023-11-14 22:13:20Z  100 %  Completed   {told}"
    assert str(page) == str(page[0]) == line
    assert page[0].image_id == image_id
    assert str(TaskPage(page.tasks, "token")).endswith("\nand more: next_token asks for them")
    assert "&#x27;a[b]&#x27;" in TaskPage((restore,))._repr_html_()
    assert "'a[b]'" in str(restore)


def test_tags_of_a_specification_may_be_a_mapping() -> None:
    given = amistore.TagSpecification(resource_type="image", tags={"team": "images"})
    assert given.tags == (amistore.Tag(key="team", value="images"),)
