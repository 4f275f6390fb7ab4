"""Holes are filled with zeros where that is asked for, by either way of restoring, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objects import runs
from objects.runs import BUCKET, KEY, Calls, Log

import amistore
from amistore import BLOCK_SIZE, GIB
from amistore.container.runs import Runs
from amistore.model import BlockRange
from amistore.pipeline.holes import FilledSum, Holes

ZEROS = bytes(BLOCK_SIZE)
PER_GIB = GIB // BLOCK_SIZE
VOLUMES: list[tuple[int, dict[int, bytes]]] = [
    (1, {0: images.block(1), 7: images.block(0), 8: images.block(2), 2047: images.block(3)}),
    (1, {}),
]
FILLED = [
    (size, {index: blocks.get(index, ZEROS) for index in range(size * PER_GIB)}) for size, blocks in VOLUMES
]
HOLES = sum(size * PER_GIB - len(blocks) for size, blocks in VOLUMES)


def restored(way: str, backend: amistore.MemoryBackend, container: bytes, **options: Any) -> amistore.Image:
    if way == "stream":
        return amistore.unpack(io.BytesIO(container), backend.ebs, **{"workers": 2, **options})
    backend.s3.create_bucket(BUCKET)
    backend.s3.put_object(BUCKET, KEY, [container])
    return amistore.unpack(backend.s3.at(BUCKET, KEY), backend.ebs, **{"workers": 2, **options})


WAYS = pytest.mark.parametrize("way", ["stream", "object"])


@WAYS
def test_every_block_is_listed_and_the_listed_ones_are_as_they_were(way: str) -> None:
    backend = amistore.MemoryBackend()
    seen: list[amistore.Progress] = []
    container = images.packed(VOLUMES)
    image = restored(way, backend, container, fill_holes=True, workers=3, progress=seen.append)
    assert runs.disks(backend.ebs, image) == FILLED
    filling = [each for each in seen if each.phase is amistore.pipeline.Phase.FILL]
    assert (filling[-1].blocks, filling[-1].total_blocks) == (HOLES, HOLES)
    assert [each.blocks for each in filling] == sorted(each.blocks for each in filling)
    assert len(images.leftovers(backend)) == len(VOLUMES)


@WAYS
def test_without_it_holes_stay_holes(way: str) -> None:
    backend = amistore.MemoryBackend()
    image = restored(way, backend, images.packed(VOLUMES))
    assert runs.disks(backend.ebs, image) == VOLUMES


@WAYS
def test_of_snapshots_that_are_not_wanted_nothing_is_filled(way: str) -> None:
    backend = amistore.MemoryBackend()
    wanted = next(iter(images.Volumes(VOLUMES).volumes))
    image = restored(way, backend, images.packed(VOLUMES), snapshots=[wanted], fill_holes=True)
    assert runs.disks(backend.ebs, image) == FILLED[:1]


@WAYS
def test_what_was_lost_is_never_filled(way: str) -> None:
    """A block of zeros would pass it off as data."""
    lost = (BlockRange(first_block=2, block_count=3), BlockRange(first_block=2000, block_count=47))
    (snapshot_id,) = images.Volumes(VOLUMES[:1]).volumes
    known = amistore.Snapshot(snapshot_id=snapshot_id, lost_blocks=lost)
    container = images.packed(VOLUMES[:1], snapshots=(known,))
    backend = amistore.MemoryBackend()
    image = restored(way, backend, container, allow_lost=True, fill_holes=True)
    ((_, blocks),) = runs.disks(backend.ebs, image)
    missing = {index for each in lost for index in range(each.first_block, each.end)}
    assert blocks == {index: each for index, each in FILLED[0][1].items() if index not in missing}
    assert image.snapshots[0].lost_blocks == lost


@WAYS
def test_damage_is_found_before_a_hole_is_filled(way: str) -> None:
    container = bytearray(images.packed(VOLUMES))
    container[-3000] ^= 1
    backend = amistore.MemoryBackend()
    calls = Calls(backend.ebs)
    with pytest.raises(amistore.CorruptArchiveError):
        restored(way, backend, bytes(container), fill_holes=True)
    assert len(calls.blocks()) <= sum(len(blocks) for _, blocks in VOLUMES)
    assert images.leftovers(backend) == []


@WAYS
def test_a_failure_among_filling_leaves_nothing_behind(way: str) -> None:
    backend = amistore.MemoryBackend()
    Calls(backend.ebs).fail("put_snapshot_block", 300, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut") as caught:
        restored(way, backend, images.packed(VOLUMES), fill_holes=True)
    assert caught.value.snapshot_id is None or caught.value.block_index is not None
    assert images.leftovers(backend) == []


@pytest.mark.parametrize("block", [5, 1000, HOLES])
def test_a_run_that_goes_on_puts_again_what_was_in_flight_and_no_more(block: int) -> None:
    backend, log = amistore.MemoryBackend(), Log()
    calls = Calls(backend.ebs)
    calls.fail("put_snapshot_block", block, amistore.BackendError("cut"))
    container = images.packed(VOLUMES)
    with pytest.raises(amistore.BackendError, match="cut"):
        restored("object", backend, container, fill_holes=True, log=log)
    put = calls.made["put_snapshot_block"]
    seen: list[amistore.Progress] = []
    calls.fail("", 0, RuntimeError())
    image = amistore.unpack(
        backend.s3.at(BUCKET, KEY), backend.ebs, log=log, fill_holes=True, workers=2, progress=seen.append
    )
    assert runs.disks(backend.ebs, image) == FILLED
    in_flight = 2 * 2 * images.SMALL.blocks_per_segment
    everything = sum(size for size, _ in VOLUMES) * PER_GIB
    assert put + calls.made["put_snapshot_block"] <= everything + in_flight + 1
    assert (seen[-1].phase, seen[-1].blocks, seen[-1].total_blocks) == (
        amistore.pipeline.Phase.FILL,
        HOLES,
        HOLES,
    )
    assert len(images.leftovers(backend)) == len(VOLUMES)
    assert log.entries() == []


def test_a_snapshot_that_was_lost_while_it_was_filled_is_filled_anew() -> None:
    """What the log says of its holes is not said of the one that takes its place."""
    backend, log = amistore.MemoryBackend(), Log()
    Calls(backend.ebs).fail("put_snapshot_block", 1000, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        restored("object", backend, images.packed(VOLUMES), fill_holes=True, log=log)
    assert b"filled" in b"".join(log.entries())
    for snapshot_id in images.leftovers(backend):
        backend.ebs.delete_snapshot(snapshot_id)
    image = amistore.unpack(backend.s3.at(BUCKET, KEY), backend.ebs, log=log, fill_holes=True, workers=2)
    assert runs.disks(backend.ebs, image) == FILLED


@pytest.mark.parametrize("fill_holes", [False, True])
def test_a_run_is_not_gone_on_with_in_the_other_manner(fill_holes: bool) -> None:
    backend, log = amistore.MemoryBackend(), Log()
    Calls(backend.ebs).fail("put_snapshot_block", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        restored("object", backend, images.packed(VOLUMES), fill_holes=fill_holes, log=log)
    there, entries = images.leftovers(backend), log.entries()
    for _ in range(2):
        with pytest.raises(amistore.InvalidRequestError, match=r"fill_holes is .*abandon ends that run"):
            amistore.unpack(
                backend.s3.at(BUCKET, KEY), backend.ebs, log=log, fill_holes=not fill_holes, workers=2
            )
    assert (images.leftovers(backend), log.entries()) == (there, entries)
    place = backend.s3.at(BUCKET, KEY), backend.ebs
    if not fill_holes:
        assert runs.disks(backend.ebs, amistore.unpack(*place, log=log)) == VOLUMES


class Tally(amistore.backends.BlockSink):
    """Notes which blocks are put, in a file that any process adds to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.completed: list[tuple[int, bytes]] = []

    def start_snapshot(self, volume_size: int, **options: object) -> str:
        return "snap-0123456789abcdef0"

    def put_snapshot_block(self, snapshot_id: str, block_index: int, content: Any, checksum: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(f"{os.getpid()} {block_index} {checksum.hex()}\n".encode())

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        self.completed.append((changed_blocks_count, checksum))

    def delete_snapshot(self, snapshot_id: str) -> None:
        pass


def test_other_processes_fill_too(tmp_path: Path) -> None:
    sink = Tally(tmp_path / "puts")
    with ProcessPoolExecutor(2) as executor:
        container = images.packed(VOLUMES[:1])
        amistore.unpack(io.BytesIO(container), sink, fill_holes=True, executor=executor, workers=2)
    lines = [line.split() for line in sink.path.read_text().splitlines()]
    digests = {int(index): bytes.fromhex(digest) for _, index, digest in lines}
    assert len(lines) == PER_GIB
    assert str(os.getpid()) not in {pid for pid, _, _ in lines}
    assert digests == {index: hashlib.sha256(each).digest() for index, each in FILLED[0][1].items()}
    linear = hashlib.sha256(b"".join(digests[index] for index in sorted(digests))).digest()
    assert sink.completed == [(PER_GIB, linear)]


@attrs.frozen
class Volume:
    """A volume of any holes: its size in blocks, what is listed and what was lost."""

    size: int
    listed: frozenset[int]
    lost: frozenset[int]


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    kinds = draw(st.lists(st.sampled_from(["listed", "lost", "hole"]), min_size=1, max_size=20))
    some = st.one_of(st.integers(1, 70), st.sampled_from([4095, 4096, 4097]))  # digests hashed at once
    lengths = draw(st.lists(some, min_size=len(kinds), max_size=len(kinds)))
    found: dict[str, set[int]] = {"listed": set(), "lost": set(), "hole": set()}
    at = 0
    for kind, length in zip(kinds, lengths, strict=True):
        found[kind].update(range(at, at + length))
        at += length
    return Volume(at, frozenset(found["listed"]), frozenset(found["lost"]))


def lost_ranges(indexes: Sequence[int]) -> list[BlockRange]:
    return [BlockRange(first_block=first, block_count=count) for first, count in Runs.of_blocks(indexes)]


@settings(max_examples=40)
@given(volumes(), st.integers(1, 5000), st.data())
def test_pieces_and_sum_are_those_of_the_blocks_one_by_one(
    volume: Volume, most: int, data: st.DataObject
) -> None:
    listed = Runs.of_blocks(sorted(volume.listed))
    holes = Holes(volume.size * BLOCK_SIZE, listed, lost_ranges(sorted(volume.lost)))
    expected = sorted({*range(volume.size)} - volume.listed - volume.lost)
    assert holes.blocks == len(expected)
    first = data.draw(st.integers(0, volume.size))
    found = [
        [index for start, count in piece for index in range(start, start + count)]
        for piece in holes.pieces(first, most)
    ]
    assert [index for piece in found for index in piece] == [index for index in expected if index >= first]
    assert all(len(piece) == most for piece in found[:-1])
    assert holes.before(first) == sum(index < first for index in expected)

    zero = hashlib.sha256(ZEROS).digest()
    total = FilledSum(holes)
    linear = hashlib.sha256()
    for index in range(volume.size):
        if index not in volume.lost:
            linear.update(index.to_bytes(32, "big") if index in volume.listed else zero)
    for ordinal in range(0, listed.blocks, 64):
        part = listed.slice(ordinal, 64)
        total.add(part, [index.to_bytes(32, "big") for index in part.indexes()])
    assert total.end() == (volume.size - len(volume.lost), linear.digest())
