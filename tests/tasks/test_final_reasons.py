"""What a run has made is removed for a reason that the next run would meet again, and for no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from objects import runs
from tasks.accounts import BUCKET, DISKS, account, disks, snapshots, stored

import amistore
from amistore import TaskEngine, errors
from amistore.errors import is_final
from amistore.tasks import run

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
FINAL: list[Callable[[], Exception]] = [
    lambda: amistore.AlreadyExistsError("taken"),
    lambda: amistore.CorruptArchiveError("damaged"),
    lambda: amistore.NotFoundError("gone"),
    lambda: amistore.SourceChangedError("changed"),
]
PASSING: list[Callable[[], Exception]] = [
    lambda: amistore.AccessDeniedError("not allowed any more"),
    lambda: amistore.CredentialsExpiredError("ended"),
    lambda: amistore.BackendError("the certificate is another's"),
    lambda: amistore.BackendError("no network", retryable=True),
    lambda: amistore.ThrottledError("later", retryable=True),
    lambda: amistore.StorageFullError("no room"),
    lambda: amistore.InvalidRequestError("the snapshot is in the archive tier", code="IncorrectState"),
    lambda: amistore.ArchivedObjectError("in Glacier"),
    lambda: ConnectionResetError("reset"),
    lambda: MemoryError(),
    lambda: KeyError("a mistake of a backend's"),
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PAUSE", 0.0)


def named(error: Callable[[], Exception]) -> str:
    return f"{type(error()).__name__} {error()}"


def failing(monkeypatch: pytest.MonkeyPatch, service: object, verb: str, error: Exception) -> list[int]:
    """Makes a verb fail from its second call on, while the list is not empty."""
    inner, left, calls = getattr(service, verb), [1], []

    def call(*arguments: object, **options: object) -> object:
        calls.append(1)
        if left and len(calls) > 1:
            raise error
        return inner(*arguments, **options)

    # In its class, where a backend's errors are told.
    method = {verb: lambda self, *arguments, **options: call(*arguments, **options)}
    monkeypatch.setattr(service, "__class__", type("Failing", (type(service),), method))
    return left


@pytest.mark.parametrize("error", FINAL, ids=named)
def test_a_final_reason_fails_a_task_and_removes_what_it_made(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud, image_id = account()
    failing(monkeypatch, cloud.ebs, "get_snapshot_block", error())
    with TaskEngine(cloud) as engine:
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.TaskFailedError, match=str(error())):
            engine.wait(task)
        assert engine.resume() == ()
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


@pytest.mark.parametrize("error", PASSING, ids=named)
def test_any_other_leaves_a_store_unfinished_and_resume_goes_on(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud, image_id = account()
    left = failing(monkeypatch, cloud.ebs, "get_snapshot_block", error())
    with TaskEngine(cloud) as engine:
        task = engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        with pytest.raises(amistore.AmistoreError) as caught:
            engine.wait(task)
        assert not isinstance(caught.value, amistore.TaskFailedError)
        assert engine.describe_store_image_tasks()[0].state == "InProgress"
        assert len(cloud.s3.list_multipart_uploads(BUCKET)) == 1
        left.clear()
        engine.resume()
        assert engine.wait(task).state == "Completed"
    with amistore.open(cloud.s3.at(BUCKET, task.object_key)) as archive:
        archive.verify().check()


@pytest.mark.parametrize("error", PASSING, ids=named)
def test_any_other_leaves_a_restore_unfinished_and_resume_puts_no_more_snapshots(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud, image_id = account()
    key, before = stored(cloud, image_id), snapshots(cloud)
    left = failing(monkeypatch, cloud.ebs, "put_snapshot_block", error())
    with TaskEngine(cloud, workers=1) as engine:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        with pytest.raises(amistore.AmistoreError) as caught:
            engine.wait(task)
        assert not isinstance(caught.value, amistore.TaskFailedError)
        assert snapshots(cloud) > before
        left.clear()
        engine.resume()
        done = engine.wait(task)
    assert disks(cloud, str(done.image_id)) == DISKS
    assert len(snapshots(cloud) - before) == len(DISKS)


@pytest.mark.parametrize("error", [*FINAL, *PASSING], ids=named)
def test_a_call_with_a_log_keeps_and_removes_the_same(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    final = error in FINAL
    cloud, image_id = account()
    image, log = cloud.ec2.describe_image(image_id), runs.Log()
    with monkeypatch.context() as patch:
        failing(patch, cloud.ebs, "get_snapshot_block", error())
        with pytest.raises((amistore.AmistoreError, MemoryError)):
            amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "log.bin"), log=log)
    assert bool(log.entries()) is not final
    assert bool(cloud.s3.list_multipart_uploads(BUCKET)) is not final
    amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "log.bin"), log=log)
    before = snapshots(cloud)
    with monkeypatch.context() as patch:
        failing(patch, cloud.ebs, "put_snapshot_block", error())
        with pytest.raises((amistore.AmistoreError, MemoryError)):
            amistore.unpack(cloud.s3.at(BUCKET, "log.bin"), cloud.ebs, log=log, workers=1)
    final = final and not isinstance(error(), amistore.NotFoundError)  # here of the run's own snapshot
    assert bool(log.entries()) is not final
    assert (snapshots(cloud) == before) is final
    restored = amistore.unpack(cloud.s3.at(BUCKET, "log.bin"), cloud.ebs, log=log)
    assert snapshots(cloud) == before | set(restored.snapshot_ids)


def test_a_snapshot_that_was_deleted_while_it_was_restored_is_begun_anew() -> None:
    """By a sweep elsewhere, or by EBS, which cancels a pending snapshot after three days."""
    cloud, image_id = account()
    key, before = stored(cloud, image_id), snapshots(cloud)
    deleted: list[str] = []
    put = cloud.ebs.put_snapshot_block

    def delete(snapshot_id: str, *arguments: object) -> None:
        if not deleted:
            deleted.append(snapshot_id)
            cloud.ebs.delete_snapshot(snapshot_id)
        put(snapshot_id, *arguments)  # type: ignore[arg-type]

    cloud.ebs.put_snapshot_block = delete  # type: ignore[method-assign]
    with TaskEngine(cloud, workers=1) as engine:
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2")
        done = engine.wait(task)
    assert disks(cloud, str(done.image_id)) == DISKS
    assert len(snapshots(cloud) - before) == len(DISKS)


def test_the_page_says_of_each_class_what_the_code_does() -> None:
    section = PAGE.read_text().partition("## What ends a task")[2].partition("\n## ")[0]
    told = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+Error)`", cells[0]) if line.startswith("|") else ():
            told[name] = {"fails": True, "stays": False}[cells[1]]
    not_met = {"AmistoreError", "InvalidValueError", "TaskFailedError"}
    assert set(told) == set(errors.__all__) - not_met
    assert told == {name: is_final(getattr(amistore, name)("x")) for name in told}


@pytest.mark.parametrize("kind", [amistore.NotFoundError, amistore.ChecksumMismatchError])
def test_what_may_pass_by_itself_is_never_final(kind: type[amistore.BackendError]) -> None:
    assert is_final(kind("x"))
    assert not is_final(kind("x", retryable=True))
    assert not is_final(KeyboardInterrupt())
