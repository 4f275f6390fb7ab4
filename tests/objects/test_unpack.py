"""`unpack` restores what was packed, or nothing: alone, and on after an error."""

from __future__ import annotations

import functools
import io
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import images
import pytest
from objects import runs
from objects.runs import BUCKET, KEY, Calls, Log

import amistore

LONG = bool(os.environ.get("AMISTORE_LONG"))
DISKS = [(size, dict(sorted(blocks.items()))) for size, blocks in runs.VOLUMES]
BLOCKS = sum(len(blocks) for _, blocks in DISKS)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with runs.nothing_left():
        yield


def cloud(content: bytes | None = None) -> amistore.MemoryBackend:
    made = runs.cloud()
    made.s3.put_object(BUCKET, KEY, [runs.expected() if content is None else content])
    return made


def unpack(given: amistore.MemoryBackend, **options: Any) -> amistore.Image:
    return amistore.unpack(given.s3.at(BUCKET, KEY), given.ebs, **{"workers": 2, **options})


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("log", [None, Log])
def test_the_disks_are_those_that_were_packed(workers: int, log: Callable[[], Log] | None) -> None:
    given = cloud()
    seen: list[amistore.Progress] = []
    image = unpack(given, workers=workers, log=log() if log else None, progress=seen.append)
    assert runs.disks(given.ebs, image) == DISKS
    assert all(given.ebs.describe_snapshot(each).state == "completed" for each in images.leftovers(given))
    assert len(images.leftovers(given)) == len(DISKS)
    assert (seen[-1].blocks, seen[-1].total_blocks) == (BLOCKS, BLOCKS)
    given.ec2.register_image(image, name="web-2")


@pytest.mark.parametrize(
    "volumes",
    [
        [],
        [(1, {})],
        [(1, {}), (2, {}), (3, {})],
        [(1, {5: images.block(1)}), (2, {}), (1, {})],
        [(1, {}), (1, {2047: images.block(0)})],
    ],
)
@pytest.mark.parametrize("log", [None, Log])
def test_empty_snapshots_are_restored_wherever_they_stand(
    volumes: list[tuple[int, dict[int, bytes]]], log: Callable[[], Log] | None
) -> None:
    given = cloud(images.packed(volumes))
    image = unpack(given, log=log() if log else None)
    assert len(images.leftovers(given)) == len(volumes)
    assert runs.disks(given.ebs, image) == volumes


def test_tags_and_descriptions_of_the_snapshots_come_back() -> None:
    source = images.Volumes([(1, {})])
    (snapshot_id,) = source.volumes
    known = amistore.Snapshot(
        snapshot_id=snapshot_id, description="root", tags=(amistore.Tag(key="a", value="b"),)
    )
    given = cloud(b"".join(amistore.pack(images.image([snapshot_id], snapshots=(known,)), source)))
    (made,) = unpack(given).snapshot_ids
    found = given.ebs.describe_snapshot(made)
    assert (found.description, found.tags) == ("root", known.tags)


@pytest.mark.parametrize("kind", [None, Log])
def test_a_flipped_bit_anywhere_is_found_and_no_snapshot_left(kind: type[Log] | None) -> None:
    content = images.packed([(1, {i: images.block(i + 1) for i in range(9)}), (1, {})])
    rng = random.Random(1)
    for at in [0, 9, len(content) - 1, *(rng.randrange(len(content)) for _ in range(1000 if LONG else 60))]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.randrange(8)
        given, log = cloud(bytes(damaged)), kind and kind()
        with pytest.raises(amistore.ArchiveError):
            unpack(given, log=log)
        assert images.leftovers(given) == []
        assert log is None or log.entries() == []


def test_a_damaged_frame_is_told_as_unpack_tells_it_and_nothing_behind_it_is_put() -> None:
    content = bytearray(images.packed([(1, {i: images.block(i + 1) for i in range(8)})]))
    with amistore.open(io.BytesIO(content)) as archive:
        content[archive._container.segment(1).frame_offset(0) + 20] ^= 1

    def from_stream(given: amistore.MemoryBackend) -> None:
        amistore.unpack(io.BytesIO(content), given.ebs, workers=1)

    told = []
    for read in (from_stream, functools.partial(unpack, workers=1)):
        given = cloud(bytes(content))
        calls = Calls(given.ebs)
        with pytest.raises(amistore.CorruptArchiveError) as caught:
            read(given)
        told.append(str(caught.value))
        assert sorted(index for _, index in calls.blocks()) == [0, 1, 2, 3]
        assert images.leftovers(given) == []
    assert told[0] == told[1]
    assert "block index 4" in told[0]


def test_a_container_that_is_cut_short_or_none_is_refused_and_no_snapshot_begun() -> None:
    content = images.packed([(1, {i: images.block(i + 1) for i in range(5)})])
    for end in [0, 1, 100, *range(200, len(content), 97), len(content) - 1]:
        given = cloud(content[:end])
        calls = Calls(given.ebs)
        with pytest.raises(amistore.CorruptArchiveError):
            unpack(given)
        assert calls.made["start_snapshot"] == 0
    with pytest.raises(amistore.CorruptArchiveError):
        unpack(cloud(content + b"\0"))
    with pytest.raises(amistore.NotFoundError):
        unpack(runs.cloud())


@pytest.mark.parametrize("kind", [None, Log])
@pytest.mark.parametrize("number", [2, 5, 12, 20])
def test_an_object_that_is_replaced_meanwhile_ends_it_and_no_snapshot_is_left(
    number: int, kind: type[Log] | None
) -> None:
    given, log = cloud(), kind and kind()
    put = given.s3.put_object
    Calls(given.s3).fail("get_object_range", number, lambda: put(BUCKET, KEY, [b"other"]) and None)
    with pytest.raises(amistore.SourceChangedError):
        unpack(given, log=log)
    assert images.leftovers(given) == []
    assert log is None or log.entries() == []


def test_another_archive_than_the_expected_one_is_refused() -> None:
    given = cloud()
    with given.s3.open_object(BUCKET, KEY) as file, amistore.open(file) as archive:
        content_id = archive.content_id
    with pytest.raises(amistore.CorruptArchiveError, match="expected"):
        unpack(given, expected_content_id="0" * 64)
    assert images.leftovers(given) == []
    assert runs.disks(given.ebs, unpack(given, expected_content_id=content_id.upper())) == DISKS


def test_the_snapshots_asked_for_are_restored_and_no_others() -> None:
    first, second, third = runs.source().volumes
    for chosen, kept in [([third], [2]), (second, [1]), ([third, first], [0, 2])]:
        given = cloud()
        image = unpack(given, snapshots=chosen)
        assert runs.disks(given.ebs, image) == [DISKS[number] for number in kept]
        assert len(images.leftovers(given)) == len(kept)
    with pytest.raises(amistore.InvalidRequestError, match="snap-0000000a"):
        unpack(given, snapshots=["snap-0000000a"])


def test_lost_blocks_are_refused_without_leave() -> None:
    source = images.Volumes([(1, {3: images.block(3)})])
    (snapshot_id,) = source.volumes
    lossy = amistore.Snapshot(
        snapshot_id=snapshot_id, lost_blocks=(amistore.model.BlockRange(first_block=5, block_count=2),)
    )
    given = cloud(b"".join(amistore.pack(images.image([snapshot_id], snapshots=(lossy,)), source)))
    log = Log()
    with pytest.raises(amistore.LostBlocksError):
        unpack(given, log=log)
    assert images.leftovers(given) == log.entries() == []
    assert runs.disks(given.ebs, unpack(given, allow_lost=True)) == [(1, {3: images.block(3)})]


VERBS = [
    ("head_object", 1),
    ("get_object_range", 1),
    ("start_snapshot", 1),
    ("put_snapshot_block", 3),  # each is like the one before it
    ("complete_snapshot", 1),
    ("describe_snapshot", 1),
]


def following(number: int, step: int) -> int:
    """The next call to go wrong: behind the first seven a fifth, as a segment's are like another's."""
    return number + (step if LONG or number < 7 else 5 * step)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("verb", "step"), VERBS)
def test_without_a_log_an_error_at_any_call_leaves_no_snapshot(verb: str, step: int, late: bool) -> None:
    number = 1
    while True:
        given = cloud()
        calls = Calls(given.ebs, given.s3)
        error: BaseException = [RuntimeError("fault"), KeyboardInterrupt("fault")][number % 2]
        calls.fail(verb, number, error, late=late)
        try:
            with runs.nothing_left():
                unpack(given)
        except (amistore.BackendError, KeyboardInterrupt) as caught:
            assert "fault" in str(caught)
        if not calls.failed:
            break
        assert images.leftovers(given) == []
        number = following(number, step)
    assert number > 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("verb", "step"), [*VERBS, ("entries", 1), ("append", 1), ("clear", 1)])
def test_with_a_log_the_next_run_goes_on_after_an_error_at_any_call(verb: str, step: int, late: bool) -> None:
    number, workers, worst = 1, 2, 0
    while True:
        given, log = cloud(), Log()
        calls = Calls(given.ebs, given.s3, log)
        calls.fail(verb, number, RuntimeError("fault"), late=late)
        done = False
        try:
            with runs.nothing_left():
                unpack(given, log=log, workers=workers)
            done = True
        except (amistore.BackendError, RuntimeError) as error:
            assert "fault" in str(error)
        if not calls.failed:
            break
        first = calls.blocks()
        if verb == "put_snapshot_block" and not late:
            first.pop(number - 1)
        calls.fail("", 0, RuntimeError())
        if not done and not (verb == "clear" and late):
            assert runs.disks(given.ebs, unpack(given, log=log, workers=workers)) == DISKS
        again = set(first) & set(calls.blocks())
        # Segments of two blocks: as many as are begun and not taken, and the one whose note was lost.
        assert len(again) <= 2 * (2 * workers)
        worst = max(worst, len(again))
        assert len(images.leftovers(given)) == len(DISKS)
        assert log.entries() == []
        number = following(number, step)
    assert number > 1
    print(f"{verb}: up to call {number - 1}, blocks put again at worst: {worst}")
