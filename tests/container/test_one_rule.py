"""A rule of the format stands once: without it, every reader takes what every reader refused."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import images
import pytest
import zstandard
from test_forgery import ONE, Pieces, change_mode, descriptor_of
from test_newer import other, with_others

import amistore
from amistore.container import layout
from amistore.container.frames import Frame
from amistore.container.members import check_volume, is_prelude
from amistore.container.plan import Shards
from amistore.container.records import VolumeDescriptor, check_other, open_envelope
from amistore.container.segments import check_place

PADDED = images.packed(
    [(1, {i: images.block(i) for i in range(4)})],
    amistore.Layout(blocks_per_frame=1, blocks_per_segment=1, segments_per_shard=2),
)


def restored(container: bytes) -> None:
    """From an object, by ranges."""
    given = amistore.MemoryBackend()
    given.s3.create_bucket("archive")
    given.s3.put_object("archive", "ami.bin", [container])
    amistore.unpack(given.s3.at("archive", "ami.bin"), given.ebs, workers=1)


READERS = [images.read_streaming, images.read_seekable, images.read_quickly, restored]


def with_segment(container: bytes, **fields: int) -> bytes:
    """The container with facts of its second SEGD changed, and all that points to it right."""
    pieces = Pieces.of(container)
    at = pieces.segments()[1]
    record, descriptor = descriptor_of(pieces.body[at][1])
    changed = {name: getattr(descriptor, name) + more for name, more in fields.items()}
    forged = attrs.evolve(descriptor, **changed).encode()  # type: ignore[arg-type]
    pieces.body[at] = (layout.SEGD, forged + pieces.body[at][1][len(record) :])
    return pieces.build(rebuild_index=True)


def with_volume(
    container: bytes, change: Callable[[bytes], bytes] = lambda prelude: prelude, **fields: Any
) -> bytes:
    """The container with its first VOLD and prelude changed, and all that points to them right."""
    pieces = Pieces.of(container)
    whole = pieces.body[0][1]
    size = open_envelope(whole[:20]).size
    frame = whole[size:]
    content = zstandard.ZstdDecompressor().decompress(frame)
    if change(content) != content:
        frame = zstandard.ZstdCompressor(write_checksum=True).compress(change(content))
    described = VolumeDescriptor.parse(whole[:size])
    forged = attrs.evolve(described, frames=(Frame.of(frame),), **fields).encode() + frame
    pieces.body[0] = (layout.VOLD, forged)
    first, *others = pieces.index.volumes
    digest = hashlib.sha256(forged).digest()
    first = attrs.evolve(first, length=len(forged), prelude_digest=digest)
    pieces.index = attrs.evolve(pieces.index, volumes=(first, *others))
    return pieces.build(rebuild_index=True)


# What only the rule refuses, and the rule.
FORGED: dict[str, tuple[bytes, Callable[..., object]]] = {
    "a segment of another sequence number": (with_segment(ONE, sequence=1), check_place),
    "a segment of another volume": (with_segment(ONE, volume=1), check_place),
    "a volume of another file": (with_volume(ONE, file_id=bytes(16)), check_volume),
    "tar headers of another mode": (with_volume(ONE, change_mode), is_prelude),
    "one unknown record too many": (with_others(ONE, other(24) * (layout.MAX_OTHERS + 1)), check_other),
}

MISPLACED = {
    "a segment of another ordinal": with_segment(ONE, ordinal=1),
    "a volume of another number": with_volume(ONE, volume=1),
    "a volume of another first segment": with_volume(ONE, first_segment=1),
}


@pytest.fixture
def _without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rule of the test's case says yes to all, wherever it is called from."""
    _, rule = FORGED[request.getfixturevalue("case")]

    def yes(*_: object, **__: object) -> bool:
        return True

    monkeypatch.setattr(rule, "__code__", yes.__code__)
    monkeypatch.setattr(rule, "__kwdefaults__", None)
    yield


@pytest.mark.parametrize("case", [*FORGED, *MISPLACED])
def test_what_a_rule_refuses_is_damage_to_every_reader(case: str) -> None:
    container = MISPLACED.get(case) or FORGED[case][0]
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError):
            read(container)


@pytest.mark.parametrize("case", FORGED)
@pytest.mark.usefixtures("_without")
def test_no_reader_has_a_rule_of_its_own(case: str) -> None:
    for read in READERS:
        read(FORGED[case][0])


def test_writer_and_readers_have_one_rule_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PADDED.count(b"AMISPAD\0") == 1
    for read in READERS:
        read(PADDED)
    monkeypatch.setattr(Shards, "pad", lambda self, count, end: b"")
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError):
            read(PADDED)
    unpadded = images.packed(
        [(1, {i: images.block(i) for i in range(4)})],
        amistore.Layout(blocks_per_frame=1, blocks_per_segment=1, segments_per_shard=2),
    )
    assert unpadded.count(b"AMISPAD\0") == 0
    for read in READERS:
        read(unpadded)


def test_a_pad_is_proved_though_a_segment_of_its_shard_is_damaged() -> None:
    damaged = bytearray(PADDED)
    damaged[PADDED.index(b"AMISSEGD") + 30] ^= 1
    damaged[PADDED.index(b"AMISPAD\0") + 100] ^= 1
    with amistore.open(io.BytesIO(damaged)) as archive:
        assert [each.record for each in archive.verify(workers=1).findings] == ["SEGD", "PAD"]


def test_where_a_shard_ends_is_known_though_its_last_segment_is_damaged() -> None:
    form = amistore.Layout(blocks_per_frame=1, blocks_per_segment=1, segments_per_shard=2)
    whole = images.packed([(1, {i: images.block(i) for i in range(6)})], form)
    damaged = bytearray(whole)
    second = whole.index(b"AMISSEGD", whole.index(b"AMISSEGD") + 1)
    damaged[second + 30] ^= 1
    with amistore.open(io.BytesIO(damaged)) as archive:
        assert [each.record for each in archive.verify(workers=1).findings] == ["SEGD"]
    damaged[whole.rindex(b"AMISPAD\0") + 100] ^= 1  # of the next shard
    with amistore.open(io.BytesIO(damaged)) as archive:
        assert [each.record for each in archive.verify(workers=1).findings] == ["SEGD", "PAD"]
