"""Tasks: waited for, cancelled, left and resumed, cleaned up after."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tasks.accounts import BUCKET, DISKS, account, disks, held, registered, snapshots, stored

import amistore
from amistore import DirectoryBackend, TaskEngine
from amistore.tasks import run
from amistore.tasks.journal import Journal
from amistore.testing import FaultyBackend


def test_what_is_stored_and_restored_has_the_same_disks_and_a_new_id() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        with amistore.open(cloud.s3.open_object(BUCKET, task.object_key)) as archive:
            assert archive.content_id == task.content_id
        begun = engine.create_restore_image_task(bucket=BUCKET, object_key=task.object_key, name="web-2")
        restored = engine.wait(begun)
    assert restored.image_id == begun.image_id != image_id
    assert disks(cloud, str(restored.image_id)) == DISKS
    image = cloud.ec2.describe_image(str(restored.image_id))
    assert {each.snapshot_id for each in restored.snapshots} == set(image.snapshot_ids)
    assert [each.progress_percentage for each in restored.snapshots] == [100, 100]


def test_a_task_that_failed_is_told_to_who_waits_and_leaves_nothing() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.s3, "create_multipart_upload") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            cloud.ec2.deregister_image(image_id)
            for snapshot_id in snapshots(cloud):
                cloud.ebs.delete_snapshot(snapshot_id)
        with pytest.raises(amistore.TaskFailedError, match="no such snapshot") as caught:
            engine.wait()
        assert caught.value.task_ids == (task.task_id,)
        (described,) = engine.describe_store_image_tasks()
        assert described.store_task_state == "Failed"
        assert "no such snapshot" in str(described.store_task_failure_reason)
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    with pytest.raises(amistore.NotFoundError):
        cloud.s3.head_object(BUCKET, task.object_key)


def test_a_running_task_that_is_cancelled_fails_and_leaves_nothing() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with held(cloud.s3, "create_multipart_upload") as reached:
            task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            assert reached.wait(60)
            engine.cancel(task)
            assert engine.describe_store_image_tasks()[0].state == "InProgress"
        with pytest.raises(amistore.TaskFailedError, match="cancelled"):
            engine.wait(task)
        assert engine.describe_store_image_tasks()[0].state == "Failed"
        with pytest.raises(amistore.InvalidRequestError) as caught:
            engine.cancel(task)
        assert caught.value.code == "IncorrectState"
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    with pytest.raises(amistore.NotFoundError):
        cloud.s3.head_object(BUCKET, task.object_key)


def test_a_restore_that_is_cancelled_deletes_its_snapshots_and_stays_described_as_failed() -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    before = snapshots(cloud)
    with TaskEngine(cloud) as engine:
        with held(cloud.ebs, "put_snapshot_block") as reached:
            task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
            assert reached.wait(60)
            engine.cancel(task.task_id)
        with pytest.raises(amistore.TaskFailedError, match="cancelled"):
            engine.wait(task)
        (failed,) = engine.describe_restore_image_tasks()
        assert failed.state == "Failed"
        assert failed.image_id == task.image_id
        assert failed.snapshots[0].snapshot_id is not None
    assert snapshots(cloud) == before


def test_a_waiting_task_is_cancelled_while_another_is_worked_on() -> None:
    cloud, image_id = account()
    other = registered(cloud, "other")
    with TaskEngine(cloud, concurrency=1) as engine:
        with held(cloud.s3, "upload_part") as reached:
            first = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
            second = engine.create_store_image_task(image_id=other, bucket=BUCKET)
            assert reached.wait(60)
            engine.cancel(second)
            with pytest.raises(amistore.TaskFailedError, match="cancelled"):
                engine.wait(second)
        assert engine.wait(first).state == "Completed"


def test_a_task_that_was_left_is_resumed_by_the_next_engine(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    engine = TaskEngine(cloud)
    with held(engine.backend.ebs.__class__, "get_snapshot_block") as reached:
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        assert reached.wait(60)
        closing = threading.Thread(target=engine.close)
        closing.start()
    closing.join()
    with TaskEngine(cloud) as next_engine:
        (resumed,) = next_engine.resume()
        assert resumed.task_id == task.task_id
        assert next_engine.resume() == ()
        assert next_engine.wait(task).state == "Completed"
        next_engine.create_restore_image_task(bucket=BUCKET, object_key=task.object_key, name="web-2")
        (restored,) = next_engine.wait()[1:]
    assert disks(cloud, str(restored.image_id)) == DISKS


def test_waiting_for_a_task_whose_engine_has_ended_goes_on_with_it(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    with TaskEngine(cloud) as engine:
        journal = Journal(str(cloud.journal))
        task = engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
    with TaskEngine(cloud) as other:
        assert other.wait(task.task_id).state == "Completed"
    assert journal.unfinished("") == []
    journal.close()


def test_a_clean_up_that_failed_is_told_and_tried_again_by_a_sweep() -> None:
    cloud, image_id = account()
    faulty = FaultyBackend(cloud)
    with TaskEngine(faulty) as engine:
        faulty.add_fault("abort_multipart_upload", "refusal", times=3)
        faulty.add_fault("upload_part", "refusal")
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.AccessDeniedError):
            engine.wait()
        engine.cancel(task)
        with pytest.raises(amistore.TaskFailedError):
            engine.wait()
        (failed,) = engine.describe_store_image_tasks()
        (upload,) = cloud.s3.list_multipart_uploads(BUCKET)
        assert failed.left_behind == (f"upload {upload.upload_id}",)
        report = engine.sweep()
        while report.left:
            report = engine.sweep()
        assert report.removed == (f"what {task.task_id} had made",)
        assert engine.describe_store_image_tasks()[0].left_behind == ()
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


def test_an_upload_whose_beginning_got_no_answer_is_swept_and_anothers_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_PAUSE", 0.0)
    cloud, image_id = account()
    faulty = FaultyBackend(cloud)
    with TaskEngine(faulty) as engine:
        faulty.add_fault("create_multipart_upload", "lost-reply")
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.BackendError):
            engine.wait()
        engine.cancel(task)
        with pytest.raises(amistore.TaskFailedError):
            engine.wait()
        lost = {each.upload_id for each in cloud.s3.list_multipart_uploads(BUCKET)}
        assert lost
        other = cloud.s3.create_multipart_upload(BUCKET, task.object_key)
        cloud.s3.upload_part(BUCKET, task.object_key, other, 1, b"x")
        report = engine.sweep()
        assert len(report.removed) == len(lost)
        assert report.left == (f"upload {other} of {BUCKET}/{task.object_key}, which no task here has begun",)
        assert [each.upload_id for each in cloud.s3.list_multipart_uploads(BUCKET)] == [other]
        assert engine.sweep().removed == ()


def test_a_sweep_removes_what_crashes_left_in_a_directory_an_hour_ago(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    key = stored(cloud, image_id)
    uploads = cloud.path / "s3" / BUCKET / ".amistore" / "uploads"
    old = [
        cloud.path / "ebs" / ".snap-0123456789abcdef0.1234abcd.tmp",
        cloud.path / "ebs" / ".snap-0123456789abcdef0.deleted",
        cloud.path / "s3" / BUCKET / ".web.bin.0123456789abcdef.tmp",
        uploads / ".upload-0123456789abcdef0.deleted",
        uploads / "upload-0123456789abcdef0",
        cloud.path / "ec2" / ".ami-0123456789abcdef0.json.0123456789abcdef.tmp",
    ]
    new = [path.with_name(path.name.replace("0123456789abcdef0", "11111111111111111")) for path in old]
    for path in old + new:
        if path.exists():
            continue
        path.mkdir() if "snap" in path.name or "upload" in path.name else path.write_bytes(b"x")
    for path in old:
        os.utime(path, (0, 0))
    with TaskEngine(cloud) as engine:
        assert sorted(engine.sweep().removed) == sorted(str(path.relative_to(cloud.path)) for path in old)
        assert engine.sweep().removed == ()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in new if path not in old)
    assert disks(cloud, image_id) == DISKS
    assert cloud.s3.head_object(BUCKET, key).size


def test_who_waits_is_told_each_percentage_once_and_never_a_lower_one() -> None:
    cloud, image_id = account()
    told: list[amistore.StoreImageTask] = []
    with TaskEngine(cloud) as engine:
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        engine.wait(task, progress=told.append)
    seen = [(each.progress_percentage, each.state) for each in told]
    assert seen == sorted(set(seen), key=lambda each: each[0])
    assert seen[-1] == (100, "Completed")


def test_a_bar_shows_what_is_done_and_ends_full(capfd: pytest.CaptureFixture[str]) -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        engine.wait(progress=True)
    shown = capfd.readouterr().err
    assert f"{image_id} to {BUCKET}/{image_id}.bin" in shown
    assert "100%|" in shown


def test_a_closed_engine_refuses_every_call() -> None:
    cloud, image_id = account()
    engine = TaskEngine(cloud)
    engine.close()
    engine.close()
    for call in (engine.resume, engine.sweep, engine.wait, engine.describe_store_image_tasks):
        with pytest.raises(amistore.InvalidRequestError, match="closed"):
            call()
    with pytest.raises(amistore.InvalidRequestError, match="closed"):
        engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
