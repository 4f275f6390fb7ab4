"""Snapshots handed from a source to a sink, block by block: what arrives is what was read, or nothing is."""

from __future__ import annotations

import random
from concurrent.futures import Future
from typing import Any

import images
import pytest

import amistore
from amistore.backends import SnapshotBlock
from amistore.container.layout import Layout
from amistore.objects.relay import relay_snapshots
from amistore.pipeline.pack import plan_pack
from amistore.pipeline.snapshots import RestorePolicy

BLOCKS = {index: images.block(index % 7 + 1) for index in range(3, 99)}
VOLUMES = [(1, BLOCKS), (2, {}), (1, {2047: images.block(5)})]
FORM = Layout(blocks_per_segment=8)
ZEROS = bytes(amistore.BLOCK_SIZE)


class Reusing(images.Volumes):
    """A source whose blocks are all in one buffer: it is asked by one worker, for one after the other."""

    buffer = bytearray(amistore.BLOCK_SIZE)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        block = super().get_snapshot_block(snapshot_id, block_index, block_token)
        self.buffer[:] = block.content
        return SnapshotBlock(self.buffer, block.checksum)


class Begun(images.Volumes):
    """A source that begins its gets by itself, and answers in an order of its own."""

    requests = 16
    waiting: list[tuple[Future[SnapshotBlock], SnapshotBlock]]

    def begin_get(self, snapshot_id: str, block_index: int, block_token: str) -> Future[SnapshotBlock]:
        future: Future[SnapshotBlock] = Future()
        self.waiting.append((future, super().get_snapshot_block(snapshot_id, block_index, block_token)))
        random.Random(block_index).shuffle(self.waiting)
        if block_index % 4 == 2 or block_index in (98, 2047):
            while self.waiting:
                answered, block = self.waiting.pop()
                answered.set_result(block)
        return future


def relayed(
    source: images.Volumes, backend: amistore.MemoryBackend, **options: Any
) -> tuple[amistore.Image, bytes]:
    policy = RestorePolicy(**options)
    planned = plan_pack(images.image(source.volumes), source, layout=FORM)
    return relay_snapshots(
        planned, source, backend.ebs, policy, workers=options.get("workers", 1), progress=lambda _: None
    )


def sink(requests: int) -> amistore.MemoryBackend:
    backend = amistore.MemoryBackend()
    backend.ebs.requests = requests
    return backend


def places(disk: tuple[int, dict[int, bytes]]) -> tuple[int, list[int]]:
    """A disk's size and block indexes: its bytes as text would take a gigabyte."""
    return disk[0], sorted(disk[1])


@pytest.mark.parametrize("requests", [0, 16])
@pytest.mark.parametrize("kind", [images.Volumes, Reusing, Begun])
def test_every_block_arrives_and_the_content_id_is_the_archives(
    kind: type[images.Volumes], requests: int
) -> None:
    source, backend = kind(VOLUMES), sink(requests)
    if isinstance(source, Begun):
        source.waiting = []
    image, content_id = relayed(source, backend)
    found = [images.contents(backend.ebs, each) for each in image.snapshot_ids]
    assert sorted(found, key=places) == sorted(VOLUMES, key=places)
    pieces = amistore.pack(images.image(source.volumes), images.Volumes(VOLUMES))
    list(pieces)
    assert content_id.hex() == pieces.content_id
    for each in image.snapshot_ids:
        assert backend.ebs.describe_snapshot(each).state == "completed"


@pytest.mark.parametrize("requests", [0, 16])
@pytest.mark.parametrize(("unread", "unput"), [(40, 20), (20, 40), (98, 97)])
def test_the_first_block_that_fails_is_told_and_no_snapshot_stays(
    unread: int, unput: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Faulty(images.Volumes):
        def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
            if block_index == unread:
                raise amistore.BackendError("cannot be read", block_index=block_index)
            return super().get_snapshot_block(snapshot_id, block_index, block_token)

    backend = sink(requests)
    put = backend.ebs.put_snapshot_block

    def refused(snapshot_id: str, block_index: int, content: Any, checksum: bytes) -> None:
        if block_index == unput:
            raise amistore.BackendError("cannot be put", block_index=block_index)
        put(snapshot_id, block_index, content, checksum)

    monkeypatch.setattr(backend.ebs, "put_snapshot_block", refused)
    with pytest.raises(amistore.BackendError) as caught:
        relayed(Faulty(VOLUMES), backend)
    assert caught.value.block_index == min(unread, unput)
    assert images.leftovers(backend) == []


def test_a_block_that_is_not_what_its_source_says_is_put_nowhere() -> None:
    class Lying(images.Volumes):
        def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
            given = super().get_snapshot_block(snapshot_id, block_index, block_token)
            return SnapshotBlock(given.content, bytes(32)) if block_index == 50 else given

    backend = sink(16)
    with pytest.raises(amistore.ChecksumMismatchError) as caught:
        relayed(Lying(VOLUMES), backend)
    assert (caught.value.block_index, caught.value.snapshot_id) == (50, "snap-00000000000000000")
    assert images.leftovers(backend) == []


def test_a_snapshot_that_is_listed_otherwise_the_second_time_is_refused() -> None:
    source, backend = images.Volumes([(1, dict(BLOCKS))]), sink(16)
    planned = plan_pack(images.image(source.volumes), source, layout=FORM)
    source.volumes["snap-00000000000000000"] = (1, {index: BLOCKS[index] for index in BLOCKS if index != 60})
    with pytest.raises(amistore.SourceChangedError, match="second listing has block 61"):
        relay_snapshots(planned, source, backend.ebs, RestorePolicy(), workers=2, progress=lambda _: None)
    assert images.leftovers(backend) == []


def test_another_content_than_the_expected_one_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = sink(16)
    completed: list[object] = []
    complete = backend.ebs.complete_snapshot
    monkeypatch.setattr(
        backend.ebs, "complete_snapshot", lambda *given: (completed.append(given), complete(*given))
    )
    with pytest.raises(amistore.CorruptArchiveError, match="content id"):
        relayed(images.Volumes(VOLUMES), backend, expected=bytes(32))
    assert completed == images.leftovers(backend) == []


def test_holes_are_filled_and_counted() -> None:
    backend = sink(16)
    image, _ = relayed(images.Volumes([(1, BLOCKS)]), backend, fill_holes=True)
    size, found = images.contents(backend.ebs, image.snapshot_ids[0])
    wrong = [index for index in range(2048) if found.get(index) != BLOCKS.get(index, ZEROS)]
    assert (size, len(found), wrong) == (1, 2048, [])
