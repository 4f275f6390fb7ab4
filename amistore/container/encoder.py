"""Writing: front, prelude, segment and tail of a plan, as bytes.

Pure. A segment depends on its own blocks alone, so any thread, process or machine can
make it; whoever puts the parts in order keeps the `Ledger`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import attrs
from typing_extensions import Buffer

from amistore.container import layout
from amistore.container.frames import Frame, FrameEncoder
from amistore.container.index import Ledger
from amistore.container.members import PREAMBLE, manifest_member, prelude
from amistore.container.plan import Plan, PlannedSegment, PlannedVolume, Shards
from amistore.container.records import Foot, Head, SegmentDescriptor, VolumeDescriptor
from amistore.errors import InvalidRequestError
from amistore.units import BLOCK_SIZE

__all__ = ["ContainerWriter", "EncodedSegment", "encode_segment"]


@attrs.frozen
class EncodedSegment:
    """A SEGD record and the frames it describes."""

    descriptor: SegmentDescriptor
    record: bytes
    frames: list[bytes]


def encode_segment(
    segment: PlannedSegment, blocks: Iterator[tuple[Buffer, bytes | None]], *, level: int, check: bool
) -> EncodedSegment:
    """Hash and compress one segment.

    Args:
        segment: the segment, from the plan.
        blocks: exactly its blocks, 524,288 bytes each, and the SHA-256 of each that is proved; taken a frame
            at a time.
        level: the zstd level.
        check: whether to decode each frame and compare it before it is handed out.

    Raises:
        InvalidRequestError: a block has another size, or there are too few.
    """
    encoder = FrameEncoder(level, check=check)
    frames: list[bytes] = []
    digests: list[bytes] = []
    # A block is copied before it is hashed: its source may use the buffer again.
    content = bytearray(segment.frame_contents[0])
    for content_size in segment.frame_contents:
        if len(content) != content_size:
            content = bytearray(content_size)
        view = memoryview(content)
        for at in range(0, content_size, BLOCK_SIZE):
            given, digest = next(blocks, (b"", None))
            block = memoryview(given).cast("B")
            if len(block) != BLOCK_SIZE:
                raise InvalidRequestError(f"a block has {len(block)} bytes, not {BLOCK_SIZE}")
            view[at : at + BLOCK_SIZE] = block
            digests.append(digest or hashlib.sha256(view[at : at + BLOCK_SIZE]).digest())
        frames.append(encoder.encode(content))
    descriptor = SegmentDescriptor(
        file_id=segment.file_id,
        volume=segment.volume,
        sequence=segment.sequence,
        ordinal=segment.ordinal,
        runs=segment.runs,
        frames=tuple(Frame.of(frame) for frame in frames),
        digests=tuple(digests),
    )
    return EncodedSegment(descriptor, descriptor.encode(), frames)


class ContainerWriter:
    """Puts the pieces of a plan in order and remembers what the tail needs.

    Call `front`, then per volume `volume` and `segment` for each of its segments, then `tail`, which needs
    the segments' records alone.

    Attributes:
        content_id: the archive's content id, once `tail` was called.
    """

    content_id: bytes

    def __init__(self, plan: Plan, level: int) -> None:
        self._plan = plan
        self._ledger = Ledger()
        self._encoder = FrameEncoder(level, check=True)
        self._segments = 0
        self._shards = Shards(plan.layout, plan.segments)

    @property
    def offset(self) -> int:
        """Bytes given out so far."""
        return self._ledger.offset

    def front(self) -> list[bytes]:
        """PREAMBLE, HEAD and the manifest's frames."""
        plan = self._plan
        content = manifest_member(plan.image, plan.manifest)
        frames = self._encoder.encode_all([content])
        head = Head(
            layout=plan.layout,
            volumes=len(plan.volumes),
            segments=plan.segments,
            blocks=plan.blocks,
            file_id=plan.file_id,
            content=len(content),
            frames=tuple(Frame.of(frame) for frame in frames),
            lost_blocks=plan.image.lost_blocks,
        ).encode()
        pieces = [PREAMBLE, head, *frames]
        self._ledger.add_front(head, b"".join(frames), b"".join(pieces))
        return pieces

    def volume(self, volume: PlannedVolume) -> list[bytes]:
        """VOLD and the frames of the volume's tar headers and sparse map."""
        content = b"".join(prelude(self._plan.image, volume))
        frames = self._encoder.encode_all([content])
        descriptor = VolumeDescriptor(
            file_id=self._plan.file_id,
            volume=volume.number,
            snapshot_id=volume.snapshot_id,
            first_segment=volume.first_segment,
            size=volume.size,
            blocks=volume.runs.blocks,
            runs=len(volume.runs),
            runs_digest=volume.runs.digest(),
            content=len(content),
            frames=tuple(Frame.of(frame) for frame in frames),
        )
        pieces = [descriptor.encode(), *frames]
        self._ledger.add_volume(descriptor, sum(map(len, pieces)), hashlib.sha256(b"".join(pieces)).digest())
        return pieces

    def segment(self, encoded: EncodedSegment) -> list[bytes]:
        """The next segment, and PAD where its shard ends too small to be a part."""
        self._ledger.add_segment(encoded.descriptor, encoded.record)
        self._segments += 1
        pad = self._shards.pad(self._segments, self.offset)
        self._ledger.offset += len(pad)
        return [encoded.record, *encoded.frames, *([pad] if pad else ())]

    def tail(self) -> list[bytes]:
        """END_FRAME, INDX and FOOT."""
        data_end = self.offset
        collected = self._ledger.index(self._plan.manifest, bound=self._plan.bound)
        self.content_id = collected.content_id
        index = collected.encode()
        return [layout.END_FRAME, index, Foot.of(index, data_end, self._plan.blocks).encode()]
