"""How a task's run ends when something else than the task itself goes wrong."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tasks.accounts import BUCKET, DISKS, account, disks, held, registered, snapshots, stored

import amistore
from amistore import DirectoryBackend, TaskEngine
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.s3 import DirectoryS3
from amistore.tasks import run, runner
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


def test_a_restore_whose_blocks_a_power_cut_took_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PAUSE", 0.0)
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    image_id = registered(cloud)
    key = stored(cloud, image_id)
    before = set((tmp_path / "ebs").iterdir())
    put = DirectoryEBS.put_snapshot_block

    def full(ebs: DirectoryEBS, snapshot_id: str, block_index: int, *content: Any) -> None:
        if block_index in DISKS[1]:
            raise amistore.StorageFullError("no room")
        put(ebs, snapshot_id, block_index, *content)

    with monkeypatch.context() as patch, TaskEngine(cloud, workers=1) as engine:
        patch.setattr(DirectoryEBS, "put_snapshot_block", full)
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        with pytest.raises(amistore.StorageFullError):
            engine.wait(task)
    for folder in set((tmp_path / "ebs").iterdir()) - before:
        with (folder / "disk.raw").open("r+b") as disk:
            disk.write(bytes(4096))
    with TaskEngine(DirectoryBackend(tmp_path), workers=1) as engine:
        (task,) = engine.resume()
        done = engine.wait(task)
    assert disks(cloud, str(done.image_id)) == DISKS
    assert len(set((tmp_path / "ebs").iterdir()) - before) == len(DISKS)


def test_a_restore_whose_image_is_there_when_registering_fails_is_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An owner that was stopped and goes on may be faster by that one call."""
    monkeypatch.setattr(run, "_PAUSE", 0.0)
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


@pytest.mark.parametrize("what", ["aborted", "replaced"])
def test_a_store_whose_upload_somebody_has_changed_goes_on_with_what_is_there(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sweep elsewhere, a rule of the bucket; or a stopped owner that goes on and sends a part late."""
    monkeypatch.setattr(run, "_PAUSE", 0.0)
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    with TaskEngine(cloud) as engine:
        verb = "upload_part" if what == "aborted" else "complete_multipart_upload"
        with held(DirectoryS3, verb) as reached:
            task = engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
            assert reached.wait(60)
            (upload,) = cloud.s3.list_multipart_uploads(BUCKET)
            if what == "aborted":
                cloud.s3.abort_multipart_upload(BUCKET, upload.key, upload.upload_id)
            else:
                (part,) = (tmp_path / "s3" / BUCKET / ".amistore" / "uploads" / upload.upload_id).glob("0*")
                cloud.s3.upload_part(BUCKET, upload.key, upload.upload_id, 1, part.read_bytes())
        assert engine.wait(task).state == "Completed"
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    with amistore.open(cloud.s3.open_object(BUCKET, task.object_key)) as archive:
        archive.verify().check()


def test_a_reason_that_is_no_text_is_told_with_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with a file's name may be that is no UTF-8."""
    cloud, image_id = account()

    def fail(*arguments: Any) -> Any:
        raise amistore.NotFoundError(f"no such file: {os.fsdecode(bytes([65, 255]))}")

    monkeypatch.setattr(cloud.ebs, "get_snapshot_block", fail)
    with TaskEngine(cloud) as engine:
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.TaskFailedError, match=r"no such file: A\\udcff"):
            engine.wait(task)
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
