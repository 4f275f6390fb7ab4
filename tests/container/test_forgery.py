"""R3, R14: segments moved and spliced with every CRC made right again, and bombs."""

from __future__ import annotations

import hashlib
import io
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs
import images
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import amistore
from amistore.container import identity, layout
from amistore.container.frames import Frame, FrameEncoder
from amistore.container.index import Index
from amistore.container.layout import Layout
from amistore.container.members import SparseMap, file_header, padding
from amistore.container.records import (
    Foot,
    Head,
    SegmentDescriptor,
    VolumeDescriptor,
    crc32c,
    open_envelope,
    seal,
)
from amistore.container.runs import Runs
from amistore.model import encode_manifest
from amistore.units import MIB

READERS = [images.read_streaming, images.read_seekable, images.read_quickly]
FORM = Layout(blocks_per_frame=1, blocks_per_segment=2)


@attrs.define
class Pieces:
    """A container taken apart: front, then (kind, bytes) of each prelude and segment, then INDX."""

    front: bytes
    body: list[tuple[bytes, bytes]]
    index: Index

    @classmethod
    def of(cls, container: bytes) -> Pieces:
        foot = Foot.parse(container[-layout.FOOT_SIZE :])
        index = Index.parse(container[foot.index_offset : foot.index_offset + foot.index_length])
        starts = sorted([*(volume.offset for volume in index.volumes), *index.offsets])
        ends = [*starts[1:], foot.data_end]
        body = [
            (open_envelope(container[start : start + 20]).kind, container[start:end])
            for start, end in zip(starts, ends, strict=True)
        ]
        return cls(container[: index.front_end], body, index)

    def segments(self) -> list[int]:
        return [at for at, (kind, _) in enumerate(self.body) if kind == layout.SEGD]

    def build(self, *, rebuild_index: bool) -> bytes:
        """A container of these pieces whose index, if asked for, and foot are right for them."""
        data = self.front + b"".join(piece for _, piece in self.body)
        index = self._index() if rebuild_index else self.index
        record = index.encode()
        end = data + layout.END_FRAME
        blocks = sum(volume.blocks for volume in index.volumes)
        foot = Foot(
            index_offset=len(end),
            index_length=len(record),
            data_end=len(data),
            blocks=blocks,
            index_digest=hashlib.sha256(record).digest(),
        )
        return end + record + foot.encode()

    def _index(self) -> Index:
        """The old index with offsets, block indexes and digests of the pieces as they stand now."""
        offsets, firsts, lasts, digests = [], [], [], b""
        volumes = []
        at = len(self.front)
        for kind, piece in self.body:
            if kind == layout.SEGD:
                record, descriptor = descriptor_of(piece)
                offsets.append(at)
                firsts.append(descriptor.runs.first)
                lasts.append(descriptor.runs.end - 1)
                digests += hashlib.sha256(record).digest()
            else:
                volumes.append(attrs.evolve(self.index.volumes[len(volumes)], offset=at))
            at += len(piece)
        numbers = [type(self.index.offsets)("Q", each) for each in (offsets, firsts, lasts)]
        return attrs.evolve(
            self.index,
            volumes=tuple(volumes),
            offsets=numbers[0],
            firsts=numbers[1],
            lasts=numbers[2],
            segment_digests=digests,
        )


def descriptor_of(piece: bytes) -> tuple[bytes, SegmentDescriptor]:
    size = open_envelope(piece[:20]).size
    return piece[:size], SegmentDescriptor.parse(piece[:size])


def renumbered(piece: bytes, like: bytes) -> bytes:
    """The segment `piece` with the place that the descriptor of `like` names, CRC right."""
    record, descriptor = descriptor_of(piece)
    _, place = descriptor_of(like)
    moved = attrs.evolve(
        descriptor,
        file_id=place.file_id,
        volume=place.volume,
        sequence=place.sequence,
        ordinal=place.ordinal,
    )
    return moved.encode() + piece[len(record) :]


# Positions whose runs all differ, so that no two segments can stand for each other.
ONE = images.packed([(1, {i * i: images.block(i + 1) for i in range(7)}), (1, {9: images.block(9)})], FORM)
OTHER = images.packed(
    [(1, {i * i + 3: images.block(i + 50) for i in range(7)}), (1, {8: images.block(99)})], FORM
)


@pytest.mark.parametrize("read", READERS)
def test_pieces_put_together_again_are_accepted(read: Callable[[bytes], object]) -> None:
    for rebuild in (True, False):
        assert Pieces.of(ONE).build(rebuild_index=rebuild) == ONE
    read(ONE)


@given(
    operation=st.sampled_from(["swap", "duplicate", "drop", "splice"]),
    first=st.integers(0, 4),
    second=st.integers(0, 4),
    renumber=st.booleans(),
    rebuild=st.booleans(),
)
def test_segments_swapped_duplicated_dropped_or_spliced_are_refused(
    operation: str, first: int, second: int, renumber: bool, rebuild: bool
) -> None:
    pieces = Pieces.of(ONE)
    places = pieces.segments()
    a, b = places[first], places[second]
    if operation == "swap" and a != b:
        left, right = pieces.body[a][1], pieces.body[b][1]
        pieces.body[a] = (layout.SEGD, renumbered(right, left) if renumber else right)
        pieces.body[b] = (layout.SEGD, renumbered(left, right) if renumber else left)
    elif operation == "duplicate":
        pieces.body.insert(b, pieces.body[a])
    elif operation == "drop":
        del pieces.body[a]
    else:
        other = Pieces.of(OTHER)
        foreign = other.body[other.segments()[second]][1]
        own = pieces.body[a][1]
        pieces.body[a] = (layout.SEGD, renumbered(foreign, own) if renumber else foreign)
    try:
        forged = pieces.build(rebuild_index=rebuild)
    except amistore.CorruptArchiveError:  # the index cannot even be written
        return
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError):
            read(forged)


@given(st.data())
def test_a_block_replaced_with_all_its_checksums_made_right_changes_the_content_id(
    data: st.DataObject,
) -> None:
    volumes = [(1, {i: images.block(i + 1) for i in range(5)})]
    at = data.draw(st.integers(0, 4))
    forged = [(1, {**volumes[0][1], at: images.block(77)})]
    ids = []
    for each in (volumes, forged):
        with amistore.open(io.BytesIO(images.packed(each, FORM))) as archive:
            ids.append((archive.content_id, archive.volumes[0].content_id))
    assert ids[0][0] != ids[1][0]
    assert ids[0][1] != ids[1][1]


def with_index(container: bytes, change: Callable[[bytearray], None]) -> bytes:
    """The container with its INDX changed, and CRC and FOOT right for it."""
    foot = Foot.parse(container[-layout.FOOT_SIZE :])
    record = bytearray(container[foot.index_offset : foot.index_offset + foot.index_length])
    change(record)
    fixed = layout.ENVELOPE.size + layout.INDX_FIXED.size
    from amistore.container.records import crc32c

    record[-4:] = layout.CRC.pack(crc32c(bytes(record[:fixed])))
    digest = hashlib.sha256(record).digest()
    return container[: foot.index_offset] + record + attrs.evolve(foot, index_digest=digest).encode()


@pytest.mark.parametrize("field", ["segments", "volumes", "columns", "head"])
@pytest.mark.parametrize("count", [0, 10**9, 2**32 - 1])
def test_counts_in_the_index_that_lie_are_refused_without_allocating_for_them(field: str, count: int) -> None:
    names = ["front", "end", "head", "manifest", "volumes", "segments", "columns", "frames", "id"]

    def change(record: bytearray) -> None:
        values = list(layout.INDX_FIXED.unpack_from(record, 20))
        values[names.index(field)] = count
        layout.INDX_FIXED.pack_into(record, 20, *values)

    forged = with_index(ONE, change)
    for read in READERS:
        assert_refused_cheaply(read, forged)


def assert_refused_cheaply(read: Callable[[bytes], object], forged: bytes, reason: str | None = None) -> None:
    """Refused with less memory than two more frames take."""
    tracemalloc.start()
    try:
        with pytest.raises(amistore.ArchiveError, match=reason):
            read(forged)
        assert tracemalloc.get_traced_memory()[1] < 2 * layout.MAX_FRAME_CONTENT
    finally:
        tracemalloc.stop()


def frame_bombs() -> dict[str, bytes]:
    """Frames in place of the first one, of the right content where that can be."""
    right = images.block(1)
    compressor = zstandard.ZstdCompressor
    frame = compressor(write_checksum=True).compress(right)
    assert frame[4] == 0xA4  # single segment, content size in 4 bytes, checksum
    wide = frame[:4] + b"\x84\x88" + frame[5:]  # the same with a window of 128 MiB declared
    bomb = compressor(write_checksum=True).compress(bytes(256 * MIB))
    return {
        "declares 1 TiB": frame[:4] + b"\xe4" + struct.pack("<Q", 2**40) + frame[9:],
        "declares nothing": compressor(write_content_size=False, write_checksum=True).compress(right),
        "declares 256 MiB and holds them": bytes(memoryview(bomb)),  # which has 256 MiB of its own
        "has no checksum": compressor(write_checksum=False).compress(right),
        "has a window of 128 MiB": wide,
        "is cut short": frame[:-1],
        "is followed by another": frame + frame,
        "is followed by a skippable frame": frame + b"\x50\x2a\x4d\x18\0\0\0\0",
        "is skippable": b"\x50\x2a\x4d\x18\x04\0\0\0junk",
        "is shorter": compressor(write_checksum=True).compress(right[1:]),
        "is empty": compressor(write_checksum=True).compress(b""),
        "holds another block": compressor(write_checksum=True).compress(images.block(2)),
    }


REFUSED_FOR = {
    "declares": "header declares",
    "has": "header declares",
    "is cut": "does not decode",
    "is followed": "does not decode",
    "is skippable": "header",
    "is shorter": "header declares",
    "is empty": "header declares",
    "holds": "SHA-256",
}


def with_first_frame(container: bytes, frame: bytes) -> Pieces:
    """The container with another first frame, described by its SEGD with CRCs right."""
    pieces = Pieces.of(container)
    at = pieces.segments()[0]
    record, descriptor = descriptor_of(pieces.body[at][1])
    rest = pieces.body[at][1][len(record) + descriptor.frames[0].size :]
    entry = Frame(len(frame), zlib.crc32(frame))
    forged = attrs.evolve(descriptor, frames=(entry, *descriptor.frames[1:]))
    pieces.body[at] = (layout.SEGD, forged.encode() + frame + rest)
    return pieces


@pytest.mark.parametrize("name", frame_bombs())
def test_a_frame_that_lies_about_itself_is_refused_for_that(name: str) -> None:
    container = with_first_frame(ONE, frame_bombs()[name]).build(rebuild_index=True)
    (reason,) = [text for start, text in REFUSED_FOR.items() if name.startswith(start)]
    # What only decoding shows is not for the quick reader.
    decoding = reason in ("does not decode", "SHA-256")
    for read in READERS[:2] if decoding else READERS:
        assert_refused_cheaply(read, container, reason)
    with pytest.raises(amistore.CorruptArchiveError):
        images.read_blocks(container)


def bomb(**members: object) -> bytes:
    """A container of some kilobytes whose manifest has hundreds of thousands of items."""
    fill = ", ".join(["{}"] * 200_000)
    image = images.image([], **members)
    container = images.packed([], None)
    head = container.index(b"AMISHEAD") - 8
    size = open_envelope(container[head : head + 20]).size
    manifest = encode_manifest(image).replace(b'"web"', b'"web",\n  "X": [' + fill.encode() + b"]")
    member = file_header("ami-0123456789abcdef0/ami.json", len(manifest), 0) + manifest
    member += bytes(padding(len(manifest)))
    frames = FrameEncoder(3, check=True).encode_all([member])
    parsed = Head.parse(container[head : head + size])
    forged = attrs.evolve(parsed, content=len(member), frames=tuple(Frame.of(frame) for frame in frames))
    return container[:head] + forged.encode() + b"".join(frames)


def test_a_manifest_of_very_many_items_is_refused_before_they_are_made() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(amistore.CorruptArchiveError, match="more than 131072 members"):
            amistore.unpack(io.BytesIO(bomb()), amistore.MemoryBackend().ebs)
        assert tracemalloc.get_traced_memory()[1] < 2 * layout.MAX_FRAME_CONTENT
    finally:
        tracemalloc.stop()
    with pytest.raises(amistore.InvalidValueError, match="more than 131072 members"):
        encode_manifest(images.image([], extra={"X": [0] * 200_000}))


@pytest.mark.parametrize("filler", [b"1", b"0\n0\n", b"1" * 20 + b"\n" + b"1" * 20 + b"x"])
def test_a_sparse_map_that_is_none_is_refused_at_its_first_pair(filler: bytes) -> None:
    content = 5 * 512 + 32 * (2**22 + 2)
    prelude = bytes(1536) + b"4194304\n"
    prelude += (filler * (content // len(filler)))[: content - len(prelude)]
    with pytest.raises(amistore.CorruptArchiveError, match="sparse map is invalid"):
        found = SparseMap()
        for at in range(0, content, layout.MAX_FRAME_CONTENT):
            found.feed(prelude[at : at + layout.MAX_FRAME_CONTENT])


def test_a_descriptor_that_is_not_the_one_of_the_index_is_refused_when_its_disk_is_read() -> None:
    forged_blocks = {i * i: images.block(i + 1) for i in range(7)} | {0: images.block(88)}
    other = images.packed([(1, forged_blocks), (1, {9: images.block(9)})], FORM)
    pieces, foreign = Pieces.of(ONE), Pieces.of(other)
    at = pieces.segments()[0]
    own, new = pieces.body[at][1], foreign.body[at][1]
    assert own != new
    pieces.body[at] = (layout.SEGD, new)
    # The same plan, so the same file id and places; only the index knows the digests.
    container = pieces.front + b"".join(piece for _, piece in pieces.body)
    shift = len(new) - len(own)
    index = attrs.evolve(
        pieces.index,
        offsets=type(pieces.index.offsets)(
            "Q", [o + shift * (i > 0) for i, o in enumerate(pieces.index.offsets)]
        ),
        volumes=tuple(
            attrs.evolve(v, offset=v.offset + shift * (i > 0)) for i, v in enumerate(pieces.index.volumes)
        ),
    )
    pieces.index = index
    container = pieces.build(rebuild_index=False)
    with (
        amistore.open(io.BytesIO(container)) as archive,
        archive.volumes[0].open() as disk,
        pytest.raises(amistore.CorruptArchiveError, match="not the one in the index"),
    ):
        disk.read(10)


def test_extracting_proves_that_the_content_id_is_that_of_the_blocks(tmp_path: Path) -> None:
    blocks = {i: images.block(i + 1) for i in range(4)}
    honest = Pieces.of(images.packed([(1, blocks)], FORM)).index
    forged = Pieces.of(images.packed([(1, {**blocks, 2: images.block(99)})], FORM))
    # Another block, under the sums and content ids of the first archive.
    volume = attrs.evolve(
        forged.index.volumes[0], linear=honest.volumes[0].linear, content_id=honest.volumes[0].content_id
    )
    forged.index = attrs.evolve(forged.index, volumes=(volume,), content_id=honest.content_id)
    with amistore.open(io.BytesIO(forged.build(rebuild_index=False))) as archive:
        assert archive.content_id == honest.content_id.hex()
        with pytest.raises(amistore.CorruptArchiveError, match="content id stands for"):
            archive.volumes[0].extract(tmp_path / "disk.raw")
        with pytest.raises(amistore.CorruptArchiveError):
            archive.verify().check()
    assert list(tmp_path.iterdir()) == []


def test_a_segment_of_another_archive_with_the_same_runs_is_refused_for_its_file_id() -> None:
    blocks = {i: images.block(i + 1) for i in range(4)}
    pieces = Pieces.of(images.packed([(1, blocks)], FORM))
    foreign = Pieces.of(images.packed([(1, blocks)], FORM, name="another"))
    at = pieces.segments()[0]
    pieces.body[at] = foreign.body[at]
    container = pieces.build(rebuild_index=True)
    with pytest.raises(amistore.CorruptArchiveError, match="another file or another place"):
        images.read_streaming(container)
    with (
        amistore.open(io.BytesIO(container)) as archive,
        archive.volumes[0].open() as disk,
        pytest.raises(amistore.CorruptArchiveError, match="another file or another place"),
    ):
        disk.read(10)


def change_name(prelude: bytes) -> bytes:
    return prelude.replace(b"GNUSparseFile.0", b"../../../etc/ab")


def change_mode(prelude: bytes) -> bytes:
    return prelude.replace(b"0000600\0", b"0004777\0")


def change_size(prelude: bytes) -> bytes:
    return prelude.replace(b"realsize=1073741824", b"realsize=1073741825")


def change_map(prelude: bytes) -> bytes:
    return prelude.replace(b"\n1073741824\n0\n", b"\n1073741823\n0\n")


def change_padding(prelude: bytes) -> bytes:
    return prelude[:-1] + b"\1"


@pytest.mark.parametrize("change", [change_name, change_mode, change_size, change_map, change_padding])
def test_tar_headers_that_contradict_the_records_are_refused(change: Callable[[bytes], bytes]) -> None:
    pieces = Pieces.of(ONE)
    whole = pieces.body[0][1]
    size = open_envelope(whole[:20]).size
    descriptor = VolumeDescriptor.parse(whole[:size])
    content = zstandard.ZstdDecompressor().decompress(whole[size:])
    assert change(content) != content
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(change(content))
    forged = attrs.evolve(descriptor, content=len(change(content)), frames=(Frame.of(frame),))
    pieces.body[0] = (layout.VOLD, forged.encode() + frame)
    digest = hashlib.sha256(pieces.body[0][1]).digest()
    volumes = (
        attrs.evolve(pieces.index.volumes[0], prelude_digest=digest, length=len(pieces.body[0][1])),
        *pieces.index.volumes[1:],
    )
    pieces.index = attrs.evolve(pieces.index, volumes=volumes)
    container = pieces.build(rebuild_index=True)
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError, match="VOLD"):
            read(container)


def with_head(container: bytes, **fields: object) -> bytes:
    """The container with fields of HEAD changed, and its CRC right."""
    at = container.index(b"AMISHEAD") - 8
    size = open_envelope(container[at : at + 20]).size
    head = Head.parse(container[at : at + size])
    changed = attrs.evolve(head, **fields).encode()  # type: ignore[arg-type]
    return container[:at] + changed + container[at + size :]


@pytest.mark.parametrize(
    "fields",
    [
        {"volumes": 2**32 - 1},
        {"volumes": 0},
        {"volumes": 3},
        {"segments": 2**63},
        {"segments": 0},
        {"blocks": 2**63},
        {"content": 2**40},
        {"content": 0},
        {"file_id": bytes(16)},
    ],
)
def test_a_head_that_lies_is_refused(fields: dict[str, object]) -> None:
    assert_refused_cheaply(images.read_streaming, with_head(ONE, **fields))
    assert_refused_cheaply(images.read_seekable, with_head(ONE, **fields))


def test_unknown_incompatible_features_and_critical_records_are_refused_as_unsupported() -> None:
    at = ONE.index(b"AMISHEAD") - 8
    size = open_envelope(ONE[at : at + 20]).size
    payload = bytearray(ONE[at + 20 : at + size - 4])
    payload[0] = 0x80
    featured = ONE[:at] + seal(layout.HEAD, bytes(payload)) + ONE[at + size :]
    with pytest.raises(amistore.UnsupportedArchiveError, match="0x80"):
        images.read_streaming(featured)
    first = ONE.index(b"AMISVOLD") - 8
    critical = ONE[:first] + seal(b"NEWS", b"?") + ONE[first:]
    with pytest.raises(amistore.UnsupportedArchiveError, match="NEWS"):
        images.read_streaming(critical)


def test_unknown_records_that_are_not_critical_are_skipped_and_checked() -> None:
    first = ONE.index(b"AMISVOLD") - 8
    record = bytearray(seal(b"NOTE", b"from a newer minor version"))
    record[18] = 0  # flags
    from amistore.container.records import crc32c

    record[-4:] = layout.CRC.pack(crc32c(bytes(record[:-4])))
    pieces = Pieces.of(ONE)
    pieces.body.insert(0, (b"NOTE", bytes(record)))
    # An index that knows of the record: all that it points to stands further back.
    shifted = Pieces.of(ONE)
    moved = [type(shifted.index.offsets)("Q", (o + len(record) for o in shifted.index.offsets))]
    pieces.index = attrs.evolve(
        shifted.index,
        offsets=moved[0],
        volumes=tuple(attrs.evolve(v, offset=v.offset + len(record)) for v in shifted.index.volumes),
    )
    container = pieces.build(rebuild_index=False)
    images.read_streaming(container)
    images.read_seekable(container)
    damaged = bytearray(container)
    damaged[first + 25] ^= 1
    with pytest.raises(amistore.CorruptArchiveError):
        images.read_streaming(bytes(damaged))


@given(st.lists(st.tuples(st.integers(0, 2**27), st.integers(1, 2**20)), max_size=20))
def test_run_varints_round_trip(gaps: list[tuple[int, int]]) -> None:
    runs = Runs()
    at = 0
    pairs = []
    for gap, count in gaps:
        pairs.append((at + gap + bool(pairs), count))
        at = sum(pairs[-1])
    runs = Runs(pairs)
    assert Runs.decode(runs.encode()) == runs
    assert list(runs) == pairs


@given(st.binary(max_size=40))
def test_run_varints_are_canonical_or_refused(encoded: bytes) -> None:
    try:
        runs = Runs.decode(encoded)
    except amistore.CorruptArchiveError:
        return
    assert runs.encode() == encoded


@pytest.mark.parametrize("pairs", [[(-1, 3)], [(0, 0)], [(5, 2), (6, 1)]])
def test_runs_that_cannot_be_are_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(amistore.InvalidRequestError):
        Runs(pairs)


@pytest.mark.parametrize("indexes", [[-1, 0, 1], [3, 3], [3, 2]])
def test_block_indexes_that_cannot_be_are_refused(indexes: list[int]) -> None:
    with pytest.raises(amistore.InvalidRequestError):
        Runs.of_blocks(indexes)


@pytest.mark.parametrize(
    "fields", [{"blocks_per_frame": 0}, {"part_size": 1.5e7}, {"segments_per_shard": 2**64}]
)
def test_a_layout_that_cannot_be_is_refused_as_the_callers_fault(fields: dict[str, object]) -> None:
    with pytest.raises(amistore.InvalidValueError, match="Layout"):
        amistore.Layout(**fields)  # type: ignore[arg-type]


def test_a_segment_that_claims_the_bytes_of_the_next_one_is_refused() -> None:
    pieces = Pieces.of(ONE)
    first, second = pieces.segments()[:2]
    record, descriptor = descriptor_of(pieces.body[first][1])
    start = len(record) + sum(frame.size for frame in descriptor.frames[:-1])
    claimed = pieces.body[first][1][start:] + pieces.body[second][1]
    frames = (*descriptor.frames[:-1], Frame(len(claimed), zlib.crc32(claimed)))
    forged = attrs.evolve(descriptor, frames=frames).encode()
    pieces.body[first] = (layout.SEGD, forged + pieces.body[first][1][len(record) :])
    container = pieces.build(rebuild_index=True)
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError):
            read(container)


@pytest.mark.parametrize("column", ["offsets", "firsts", "lasts"])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("change", [-1, 1])
def test_an_index_that_places_a_segment_elsewhere_is_refused(column: str, place: int, change: int) -> None:
    pieces = Pieces.of(ONE)
    numbers = type(pieces.index.offsets)("Q", getattr(pieces.index, column))
    if not numbers[place] and change < 0:
        return
    numbers[place] += change
    pieces.index = attrs.evolve(pieces.index, **{column: numbers})
    container = pieces.build(rebuild_index=False)
    for read in (*READERS, images.read_blocks):
        with pytest.raises(amistore.CorruptArchiveError):
            read(container)


def test_a_frame_with_many_empty_blocks_is_long_and_valid() -> None:
    right = zstandard.ZstdCompressor(write_checksum=True).compress(images.block(1))
    assert right[4] == 0xA4  # single segment, content size in 4 bytes: the header ends at 9
    long = right[:9] + bytes(3) * 200_000 + right[9:]
    container = with_first_frame(ONE, long).build(rebuild_index=True)
    for read in READERS:
        read(container)
    assert images.read_blocks(container) == images.read_blocks(ONE)


def resealed(pieces: Pieces, index: Index) -> bytes:
    """The container with another index, whose content ids are made right for its sums."""
    volumes = tuple(
        attrs.evolve(
            volume,
            content_id=identity.volume_content_id(
                volume.size, volume.blocks, volume.linear, volume.runs_digest
            ),
        )
        for volume in index.volumes
    )
    _, image = pieces.index.open()
    sums = [(volume.snapshot_id, volume.content_id) for volume in volumes]
    content_id = identity.archive_content_id(encode_manifest(image), sums, bound=False)
    pieces.index = attrs.evolve(index, volumes=volumes, content_id=content_id)
    return pieces.build(rebuild_index=False)


@pytest.mark.parametrize(
    "members",
    [
        {"front_digest": bytes(32)},
        {"front_end": 3000},
        {"prelude_digest": bytes(32)},
        {"length": 500},
        {"runs": 2},
        {"linear": bytes(32)},
        {"runs_digest": bytes(32)},
        {"size": 2 << 30},
        {"blocks": 8},
    ],
    ids=lambda members: next(iter(members)),
)
def test_an_index_that_lies_about_a_volume_or_the_front_is_refused(members: dict[str, object]) -> None:
    pieces = Pieces.of(ONE)
    if hasattr(pieces.index, next(iter(members))):
        index = attrs.evolve(pieces.index, **members)
    else:
        first, *others = pieces.index.volumes
        index = attrs.evolve(pieces.index, volumes=(attrs.evolve(first, **members), *others))
    container = resealed(pieces, index)
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError):
            read(container)


def test_an_index_may_not_claim_a_longer_prelude_than_its_runs_allow() -> None:
    index = Pieces.of(images.packed([(1, {})], FORM)).index
    (volume,) = index.volumes
    for length in (2 * 2**23, 2**40):
        longer = attrs.evolve(index, volumes=(attrs.evolve(volume, length=length),))
        with pytest.raises(amistore.CorruptArchiveError, match="longer than its runs allow"):
            Index.parse(longer.encode())


def test_extracting_proves_that_the_indexs_sums_are_those_of_the_blocks(tmp_path: Path) -> None:
    pieces = Pieces.of(ONE)
    first, *others = pieces.index.volumes
    index = attrs.evolve(pieces.index, volumes=(attrs.evolve(first, linear=bytes(32)), *others))
    archive = amistore.open(io.BytesIO(resealed(pieces, index)))
    with archive, pytest.raises(amistore.CorruptArchiveError, match="content id stands for"):
        archive.volumes[0].extract(tmp_path / "disk.raw")
    assert list(tmp_path.iterdir()) == []


def test_a_descriptor_that_puts_blocks_elsewhere_than_the_sparse_map_is_refused() -> None:
    pieces = Pieces.of(ONE)
    at = pieces.segments()[2]
    record, descriptor = descriptor_of(pieces.body[at][1])
    moved = attrs.evolve(descriptor, runs=Runs((first + 1, count) for first, count in descriptor.runs))
    pieces.body[at] = (layout.SEGD, moved.encode() + pieces.body[at][1][len(record) :])
    container = pieces.build(rebuild_index=True)
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError):
            read(container)
    # Nor is it recovered to that place: without the index only the map tells.
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "new.bin")
        report = amistore.recover(io.BytesIO(container[: -layout.FOOT_SIZE - 300]), target)
        lost = [index for each in report.volumes[0].lost for index in range(each.first_block, each.end)]
        assert lost == list(descriptor.runs.indexes())
        right = images.read_blocks(ONE)
        assert images.read_blocks(target.read_bytes()).items() <= right.items()


def test_a_block_with_another_digest_is_not_recovered(tmp_path: Path) -> None:
    pieces = Pieces.of(ONE)
    at = pieces.segments()[1]
    record, descriptor = descriptor_of(pieces.body[at][1])
    forged = attrs.evolve(descriptor, digests=(bytes(32), *descriptor.digests[1:]))
    pieces.body[at] = (layout.SEGD, forged.encode() + pieces.body[at][1][len(record) :])
    report = amistore.recover(io.BytesIO(pieces.build(rebuild_index=True)), tmp_path / "new.bin")
    assert [each.first_block for each in report.volumes[0].lost] == [descriptor.runs.first]


@pytest.mark.parametrize("kind", [layout.SEGD, layout.VOLD])
@pytest.mark.parametrize("other", [b"XXXX", b"HEAD", b"PAD\0"])
def test_a_record_under_another_name_is_refused(kind: bytes, other: bytes) -> None:
    pieces = Pieces.of(ONE)
    at = next(place for place, (each, _) in enumerate(pieces.body) if each == kind)
    piece = pieces.body[at][1]
    size = open_envelope(piece[:20]).size
    renamed = bytearray(seal(other, piece[20 : size - 4]))
    if other == b"XXXX":
        renamed[18:20] = b"\0\0"
        renamed[-4:] = struct.pack("<I", crc32c(bytes(renamed[:-4])))
    pieces.body[at] = (kind, bytes(renamed) + piece[size:])
    if kind == layout.SEGD:
        digest = hashlib.sha256(renamed).digest()
        first = pieces.index.segment_digests[32:]
        pieces.index = attrs.evolve(pieces.index, segment_digests=digest + first)
    else:
        volume = attrs.evolve(
            pieces.index.volumes[0], prelude_digest=hashlib.sha256(pieces.body[at][1]).digest()
        )
        pieces.index = attrs.evolve(pieces.index, volumes=(volume, *pieces.index.volumes[1:]))
    container = pieces.build(rebuild_index=False)
    for read in READERS:
        with pytest.raises(amistore.ArchiveError):
            read(container)


def test_an_index_with_padded_columns_is_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces.of(ONE)
    encode = FrameEncoder.encode_all

    def padded(self: FrameEncoder, contents: Iterable[bytes]) -> list[bytes]:
        (frame,) = encode(self, contents)
        header = zstandard.frame_header_size(frame)
        return [frame[:header] + bytes(3) * 40_000 + frame[header:]]

    with monkeypatch.context() as patched:
        patched.setattr(FrameEncoder, "encode_all", padded)
        container = pieces.build(rebuild_index=False)
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError, match="beyond the limit"):
            read(container)


@pytest.mark.parametrize("size", [0, 5, 11, 12, 16])
def test_a_record_that_claims_to_be_shorter_than_any_is_refused(size: int) -> None:
    pieces = Pieces.of(ONE)
    at = pieces.segments()[0]
    piece = bytearray(pieces.body[at][1])
    piece[4:8] = struct.pack("<I", size)
    pieces.body[at] = (layout.SEGD, bytes(piece))
    digest = hashlib.sha256(piece[: size + 8]).digest()
    pieces.index = attrs.evolve(pieces.index, segment_digests=digest + pieces.index.segment_digests[32:])
    container = pieces.build(rebuild_index=False)
    for read in (*READERS, images.read_blocks):
        with pytest.raises(amistore.CorruptArchiveError):
            read(container)
