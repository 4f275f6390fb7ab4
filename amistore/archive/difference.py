"""`Difference`: the result of `Archive.compare`."""

from __future__ import annotations

from typing import Any

import attrs

from amistore.model import BlockRange
from amistore.text import html_table, printable
from amistore.units import BLOCK_SIZE, GIB, MIB, counted

__all__ = ["AttributeChange", "Difference", "VolumeDifference"]


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
            for what, ranges in (
                ("changed", self.changed),
                ("added", self.added),
                ("filled", self.filled),
                ("removed", self.removed),
                ("unknown", self.unknown),
            )
            if ranges
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
