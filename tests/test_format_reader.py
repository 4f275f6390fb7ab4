"""docs/format.md is enough to write a reader from: this one uses nothing of amistore."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from itertools import accumulate
from pathlib import Path
from typing import Any

import crcmod.predefined
import images
import pytest
import zstandard

import amistore

DATA = Path(__file__).parent / "data"
BLOCK = 524_288
END_FRAME = bytes.fromhex("28b52ffd640003032000 00cdac85f0".replace(" ", ""))
CRC32C = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
KNOWN = (b"HEAD", b"VOLD", b"SEGD", b"PAD\0", b"INDX", b"FOOT")


class NewerError(Exception):
    """Of a newer version of the format, and not damaged."""


def record(data: bytes, at: int, kind: bytes) -> tuple[bytes, int]:
    """Payload of the record at an offset, and the offset behind it; unknown ones are passed over."""
    for _ in range(17):
        magic, length, signature, found, version, flags = struct.unpack_from("<II4s4sHH", data, at)
        assert (magic, signature) == (0x184D2A5A, b"AMIS")
        end = at + 8 + length
        known = found in KNOWN and (version, flags) == (1, 1)
        covered = {b"PAD\0": 20, b"INDX": 20 + 108}.get(found) if known else None
        covered = end - 4 - at if covered is None else covered
        assert struct.unpack_from("<I", data, end - 4) == (CRC32C(data[at : at + covered]),)
        if not known and (flags & 1 or found in KNOWN):
            raise NewerError(found)
        if known:
            assert found == kind
            return data[at + 20 : end - 4], end
        assert end - at <= 65_536
        assert kind in (b"VOLD", b"SEGD")
        at = end
    raise AssertionError("more than 16 records of unknown type")


def frames(data: bytes, at: int, table: bytes) -> tuple[bytes, int]:
    """Content of the frames that a table describes, and the offset behind them."""
    content = b""
    for size, crc32 in struct.iter_unpack("<II", table):
        frame = data[at : at + size]
        assert zlib.crc32(frame) == crc32
        content += zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        at += size
    return content, at


def varints(data: bytes) -> list[int]:
    numbers, shift = [0], 0
    for byte in data:
        numbers[-1] |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(0)
            shift = 0
    return numbers[:-1]


def read(data: bytes) -> dict[str, Any]:
    """Manifest, volumes (blocks by index) and ids of a container, from front to end and by its index."""
    head, at = record(data, 2062, b"HEAD")
    if struct.unpack_from("<Q", head)[0] & ~4:
        raise NewerError("features")
    (per_frame, per_segment, per_shard, part_size, volumes, segments, listed, file_id, size, _) = (
        struct.unpack_from("<HHQQIQQ16sQI", head, 20)
    )
    member, at = frames(data, at, head[88:])
    assert len(member) == size
    manifest = member[512 : 512 + int(member[124:135], 8)]
    ids, found, offsets, sums = [], {}, [], []
    shard_start, sequence = 0, 0
    for number in range(volumes):
        vold, at = record(data, at, b"VOLD")
        (own, this, snapshot, first, size, blocks, runs, runs_digest, length, _) = struct.unpack_from(
            "<16sI24sQQQI32sQI", vold
        )
        assert (own, this, first) == (file_id, number, sequence)
        prelude, at = frames(data, at, vold[struct.calcsize("<16sI24sQQQI32sQI") :])
        assert len(prelude) == length
        numbers = list(map(int, prelude[1536:].rstrip(b"\0").split()))
        pairs = [pair for pair in zip(numbers[1::2], numbers[2::2], strict=True) if pair[1]]
        assert len(pairs) == runs
        packed = b"".join(struct.pack("<QQ", o // BLOCK, n // BLOCK) for o, n in pairs)
        assert hashlib.sha256(packed).digest() == runs_digest
        disk: dict[int, bytes] = {}
        digests = b""
        for ordinal in range(0, blocks, per_segment):
            offsets.append(at)
            segd, at = record(data, at, b"SEGD")
            own, this, seq, ordinal_found, count, n, length = struct.unpack_from("<16sIQQHHI", segd)
            assert (own, this, seq, ordinal_found) == (file_id, number, sequence, ordinal)
            gaps = varints(segd[44 : 44 + length])
            indexes, end = [], 0
            for gap, run in zip(gaps[::2], gaps[1::2], strict=True):
                indexes += range(end + gap, end + gap + run)
                end += gap + run
            content, at = frames(data, at, segd[44 + length : 44 + length + 8 * n])
            assert n == -(-count // per_frame)
            for place, index in enumerate(indexes):
                disk[index] = content[place * BLOCK : (place + 1) * BLOCK]
                digest = hashlib.sha256(disk[index]).digest()
                assert segd[44 + length + 8 * n + 32 * place :][:32] == digest
                digests += digest
            sequence += 1
            if sequence % per_shard == 0 and sequence < segments:
                if at - shard_start < 5 * 2**20:
                    _, at = record(data, at, b"PAD\0")
                    assert at - shard_start == 5 * 2**20
                shard_start = at
        linear = hashlib.sha256(digests).digest()
        numbers_of = struct.pack("<QQ", size, blocks)
        domain = b"amistore volume content 1\0"
        ids.append((snapshot, hashlib.sha256(domain + numbers_of + linear + runs_digest).digest()))
        sums.append((snapshot, struct.pack("<Q", size) + runs_digest))
        found[snapshot.rstrip(b"\0").decode()] = (size, disk)
    assert data[at : at + 15] == END_FRAME
    manifest_digest = hashlib.sha256(manifest).digest()
    form = struct.pack("<HHQQ", per_frame, per_segment, per_shard, part_size)
    image = json.loads(manifest)
    mapped = {each["Ebs"].get("SnapshotId") for each in image["BlockDeviceMappings"] if "Ebs" in each}
    partial = mapped - {None} != set(found)
    name = b"amistore partial " if partial else b"amistore "

    def formula(name: bytes, what: bytes, parts: list[tuple[bytes, bytes]], form: bytes = b"") -> bytes:
        named = [snapshot + part if b"partial" in name else part for snapshot, part in parts]
        return hashlib.sha256(name + what + manifest_digest + form + b"".join(named)).digest()

    if partial and formula(name, b"file id 1\0", sums, form)[:16] != file_id:
        name = b"amistore "  # as earlier writers did
    assert formula(name, b"file id 1\0", sums, form)[:16] == file_id
    content_id = formula(name, b"archive content 1\0", ids)
    check_index(data, at + 15, head, offsets, content_id, listed)
    return {"manifest": image, "volumes": found, "content_id": content_id.hex()}


def check_index(
    data: bytes, at: int, head: bytes, offsets: list[int], content_id: bytes, listed: int
) -> None:
    indx, end = record(data, at, b"INDX")
    foot, over = record(data, end, b"FOOT")
    digest = hashlib.sha256(data[at:end]).digest()
    assert struct.unpack("<QQQQ32s", foot) == (at, end - at, at - 15, listed, digest)
    assert over == len(data)
    front, front_end, copy, manifest, volumes, segments, _, n, found_id = struct.unpack_from(
        "<32sQIQIQQI32s", indx
    )
    assert hashlib.sha256(data[:front_end]).digest() == front
    assert (found_id, segments) == (content_id, len(offsets))
    start = struct.calcsize("<32sQIQIQQI32s")
    assert indx[start + 20 : start + copy - 4] == head
    start += copy + manifest + 196 * volumes
    content, start = frames(indx, start + 8 * n, indx[start : start + 8 * n])
    column = struct.unpack(f"<{segments}Q", content[: 8 * segments])
    assert [total % 2**64 for total in accumulate(column)] == offsets
    for place, offset in enumerate(offsets):
        length = struct.unpack_from("<I", data, offset + 4)[0] + 8
        assert indx[start + 32 * place :][:32] == hashlib.sha256(data[offset : offset + length]).digest()
    assert start + 32 * segments == len(indx)


@pytest.mark.parametrize("name", json.loads((DATA / "golden.json").read_text())["files"])
def test_a_reader_written_from_the_document_reads_the_golden_files(name: str) -> None:
    data = (DATA / name).read_bytes()
    golden = json.loads((DATA / "golden.json").read_text())["files"][name]
    found = read(data)
    assert found["content_id"] == golden["content_id"]
    assert found["manifest"]["Name"] == golden["image_name"]
    assert {
        snapshot_id: {str(i): hashlib.sha256(block).hexdigest() for i, block in disk.items()}
        for snapshot_id, (_, disk) in found["volumes"].items()
    } == {snapshot_id: volume["blocks"] for snapshot_id, volume in golden["volumes"].items()}


def test_it_reads_runs_holes_and_shards_with_pad_as_amistore_does() -> None:
    volumes = [(2, {i * 3: images.block(i) for i in range(21)}), (1, {}), (1, {7: images.noise(7)})]
    form = amistore.Layout(blocks_per_frame=2, blocks_per_segment=6, segments_per_shard=2)
    data = images.packed(volumes, form)
    assert data.count(b"AMISPAD\0") == 2
    found = read(data)
    assert [(s // amistore.GIB, d) for s, d in found["volumes"].values()] == volumes
    with amistore.open(io.BytesIO(data)) as archive:
        assert archive.content_id == found["content_id"]


def test_it_tells_damage_from_a_newer_format_as_amistore_does() -> None:
    good = (DATA / "tiny-v1.bin").read_bytes()
    for kind in (b"HEAD", b"VOLD", b"SEGD", b"INDX", b"FOOT"):
        at = good.index(b"AMIS" + kind) - 8
        end = at + 8 + struct.unpack_from("<I", good, at + 4)[0]
        for place in (12, 16, 18):  # type, version, flags
            changed = bytearray(good)
            changed[at + place] ^= 0x20
            for error, expected in (
                (AssertionError, amistore.CorruptArchiveError),
                (NewerError, amistore.UnsupportedArchiveError),
            ):
                with pytest.raises(error):
                    read(bytes(changed))
                with pytest.raises(expected):
                    images.read_streaming(bytes(changed))
                changed[end - 4 : end] = struct.pack("<I", CRC32C(bytes(changed[at : end - 4])))
