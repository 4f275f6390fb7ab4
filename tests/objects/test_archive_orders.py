"""Restoring, verifying, comparing and transferring by orders: as without, and nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import attrs
import images
import pytest
from objects import runs
from objects.runs import BUCKET, KEY, Calls, Log

import amistore
from amistore.archive import live
from amistore.pipeline import orders, snapshots

DISKS = [(size, dict(sorted(blocks.items()))) for size, blocks in runs.VOLUMES]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(abs, range(4)))
        yield pool


@pytest.fixture
def threads(processes: ProcessPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    with runs.nothing_left(), ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _orders_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (orders, snapshots, live):
        monkeypatch.setattr(module, "ORDER_BLOCKS", 6)


@pytest.fixture
def folder(tmp_path: Path) -> amistore.DirectoryBackend:
    made = amistore.DirectoryBackend(tmp_path)
    made.s3.create_bucket(BUCKET)
    made.s3.put_object(BUCKET, KEY, [runs.expected()])
    return made


def memory(content: bytes | None = None) -> amistore.MemoryBackend:
    made = runs.cloud()
    made.s3.put_object(BUCKET, KEY, [runs.expected() if content is None else content])
    return made


def restored(cloud: amistore.Backend, executor: Executor | None, **options: object) -> amistore.Image:
    return amistore.unpack(cloud.s3.at(BUCKET, KEY), cloud.ebs, executor=executor, workers=2, **options)  # type: ignore[arg-type]


def test_threads_restore_the_disks_that_were_packed(threads: ThreadPoolExecutor) -> None:
    cloud = memory()
    seen: list[amistore.Progress] = []
    image = restored(cloud, threads, progress=seen.append)
    assert runs.disks(cloud.ebs, image) == DISKS
    assert [each.blocks for each in seen] == sorted(each.blocks for each in seen)
    assert (seen[-1].blocks, seen[-1].total_blocks) == (33, 33)
    assert len(images.leftovers(cloud)) == len(DISKS)


def test_processes_restore_an_image_and_its_disks_from_an_object_and_from_a_path(
    folder: amistore.DirectoryBackend, processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "archive.bin"
    path.write_bytes(runs.expected())
    for number, archive in enumerate((folder.s3.at(BUCKET, KEY), path)):
        made = amistore.restore(archive, folder, name=f"web-{number}", executor=processes, workers=2)
        assert runs.disks(folder.ebs, made.image) == DISKS
        with amistore.open(path) as opened:
            assert made.content_id == opened.content_id


def test_holes_are_filled_by_orders_too(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "ORDER_BLOCKS", 700)
    cloud = memory()
    seen: list[amistore.Progress] = []
    image = restored(cloud, threads, fill_holes=True, progress=seen.append)
    for (size, blocks), (found_size, found) in zip(DISKS, runs.disks(cloud.ebs, image), strict=True):
        assert (size, len(found)) == (found_size, size * 2048)
        assert {index: found[index] for index in blocks} == blocks
        assert all(found[index] == images.block(0) for index in found.keys() - blocks.keys())
    assert seen[-1].blocks == seen[-1].total_blocks == 4 * 2048 - 33


@pytest.mark.parametrize("verb", ["put_snapshot_block", "get_intact_range", "start_snapshot"])
@pytest.mark.parametrize("number", [1, 7])
def test_without_a_log_an_error_leaves_no_snapshot(
    threads: ThreadPoolExecutor, verb: str, number: int
) -> None:
    cloud = memory()
    calls = Calls(cloud.ebs, cloud.s3)
    calls.fail(verb, number, amistore.AccessDeniedError("no"))
    if verb == "start_snapshot" and number > len(DISKS):
        number = len(DISKS)
        calls.fail(verb, number, amistore.AccessDeniedError("no"))
    with pytest.raises(amistore.AccessDeniedError):
        restored(cloud, threads)
    assert calls.failed
    assert images.leftovers(cloud) == []


@pytest.mark.parametrize("then", ["orders", "threads of this process"])
@pytest.mark.parametrize("number", [1, 11, 20, 33])
def test_with_a_log_the_next_run_goes_on_with_orders_and_without(
    threads: ThreadPoolExecutor, number: int, then: str
) -> None:
    cloud, log = memory(), Log()
    calls = Calls(cloud.ebs)
    calls.fail("put_snapshot_block", number, amistore.AccessDeniedError("no"))
    with pytest.raises(amistore.AccessDeniedError):
        restored(cloud, threads, log=log)
    put = {amistore.objects.resumelog.read_entry(each).get("put") for each in log.entries()} - {None}
    calls.fail("", 0, ValueError())
    image = restored(cloud, threads if then == "orders" else None, log=log)
    assert runs.disks(cloud.ebs, image) == DISKS
    assert len(calls.blocks()) <= 33 - max(map(int, put), default=0)
    assert log.entries() == []


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_found_as_without_orders(
    folder: amistore.DirectoryBackend, processes: ProcessPoolExecutor, tmp_path: Path, seed: int
) -> None:
    content = bytearray(runs.expected())
    places = random.Random(seed)
    for _ in range(seed):
        content[places.randrange(len(content) - 200_000)] ^= 1
    folder.s3.put_object(BUCKET, KEY, [bytes(content)])
    with amistore.open(folder.s3.at(BUCKET, KEY)) as archive:
        for quick in (False, True):
            alone = archive.verify(quick=quick)
            by_orders = archive.verify(quick=quick, executor=processes, workers=2)
            assert str(attrs.evolve(alone, seconds=1.0)) == str(attrs.evolve(by_orders, seconds=1.0))
    if seed:
        with pytest.raises(amistore.CorruptArchiveError):
            restored(folder, processes)
        assert list((tmp_path / "ebs").iterdir()) == []


def test_an_archive_that_is_another_one_where_the_worker_is_is_refused(
    folder: amistore.DirectoryBackend, processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "archive.bin"
    path.write_bytes(runs.expected())
    with amistore.open(path) as archive:
        path.unlink()
        path.write_bytes(b"".join(amistore.pack(runs.IMAGE, runs.source(), level=1)))
        with pytest.raises(amistore.SourceChangedError, match="another archive where the worker"):
            archive.verify(executor=processes, workers=1)


def test_a_comparison_with_live_snapshots_is_the_same(threads: ThreadPoolExecutor) -> None:
    cloud = memory()
    image = restored(cloud, None)
    first = image.snapshot_ids[0]
    changed = dict(DISKS[0][1]) | {0: images.block(9), 7: images.block(8), 9: images.block(0)}
    del changed[4]
    third = images.snapshot(cloud.ebs, 1, changed)
    with amistore.open(cloud.s3.at(BUCKET, KEY)) as archive:
        old = [volume.snapshot_id for volume in archive.volumes]
        live_ids = dict(zip(old, sorted(image.snapshot_ids), strict=True))
        assert archive.compare(cloud.ebs, snapshots=live_ids, executor=threads, workers=2).equal == (
            archive.compare(cloud.ebs, snapshots=live_ids).equal
        )
        for given in (live_ids, {old[0]: third}, {old[0]: first}):
            assert archive.compare(cloud.ebs, snapshots=given, executor=threads, workers=2) == (
                archive.compare(cloud.ebs, snapshots=given)
            )


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fill_holes", [False, True])
def test_a_transfer_makes_the_same_image(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, keep: bool, fill_holes: bool
) -> None:
    monkeypatch.setattr(snapshots, "ORDER_BLOCKS", 700)
    source = memory()
    restored_image = restored(source, None)
    image_id = source.ec2.register_image(restored_image, name="web")
    made = []
    for executor in (None, threads):
        cloud = amistore.MemoryBackend()
        kept = source.s3.at(BUCKET, f"kept-{executor is None}") if keep else None
        transferred = amistore.transfer(
            image_id,
            source=source,
            destination=cloud,
            keep=kept,
            fill_holes=fill_holes,
            executor=executor,
            workers=2,
        )
        disks = runs.disks(cloud.ebs, transferred.image)
        mapped = [each.ebs.snapshot_id for each in transferred.image.block_device_mappings if each.ebs]
        ids = {str(each): f"snap-{number:017}" for number, each in enumerate(mapped)}
        made.append(
            (
                disks,
                transferred.content_id,
                attrs.evolve(transferred.image.with_snapshots(ids), image_id=image_id, creation_date=None),
            )
        )
    assert made[0] == made[1]


def test_a_block_that_cannot_be_read_ends_a_transfer_with_nothing_left(threads: ThreadPoolExecutor) -> None:
    source, cloud = memory(), amistore.MemoryBackend()
    image_id = source.ec2.register_image(restored(source, None), name="web")
    calls = Calls(source.ebs)
    calls.fail("get_snapshot_block", 20, amistore.AccessDeniedError("no"))
    with pytest.raises(amistore.AccessDeniedError):
        amistore.transfer(image_id, source=source, destination=cloud, executor=threads, workers=2)
    assert images.leftovers(cloud) == []


def test_the_tasks_of_an_engine_share_an_executor_and_go_on_without_it(
    folder: amistore.DirectoryBackend, processes: ProcessPoolExecutor
) -> None:
    for number in range(3):
        made = amistore.restore(folder.s3.at(BUCKET, KEY), folder, name=f"web-{number}")
    with amistore.TaskEngine(folder, executor=processes, workers=2, concurrency=3) as engine:
        for image in folder.ec2.describe_images():
            engine.create_store_image_task(image_id=image.image_id, bucket=BUCKET)
        assert [task.state for task in engine.wait()] == ["Completed"] * 3
        engine.create_restore_image_task(bucket=BUCKET, object_key=f"{made.image_id}.bin", name="again")
    with amistore.TaskEngine(folder) as engine:
        engine.resume()
        engine.wait()
    (again,) = folder.ec2.find_images("again")
    assert runs.disks(folder.ebs, again) == DISKS


def test_a_worker_opens_an_archive_anew_in_each_run(
    folder: amistore.DirectoryBackend, processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    path, damaged = tmp_path / "archive.bin", bytearray(runs.expected())
    path.write_bytes(damaged)
    with amistore.open(path) as archive:
        assert archive.verify(executor=processes, workers=2).ok
    damaged[1 << 20] ^= 1
    path.unlink()
    path.write_bytes(damaged)
    with amistore.open(path) as archive:
        assert not archive.verify(executor=processes, workers=2).ok
