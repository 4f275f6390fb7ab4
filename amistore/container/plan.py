"""The plan: everything about a container that is known before a block is read.

A pure function of the image, the runs of listed blocks and the layout. It holds runs only,
never an entry per block. Imports the model and the container's lower files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import attrs

from amistore.container import layout
from amistore.container.identity import file_id, id_formulas
from amistore.container.layout import Layout
from amistore.container.records import pad_record
from amistore.container.runs import Runs
from amistore.errors import InvalidRequestError
from amistore.model import Image, encode_manifest
from amistore.units import BLOCK_SIZE, GIB, MIB

__all__ = [
    "Plan",
    "PlannedSegment",
    "PlannedVolume",
    "Shards",
    "check_lost_blocks",
    "cut_segment",
    "plan",
    "worst_segment",
]


_WORST_BLOCK = BLOCK_SIZE + 64 + 32
"""Most bytes of a block, and what SEGD has of it: libzstd stores what it cannot compress with 3 bytes
each 128 KiB."""


@attrs.frozen(kw_only=True)
class PlannedVolume:
    """One distinct snapshot: its size in bytes, its listed blocks and its first segment's number."""

    number: int
    snapshot_id: str
    size: int
    runs: Runs
    first_segment: int

    def holds(self, ordinal: int, runs: Runs) -> bool:
        """Whether these are its listed blocks from the `ordinal`-th on."""
        return self.runs.slice(ordinal, runs.blocks) == runs

    def sums(self) -> tuple[str, int, bytes]:
        """What the file id takes of it."""
        return self.snapshot_id, self.size, self.runs.digest()


@attrs.frozen(kw_only=True)
class PlannedSegment:
    """Consecutive listed blocks of one volume; `ordinal` counts the listed ones before."""

    file_id: bytes
    volume: int
    sequence: int
    ordinal: int
    runs: Runs
    frame_contents: tuple[int, ...]


@attrs.frozen(kw_only=True)
class Plan:
    """What will be written; `bound` is the formula of its ids (`identity.id_formulas`)."""

    image: Image
    manifest: bytes
    layout: Layout
    volumes: tuple[PlannedVolume, ...]
    segments: int
    blocks: int
    file_id: bytes
    bound: bool

    @property
    def overhead(self) -> int:
        """Upper bound of the bytes that are no segments: front, preludes and tail."""
        # All that stands beside the manifest in the front, the tar's end and FOOT are less than a descriptor.
        manifest = len(self.manifest) + layout.MAX_DESCRIPTOR
        # A run in a sparse map: two numbers below 2**46 in decimal, each with a line end.
        preludes = sum(layout.MAX_DESCRIPTOR + 30 * len(volume.runs) for volume in self.volumes)
        index = layout.index_limit(layout.MAX_DESCRIPTOR, manifest, len(self.volumes), self.segments)
        return manifest + preludes + index

    @property
    def most_bytes(self) -> int:
        """Upper bound of the container's size, reached if nothing compresses."""
        return self.overhead + self.blocks * _WORST_BLOCK + self.segments * layout.MAX_DESCRIPTOR

    def segment(self, sequence: int) -> PlannedSegment:
        """The segment of that sequence number, counted across volumes from 0."""
        firsts = [volume.first_segment for volume in self.volumes]
        volume = self.volumes[bisect_right(firsts, sequence) - 1]
        ordinal = (sequence - volume.first_segment) * self.layout.blocks_per_segment
        return cut_segment(self.file_id, volume, ordinal, self.layout)


def cut_segment(file: bytes, volume: PlannedVolume, ordinal: int, form: Layout) -> PlannedSegment:
    """The segment of `volume` whose first block is the `ordinal`-th listed one."""
    runs = volume.runs.slice(ordinal, form.blocks_per_segment)
    return PlannedSegment(
        file_id=file,
        volume=volume.number,
        sequence=volume.first_segment + ordinal // form.blocks_per_segment,
        ordinal=ordinal,
        runs=runs,
        frame_contents=form.frame_contents(runs.blocks),
    )


def plan(image: Image, volumes: Sequence[tuple[str, int, Runs]], form: Layout | None = None) -> Plan:
    """Plan a container.

    Args:
        image: what the manifest will say.
        volumes: snapshot id, volume size in GiB and listed blocks of each.
        form: how to cut; None for the default, with shards and parts to fit the size.

    Raises:
        InvalidRequestError: beyond a limit of the format.
    """
    ordered = sorted(volumes, key=lambda volume: volume[0])
    names = [snapshot_id for snapshot_id, _, _ in ordered]
    if len(set(names)) != len(names):
        raise InvalidRequestError("a snapshot was given twice")
    if len(ordered) > layout.MAX_VOLUMES:
        raise InvalidRequestError(f"more than {layout.MAX_VOLUMES} volumes in one image")
    manifest = encode_manifest(image)
    if len(manifest) > layout.MAX_MANIFEST:
        raise InvalidRequestError(
            f"the image's metadata takes {len(manifest)} bytes, more than {layout.MAX_MANIFEST}"
        )
    base = form or Layout()
    planned: list[PlannedVolume] = []
    segments = 0
    for number, (snapshot_id, gib, runs) in enumerate(ordered):
        _check_volume(snapshot_id, gib, runs)
        volume = PlannedVolume(
            number=number, snapshot_id=snapshot_id, size=gib * GIB, runs=runs, first_segment=segments
        )
        check_lost_blocks(image, volume)
        planned.append(volume)
        segments += base.segments(runs.blocks)
    blocks = sum(volume.runs.blocks for volume in planned)
    # Refused is what may need an INDX beyond its limit, if its columns cannot be compressed.
    most = layout.MAX_DESCRIPTOR, len(manifest) + layout.MAX_DESCRIPTOR
    if layout.index_limit(*most, len(planned), segments) > layout.MAX_INDEX:
        raise InvalidRequestError(
            f"{segments} segments need an index beyond the limit of {layout.MAX_INDEX} bytes: "
            "store fewer snapshots at a time (snapshots=)"
        )
    chosen = form or _fit(base, segments)
    bound = id_formulas(names, image.snapshot_ids)[0]
    return Plan(
        image=image,
        manifest=manifest,
        layout=chosen,
        volumes=tuple(planned),
        segments=segments,
        blocks=blocks,
        file_id=file_id(manifest, [v.sums() for v in planned], chosen, bound=bound),
        bound=bound,
    )


def _check_volume(snapshot_id: str, gib: int, runs: Runs) -> None:
    if not 1 <= gib <= layout.MAX_VOLUME_GIB:
        raise InvalidRequestError(f"{snapshot_id}: a volume has 1 to {layout.MAX_VOLUME_GIB} GiB, not {gib}")
    if runs.end * BLOCK_SIZE > gib * GIB:
        raise InvalidRequestError(f"{snapshot_id}: block {runs.end - 1} lies beyond the volume's {gib} GiB")


def worst_segment(form: Layout) -> int:
    """Upper bound of a segment's bytes."""
    return form.blocks_per_segment * _WORST_BLOCK + layout.MAX_DESCRIPTOR


def _fit(form: Layout, segments: int) -> Layout:
    """Shards and a part size with which 10,000 parts hold the worst case.

    Each shard has part numbers of its own (S3 allows gaps), the last one more for the tail.
    """
    per_shard = max(layout.MIN_SHARD_SEGMENTS, -(-segments // layout.MAX_SHARDS))
    shards = max(1, -(-segments // per_shard))
    parts = (layout.MAX_PARTS - 1) // shards
    part_size = -(-per_shard * worst_segment(form) // parts)
    part_size = min(max(layout.MIN_PART, -(-part_size // MIB) * MIB), layout.MAX_PART)
    return attrs.evolve(form, segments_per_shard=per_shard, part_size=part_size)


def check_lost_blocks(image: Image, volume: PlannedVolume) -> None:
    """Refuse lost blocks that are listed, overlap, or lie outside the volume.

    Raises:
        InvalidRequestError: they do.
    """
    end = 0
    for lost in image.snapshot(volume.snapshot_id).lost_blocks:
        if lost.first_block < end or lost.end * BLOCK_SIZE > volume.size:
            raise InvalidRequestError(f"{volume.snapshot_id}: lost blocks overlap or lie outside the volume")
        end = lost.end
        listed = volume.runs.after(lost.first_block)
        if listed < end:
            raise InvalidRequestError(
                f"{volume.snapshot_id}: its description says that block {listed} was lost, but it is "
                "listed: take lost_blocks out of the description"
            )


class Shards:
    """Where each shard of a container ends, told segment by segment; docs/format.md, section 8.

    A shard is a run of segments that one worker makes into parts; PAD fills it up.
    """

    def __init__(self, form: Layout, segments: int) -> None:
        """Take the layout, and how many segments the container has."""
        self._per_shard = form.segments_per_shard
        self._segments = segments
        self._start = 0

    def pad(self, count: int, end: int) -> bytes:
        """The PAD behind a segment; empty for none.

        No part but the last may be smaller than 5 MiB, so a shard that is, and is not the last, is filled.

        Args:
            count: of the segments up to this one.
            end: file offset behind its frames.
        """
        if count % self._per_shard or count == self._segments:
            return b""
        missing = layout.MIN_PART - (end - self._start)
        record = pad_record(max(missing, layout.RECORD_OVERHEAD)) if missing > 0 else b""
        self._start = end + len(record)
        return record
