"""Damage is not a newer format: only a record whose CRC is right is one, for whoever reads it."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import images
import pytest
from test_forgery import FORM, Pieces

import amistore
from amistore.container import layout
from amistore.container.records import crc32c, open_envelope, pad_record, seal

LONG = bool(os.environ.get("AMISTORE_LONG"))
TINY = (Path(__file__).parents[1] / "data" / "tiny-v1.bin").read_bytes()
RECORDS = (layout.HEAD, layout.VOLD, layout.SEGD, layout.INDX, layout.FOOT)

DAMAGE, NEWER, FINE = "damage", "newer", "fine"


def told(read: Callable[[bytes], object], container: bytes) -> str:
    try:
        read(container)
    except amistore.CorruptArchiveError:
        return DAMAGE
    except amistore.UnsupportedArchiveError:
        return NEWER
    return FINE


def recover(container: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        amistore.recover(io.BytesIO(container), Path(folder, "new.bin"), workers=1)


def opened(container: bytes) -> None:
    amistore.open(io.BytesIO(container)).close()


def everyone(container: bytes) -> dict[str, str]:
    readers = {
        "unpack": images.read_streaming,
        "verify": images.read_seekable,
        "quick": images.read_quickly,
        "open": opened,
        "recover": recover,
    }
    return {name: told(read, container) for name, read in readers.items()}


def place(container: bytes, kind: bytes) -> int:
    return container.index(b"AMIS" + kind) - 8


def flips() -> Iterator[tuple[bytes, int, int]]:
    """Each record × each byte of its envelope and CRC × bits: all of type, version and flags."""
    for kind in RECORDS:
        at = place(TINY, kind)
        size = open_envelope(TINY[at : at + 20]).size
        for byte in (*range(20), *range(size - 4, size)):
            every = LONG or 12 <= byte < 20
            for bit in range(8) if every else [byte % 8]:
                yield kind, at + byte, bit


def test_a_flipped_bit_of_any_records_envelope_or_crc_is_damage_to_every_reader() -> None:
    wrong = []
    for kind, at, bit in flips():
        damaged = bytearray(TINY)
        damaged[at] ^= 1 << bit
        found = everyone(bytes(damaged))
        # Opening reads INDX and FOOT only, and recovering saves what it can.
        right = {"unpack": [DAMAGE], "verify": [DAMAGE], "quick": [DAMAGE]}
        right["open"] = [DAMAGE] if kind in (layout.INDX, layout.FOOT) else [FINE]
        right["recover"] = [DAMAGE, FINE]
        if any(found[name] not in right[name] for name in found):
            wrong.append((kind, at, bit, found))
    assert wrong == []


@pytest.mark.parametrize("kind", RECORDS)
def test_unpack_tells_which_record_is_damaged_where_it_stands_and_what_to_do(kind: bytes) -> None:
    damaged = bytearray(TINY)
    at = place(TINY, kind)
    damaged[at + 21] ^= 1
    with pytest.raises(amistore.CorruptArchiveError, match=r"amistore\.recover") as caught:
        images.read_streaming(bytes(damaged))
    assert (caught.value.record, caught.value.offset) == (kind.decode(), at)


def resealed(record: bytes, **fields: object) -> bytes:
    """The record with another type, version or flags, and its CRC right over all of it."""
    magic, length, signature, kind, version, flags = layout.ENVELOPE.unpack(record[:20])
    head = layout.ENVELOPE.pack(
        magic,
        length,
        signature,
        fields.get("kind", kind),
        fields.get("version", version),
        fields.get("flags", flags),
    )
    whole = head + record[20:-4]
    return whole + layout.CRC.pack(crc32c(whole))


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("fields", [{"version": 2}, {"flags": 3}, {"flags": 0}, {"kind": b"NEWS"}])
def test_a_whole_record_of_a_newer_format_is_unsupported_to_every_reader(
    kind: bytes, fields: dict[str, object]
) -> None:
    at = place(TINY, kind)
    size = open_envelope(TINY[at : at + 20]).size
    newer = TINY[:at] + resealed(TINY[at : at + size], **fields) + TINY[at + size :]
    found = everyone(newer)
    if kind not in (layout.INDX, layout.FOOT):
        assert found.pop("open") == FINE  # it reads the tail only
    assert set(found.values()) == {NEWER}


def with_masks(container: bytes, incompatible: int, compatible: int) -> bytes:
    """The container with other feature masks, both copies of HEAD and every digest right for them."""
    pieces = Pieces.of(container)
    payload = bytearray(pieces.index.head[20:-4])
    payload[:16] = incompatible.to_bytes(8, "little") + compatible.to_bytes(8, "little")
    head = seal(layout.HEAD, bytes(payload))
    pieces.front = pieces.front.replace(pieces.index.head, head)
    pieces.index = attrs.evolve(pieces.index, head=head, front_digest=hashlib.sha256(pieces.front).digest())
    return pieces.build(rebuild_index=False)


@pytest.mark.parametrize("bit", [0, 1, 3, 17, 63])
def test_an_unknown_incompatible_feature_is_unsupported_to_every_reader(bit: int) -> None:
    assert set(everyone(with_masks(TINY, 1 << bit, 0)).values()) == {NEWER}


def test_compatible_features_are_ignored_by_every_reader() -> None:
    assert set(everyone(with_masks(TINY, 0, 2**64 - 1)).values()) == {FINE}


def test_a_damaged_feature_mask_is_damage() -> None:
    damaged = bytearray(TINY)
    damaged[place(TINY, layout.HEAD) + 20] ^= 1
    assert everyone(bytes(damaged)) == {
        "unpack": DAMAGE,
        "verify": DAMAGE,
        "quick": DAMAGE,
        "open": FINE,
        "recover": FINE,
    }


def test_what_is_left_of_a_newer_format_is_not_recovered_as_if_it_were_this_one() -> None:
    newer = bytearray(with_masks(TINY, 1, 0))
    newer[place(TINY, layout.HEAD) + 30] ^= 1  # the front's HEAD; INDX has the other one
    newer[-1] ^= 1
    assert told(recover, bytes(newer)) == NEWER


def test_a_container_of_a_newer_format_on_the_guests_disk_hinders_nothing() -> None:
    newer = Pieces.of(with_masks(TINY, 1, 0)).index.head
    content = images.noise(3, amistore.BLOCK_SIZE - len(newer)) + newer
    damaged = bytearray(images.packed([(1, {4: content, 9: images.block(1)})], FORM))
    assert newer in damaged  # stored as it is, so that a scan sees it
    damaged[damaged.index(b"AMISSEGD") + 20] ^= 1
    assert told(recover, bytes(damaged)) == FINE


def test_a_damaged_pad_is_damage_and_a_newer_one_unsupported() -> None:
    whole = images.packed(
        [(1, {i: images.block(i) for i in range(4)})],
        amistore.Layout(blocks_per_frame=1, blocks_per_segment=1, segments_per_shard=2),
    )
    at = place(whole, layout.PAD)
    size = open_envelope(whole[at : at + 20]).size
    assert whole[at : at + size] == pad_record(size)
    for byte in (12, 16, 18, 100, size - 1):
        damaged = bytearray(whole)
        damaged[at + byte] ^= 2
        found = everyone(bytes(damaged))
        assert (found.pop("open"), found.pop("recover")) == (FINE, FINE)
        assert set(found.values()) == {DAMAGE}
    newer = whole[:at] + resealed(whole[at : at + size], version=2) + whole[at + size :]
    found = everyone(newer)
    assert found.pop("open") == FINE
    assert set(found.values()) == {NEWER}


class Counted(io.BytesIO):
    """A file that counts how often it is read."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


def with_others(container: bytes, others: bytes) -> bytes:
    """The container with records before its first VOLD, and an index that knows of them."""
    pieces = Pieces.of(container)
    pieces.body.insert(0, (b"NOTE", others))
    moved = type(pieces.index.offsets)("Q", (each + len(others) for each in pieces.index.offsets))
    volumes = tuple(attrs.evolve(each, offset=each.offset + len(others)) for each in pieces.index.volumes)
    pieces.index = attrs.evolve(pieces.index, offsets=moved, volumes=volumes)
    return pieces.build(rebuild_index=False)


def other(size: int) -> bytes:
    return resealed(seal(b"NOTE", bytes(size - layout.RECORD_OVERHEAD)), flags=0)


def test_as_many_unknown_records_as_may_be_are_passed_over_in_one_read() -> None:
    container = with_others(TINY, other(layout.MAX_DESCRIPTOR) * layout.MAX_OTHERS)
    assert set(everyone(container).values()) == {FINE}
    reads = []
    for each in (TINY, container):
        with Counted(each) as file, amistore.open(file) as archive:
            archive.verify(workers=1).check()
            reads.append(file.reads)
    assert reads[1] <= reads[0] + 2  # StreamRanges reads on until it has enough


@pytest.mark.parametrize(
    "others",
    [other(24) * (layout.MAX_OTHERS + 1), other(24) * 20_000, other(layout.MAX_DESCRIPTOR + 1)],
    ids=["one too many", "a flood", "too long"],
)
def test_more_unknown_records_or_longer_ones_are_damage_found_in_few_reads(others: bytes) -> None:
    container = with_others(TINY, others)
    found = everyone(container)
    assert (found.pop("open"), found.pop("recover")) == (FINE, FINE)
    assert set(found.values()) == {DAMAGE}
    with Counted(container) as file, amistore.open(file) as archive:
        assert not archive.verify(workers=1).ok
        assert file.reads < 30
