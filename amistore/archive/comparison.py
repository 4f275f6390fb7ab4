"""Compares two archives, or an archive and live snapshots, by hashes; nothing is decompressed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from amistore.archive.live import Digest, LiveSnapshot
from amistore.archive.volume import Volume
from amistore.backends import BlockSource
from amistore.errors import InvalidRequestError
from amistore.model import BlockRange, Image
from amistore.model.fields import to_wire
from amistore.pipeline.orders import Cluster
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.workers import closing
from amistore.text import html_table, printable
from amistore.units import BLOCK_SIZE, GIB, MIB, ZERO_DIGEST, counted

__all__ = ["AttributeChange", "Difference", "VolumeDifference", "compare_live", "compare_stored"]


_KINDS = ("changed", "added", "filled", "removed")


@attrs.frozen
class AttributeChange:
    """An attribute of the image that differs, in EC2's spelling: ``Tags[Name].Value``; None if absent."""

    name: str
    before: Any
    after: Any


@attrs.frozen(kw_only=True)
class VolumeDifference:
    """A volume of either side, or a pair of them.

    A listed block of zeros and a hole differ here: a hole reads as noise on an encrypted volume.

    Attributes:
        devices: the names of the volume's devices.
        before: the snapshot's id on the first side; None where that has no such volume.
        after: the snapshot's id on the second side; None where that has no such volume.
        size_before: the size in bytes on the first side; 0 where that has no such volume.
        size_after: the size in bytes on the second side; 0 where that has no such volume.
        changed: the blocks listed on both sides, with different content.
        added: the blocks listed on the second side only, except blocks of zeros.
        filled: the blocks of zeros listed on the second side only, as a restore with `fill_holes` makes them.
        removed: the blocks listed on the first side only.
        unknown: the blocks that were lost on either side, in a recovered archive.
    """

    devices: tuple[str, ...]
    before: str | None
    after: str | None
    size_before: int
    size_after: int
    changed: tuple[BlockRange, ...] = ()
    added: tuple[BlockRange, ...] = ()
    filled: tuple[BlockRange, ...] = ()
    removed: tuple[BlockRange, ...] = ()
    unknown: tuple[BlockRange, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both sides are known to have equal blocks; filled holes are a difference."""
        same_size = self.size_before == self.size_after
        return same_size and not (self.bytes_changed or self.filled or self.unknown)

    @property
    def bytes_changed(self) -> int:
        """The bytes of all blocks that differ, except filled ones."""
        ranges = (*self.changed, *self.added, *self.removed)
        return sum(each.block_count for each in ranges) * BLOCK_SIZE

    def __str__(self) -> str:
        devices = printable(", ".join(self.devices)) or "volume"
        return f"{devices} ({self.before or 'none'} -> {self.after or 'none'}): {self._told()}"

    def _told(self) -> str:
        if self.equal:
            return "equal"
        parts = [
            f"{counted(sum(each.block_count for each in ranges), 'block')} {what}"
            for what in (*_KINDS, "unknown")
            if (ranges := getattr(self, what))
        ]
        if self.size_before != self.size_after:
            parts.append(f"{self.size_before // GIB} -> {self.size_after // GIB} GiB")
        return f"{', '.join(parts)}; {self.bytes_changed / MIB:,.1f} MiB"

    def _row(self) -> tuple[str, ...]:
        return ", ".join(self.devices), self.before or "none", self.after or "none", self._told()


@attrs.frozen
class Difference:
    """The differences between two sides; `str()` lists them."""

    attributes: tuple[AttributeChange, ...]
    volumes: tuple[VolumeDifference, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.attributes and all(volume.equal for volume in self.volumes)

    @property
    def bytes_changed(self) -> int:
        """The bytes of all blocks that differ in all volumes, except filled ones."""
        return sum(volume.bytes_changed for volume in self.volumes)

    def __str__(self) -> str:
        lines = [printable(f"{each.name}: {each.before!r} -> {each.after!r}") for each in self.attributes]
        return "\n".join([*lines, *map(str, self.volumes)]) or "equal"

    def _repr_html_(self) -> str:
        """What a notebook shows: attributes that differ, and all volumes."""
        attributes = ((each.name, repr(each.before), repr(each.after)) for each in self.attributes)
        verdict = "equal" if self.equal else f"{self.bytes_changed / MIB:,.1f} MiB differ"
        heads = ("devices", "before", "after", "blocks")
        return html_table(
            [("comparison", verdict)], ("attribute", "before", "after"), attributes
        ) + html_table([], heads, (volume._row() for volume in self.volumes))


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
    cluster: Cluster | None,
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
    pairs = ((volume, LiveSnapshot(source, live[volume.snapshot_id], cluster)) for volume in compared)
    return Difference((), tuple(_volume_difference(*pair, workers, count) for pair in pairs))


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


def _pairs(first: Sequence[Volume], second: Sequence[Volume]) -> list[tuple[Volume | None, Volume | None]]:
    """The pairs of volumes of two archives."""
    left = list(second)
    pairs: list[tuple[Volume | None, Volume | None]] = []
    alone = []
    for volume in first:
        other = next((each for each in left if set(each.device_names) & set(volume.device_names)), None)
        if other is None:
            alone.append(volume)
            continue
        left.remove(other)
        pairs.append((volume, other))
    for volume in alone:
        other = next((each for each in left if each.snapshot_id == volume.snapshot_id), None)
        if other is not None:
            left.remove(other)
        pairs.append((volume, other))
    return [*pairs, *((None, each) for each in left)]


def _volume_difference(
    before: Volume | None, after: Volume | LiveSnapshot | None, workers: int | None, count: _Count
) -> VolumeDifference:
    sides = [side for side in (before, after) if side]
    unknown = {lost for side in sides for lost in side.lost_blocks}
    ranges = _Ranges(sorted(unknown, key=lambda lost: lost.first_block))
    if before and after and before.content_id == after.content_id:
        count.add(before.blocks)
    else:
        with (
            closing(_digests(before, workers)) as first,
            closing(_digests(after, workers)) as second,
        ):
            count.walk(_merged(first, second, ranges))
    return VolumeDifference(
        devices=sides[0].device_names,
        before=before.snapshot_id if before else None,
        after=after.snapshot_id if after else None,
        size_before=before.size if before else 0,
        size_after=after.size if after else 0,
        **ranges.found(),
    )


def _digests(volume: Volume | LiveSnapshot | None, workers: int | None) -> Generator[Digest, None, None]:
    if isinstance(volume, LiveSnapshot):
        yield from volume.digests(workers)
    elif volume is not None:
        with closing(volume._reader.descriptors(workers)) as descriptors:
            for descriptor in descriptors:
                yield from zip(descriptor.runs.indexes(), descriptor.digests, strict=True)


class _Ranges:
    """Collects block indexes, ascending, into ranges of each kind; of unknown ones it takes none."""

    def __init__(self, unknown: Sequence[BlockRange]) -> None:
        self._unknown = tuple(unknown)
        self._starts = [each.first_block for each in unknown]
        self._found: dict[str, list[list[int]]] = {kind: [] for kind in _KINDS}

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


def _merged(before: Iterable[Digest], after: Iterable[Digest], ranges: _Ranges) -> Iterator[int | None]:
    """Walk two ascending lists of blocks side by side.

    Gives each block index of the first list, and None for one of the second alone.
    """
    left, right = iter(before), iter(after)
    end: Digest = (2**64, b"")
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
