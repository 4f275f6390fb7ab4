"""`expected_content_id` wherever an archive is read to be trusted: its form, its comparison, its proof."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
import zstandard
from container.test_forgery import FORM, Pieces, descriptor_of
from objects.runs import Calls

import amistore
from amistore.container import layout
from amistore.container.frames import Frame

BUCKET, KEY = "archive", "web.bin"
BLOCKS = {index: images.block(index + 1) for index in range(4)}
Use = Callable[[amistore.MemoryBackend, Path, str], object]


@functools.cache
def honest() -> bytes:
    return images.packed([(1, BLOCKS)], FORM)


@functools.cache
def forged() -> bytes:
    """Another block, under the sums and content ids of the honest archive."""
    index = Pieces.of(honest()).index
    pieces = Pieces.of(images.packed([(1, {**BLOCKS, 2: images.block(99)})], FORM))
    volume = attrs.evolve(
        pieces.index.volumes[0], linear=index.volumes[0].linear, content_id=index.volumes[0].content_id
    )
    pieces.index = attrs.evolve(pieces.index, volumes=(volume,), content_id=index.content_id)
    return pieces.build(rebuild_index=False)


@functools.cache
def replaced() -> bytes:
    """A frame with other blocks, its CRC made right, under the honest digests of the blocks."""
    pieces = Pieces.of(honest())
    at = pieces.segments()[0]
    _, descriptor = descriptor_of(pieces.body[at][1])
    size = descriptor.runs.blocks * amistore.BLOCK_SIZE // len(descriptor.frames)
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(b"EVIL" * (size // 4))
    frames = [Frame.of(frame)] * len(descriptor.frames)
    made = attrs.evolve(descriptor, frames=tuple(frames))
    pieces.body[at] = (layout.SEGD, made.encode() + frame * len(frames))
    return pieces.build(rebuild_index=True)


@functools.cache
def moved() -> bytes:
    """The same blocks at other places, under the sums and content ids of the honest archive."""
    blocks = {0: BLOCKS[0], 1: BLOCKS[1], 2: BLOCKS[2], 3: BLOCKS[3]}
    there = Pieces.of(images.packed([(1, {0: blocks[0], 1: blocks[1], 2: blocks[2], 4: blocks[3]})], FORM))
    here = Pieces.of(images.packed([(1, {0: blocks[0], 2: blocks[1], 3: blocks[2], 4: blocks[3]})], FORM))
    volume = attrs.evolve(
        here.index.volumes[0],
        runs_digest=there.index.volumes[0].runs_digest,
        content_id=there.index.volumes[0].content_id,
        prelude_digest=there.index.volumes[0].prelude_digest,
    )
    here.index = attrs.evolve(
        here.index,
        head=there.index.head,
        front_digest=there.index.front_digest,
        volumes=(volume,),
        content_id=there.index.content_id,
    )
    return here.build(rebuild_index=False)


def given(container: bytes) -> amistore.MemoryBackend:
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    cloud.s3.put_object(BUCKET, KEY, [container])
    return cloud


def opened(cloud: amistore.MemoryBackend) -> amistore.Archive:
    return amistore.open(cloud.s3.at(BUCKET, KEY))


def compare(cloud: amistore.MemoryBackend, folder: Path, wanted: str) -> object:
    return opened(cloud).compare(images.Volumes([(1, BLOCKS)]), expected_content_id=wanted)


def task(cloud: amistore.MemoryBackend, folder: Path, wanted: str) -> object:
    with amistore.TaskEngine(cloud) as engine:
        made = engine.create_restore_image_task(bucket=BUCKET, object_key=KEY, expected_content_id=wanted)
        return engine.wait(made)


def copy(cloud: amistore.MemoryBackend, folder: Path, wanted: str) -> object:
    return amistore.copy(
        cloud.s3.at(BUCKET, KEY), cloud.s3.at(BUCKET, "copy.bin"), expected_content_id=wanted
    )


PROVING: dict[str, Use] = {
    "verify": lambda cloud, _, wanted: opened(cloud).verify(expected_content_id=wanted).check(),
    "extract": lambda cloud, folder, wanted: opened(cloud).extract(
        folder / "disks", expected_content_id=wanted
    ),
    "extract a volume": lambda cloud, folder, wanted: (
        opened(cloud).volumes[0].extract(folder / "disk.raw", expected_content_id=wanted)
    ),
    "extract and resume": lambda cloud, folder, wanted: (
        opened(cloud).volumes[0].extract(folder / "disk.raw", resume=True, expected_content_id=wanted)
    ),
    "extract into a stream": lambda cloud, folder, wanted: (
        opened(cloud).volumes[0].extract(Sink(), expected_content_id=wanted)
    ),
    "unpack": lambda cloud, _, wanted: amistore.unpack(
        cloud.s3.open_object(BUCKET, KEY), cloud.ebs, expected_content_id=wanted
    ),
    "unpack a location": lambda cloud, _, wanted: amistore.unpack(
        cloud.s3.at(BUCKET, KEY), cloud.ebs, expected_content_id=wanted
    ),
    "restore": lambda cloud, _, wanted: (
        amistore.restore(cloud.s3.at(BUCKET, KEY), cloud, expected_content_id=wanted).image_id
    ),
    "copy": copy,
    "create_restore_image_task": task,
    "compare": compare,
}
CLAIMED: dict[str, Use] = {
    "open": lambda cloud, _, wanted: amistore.open(cloud.s3.at(BUCKET, KEY), expected_content_id=wanted),
    "plan_restore": lambda cloud, _, wanted: amistore.TaskEngine(cloud).plan_restore(
        bucket=BUCKET, object_key=KEY, expected_content_id=wanted
    ),
}


class Sink(io.BytesIO):
    """Takes bytes, and fails where there was not to be one."""

    refuses = False

    def write(self, content: Any) -> int:
        assert not Sink.refuses
        return len(content)


def left(cloud: amistore.MemoryBackend, folder: Path) -> list[object]:
    """What an operation has made; the part of a disk is told by its name."""
    disks = [path.name for path in folder.rglob("*.raw")]
    try:
        copied = [cloud.s3.head_object(BUCKET, "copy.bin").etag]
    except amistore.NotFoundError:
        copied = []
    return [*images.leftovers(cloud), *cloud.ec2.describe_images(), *disks, *copied]


@pytest.mark.parametrize("use", {**PROVING, **CLAIMED}.values(), ids={**PROVING, **CLAIMED}.keys())
def test_the_right_id_is_taken_in_upper_case_and_another_refused(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = given(honest())
    right = opened(cloud).content_id
    folder = tmp_path / "wrong"
    folder.mkdir()
    use(cloud, tmp_path, right.upper())
    cloud = given(honest())
    monkeypatch.setattr(Sink, "refuses", True)
    with pytest.raises(
        amistore.CorruptArchiveError, match=f"the content id is {right}, not the expected"
    ) as caught:
        use(cloud, folder, "0" * 64)
    assert "amistore.recover cannot help" in str(caught.value)
    assert "amistore.recover saves" not in str(caught.value)
    assert left(cloud, folder) == []


def test_a_report_on_another_archive_does_not_advise_to_recover_it() -> None:
    report = opened(given(honest())).verify(expected_content_id="0" * 64)
    assert not report.ok
    assert "amistore.recover saves" not in str(report)


@pytest.mark.parametrize("use", {**PROVING, **CLAIMED}.values(), ids={**PROVING, **CLAIMED}.keys())
@pytest.mark.parametrize(
    "wrong",
    ["abc", "g" * 64, "0" * 63 + "\n", "٠" * 64, b"0" * 64, 5, ""],
    ids=["short", "no digits", "a line's end", "other digits", "bytes", "number", "empty"],
)
def test_what_is_no_content_id_is_refused_before_anything_is_read(
    use: Use, wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = given(honest())
    archive, file = opened(cloud), cloud.s3.open_object(BUCKET, KEY)
    monkeypatch.setitem(globals(), "opened", lambda _: archive)
    monkeypatch.setattr(cloud.s3, "open_object", lambda *_: file)
    calls = Calls(cloud.s3)
    with pytest.raises(amistore.InvalidRequestError, match="64 hexadecimal digits"):
        use(cloud, tmp_path, wrong)
    assert set(calls.made) <= {"open_object", "at"}
    assert left(cloud, tmp_path) == []


@pytest.mark.parametrize("container", [forged, moved])
@pytest.mark.parametrize("use", PROVING.values(), ids=PROVING)
def test_a_right_claim_over_other_blocks_is_refused(
    use: Use, container: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = given(container())
    claimed = opened(cloud).content_id
    monkeypatch.setattr(Sink, "refuses", True)
    with pytest.raises((amistore.CorruptArchiveError, amistore.TaskFailedError)):
        use(cloud, tmp_path, claimed)
    assert left(cloud, tmp_path) == []


@pytest.mark.parametrize("name", [name for name in PROVING if name != "compare"])  # which reads no frame
def test_a_frame_of_other_blocks_under_right_digests_is_refused(name: str, tmp_path: Path) -> None:
    cloud = given(replaced())
    claimed = opened(cloud).content_id
    assert claimed == amistore.open(io.BytesIO(honest())).content_id
    assert opened(cloud).verify(quick=True).ok
    with pytest.raises((amistore.CorruptArchiveError, amistore.TaskFailedError)):
        PROVING[name](cloud, tmp_path, claimed)
    assert left(cloud, tmp_path / "none") == []


def test_a_transfer_of_an_image_that_is_another_by_now_is_refused() -> None:
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    image_id = cloud.ec2.register_image(images.image([images.snapshot(cloud.ebs, 1, BLOCKS)]))
    right = amistore.transfer(image_id, source=cloud, destination=cloud, name="first").content_id
    for number, keep in enumerate([False, True]):
        amistore.transfer(
            image_id,
            source=cloud,
            destination=cloud,
            name=f"right {number}",
            keep=cloud.s3.at(BUCKET, f"right {number}") if keep else None,
            expected_content_id=right,
        )
        there = images.leftovers(cloud)
        with pytest.raises(amistore.CorruptArchiveError, match=f"{right}, not the expected"):
            amistore.transfer(
                image_id,
                source=cloud,
                destination=cloud,
                name="wrong",
                keep=cloud.s3.at(BUCKET, KEY) if keep else None,
                expected_content_id="0" * 64,
            )
        assert images.leftovers(cloud) == there


def test_pack_knows_the_content_id_at_its_end_and_not_before() -> None:
    source = images.Volumes([(1, BLOCKS)])
    image = images.image(source.volumes)
    with amistore.pack(image, source, options=amistore.PackOptions(layout=FORM)) as pieces:
        for _ in range(3):
            next(pieces)
            with pytest.raises(amistore.InvalidRequestError, match="take all bytes"):
                _ = pieces.content_id
    with pytest.raises(amistore.InvalidRequestError, match="take all bytes"):
        _ = pieces.content_id
    assert list(pieces) == []
    pieces = amistore.pack(image, source, options=amistore.PackOptions(layout=FORM))
    whole = b"".join(pieces)
    assert whole == honest()
    assert pieces.content_id == amistore.open(io.BytesIO(whole)).content_id
    assert list(pieces) == []
    assert pieces.content_id == amistore.open(io.BytesIO(whole)).content_id
