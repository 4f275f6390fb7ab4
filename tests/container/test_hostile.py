"""R13: records changed at random, with every CRC and digest made right again: typed errors, little memory."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import attrs
import images
import pytest
from test_forgery import ONE, Pieces

import amistore
from amistore.container import layout
from amistore.container.records import Foot, crc32c, open_envelope
from amistore.units import MIB

CASES = 20_000 if os.environ.get("AMISTORE_LONG") else 60
TINY = (Path(__file__).parents[1] / "data" / "tiny-v1.bin").read_bytes()
WORDS = [0, 1, 2**8 - 1, 2**15, 2**16, 2**22, 2**27, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


def changed(record: bytes, chance: random.Random) -> bytes:
    """The record with some bytes flipped, set to extremes, put in or left out; length and CRC right."""
    new = bytearray(record)
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(12, len(new) - 4)
        kind = chance.randrange(4)
        if kind == 0:
            new[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            size = min(chance.choice([2, 4, 8]), len(new) - 4 - at)
            new[at : at + size] = chance.choice(WORDS).to_bytes(8, "little")[:size]
        elif kind == 2:
            new[at:at] = new[at : min(at + chance.randrange(1, 40), len(new) - 4)]
        elif len(new) > 80:
            del new[at : min(at + chance.randrange(1, 40), len(new) - 4)]
    new[4:8] = struct.pack("<I", len(new) - layout.SKIPPABLE_HEADER)
    covered = layout.COVERED.get(bytes(new[12:16]))
    end = len(new) - 4 if covered is None else min(len(new) - 4, layout.ENVELOPE.size + covered)
    new[-4:] = struct.pack("<I", crc32c(bytes(new[:end])))
    return bytes(new)


def forged(container: bytes, chance: random.Random) -> bytes:
    """The container with one record changed, and the digests of all that point to it made right."""
    pieces = Pieces.of(container)
    place = chance.randrange(len(pieces.body) + 2)
    if place == len(pieces.body):  # HEAD, in both places
        head = changed(pieces.index.head, chance)
        pieces.front = pieces.front.replace(pieces.index.head, head)
        front = hashlib.sha256(pieces.front).digest()
        pieces.index = attrs.evolve(pieces.index, head=head, front_digest=front, front_end=len(pieces.front))
    elif place < len(pieces.body):
        kind, piece = pieces.body[place]
        size = open_envelope(piece[:20]).size
        pieces.body[place] = (kind, changed(piece[:size], chance) + piece[size:])
    offsets, volumes, digests, at = [], [], b"", len(pieces.front)
    for kind, piece in pieces.body:
        if kind == layout.SEGD:
            offsets.append(at)
            size = min(int.from_bytes(piece[4:8], "little") + 8, len(piece))
            digests += hashlib.sha256(piece[:size]).digest()
        else:
            digest = hashlib.sha256(piece).digest()
            known = pieces.index.volumes[len(volumes)]
            volumes.append(attrs.evolve(known, offset=at, length=len(piece), prelude_digest=digest))
        at += len(piece)
    column = type(pieces.index.offsets)("Q", offsets)
    pieces.index = attrs.evolve(pieces.index, offsets=column, volumes=tuple(volumes), segment_digests=digests)
    whole = pieces.build(rebuild_index=False)
    if place <= len(pieces.body):
        return whole
    foot = Foot.parse(whole[-layout.FOOT_SIZE :])
    record = changed(whole[foot.index_offset : -layout.FOOT_SIZE], chance)
    foot = attrs.evolve(foot, index_length=len(record), index_digest=hashlib.sha256(record).digest())
    return whole[: foot.index_offset] + record + foot.encode()


def recover(container: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        amistore.recover(io.BytesIO(container), Path(folder, "new.bin"), workers=1)


@pytest.mark.parametrize("read", [images.read_streaming, images.read_seekable, images.read_blocks, recover])
def test_forged_records_are_refused_in_little_memory_or_read_as_what_they_say(
    read: Callable[[bytes], object],
) -> None:
    tracemalloc.start()
    try:
        for seed in range(CASES):
            container = forged(TINY if seed % 2 else ONE, random.Random(seed))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                read(container)
            except amistore.AmistoreError:
                pass
            except Exception as error:
                raise AssertionError(f"seed {seed}") from error
            grown = tracemalloc.get_traced_memory()[1] - before
            assert grown < 64 * MIB, f"seed {seed}: {grown} bytes"
    finally:
        tracemalloc.stop()


def test_the_forgeries_are_of_every_kind() -> None:
    assert forged(ONE, random.Random(1)) != ONE
    told = set()
    for seed in range(CASES):
        try:
            images.read_streaming(forged(TINY if seed % 2 else ONE, random.Random(seed)))
        except amistore.ArchiveError as error:
            told.add(error.record)
    assert {"HEAD", "VOLD", "SEGD", "INDX"} <= told
