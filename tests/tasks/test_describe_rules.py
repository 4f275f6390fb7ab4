"""What EC2's guide and API reference say of DescribeStoreImageTasks, rule by rule."""

from __future__ import annotations

import datetime

import pytest
from tasks.accounts import BUCKET, account, held, registered

import amistore
from amistore import MemoryBackend, TaskEngine

DAY = 86_400.0


class Clock:
    """Seconds since 1970, as they are set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def stores(cloud: MemoryBackend, engine: TaskEngine, count: int) -> list[str]:
    """Ids of completed store tasks of as many AMIs, oldest first."""
    ids = [registered(cloud, f"image-{number}") for number in range(count)]
    tasks = [engine.create_store_image_task(image_id=each, bucket=BUCKET) for each in ids]
    engine.wait()
    return [task.task_id for task in tasks]


def test_members_are_those_of_ec2_and_the_start_is_in_utc_by_the_millisecond() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud, clock=lambda: 1_609_463_261.0019) as engine:
        engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        (task,) = engine.describe_store_image_tasks()
    assert task.ami_id == image_id
    assert task.bucket == BUCKET
    assert task.s3_object_key == f"{image_id}.bin"
    assert task.progress_percentage == 100
    assert task.store_task_state == "Completed"
    assert task.store_task_failure_reason is None
    utc = datetime.timezone.utc
    assert task.task_start_time == datetime.datetime(2021, 1, 1, 1, 7, 41, 1000, tzinfo=utc)


def test_a_task_in_progress_tells_its_percentage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amistore.tasks.run._REPORT", 0.0)
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.s3, "complete_multipart_upload") as reached:
            engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            (task,) = engine.describe_store_image_tasks()
            assert task.state == "InProgress"
            assert task.progress_percentage == 99  # the object is not there yet
        engine.wait()


def test_the_newest_comes_first_also_where_clocks_were_set_back() -> None:
    cloud, _ = account()
    clock = Clock()
    with TaskEngine(cloud, clock=clock) as engine:
        first = stores(cloud, engine, 1)
        clock.now -= 3600
        cloud.ec2.deregister_image(
            next(i.image_id for i in cloud.ec2.describe_images() if i.name == "image-0")
        )
        second = stores(cloud, engine, 1)
        found = [task.task_id for task in engine.describe_store_image_tasks()]
    assert found == [*second, *first]


def test_tasks_of_the_last_31_days_are_told_and_older_ones_not() -> None:
    cloud, _ = account()
    clock = Clock()
    with TaskEngine(cloud, clock=clock) as engine:
        (task_id,) = stores(cloud, engine, 1)
        clock.now += 31 * DAY
        assert [task.task_id for task in engine.describe_store_image_tasks()] == [task_id]
        clock.now += 0.001
        assert len(engine.describe_store_image_tasks()) == 0


def test_a_sweep_forgets_tasks_that_are_not_told_any_more() -> None:
    cloud, _ = account()
    clock = Clock()
    with TaskEngine(cloud, clock=clock) as engine:
        (task_id,) = stores(cloud, engine, 1)
        engine.sweep()
        assert engine.wait(task_id).state == "Completed"
        clock.now += 32 * DAY
        engine.sweep()
        with pytest.raises(amistore.InvalidRequestError, match="no task"):
            engine.wait(task_id)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 200])
def test_pages_together_are_the_list_while_tasks_are_added(size: int) -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        wanted = stores(cloud, engine, 7)[::-1]
        page = engine.describe_store_image_tasks(max_results=size)
        found = [task.task_id for task in page]
        assert len(page) <= size
        engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        while page.next_token is not None:
            page = engine.describe_store_image_tasks(max_results=size, next_token=page.next_token)
            assert 1 <= len(page) <= size
            found += [task.task_id for task in page]
    assert found == wanted


def test_a_task_does_not_fall_out_between_two_pages() -> None:
    cloud, _ = account()
    clock = Clock()
    with TaskEngine(cloud, clock=clock) as engine:
        wanted = stores(cloud, engine, 3)[::-1]
        clock.now += 31 * DAY
        page = engine.describe_store_image_tasks(max_results=2)
        clock.now += 60
        rest = engine.describe_store_image_tasks(max_results=2, next_token=page.next_token)
    assert [task.task_id for task in (*page, *rest)] == wanted


def test_filters_of_state_and_bucket_choose_and_all_must_hold() -> None:
    cloud, image_id = account()
    cloud.s3.create_bucket("other")
    with TaskEngine(cloud) as engine:
        done = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).task_id
        other = registered(cloud, "other")
        with held(cloud.s3, "upload_part") as reached:
            running = engine.create_store_image_task(image_id=other, bucket="other").task_id
            assert reached.wait(60)

            def found(**filters: list[str]) -> list[str]:
                named = {name.replace("_", "-"): values for name, values in filters.items()}
                return [task.task_id for task in engine.describe_store_image_tasks(filters=named)]

            assert found(task_state=["Completed"]) == [done]
            assert found(task_state=["InProgress"]) == [running]
            assert found(task_state=["InProgress", "Completed"]) == [running, done]
            assert found(task_state=["Failed"]) == []
            assert found(bucket=["other"]) == [running]
            assert found(bucket=["other", BUCKET]) == [running, done]
            assert found(bucket=[BUCKET], task_state=["InProgress"]) == []
        engine.wait()


def test_with_image_ids_all_their_tasks_are_told_and_filters_are_ignored() -> None:
    cloud, image_id = account()
    cloud.s3.create_bucket("other")
    with TaskEngine(cloud) as engine:
        registered_too = registered(cloud, "other")
        for each, bucket in ((image_id, BUCKET), (registered_too, BUCKET), (image_id, "other")):
            engine.wait(engine.create_store_image_task(image_id=each, bucket=bucket))
        page = engine.describe_store_image_tasks(image_ids=[image_id], filters={"bucket": ["none"]})
        assert [(task.ami_id, task.bucket) for task in page] == [(image_id, "other"), (image_id, BUCKET)]
        assert len(engine.describe_store_image_tasks(image_ids=["ami-00000000"])) == 0


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"max_results": 0}, "InvalidMaxResults"),
        ({"max_results": 201}, "InvalidMaxResults"),
        ({"max_results": "5"}, "InvalidMaxResults"),
        ({"max_results": True}, "InvalidMaxResults"),
        ({"max_results": 5, "image_ids": ["ami-01234567"]}, "InvalidParameterCombination"),
        ({"image_ids": [f"ami-{number:08x}" for number in range(21)]}, "InvalidParameterValue"),
        ({"image_ids": ["ami-1"]}, "InvalidAMIID.Malformed"),
        ({"image_ids": ["snap-01234567"]}, "InvalidAMIID.Malformed"),
        ({"image_ids": "ami-0123456789abcdef0"}, "InvalidParameterValue"),
        ({"image_ids": 5}, "InvalidParameterValue"),
        ({"filters": 5}, "InvalidFilter"),
        ({"filters": {"bucket": 5}}, "InvalidFilter"),
        ({"filters": {"colour": ["red"]}}, "InvalidFilter"),
        ({"filters": {"bucket": "archive"}}, "InvalidFilter"),
        ({"filters": {"bucket": []}}, "InvalidFilter"),
        ({"filters": {"task-state": ["Done"]}}, "InvalidFilter"),
        ({"next_token": "x"}, "InvalidNextToken"),
        ({"next_token": ""}, "InvalidNextToken"),
        ({"next_token": "W10="}, "InvalidNextToken"),
        ({"next_token": 7}, "InvalidNextToken"),
        ({"dry_run": True}, "DryRunOperation"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_ec2s_code(asked: dict[str, object], code: str) -> None:
    with TaskEngine(MemoryBackend()) as engine:
        for call in (engine.describe_store_image_tasks, engine.describe_restore_image_tasks):
            with pytest.raises(amistore.InvalidRequestError) as caught:
                call(**asked)
            assert caught.value.code == code


def test_a_token_goes_with_its_own_request_only() -> None:
    cloud, _ = account()
    with TaskEngine(cloud) as engine:
        stores(cloud, engine, 3)
        token = engine.describe_store_image_tasks(max_results=1).next_token
        assert token is not None
        assert len(engine.describe_store_image_tasks(next_token=token)) == 2
        with pytest.raises(amistore.InvalidRequestError) as caught:
            engine.describe_store_image_tasks(filters={"bucket": [BUCKET]}, next_token=token)
        assert caught.value.code == "InvalidNextToken"
        with pytest.raises(amistore.InvalidRequestError, match="another request"):
            engine.describe_restore_image_tasks(next_token=token)


def test_store_and_restore_tasks_are_told_apart() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        engine.create_restore_image_task(bucket=BUCKET, object_key=task.object_key, name="web-2")
        engine.wait()
        assert [each.task_id for each in engine.describe_store_image_tasks()] == [task.task_id]
        (restore,) = engine.describe_restore_image_tasks()
        assert restore.name == "web-2"
        assert len(engine.describe_restore_image_tasks(image_ids=[str(restore.image_id)])) == 1
