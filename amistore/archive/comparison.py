"""Compares two archives, or an archive and live snapshots, by hashes; nothing is decompressed."""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from amistore.archive.difference import AttributeChange, Difference, VolumeDifference
from amistore.archive.volume import Volume
from amistore.archive.volumereader import VolumeReader
from amistore.backends import BlockSource
from amistore.backends.blocks import check_answer
from amistore.errors import InvalidRequestError
from amistore.model import BlockRange, Image, Snapshot
from amistore.model.fields import to_wire
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.workers import ordered_map, worker_pool
from amistore.units import GIB, ZERO_DIGEST

__all__ = ["compare_live", "compare_stored"]

_Digest = tuple[int, bytes]  # block index, SHA-256 of the block


Side = tuple[Image, Sequence[Volume]]
"""What is compared of an archive."""


def compare_stored(before: Side, after: Side, workers: int | None, progress: ProgressCallback) -> Difference:
    """The differences between two archives; arguments and errors as in `Archive.compare`."""
    attributes = tuple(_attribute_changes(_members(before[0]), _members(after[0])))
    count = _Count(progress, sum(volume.blocks for volume in before[1]))
    pairs = _pairs(before[1], after[1])
    return Difference(attributes, tuple(_volume_difference(*pair, workers, count) for pair in pairs))


def compare_live(
    image: Image,
    archived: Sequence[Volume],
    source: BlockSource,
    snapshots: Mapping[str, str] | Image | None,
    workers: int | None,
    progress: ProgressCallback,
) -> Difference:
    """The differences between an archive and live snapshots; arguments and errors as in `Archive.compare`."""
    names = [volume.snapshot_id for volume in archived]
    live = _live_ids(image, names, snapshots)
    foreign = sorted(set(live) - set(names))
    if foreign:
        raise InvalidRequestError(
            f"{foreign[0]} is no volume of the archive, which has {', '.join(names) or 'none'}",
            code="InvalidSnapshot.NotFound",
        )
    compared = [volume for volume in archived if volume.snapshot_id in live]
    count = _Count(progress, sum(volume.blocks for volume in compared))
    volumes = []
    for volume in compared:
        other = _Live(source, live[volume.snapshot_id])
        ranges = _Ranges(volume.lost_blocks)
        with (
            contextlib.closing(_digests(volume._reader, workers)) as digests,
            contextlib.closing(other.digests(workers)) as live_digests,
        ):
            count.walk(_merged(digests, live_digests, ranges))
        volumes.append(
            VolumeDifference(
                devices=volume.device_names,
                before=volume.snapshot_id,
                after=other.snapshot_id,
                size_before=volume.size,
                size_after=other.size,
                **ranges.found(),
            )
        )
    return Difference((), tuple(volumes))


def _live_ids(
    archived: Image, names: list[str], snapshots: Mapping[str, str] | Image | None
) -> dict[str, str]:
    """The live snapshot for each archived one that is compared."""
    if snapshots is None:
        return {name: name for name in names}
    if isinstance(snapshots, Image):
        return _by_device(archived, snapshots)
    if not isinstance(snapshots, Mapping):
        raise InvalidRequestError(
            f"snapshots= is an Image, or maps archived snapshots' ids to live ones', not {snapshots!r:.80}"
        )
    return dict(snapshots)


def _by_device(archived: Image, restored: Image) -> dict[str, str]:
    """The restored image's snapshot for each archived one."""
    new = _devices(restored)
    missing = sorted(set(_devices(archived)) - set(new))
    if missing:
        raise InvalidRequestError(f"{restored.image_id} has no snapshot for {missing[0]}")
    found: dict[str, str] = {}
    for device, snapshot_id in _devices(archived).items():
        if found.setdefault(snapshot_id, new[device]) != new[device]:
            raise InvalidRequestError(
                f"{snapshot_id} is on several devices, and {restored.image_id} has another snapshot on each: "
                "compare one with snapshots={...}"
            )
    return found


def _devices(image: Image) -> dict[str, str]:
    return {
        mapping.device_name: mapping.ebs.snapshot_id
        for mapping in image.block_device_mappings
        if mapping.ebs is not None and mapping.ebs.snapshot_id is not None
    }


@attrs.define
class _Count:
    """How many blocks of the first side are compared, of how many."""

    progress: ProgressCallback
    total: int
    done: int = 0

    def walk(self, merged: Iterable[int | None]) -> None:
        """Go through what `_merged` gives."""
        for index in merged:
            self.done += index is not None
            if self.done % 64 == 0:
                self.add(0)
        self.add(0)

    def add(self, blocks: int) -> None:
        self.done += blocks
        self.progress(Progress(phase=Phase.COMPARE, blocks=self.done, total_blocks=self.total))


def _members(image: Image) -> dict[str, Any]:
    """Every attribute of an image, by its path."""
    flat: dict[str, Any] = {}
    keys = ("Key", "DeviceName", "SnapshotId", "ProductCodeId", "FirstBlock")

    def flatten(path: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                flatten(f"{path}.{name}" if path else name, item)
        elif isinstance(value, list) and value:
            for number, item in enumerate(value):
                known = [item[key] for key in keys if isinstance(item, dict) and key in item]
                flatten(f"{path}[{known[0] if known else number}]", item)
        else:
            flat[path] = value

    flatten("", to_wire(image))
    return flat


def _attribute_changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[AttributeChange]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield AttributeChange(name, before.get(name), after.get(name))


_Pair = tuple["VolumeReader | None", "VolumeReader | None", tuple[str, ...]]


def _pairs(first: Sequence[Volume], second: Sequence[Volume]) -> list[_Pair]:
    """The pairs of volumes of two archives."""
    left = list(second)
    pairs: list[_Pair] = []
    alone = []
    for volume in first:
        other = next((each for each in left if set(each.device_names) & set(volume.device_names)), None)
        if other is None:
            alone.append(volume)
            continue
        left.remove(other)
        pairs.append((volume._reader, other._reader, volume.device_names))
    for volume in alone:
        other = next((each for each in left if each.snapshot_id == volume.snapshot_id), None)
        if other is not None:
            left.remove(other)
        pairs.append((volume._reader, other._reader if other else None, volume.device_names))
    return [*pairs, *((None, each._reader, each.device_names) for each in left)]


def _volume_difference(
    before: VolumeReader | None,
    after: VolumeReader | None,
    devices: tuple[str, ...],
    workers: int | None,
    count: _Count,
) -> VolumeDifference:
    unknown = {*(before.lost_blocks if before else ()), *(after.lost_blocks if after else ())}
    ranges = _Ranges(sorted(unknown, key=lambda lost: lost.first_block))
    if before and after and before.indexed.content_id == after.indexed.content_id:
        count.add(before.indexed.blocks)
    else:
        with (
            contextlib.closing(_digests(before, workers)) as first,
            contextlib.closing(_digests(after, workers)) as second,
        ):
            count.walk(_merged(first, second, ranges))
    return VolumeDifference(
        devices=devices,
        before=before.indexed.snapshot_id if before else None,
        after=after.indexed.snapshot_id if after else None,
        size_before=before.indexed.size if before else 0,
        size_after=after.indexed.size if after else 0,
        **ranges.found(),
    )


def _digests(volume: VolumeReader | None, workers: int | None) -> Generator[_Digest, None, None]:
    if volume is not None:
        with contextlib.closing(volume.descriptors(workers)) as descriptors:
            for descriptor in descriptors:
                yield from zip(descriptor.runs.indexes(), descriptor.digests, strict=True)


@attrs.define
class _Live:
    """A live snapshot's blocks, hashed as they come."""

    source: BlockSource
    snapshot_id: str
    size: int = 0

    def __attrs_post_init__(self) -> None:
        Snapshot(snapshot_id=self.snapshot_id)  # refuse what is no id

    def digests(self, workers: int | None) -> Generator[_Digest, None, None]:
        def digest(block: tuple[int, str]) -> _Digest:
            index, token = block
            answer = self.source.get_snapshot_block(self.snapshot_id, index, token)
            content = check_answer(answer, self.snapshot_id, index).content
            return index, hashlib.sha256(content).digest()

        with (
            worker_pool(workers, None) as (pool, limit),
            contextlib.closing(ordered_map(pool, digest, self._listed(), 4 * limit)) as digests,
        ):
            yield from digests

    def _listed(self) -> Iterator[tuple[int, str]]:
        for page in self.source.pages(self.snapshot_id):
            self.size = page.volume_size * GIB
            yield from ((block.block_index, block.block_token) for block in page.blocks)


class _Ranges:
    """Collects block indexes, ascending, into ranges of each kind; of unknown ones it takes none."""

    def __init__(self, unknown: Sequence[BlockRange]) -> None:
        self._unknown = tuple(unknown)
        self._starts = [each.first_block for each in unknown]
        self._found: dict[str, list[list[int]]] = {
            "changed": [],
            "added": [],
            "filled": [],
            "removed": [],
        }

    def add(self, kind: str, index: int) -> None:
        at = bisect_right(self._starts, index) - 1
        if at >= 0 and index < self._unknown[at].end:
            return
        ranges = self._found[kind]
        if ranges and sum(ranges[-1]) == index:
            ranges[-1][1] += 1
        else:
            ranges.append([index, 1])

    def found(self) -> dict[str, Any]:
        return {"unknown": self._unknown} | {
            kind: tuple(BlockRange(first_block=first, block_count=count) for first, count in ranges)
            for kind, ranges in self._found.items()
        }


def _merged(before: Iterable[_Digest], after: Iterable[_Digest], ranges: _Ranges) -> Iterator[int | None]:
    """Walk two ascending lists of blocks side by side.

    Gives each block index of the first list, and None for one of the second alone.
    """
    left, right = iter(before), iter(after)
    end: _Digest = (2**64, b"")
    one, two = next(left, end), next(right, end)
    while one != two or one != end:
        index = min(one[0], two[0])
        if index < two[0]:
            ranges.add("removed", index)
        elif index < one[0]:
            ranges.add("filled" if two[1] == ZERO_DIGEST else "added", index)
        elif one[1] != two[1]:
            ranges.add("changed", index)
        yield index if one[0] == index else None
        if one[0] == index:
            one = next(left, end)
        if two[0] == index:
            two = next(right, end)
