"""Bytes that are damaged on their way, and not where they lie."""

from __future__ import annotations

import io

import images
import pytest
from objects import runs

import amistore
from amistore import MIB, Backend, Layout, MemoryBackend, RetryingBackend, RetryPolicy
from amistore.backends import ObjectStore
from amistore.testing import FaultyBackend

SMALL = Layout(blocks_per_frame=2, blocks_per_segment=4, part_size=5 * MIB)


class Damaging(ObjectStore):
    """A store of which each `every`th ranged read has a flipped bit."""

    def __init__(self, inner, every):
        self.inner = inner
        self.every = every
        self.reads = 0
        self.armed = True

    def get_object_range(self, *place, **options):
        content = bytearray(self.inner.get_object_range(*place, **options))
        self.reads += self.armed
        if self.reads and self.reads % self.every == 0 and content:
            content[len(content) // 2] ^= 1
        return bytes(content)

    def head_object(self, *place):
        return self.inner.head_object(*place)

    def delete_object(self, *place, **options):
        self.inner.delete_object(*place, **options)

    def create_multipart_upload(self, *place, **options):
        return self.inner.create_multipart_upload(*place, **options)

    def upload_part(self, *place):
        return self.inner.upload_part(*place)

    def list_parts(self, *place):
        return self.inner.list_parts(*place)

    def complete_multipart_upload(self, *place, **options):
        info = self.inner.complete_multipart_upload(*place, **options)
        self.armed = True
        return info

    def abort_multipart_upload(self, *place):
        self.inner.abort_multipart_upload(*place)


def retrying(store):
    """The store as a backend has it that makes calls again; pauses are short."""
    memory = MemoryBackend()
    return RetryingBackend(
        Backend(ebs=memory.ebs, s3=store, ec2=memory.ec2), RetryPolicy(base_delay=0.001)
    ).s3


@pytest.fixture
def cloud():
    cloud = MemoryBackend()
    cloud.s3.create_bucket("bucket")
    return cloud


@pytest.fixture
def image(cloud):
    disks = [{n * 5 + 1: images.noise(100 * disk + n) for n in range(30)} for disk in range(2)]
    return images.image(images.snapshot(cloud.ebs, 1 + number, disk) for number, disk in enumerate(disks))


def test_a_restore_reads_again_what_was_damaged_on_its_way(cloud, image):
    amistore.store(
        image,
        cloud.ebs,
        cloud.s3.at("bucket", "key"),
        options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB),
    )
    other = MemoryBackend()
    damaging = Damaging(cloud.s3, every=13)
    restored = amistore.unpack(retrying(damaging).at("bucket", "key"), other.ebs, workers=2)
    assert damaging.reads > damaging.every
    assert len(other.ebs._snapshots) == 2
    devices = [[each.device_name for each in given.block_device_mappings] for given in (image, restored)]
    assert devices[0] == devices[1]
    assert runs.disks(other.ebs, restored) == runs.disks(cloud.ebs, image)


def test_an_archive_is_read_again_where_it_was_damaged_on_its_way(cloud, image):
    amistore.store(
        image,
        cloud.ebs,
        cloud.s3.at("bucket", "key"),
        options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB),
    )
    for every in (2, 3, 7):
        damaging = Damaging(cloud.s3, every)
        with amistore.open(retrying(damaging).at("bucket", "key")) as archive:
            assert archive.verify(workers=1).ok
            for volume in archive.volumes:
                disk = volume.open()
                for index, content in images.contents(cloud.ebs, volume.snapshot_id)[1].items():
                    disk.seek(index * amistore.BLOCK_SIZE)
                    assert disk.read(len(content)) == content
        assert damaging.reads > 2 * every


def test_what_is_damaged_is_asked_for_as_often_as_a_call_has_attempts(cloud, image, caplog):
    container = bytearray(
        b"".join(
            amistore.pack(
                image, cloud.ebs, options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB)
            )
        )
    )
    with amistore.open(io.BytesIO(container)) as archive:
        intact = archive.verify()
    place = len(container) // 2
    container[place] ^= 1
    cloud.s3.put_object("bucket", "key", container)
    faulty = FaultyBackend(cloud)
    with amistore.open(retrying(faulty.s3).at("bucket", "key")) as archive:
        damaged = archive.verify()
    assert intact.ok
    assert len(damaged.findings) == 1
    asked = {call[-2:]: count for call, count in faulty.calls.items() if call[0] == "get_object_range"}
    assert {(start, length) for start, length in asked if start <= place < start + length} == {
        range_ for range_, count in asked.items() if count > 1
    }
    assert set(asked.values()) == {1, RetryPolicy().attempts}
    assert len([line for line in caplog.messages if "reading them again" in line]) == 1


def test_a_damaged_place_is_logged_once_told_with_the_remedy_and_leaves_no_snapshot(cloud, image, caplog):
    container = bytearray(
        b"".join(
            amistore.pack(
                image, cloud.ebs, options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB)
            )
        )
    )
    container[len(container) // 2] ^= 1
    cloud.s3.put_object("bucket", "key", container)
    other = MemoryBackend()
    calls = runs.Calls(other.ebs)
    with pytest.raises(amistore.CorruptArchiveError, match=r"take another copy, or amistore\.recover"):
        amistore.unpack(retrying(cloud.s3).at("bucket", "key"), other.ebs, workers=2)
    assert len([line for line in caplog.messages if "reading them again" in line]) == 1
    assert calls.made["put_snapshot_block"] > 0
    assert other.ebs._snapshots == {}


def test_damage_where_it_lies_leaves_the_other_calls_their_attempts(cloud, image):
    container = bytearray(
        b"".join(
            amistore.pack(
                image, cloud.ebs, options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB)
            )
        )
    )
    with amistore.open(io.BytesIO(container)) as archive:
        offsets = list(archive._container.index.offsets)
    for offset in offsets[:-1]:
        container[offset + 30] ^= 1
    cloud.s3.put_object("bucket", "key", container)
    faulty = FaultyBackend(cloud)
    memory = MemoryBackend()
    policy = RetryPolicy(base_delay=0.001, budget=20)
    store = RetryingBackend(Backend(ebs=memory.ebs, s3=faulty.s3, ec2=memory.ec2), policy).s3
    with amistore.open(store.at("bucket", "key")) as archive:
        # Of the front 1 read, of the volumes 2, of each damaged segment 5; the next one is of the whole one.
        fault = faulty.add_fault("get_object_range", "error", calls=[5 * len(offsets) - 1])
        assert len(archive.verify(workers=1).findings) >= len(offsets) - 1
    assert fault.fired == 1


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda content: None])
def test_a_store_that_gives_no_bytes_is_refused(kind):
    class Other(type(MemoryBackend().s3)):
        def get_object_range(self, *place, **options):
            return kind(super().get_object_range(*place, **options))

    store = Other()
    store.create_bucket("bucket")
    store.put_object("bucket", "key", b"x" * 5000)
    with pytest.raises(amistore.BackendError, match=r"get_object_range must give bytes"):
        amistore.open(store.at("bucket", "key"))


def test_a_copy_of_what_is_damaged_tells_the_frame_and_the_remedy(cloud, image):
    container = bytearray(
        b"".join(
            amistore.pack(
                image, cloud.ebs, options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB)
            )
        )
    )
    place = len(container) // 2
    container[place] ^= 1
    cloud.s3.put_object("bucket", "key", container)
    with pytest.raises(amistore.CorruptArchiveError, match=r"amistore\.recover saves what is left") as caught:
        amistore.copy(cloud.s3.at("bucket", "key"), cloud.s3.at("bucket", "copy"))
    assert caught.value.record == "frame"
    assert 0 <= place - caught.value.offset < 2 * amistore.BLOCK_SIZE + 100  # two blocks of noise a frame


def test_a_kept_archive_that_is_there_is_told_with_what_goes_on_from_it(cloud, image):
    image_id = cloud.ec2.register_image(image)
    other = MemoryBackend()
    other.s3.create_bucket("kept")
    other.s3.put_object("kept", "key", b"there")
    with pytest.raises(amistore.AlreadyExistsError, match=r"amistore\.restore goes on from it"):
        amistore.transfer(image_id, source=cloud, destination=other, keep=other.s3.at("kept", "key"))


class Stop(Exception):
    pass


def stop(event):
    if event.phase is amistore.pipeline.Phase.PACK and event.blocks > 40:
        raise Stop


def test_a_good_object_is_not_deleted_for_a_proof_that_was_damaged_on_its_way(cloud, image, tmp_path):
    damaging = Damaging(cloud.s3, every=4)
    damaging.armed = False

    def pack(progress=None):
        with amistore.FileResumeLog(tmp_path / "log") as log:
            return amistore.store(
                image,
                cloud.ebs,
                retrying(damaging).at("bucket", "key"),
                workers=1,
                log=log,
                progress=progress,
                options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB),
            )

    with pytest.raises(Stop):
        pack(stop)
    told = pack()
    assert damaging.reads > 2 * damaging.every
    assert runs.is_there(told)
    with amistore.open(cloud.s3.at("bucket", "key")) as archive:
        assert archive.verify().ok
