"""A failed run lets go of what it worked on at once: its error's traceback keeps no segment in a cycle."""

from __future__ import annotations

import gc
import io
import tracemalloc

import images
import pytest

import amistore
from amistore import MIB, BackendError, CorruptArchiveError, Layout, MemoryBackend
from amistore.testing import FaultyBackend

LAYOUT = Layout(blocks_per_frame=2, blocks_per_segment=8, part_size=5 * MIB)
BLOCKS = {number: images.noise(number) for number in range(64)}
LARGE = 256 << 10
"""Bytes; a frame has four times as many, and nothing else of a run is as large."""


@pytest.fixture
def cloud():
    cloud = MemoryBackend()
    cloud.s3.create_bucket("archive")
    return cloud


@pytest.fixture
def place(cloud):
    """An archive in the cloud."""
    image = images.image([images.snapshot(cloud.ebs, 1, BLOCKS)])
    place = cloud.s3.at("archive", "there.bin")
    amistore.store(
        image, cloud.ebs, place, options=amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB)
    )
    return place


def kept(run, error):
    """What is still there once a run has failed, and its error is forgotten: sizes of large memory."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        with pytest.raises(error):
            run()
        return large()
    finally:
        tracemalloc.stop()
        gc.enable()


def large():
    return [trace.size for trace in tracemalloc.take_snapshot().traces if trace.size >= LARGE]


def failing(cloud, verb, call):
    """The cloud, which answers no more from this call on."""
    backend = FaultyBackend(cloud)
    backend.add_fault(verb, "error", calls=range(call, 1000))
    return backend


def damage(place):
    """Flip a bit in four of the eight segments, the first of which can be read."""
    content = bytearray(place.store.get_object_range(place.bucket, place.key, 0, place.head().size))
    for segment in range(1, 8, 2):
        content[(2 * segment + 1) * len(content) // 16] ^= 1
    place.store.put_object(place.bucket, place.key, [bytes(content)])


@pytest.mark.parametrize("verb", ["get_snapshot_block", "upload_part"])
def test_a_failed_store(cloud, place, verb):
    image = images.image([images.snapshot(cloud.ebs, 1, BLOCKS)])
    backend = failing(cloud, verb, {"get_snapshot_block": 42, "upload_part": 3}[verb])
    to = backend.s3.at("archive", "new.bin")
    options = amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB)

    def store():
        amistore.store(image, backend.ebs, to, options=options, workers=2)

    assert kept(store, BackendError) == []


def test_a_failed_restore(cloud, place):
    backend = failing(cloud, "put_snapshot_block", 42)
    assert kept(lambda: amistore.restore(place, backend, name="new", workers=2), BackendError) == []


def test_a_failed_unpacking(cloud, place):
    packed = io.BytesIO(place.store.get_object_range("archive", "there.bin", 0, place.head().size))
    backend = failing(cloud, "put_snapshot_block", 42)
    assert kept(lambda: amistore.unpack(packed, backend.ebs, workers=2), BackendError) == []


def test_a_failed_extraction(place, tmp_path):
    damage(place)

    def extract():
        with amistore.open(place) as archive:
            archive.volumes[0].extract(tmp_path / "disk.raw", workers=2)

    assert kept(extract, CorruptArchiveError) == []


def test_a_failed_reading(place):
    damage(place)

    def read():
        with amistore.open(place) as archive, archive.volumes[0].open(workers=2) as disk:
            while disk.read(MIB):
                pass

    assert kept(read, CorruptArchiveError) == []


def test_a_failed_verification(cloud, place):
    damage(place)

    def verify():
        with amistore.open(place) as archive:
            report = archive.verify(workers=2)
        assert len(report.findings) == 4
        assert large() == []  # though the report has an error of each damaged segment
        report.check()

    assert kept(verify, CorruptArchiveError) == []
