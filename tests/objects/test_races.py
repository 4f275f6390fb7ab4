"""Many that store one key at once: one object, and nothing left of the others."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import threading
from pathlib import Path
from typing import Any

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

    def store(image: amistore.Image) -> amistore.StoredArchive | BaseException:
        ready.wait()
        try:
            return amistore.store(
                image,
                source,
                cloud.s3.at("archive", "key"),
                workers=1,
                options=amistore.PackOptions(layout=images.SMALL, part_size=5 * amistore.MIB),
            )
        except BaseException as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(RACERS) as pool:
        ended = list(pool.map(store, racers))
    won = [number for number, each in enumerate(ended) if isinstance(each, amistore.StoredArchive)]
    lost = [each for each in ended if not isinstance(each, amistore.StoredArchive)]
    assert len(won) == 1
    assert {type(each) for each in lost} == {amistore.AlreadyExistsError}
    assert cloud.s3.list_multipart_uploads("archive") == []
    restored = amistore.unpack(cloud.s3.at("archive", "key"), cloud.ebs)
    assert restored.description == str(won[0])


def store_in(root: Path, ends: Any) -> None:
    """Runs in a process."""
    given = images.Volumes([(1, {i: images.block(i) for i in range(3)})])
    store = DirectoryBackend(root).s3
    for round in range(5):
        try:
            amistore.store(images.image(given.volumes), given, store.at("archive", f"{round}"), workers=1)
            ends.put(round)
        except amistore.AlreadyExistsError:
            ends.put(None)


def test_of_eight_processes_that_store_one_key_one_succeeds(tmp_path: Path) -> None:
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket("archive")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["objects.test_races"])
    ends = context.SimpleQueue()
    processes = [context.Process(target=store_in, args=(tmp_path, ends)) for _ in range(8)]
    for process in processes:
        process.start()
    told = [ends.get() for _ in range(40)]
    for process in processes:
        process.join()
    ends.close()
    assert sorted(end for end in told if end is not None) == list(range(5))
    given = images.Volumes([(1, {i: images.block(i) for i in range(3)})])
    whole = b"".join(amistore.pack(images.image(given.volumes), given))
    for round in range(5):
        assert cloud.s3.path("archive", f"{round}").read_bytes() == whole
    assert cloud.s3.list_multipart_uploads("archive") == []
