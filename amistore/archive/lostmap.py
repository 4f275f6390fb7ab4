"""The map of a disk's lost blocks, which GNU ddrescue and its friends read."""

from __future__ import annotations

from pathlib import Path

from amistore.archive.volumereader import VolumeReader
from amistore.backends import files
from amistore.units import BLOCK_SIZE

__all__ = ["map_path", "write_map"]


def map_path(path: Path) -> Path:
    """The path of a disk's map."""
    return path.with_name(f"{path.name}.map")


def write_map(volume: VolumeReader, path: Path) -> None:
    """Write the map before the disk appears, so that no disk with lost blocks lacks one."""
    if volume.lost_blocks:
        with files.new_file(map_path(path), overwrite=True) as descriptor:
            files.write_at(descriptor, _ddrescue_map(volume).encode(), 0)


def _ddrescue_map(volume: VolumeReader) -> str:
    """The lost parts as a map file of GNU ddrescue (its manual, "Mapfile structure")."""
    rows: list[tuple[int, int, str]] = []
    position = 0
    for lost in volume.lost_blocks:
        start, end = lost.first_block * BLOCK_SIZE, lost.end * BLOCK_SIZE
        rows += [(position, start - position, "+"), (start, end - start, "-")]
        position = end
    rows.append((position, volume.indexed.size - position, "+"))
    lines = ["# Mapfile. Written by amistore", "# current_pos  current_status  current_pass", "0x0 + 1"]
    lines += ["#      pos        size  status"]
    lines += [f"0x{start:010X}  0x{size:010X}  {status}" for start, size, status in rows if size]
    return "\n".join(lines) + "\n"
