"""A restore task fills holes where that is asked for; its plan tells what that takes, and what else comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import images
import pytest
from objects import runs
from tasks.test_plans import made

import amistore
from amistore import BLOCK_SIZE, GIB, Backend, MemoryBackend, Prices, Quotas, TaskEngine
from amistore.backends.directory.s3 import DirectoryS3
from amistore.model import Fate
from amistore.testing import FaultyBackend
from amistore.testing.aws import FakeAWS

BUCKET, KEY = "archive", "web.bin"
PER_GIB = GIB // BLOCK_SIZE
DISK = {0: images.block(1), 7: images.block(0), 2000: images.block(2)}
REQUEST: dict[str, Any] = {"bucket": BUCKET, "object_key": KEY, "name": "web-2"}
PRICES = Prices(
    block_lists=0,
    block_reads=0,
    block_writes=0.006,
    object_writes=0,
    object_reads=0,
    object_storage=0,
    snapshot_storage=0.05,
)


def archived(cloud: Backend, volumes: list[tuple[int, dict[int, bytes]]], **members: object) -> Backend:
    cloud.s3.create_bucket(BUCKET)  # type: ignore[attr-defined]
    cloud.s3.put_object(BUCKET, KEY, [images.packed(volumes, **members)])  # type: ignore[arg-type]
    return cloud


def test_a_filling_task_does_what_its_plan_says() -> None:
    memory = MemoryBackend()
    archived(memory, [(1, DISK)])
    cloud = FaultyBackend(memory)
    seen: list[tuple[int, int]] = []

    def watch(task: amistore.tasks.Task) -> None:
        assert isinstance(task, amistore.RestoreImageTask)
        seen.append((task.progress_percentage, task.snapshots[0].progress_percentage))

    with TaskEngine(cloud, workers=2) as engine:
        plan = engine.plan_restore(**REQUEST, fill_holes=True)
        made(cloud)
        task = engine.wait(engine.create_restore_image_task(**REQUEST, fill_holes=True), progress=watch)
        assert made(cloud) == {**plan.requests, "reserve_image_id": 1}
    assert (plan.requests["put_snapshot_block"], plan.holes, plan.fill_holes) == (PER_GIB, PER_GIB - 3, True)
    assert plan.warnings == ()
    assert [each[0] for each in seen] == sorted(each[0] for each in seen)
    image = memory.ec2.describe_image(str(task.image_id))
    zeros = bytes(BLOCK_SIZE)
    filled = {index: DISK.get(index, zeros) for index in range(PER_GIB)}
    assert runs.disks(memory.ebs, image) == [(1, filled)]


def test_a_plan_tells_of_holes_and_what_filling_takes_for_a_tebibyte() -> None:
    cloud = archived(MemoryBackend(), [(1024, DISK)])
    with TaskEngine(cloud, quotas=Quotas.unlimited()) as engine:
        plan = engine.plan_restore(**REQUEST, prices=PRICES)
        filled = engine.plan_restore(**REQUEST, prices=PRICES, fill_holes=True)
        unpriced = engine.plan_restore(**REQUEST)
    assert plan.holes == 1024 * PER_GIB - 3
    assert (plan.encrypts, plan.warnings) == (False, ())
    assert plan.requests["put_snapshot_block"] == 3
    assert round(plan.fill_seconds / 60) == 35
    assert plan.fill_request_cost == pytest.approx(12.58, rel=1e-3)
    assert plan.fill_monthly_cost == pytest.approx(51.2, rel=1e-3)
    takes = "\n              2,097,149 put_snapshot_block, 35 min, 12.5829 for requests, 51.1999 a month\n"
    assert f"holes       1,024.0 GiB, not filled; fill_holes=True takes:{takes}" in str(plan)
    assert f"holes       1,024.0 GiB, filled:{takes}" in str(filled)
    assert filled.request_cost == pytest.approx(12.5829, rel=1e-4)
    assert filled.monthly_cost == pytest.approx(51.2, rel=1e-4)
    assert filled.estimated_seconds - plan.estimated_seconds == pytest.approx(plan.fill_seconds)
    assert (unpriced.fill_request_cost, unpriced.fill_monthly_cost) == (None, None)


def test_a_disk_without_holes_and_what_was_lost_are_no_holes_of_a_plan() -> None:
    full = {index: images.block(1) for index in range(PER_GIB)}
    lost = amistore.model.BlockRange(first_block=100, block_count=PER_GIB - 100)
    known = amistore.Snapshot(snapshot_id="snap-00000000000000001", lost_blocks=(lost,))
    volumes = [(1, full), (1, {index: images.block(1) for index in range(100)})]
    cloud = archived(MemoryBackend(), volumes, snapshots=(known,))
    with TaskEngine(cloud) as engine:
        plan = engine.plan_restore(**REQUEST, allow_lost=True)
    assert plan.holes == 0
    assert "holes" not in str(plan)


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS() as served:
        yield served


def account(aws: FakeAWS, folder: Path) -> Backend:
    given = aws.client_options()
    url, region = given.pop("endpoint_url"), given["region_name"]
    services = amistore.AWSBackend(
        boto3.Session(**given), region_name=region, endpoint_urls={"ec2": url, "ebs": url}
    )
    store = DirectoryS3(folder / "s3")
    return archived(Backend(ebs=services.ebs, s3=store, ec2=services.ec2), [(1, DISK), (1, {})])


def test_under_encryption_plan_fidelity_and_one_warning_tell(
    aws: FakeAWS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aws.behaviour.encryption_by_default = True
    cloud = FaultyBackend(account(aws, tmp_path))
    with TaskEngine(cloud, journal=tmp_path / "tasks.db") as engine:
        plan = engine.plan_restore(**REQUEST)
        made(cloud)
        engine.wait(engine.create_restore_image_task(**REQUEST))
        assert made(cloud) == {**plan.requests, "reserve_image_id": 1}
    told = "the new snapshots are encrypted, 2.0 GiB of holes read as noise: fill_holes=True puts zeros there"
    assert told in plan.warnings
    assert plan.encrypts
    lines = [each for each in plan.fidelity if each.attribute.endswith(".holes")]
    assert [(each.fate, each.value) for each in lines] == [
        (Fate.DROPPED, "1,022.5 MiB"),
        (Fate.DROPPED, "1.0 GiB"),
    ]
    assert len([each for each in caplog.messages if "are holes" in each]) == 1


def test_an_unencrypted_account_is_warned_of_nothing(
    aws: FakeAWS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = FaultyBackend(account(aws, tmp_path))
    with TaskEngine(cloud, journal=tmp_path / "tasks.db") as engine:
        plan = engine.plan_restore(**REQUEST)
        made(cloud)
        engine.wait(engine.create_restore_image_task(**REQUEST))
        assert made(cloud) == {**plan.requests, "reserve_image_id": 1}
    assert plan.holes == 2 * PER_GIB - 3
    assert not [each for each in (*plan.warnings, *map(str, plan.fidelity)) if "holes" in each]
    assert not [each for each in caplog.messages if "holes" in each]
