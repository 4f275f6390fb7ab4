"""Fifty that store one key at once: one object, and nothing left of the others."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path

import images
import pytest

import amistore
from amistore import DirectoryBackend, MemoryBackend

RACERS = 50


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_of_fifty_that_store_one_key_exactly_one_wins(kind: str, tmp_path: Path) -> None:
    cloud: MemoryBackend | DirectoryBackend = MemoryBackend()
    if kind == "directory":
        cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket("archive")
    snapshot_id = images.snapshot(cloud.ebs, 1, {index: images.block(index) for index in range(8)})
    # Each has an image of its own, so that the object tells whose it is.
    racers = [images.image([snapshot_id], description=str(number)) for number in range(RACERS)]
    source = images.Volumes([])
    source.volumes[snapshot_id] = (1, {index: images.block(index) for index in range(8)})

    ready = threading.Barrier(RACERS)

    def store(image: amistore.Image) -> amistore.ObjectInfo | BaseException:
        ready.wait()
        try:
            return amistore.pack_object(
                image, source, cloud.s3, "archive", "key", layout=images.SMALL, workers=1
            )
        except BaseException as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(RACERS) as pool:
        ended = list(pool.map(store, racers))
    won = [number for number, each in enumerate(ended) if isinstance(each, amistore.ObjectInfo)]
    lost = [each for each in ended if not isinstance(each, amistore.ObjectInfo)]
    assert len(won) == 1
    assert {type(each) for each in lost} == {amistore.AlreadyExistsError}
    assert cloud.s3.list_multipart_uploads("archive") == []
    restored = amistore.unpack_object(cloud.s3, "archive", "key", cloud.ebs)
    assert restored.description == str(won[0])
