"""R1, R2: flipped bytes, truncation, appended bytes, for the streaming and the seekable reader."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator, Sequence

import images
import pytest

import amistore
from amistore.container import layout
from amistore.container.records import open_envelope

READERS = [images.read_streaming, images.read_seekable, images.read_quickly]
LONG = bool(os.environ.get("AMISTORE_LONG"))
"""Every byte and every bit (a nox session); else what CI has time for."""

Reader = Callable[[bytes], object]


@pytest.fixture(scope="module")
def container() -> bytes:
    """Two volumes, three segments, few compressed bytes; payload of 64 KiB and more in the long form."""
    if LONG:  # few blocks, as each is hashed for each flip
        volumes = [(1, {7: images.noise(7, 64 * 1024) * 8, 9: images.block(0)}), (1, {2047: images.block(0)})]
        return images.packed(volumes, amistore.Layout(blocks_per_frame=1, blocks_per_segment=1))
    return images.packed(
        [
            (1, {0: images.block(1), 1: images.block(0), 2000: images.block(2)}),
            (1, {2047: images.block(3)}),
        ],
        amistore.Layout(blocks_per_frame=1, blocks_per_segment=2),
    )


def payload_offsets(container: bytes) -> set[int]:
    """Offsets of the bytes of data frames."""
    offsets: set[int] = set()
    at = len(layout_front(container))
    while at < len(container):
        if container[at : at + 4] == layout.ZSTD_MAGIC:
            break
        envelope = open_envelope(container[at : at + layout.ENVELOPE.size])
        following = container.find(layout.SKIPPABLE_MAGIC.to_bytes(4, "little"), at + envelope.size)
        if envelope.kind == layout.SEGD:
            offsets.update(range(at + envelope.size, following))
        at = following
        if envelope.kind == layout.INDX or following < 0:
            break
    return offsets


def shared(items: Sequence[int], read: Reader) -> Sequence[int]:
    """A reader's part: in CI one of the three meets each item, in the long form all of them."""
    return items if LONG else items[READERS.index(read) :: len(READERS)]


def layout_front(container: bytes) -> bytes:
    """All before the first VOLD."""
    return container[: container.index(b"AMISVOLD") - 8]


@pytest.mark.parametrize("read", READERS)
def test_the_whole_container_is_accepted(container: bytes, read: Reader) -> None:
    read(container)


@pytest.mark.parametrize("bit", range(8) if LONG else [None])
@pytest.mark.parametrize("read", READERS)
def test_every_flipped_byte_is_detected(container: bytes, read: Reader, bit: int | None) -> None:
    payload = payload_offsets(container)
    assert payload
    sampled = random.Random(1).sample(sorted(payload), min(500, len(payload)))
    offsets = shared(sorted((set(range(len(container))) - payload) | set(sampled)), read)
    # One test for each bit in the long form: two workers share them evenly.
    flips: Iterator[tuple[int, int]] = (
        ((at, at % 8) for at in offsets) if bit is None else ((at, bit) for at in range(len(container)))
    )
    missed = []
    for at, flipped in flips:
        damaged = bytearray(container)
        damaged[at] ^= 1 << flipped
        try:
            read(bytes(damaged))
            missed.append((at, flipped))
        except amistore.AmistoreError:
            pass
    assert missed == []


def test_reading_blocks_of_a_flipped_container_gives_their_bytes_or_an_error(container: bytes) -> None:
    right = images.read_blocks(container)
    payload = payload_offsets(container)
    offsets = sorted(set(range(layout.FOOT_SIZE * 20, len(container))) - payload)[::7]
    offsets += random.Random(2).sample(sorted(payload), min(200, len(payload)))
    wrong = []
    for at in offsets:
        damaged = bytearray(container)
        damaged[at] ^= 1 << at % 8
        try:
            if images.read_blocks(bytes(damaged)) != right:
                wrong.append(at)
        except amistore.AmistoreError:
            pass
    assert wrong == []


@pytest.mark.parametrize("read", READERS)
def test_every_truncation_is_refused(container: bytes, read: Reader) -> None:
    step = 1 if LONG else 3  # most ends lie in a record or a frame, as the ones beside them do
    for end in shared(range(len(container)), read)[::step]:
        with pytest.raises(amistore.ArchiveError):
            read(container[:end])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "appended",
    [
        b"\0",
        b"junk",
        layout.END_FRAME,
        b"\x50\x2a\x4d\x18\x04\0\0\0junk",
        "itself",
        "its foot",
    ],
)
def test_anything_appended_is_refused(container: bytes, read: Reader, appended: bytes | str) -> None:
    tail = {"itself": container, "its foot": container[-layout.FOOT_SIZE :]}.get(appended, appended)  # type: ignore[call-overload]
    with pytest.raises(amistore.CorruptArchiveError):
        read(container + tail)


def test_an_error_tells_file_offset_segment_snapshot_and_block(container: bytes) -> None:
    payload = sorted(payload_offsets(container))
    damaged = bytearray(container)
    damaged[payload[-20]] ^= 4
    with pytest.raises(amistore.CorruptArchiveError) as caught:
        images.read_seekable(bytes(damaged))
    error = caught.value
    with pytest.raises(amistore.CorruptArchiveError) as streamed:
        images.read_streaming(bytes(damaged))
    assert str(streamed.value) == str(error)
    with amistore.open(io.BytesIO(container)) as archive:
        assert error.snapshot_id == archive.volumes[1].snapshot_id
    assert (error.segment, error.block_index) == (2, 2047)
    assert error.offset is not None
    assert payload[0] < error.offset < payload[-20]
    for fact in ("offset", "segment 2", "block index 2047", str(error.snapshot_id)):
        assert fact in str(error)


def test_a_copy_that_is_cut_short_is_told_from_what_is_no_archive(container: bytes) -> None:
    for end in (1, 2000, 5000, len(container) - 1):
        with pytest.raises(amistore.TruncatedArchiveError):
            amistore.open(io.BytesIO(container[:end]))
    for other in (b"", b"hello", bytes(10_000)):
        with pytest.raises(amistore.CorruptArchiveError, match="no amistore container"):
            amistore.open(io.BytesIO(other))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x28\xb5\x2f\xfd" * 1000, bytes(10_000)])
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_container_is_refused(content: bytes, read: Reader) -> None:
    with pytest.raises(amistore.CorruptArchiveError):
        read(content)
