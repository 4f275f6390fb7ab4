"""Plans say what a task then does, raise what it would raise, and leave nothing."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from hypothesis import given, settings

import amistore
from amistore import (
    DirectoryBackend,
    MemoryBackend,
    Prices,
    Quotas,
    RequestRates,
    Tag,
    TagSpecification,
    TaskEngine,
)
from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, StoreTraits
from amistore.backends.locations import ObjectRanges
from amistore.model import Fate
from amistore.model.fidelity import leaves
from amistore.objects import parts
from amistore.tasks import RestorePlan, StorePlan
from amistore.testing import FaultyBackend
from amistore.testing.strategies import images as any_images

BUCKET = "archive"
AT_MOST = {"upload_part"}  # of a store
SMALL: list[dict[int, bytes]] = [{0: images.block(1), 7: images.block(0), 900: images.block(2)}, {}]
TEXT: list[dict[int, bytes]] = [{number: images.block(number % 10) for number in range(150)}]
_NOISES = [images.noise(number) for number in range(16)]  # equal ones are never in one frame
NOISE: list[dict[int, bytes]] = [{number: _NOISES[number % 16] for number in range(128)}]


def registered(cloud: Backend, disks: list[dict[int, bytes]] = SMALL, **members: object) -> str:
    ids = [images.snapshot(cloud.ebs, 1, disk) for disk in disks]
    return cloud.ec2.register_image(images.image(ids, **members))


def account(kind: str, folder: Path) -> MemoryBackend | DirectoryBackend:
    cloud = MemoryBackend(page_size=40) if kind == "memory" else DirectoryBackend(folder / "cloud")
    cloud.s3.create_bucket(BUCKET)
    return cloud


def made(cloud: FaultyBackend) -> dict[str, int]:
    """The calls since the last look, by verb."""
    found: collections.Counter[str] = collections.Counter()
    for (verb, *_), count in cloud.calls.items():
        found[str(verb)] += count
    cloud.calls.clear()
    return dict(found)


def stored(engine: TaskEngine, image_id: str) -> str:
    return engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).object_key


@pytest.mark.parametrize("kind", ["memory", "directory"])
@pytest.mark.parametrize("disks", [SMALL, TEXT, NOISE], ids=["small", "text", "noise"])
def test_a_task_does_what_its_plan_says(kind: str, disks: list[dict[int, bytes]], tmp_path: Path) -> None:
    cloud = FaultyBackend(account(kind, tmp_path))
    image_id = registered(cloud, disks)
    with TaskEngine(cloud, workers=2) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET)
        made(cloud)
        key = stored(engine, image_id)
        calls = made(cloud)
        assert set(calls) == set(plan.requests)
        assert {verb: calls[verb] for verb in set(calls) - AT_MOST} == {
            verb: count for verb, count in plan.requests.items() if verb not in AT_MOST
        }
        assert all(calls[verb] <= plan.requests[verb] for verb in AT_MOST)
        archive = ContainerFile(ObjectRanges(cloud.s3.at(BUCKET, key)))
        assert archive.size <= plan.most_object_bytes
        assert calls["upload_part"] <= plan.most_parts
        if disks is NOISE:  # the bound is what happens then
            assert calls["upload_part"] == plan.most_parts == 5
            assert archive.size > plan.most_object_bytes * 0.99
        assert (plan.segments, plan.volumes) == (len(archive.index.offsets), len(archive.index.volumes))
        assert (plan.blocks, plan.size, plan.part_size) == (
            sum(map(len, disks)),
            len(disks),
            5 * amistore.MIB if disks is SMALL else 16 * amistore.MIB,
        )
        assert plan.data_bytes == plan.blocks * amistore.BLOCK_SIZE

        again = engine.plan_restore(bucket=BUCKET, object_key=key, name="web-2")
        made(cloud)
        task = engine.wait(engine.create_restore_image_task(bucket=BUCKET, object_key=key, name="web-2"))
        calls = made(cloud)
        del calls["reserve_image_id"]  # no request, where it can be had
        assert calls == again.requests
        assert (again.name, again.image_id, again.size) == (task.name, image_id, plan.size)
        assert (again.segments, again.blocks) == (plan.segments, plan.blocks)
        assert (again.object_bytes, again.content_id) == (archive.size, archive.index.content_id.hex())


def test_parts_are_spooled_no_more_than_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cloud = account("memory", tmp_path)
    ends: list[int] = []
    write = parts.files.write_at

    def write_at(descriptor: int, content: Any, offset: int) -> None:
        ends.append(offset + len(content))
        write(descriptor, content, offset)

    monkeypatch.setattr(parts.files, "write_at", write_at)
    with TaskEngine(cloud, workers=1) as engine:
        noise = registered(cloud, NOISE, name="noise")
        assert engine.plan_store(image_id=noise, bucket=BUCKET).most_spool_bytes == 0
        stored(engine, noise)
        assert ends == []
        # As of an image above 312 GiB.
        monkeypatch.setattr(parts, "_USUAL", 33 * amistore.MIB)
        again = registered(cloud, NOISE, name="again")
        plan = engine.plan_store(image_id=again, bucket=BUCKET)
        stored(engine, again)
        assert max(ends) == plan.part_size == 33 * amistore.MIB
        # Two parts at once, and no more than there is.
        assert 64 * amistore.MIB < plan.most_spool_bytes == plan.most_object_bytes < 2 * plan.part_size


def test_pads_and_an_index_beside_the_end_are_counted(tmp_path: Path) -> None:
    cloud = FaultyBackend(account("memory", tmp_path))
    form = attrs.evolve(images.SMALL, segments_per_shard=2)
    disks = [{number: images.block(number) for number in range(31)}, {5: images.block(5)}]
    cut = cloud.ec2.describe_image(registered(cloud, disks))
    amistore.store(
        cut,
        cloud.ebs,
        cloud.s3.at(BUCKET, "cut"),
        options=amistore.PackOptions(layout=form, part_size=5 * amistore.MIB),
    )
    long = amistore.MIB * 3
    noted = {"Novelty": "".join(random.Random(1).choices("0123456789abcdef", k=long // 4))}
    wide = attrs.evolve(cut, extra=noted)
    amistore.store(
        wide,
        cloud.ebs,
        cloud.s3.at(BUCKET, "wide"),
        options=amistore.PackOptions(layout=form, part_size=5 * amistore.MIB),
    )
    with TaskEngine(cloud) as engine:
        # Opened twice; front and end once each; 2 preludes, 9 segments, 4 PADs.
        for key, ranges in (("cut", 2 * 1 + 2 + 2 + 9 + 4), ("wide", 2 * 2 + 2 + 2 + 9 + 4)):
            plan = engine.plan_restore(bucket=BUCKET, object_key=key, name=key)
            made(cloud)
            engine.wait(engine.create_restore_image_task(bucket=BUCKET, object_key=key, name=key))
            assert made(cloud)["get_object_range"] == plan.requests["get_object_range"] == ranges


def test_shards_that_need_no_pad_take_fewer_requests_than_the_plan_says(tmp_path: Path) -> None:
    cloud = FaultyBackend(account("memory", tmp_path))
    image = cloud.ec2.describe_image(registered(cloud, [{number: _NOISES[number] for number in range(16)}]))
    form = amistore.Layout(blocks_per_frame=2, blocks_per_segment=2, segments_per_shard=6)
    amistore.store(
        image,
        cloud.ebs,
        cloud.s3.at(BUCKET, "noise"),
        options=amistore.PackOptions(layout=form, part_size=5 * amistore.MIB),
    )
    with TaskEngine(cloud) as engine:
        plan = engine.plan_restore(bucket=BUCKET, object_key="noise", name="noise")
        made(cloud)
        engine.wait(engine.create_restore_image_task(bucket=BUCKET, object_key="noise", name="noise"))
        assert made(cloud)["get_object_range"] == plan.requests["get_object_range"] - 1


def test_snapshots_whose_size_is_not_described_are_listed_once_more(tmp_path: Path) -> None:
    inner = account("memory", tmp_path)
    image_id = registered(inner)
    describe = inner.ec2.describe_image
    inner.ec2.describe_image = lambda given: attrs.evolve(describe(given), snapshots=())  # type: ignore[method-assign]
    cloud = FaultyBackend(inner)
    with TaskEngine(cloud) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET)
        made(cloud)
        stored(engine, image_id)
        assert made(cloud)["list_snapshot_blocks"] == plan.requests["list_snapshot_blocks"] == 6


def files(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (each.st_ino, each.st_size, each.st_mtime_ns) for name, each in found.items()}


def test_planning_reads_no_block_leaves_nothing_and_says_the_same_again(tmp_path: Path) -> None:
    cloud = FaultyBackend(account("directory", tmp_path))
    image_id = registered(cloud)
    with TaskEngine(cloud) as engine:
        key = stored(engine, image_id)
        cloud.calls.clear()
        before = files(tmp_path)
        store = engine.plan_store(image_id=image_id, bucket=f"{BUCKET}/other")
        restore = engine.plan_restore(bucket=BUCKET, object_key=key, name="web-2")
        assert store == engine.plan_store(image_id=image_id, bucket=f"{BUCKET}/other")
        assert restore == engine.plan_restore(bucket=BUCKET, object_key=key, name="web-2")
        assert {hash(store), hash(restore)} == {hash(attrs.evolve(store)), hash(attrs.evolve(restore))}
        reads = {"list_snapshot_blocks", "head_bucket", "head_object", "get_object_range", "describe_image"}
        asked = {"find_images", "dry_run_register_image", "bucket_warnings", "encrypts_snapshots"}
        assert set(made(cloud)) == reads | asked
        assert files(tmp_path) == before
        assert len(engine.describe_store_image_tasks()) == 1
        assert len(engine.describe_restore_image_tasks()) == 0


STORES: dict[str, dict[str, Any]] = {
    "malformed id": {"image_id": "web"},
    "no such image": {"image_id": "ami-0000000000000dead"},
    "no bucket": {"bucket": ""},
    "no such bucket": {"bucket": "elsewhere"},
    "bad tags": {"s3_object_tags": {"aws:x": "y"}},
    "stored already": {"bucket": f"{BUCKET}/stored"},
    "paravirtual": {"image_id": "paravirtual"},
    "too large": {"image_id": "large"},
    "snapshot gone": {"image_id": "gone"},
}


@pytest.mark.parametrize("case", STORES)
def test_a_plan_to_store_raises_what_the_call_would_raise(case: str, tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    ids = {"web": registered(cloud)}
    ids["paravirtual"] = registered(cloud, name="pv1", virtualization_type="paravirtual")
    ids["large"] = cloud.ec2.register_image(images.image([images.snapshot(cloud.ebs, 9, {})], name="large"))
    ids["gone"] = registered(cloud, name="gone")
    described = cloud.ec2.describe_image(ids["gone"])
    cloud.ec2.deregister_image(ids["gone"])
    cloud.ebs.delete_snapshot(described.snapshot_ids[0])
    with TaskEngine(cloud, quotas=Quotas(image_size=8)) as engine:
        engine.wait(engine.create_store_image_task(image_id=ids["web"], bucket=f"{BUCKET}/stored"))
        request = {"image_id": "web", "bucket": BUCKET, **STORES[case]}
        given = "web-" if case == "malformed id" else request["image_id"]
        request["image_id"] = ids.get(given, given)
        assert_same_error(engine.plan_store, engine.create_store_image_task, request)


RESTORES: dict[str, dict[str, Any]] = {
    "no key": {"object_key": ""},
    "no such object": {"object_key": "nothing"},
    "no such bucket": {"bucket": "elsewhere"},
    "no archive": {"object_key": "junk"},
    "without its root": {"object_key": "rootless"},
    "malformed name": {"name": "a"},
    "name taken": {"name": None},
    "bad tags": {"tag_specifications": [TagSpecification(resource_type="volume", tags=())]},
    "too large": {"object_key": "large"},
}


@pytest.mark.parametrize("case", RESTORES)
def test_a_plan_to_restore_raises_what_the_call_would_raise(case: str, tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    image = cloud.ec2.describe_image(registered(cloud))
    amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "web"))
    root = image.block_device_mappings[0].ebs
    others = [each for each in image.snapshot_ids if root is not None and each != root.snapshot_id]
    amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "rootless"), snapshots=others)
    large = images.image([images.snapshot(cloud.ebs, 9, {})], name="large")
    amistore.store(large, cloud.ebs, cloud.s3.at(BUCKET, "large"))
    cloud.s3.put_object(BUCKET, "junk", [b"no archive"])
    with TaskEngine(cloud, quotas=Quotas(image_size=8)) as engine:
        request = {"bucket": BUCKET, "object_key": "web", "name": "web-2", **RESTORES[case]}
        assert_same_error(engine.plan_restore, engine.create_restore_image_task, request)
        assert len(engine.describe_restore_image_tasks()) == 0


def assert_same_error(
    plan: Callable[..., object], call: Callable[..., object], request: Mapping[str, Any]
) -> None:
    with pytest.raises(amistore.AmistoreError) as planned:
        plan(**request)
    with pytest.raises(amistore.AmistoreError) as called:
        call(**request)
    assert type(planned.value) is type(called.value)
    assert str(planned.value) == str(called.value)
    assert getattr(planned.value, "code", None) == getattr(called.value, "code", None)


def test_a_plan_tells_that_a_quota_is_used_up_and_is_refused_by_a_task_for_the_same(tmp_path: Path) -> None:
    cloud = FaultyBackend(account("memory", tmp_path))
    first, second = registered(cloud, name="one"), registered(cloud, name="two")
    with TaskEngine(cloud, quotas=Quotas(store_in_progress=3)) as engine:
        plan = engine.plan_store(image_id=first, bucket=BUCKET)
        assert (plan.in_progress, plan.quota, plan.warnings) == (0, 3, ())
        cloud.add_fault("create_multipart_upload", "error")  # so that tasks stay in progress
        engine.create_store_image_task(image_id=first, bucket=BUCKET)
        request = {"image_id": first, "bucket": BUCKET}
        assert_same_error(engine.plan_store, engine.create_store_image_task, request)
        plan = engine.plan_store(image_id=second, bucket=BUCKET)
        told = (
            "with this task {} GiB are in progress, and the quota is 3 GiB: {} store tasks wait until one "
            "has ended"
        )
        assert (plan.in_progress, plan.warnings) == (2, (told.format(4, "further"),))
        engine.create_store_image_task(image_id=second, bucket=BUCKET)
        plan = engine.plan_store(image_id=second, bucket=f"{BUCKET}/more")
        assert (plan.in_progress, plan.warnings) == (4, (told.format(6, "it and further"),))


@settings(max_examples=25)
@given(any_images())
def test_what_a_restore_keeps_drops_and_remaps_is_what_its_plan_says(image: amistore.Image) -> None:
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    made_of = {
        each: images.snapshot(cloud.ebs, image.snapshot(each).volume_size or 1, {})
        for each in image.snapshot_ids
    }
    image = attrs.evolve(image.with_snapshots(made_of), virtualization_type="hvm")
    with TaskEngine(cloud, quotas=Quotas.unlimited()) as engine:
        amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "key"))
        tags = [Tag(key="Name", value="given")]
        specifications = [TagSpecification(resource_type=each, tags=tags) for each in ("image", "snapshot")]
        request = {
            "bucket": BUCKET,
            "object_key": "key",
            "name": "given",
            "tag_specifications": specifications,
            "allow_lost": True,
        }
        try:
            plan = engine.plan_restore(**request)
        except amistore.InvalidRequestError:
            return  # no root device
        task = engine.wait(engine.create_restore_image_task(**request))
    before = {leaf.path: leaf.value for leaf in leaves(image)}
    assert sorted(each.attribute for each in plan.fidelity) == sorted(before)
    restored = cloud.ec2.describe_image(str(task.image_id))
    old = {str(each.snapshot_id): each.stored_id for each in task.snapshots}
    after = {leaf.path: leaf.value for leaf in leaves(restored.with_snapshots(old))}
    snapshot = {"block_device_mappings.ebs.snapshot_id", "snapshots.snapshot_id"}
    names = {leaf.path: leaf.name for leaf in leaves(image)}
    for each in plan.fidelity:
        path = each.attribute
        if each.fate is Fate.DROPPED:
            assert path not in after, each
        elif each.fate is Fate.KEPT:
            assert after[path] == before[path], each
        else:
            assert after[path] != before[path] or names[path] in snapshot, each
            assert each.reason


def test_warnings_tell_what_is_unwise_and_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = account("memory", tmp_path)
    ids = [images.snapshot(cloud.ebs, 1, disk) for disk in SMALL]
    lost = (amistore.model.BlockRange(first_block=8, block_count=1),)
    described = (
        amistore.Snapshot(snapshot_id=ids[0], encrypted=True, lost_blocks=lost),
        amistore.Snapshot(snapshot_id=ids[1]),
    )
    image = images.image(
        ids, snapshots=described, tags=(Tag(key="aws:a", value="b"), Tag(key="c", value="d"))
    )
    image_id = cloud.ec2.register_image(image)
    unwise = "the bucket does not block public access", "the bucket has no default encryption"
    cloud.s3.bucket_warnings = lambda bucket: unwise if bucket == BUCKET else ()  # type: ignore[method-assign]
    fidelity = cloud.ec2.fidelity

    def without_reserved(image: amistore.Image, *, name: str | None = None) -> Any:
        return tuple(
            attrs.evolve(each, fate=Fate.DROPPED, reason="AWS's own")
            if each.attribute.startswith("tags[aws:")
            else each
            for each in fidelity(image, name=name)
        )

    cloud.ec2.fidelity = without_reserved  # type: ignore[method-assign]
    monkeypatch.setattr(type(cloud.s3), "traits", StoreTraits(largest_object=1000))
    # One of the snapshots only, and not that of the root device.
    root = image.block_device_mappings[0].ebs
    assert root is not None and root.snapshot_id == ids[0]
    amistore.store(image, cloud.ebs, cloud.s3.at(BUCKET, "root"), snapshots=ids[:1])
    with TaskEngine(cloud) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET)
        size = plan.most_object_bytes
        assert plan.warnings == (
            *unwise,
            f"encrypted snapshots ({ids[0]}): their blocks are decrypted into the object, which only the "
            "bucket may encrypt",
            "2 attributes of the AMI are not restored here: see fidelity",
            f"where the data cannot be compressed, the object would have {size} bytes, and the store's have "
            "1000 at most: the task would fail when it gets there",
        )
        request = {"bucket": BUCKET, "object_key": "root", "name": "web-2"}
        restore = engine.plan_restore(**request)
        assert restore.warnings[:5] == (
            *unwise,
            f"encrypted snapshots ({ids[0]}): whether the new ones are is up to the destination's settings",
            f"the mapping of {ids[1]} is left out: it is not in the archive",
            f"blocks of {ids[0]} were lost before they were stored: it will fail without allow_lost=True",
        )
        with pytest.raises(amistore.TaskFailedError, match="allow_lost"):
            engine.wait(engine.create_restore_image_task(**request))
        allowed = engine.plan_restore(**request, allow_lost=True)
        assert allowed.warnings[4] == (
            f"blocks of {ids[0]} were lost before they were stored: restored without them"
        )


PRICES = Prices(
    block_lists=1,
    block_reads=2,
    block_writes=3,
    object_writes=5,
    object_reads=7,
    object_storage=11,
    snapshot_storage=13,
)


def test_costs_are_requests_and_storage_times_their_prices(tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    image_id = registered(cloud)
    with TaskEngine(cloud) as engine:
        assert engine.plan_store(image_id=image_id, bucket=BUCKET).request_cost is None
        assert engine.plan_store(image_id=image_id, bucket=BUCKET).monthly_cost is None
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET, prices=PRICES)
        # Two snapshots, listed twice; 3 blocks; 1 part or 2, begun and completed; 1 + 2 heads and a range.
        assert plan.request_cost == pytest.approx((4 * 1 + 3 * 2 + (plan.most_parts + 2) * 5 + 4 * 7) / 1000)
        assert plan.monthly_cost == pytest.approx(plan.most_object_bytes / 2**30 * 11)
        key = stored(engine, image_id)
        restore = engine.plan_restore(bucket=BUCKET, object_key=key, name="web-2", prices=PRICES)
        # 3 blocks; 1 + 2 heads; 7 ranges: the end twice, front and end once each, 2 preludes, a segment.
        assert restore.request_cost == pytest.approx((3 * 3 + 3 * 7 + 7 * 7) / 1000)
        assert restore.monthly_cost == pytest.approx(3 * 524_288 / 2**30 * 13)


FAST = {"compression": 1e9, "decompression": 1e9}


def test_the_time_is_that_of_the_requests_at_their_rates(tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    image_id = registered(cloud)
    rates = RequestRates(block_lists=2, block_reads=3, block_writes=6, snapshots=4, **FAST)
    with TaskEngine(cloud) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET, rates=rates)
        assert plan.estimated_seconds == pytest.approx(4 / 2 + 3 / 3)
        usual = engine.plan_store(image_id=image_id, bucket=BUCKET, rates=RequestRates(**FAST))
        assert usual.estimated_seconds == pytest.approx(4 / 50 + 3 / 1000)
        key = stored(engine, image_id)
        restore = engine.plan_restore(bucket=BUCKET, object_key=key, name="web-2", rates=rates)
        assert restore.estimated_seconds == pytest.approx(3 / 6 + 2 / 4 + 2 / 4)


@pytest.mark.parametrize(("wanted", "workers", "in_flight"), [(0, 2, 2), (0, 16, 16), (64, 2, 64)])
def test_at_a_latency_so_many_blocks_come_as_are_in_flight(
    tmp_path: Path, wanted: int, workers: int, in_flight: int
) -> None:
    cloud = account("memory", tmp_path)
    image_id = registered(cloud)
    cloud.ebs.requests = wanted
    rates = RequestRates(block_lists=1e9, block_reads=1e9, latency=20, **FAST)
    with TaskEngine(cloud, workers=workers) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET, rates=rates)
    assert plan.estimated_seconds == pytest.approx(3 / (in_flight / 20))
    assert plan.bounded_by == "the latency"


def test_the_workers_of_an_executor_have_a_core_and_requests_in_flight_each(tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    image_id = registered(cloud)
    cloud.ebs.requests = 64
    rates = RequestRates(block_lists=1e9, block_reads=1e9, latency=20, **FAST)
    with ThreadPoolExecutor(1) as pool, TaskEngine(cloud, executor=pool, workers=48) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET, rates=rates)
        assert plan.estimated_seconds == pytest.approx(3 / (48 * 64 / 20))
        slow = attrs.evolve(rates, compression=0.001)
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET, rates=slow)
        assert plan.estimated_seconds == pytest.approx(3 * 524_288 / 48_000)
        assert plan.bounded_by == "the cores" and "bounded by the cores" in str(plan)
        stored = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        assert plan.most_object_bytes >= cloud.s3.head_object(BUCKET, stored.object_key).size
        assert plan.most_parts >= 1 and plan.warnings == ()


def test_a_plan_says_that_a_store_of_equal_parts_has_one_uploader(tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    image_id = registered(cloud)
    cloud.s3.traits = amistore.backends.StoreTraits(equal_parts=True)
    with ThreadPoolExecutor(1) as pool, TaskEngine(cloud, executor=pool, workers=2) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET)
    assert any("this process alone uploads" in warning for warning in plan.warnings)


def test_blocks_come_no_faster_than_the_cores_compress_and_decompress_them(tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    image_id = registered(cloud)
    rates = RequestRates(block_lists=1e9, snapshots=1e9, compression=0.01, decompression=0.02)
    with TaskEngine(cloud, workers=1) as engine:
        plan = engine.plan_store(image_id=image_id, bucket=BUCKET, rates=rates)
        key = stored(engine, image_id)
        restore = engine.plan_restore(bucket=BUCKET, object_key=key, name="web-2", rates=rates)
    assert plan.estimated_seconds == pytest.approx(3 * 524_288 / 10_000)
    assert restore.estimated_seconds == pytest.approx(3 * 524_288 / 20_000)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "0.1", None, True])
def test_prices_and_rates_are_numbers(value: Any) -> None:
    with pytest.raises(amistore.InvalidValueError, match=r"Prices\.block_lists must be a number, 0 or more"):
        attrs.evolve(PRICES, block_lists=value)
    with pytest.raises(
        amistore.InvalidValueError, match=r"RequestRates\.snapshots must be a number, 0\.001 or"
    ):
        RequestRates(snapshots=value)


def test_a_plan_prints_as_aligned_lines_that_fit(tmp_path: Path) -> None:
    cloud = account("memory", tmp_path)
    image_id = registered(cloud, tags=tuple(Tag(key=f"{number}<>", value="x") for number in range(9)))
    with TaskEngine(cloud) as engine:
        key = stored(engine, image_id)
        plans: list[StorePlan | RestorePlan] = [
            engine.plan_store(image_id=image_id, bucket=f"{BUCKET}/a&b", prices=PRICES),
            engine.plan_restore(bucket=BUCKET, object_key=key, name="web-2", prices=PRICES),
        ]
    for plan in plans:
        title, *lines = str(plan).splitlines()
        assert title.startswith(("store ami-", "restore archive/ami-"))
        assert all(len(line) <= 110 and line[:2] == "  " and line[12:14] == "  " for line in lines)
        assert len(lines) <= 20
    assert "a&amp;b" in plans[0]._repr_html_()
