"""A picture of a volume: data, zeros and holes, and how well each place compresses. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amistore.archive.volumereader import VolumeReader
from amistore.container.records import SegmentDescriptor
from amistore.pipeline.workers import closing
from amistore.units import BLOCK_SIZE, GIB, MIB, ZERO_DIGEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot"]

_HOLE, _ZERO, _DATA, _LOST = range(4)
_NAMES = ("hole", "zeros", "data", "lost")
# Okabe and Ito's palette, told apart by colour-blind readers too; holes in a light grey.
_COLOURS = ("#eeeeee", "#56b4e9", "#0072b2", "#d55e00")

_COLUMNS = 128
_ROWS = 48
"""Most cells of the picture; a cell stands for one block or for several."""


def plot(volume: VolumeReader, axes: Axes | None, workers: int | None) -> Axes:
    """As `Volume.plot`."""
    try:
        from matplotlib import pyplot
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.patches import Patch
    except ImportError:
        raise ImportError("matplotlib is not installed: pip install 'amistore[plot]'") from None
    if axes is None:
        _, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    cells = _Cells(volume)
    with closing(volume.descriptors(workers)) as descriptors:
        for descriptor in descriptors:
            cells.add(descriptor)
    end = volume.indexed.size / GIB
    row = cells.rows_gib * GIB
    unit, scale = ("GiB", GIB) if row >= 4 * GIB else ("MiB", MIB)
    axes.imshow(
        cells.kinds(),
        cmap=ListedColormap(_COLOURS),
        norm=BoundaryNorm([each - 0.5 for each in range(len(_NAMES) + 1)], len(_NAMES)),
        extent=(0.0, row / scale, cells.rows * cells.rows_gib, 0.0),
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_title(
        f"{volume.indexed.snapshot_id}: {end:,.0f} GiB, "
        f"{volume.indexed.blocks * BLOCK_SIZE / MIB:,.0f} MiB in blocks"
    )
    cell = f"any of {cells.per_cell} blocks" if cells.per_cell > 1 else "one block"
    axes.set_xlabel(f"{unit} within the row; a cell is {cell} of 512 KiB")
    axes.set_ylabel("GiB of the disk")
    axes.legend(
        handles=[
            Patch(facecolor=_COLOURS[kind], edgecolor="#888888", label=label)
            for kind, label in cells.legend()
        ],
        loc="upper left",
        bbox_to_anchor=(0.0, -0.16),
        ncols=4,
        frameon=False,
    )
    _plot_ratio(axes, cells)
    return axes


def _plot_ratio(axes: Axes, cells: _Cells) -> None:
    """Beside the map, row by row: compressed size as a part of the blocks'."""
    strip = axes.inset_axes((1.02, 0.0, 0.16, 1.0))
    height = cells.rows_gib
    for row, ratio in enumerate(cells.ratios()):
        if ratio is not None:
            strip.barh((row + 0.5) * height, min(ratio, 1.0) * 100, height=height, color="#009e73")
    strip.set_xlim(0, 100)
    strip.set_ylim(axes.get_ylim())
    strip.set_yticks([])
    strip.set_xticks([0, 50, 100])
    strip.set_xlabel("stored, %")


class _Cells:
    """The picture's cells, and what they stand for."""

    def __init__(self, volume: VolumeReader) -> None:
        self._blocks = volume.indexed.size // BLOCK_SIZE
        self._per_frame = volume.frame_size // BLOCK_SIZE
        self.per_cell = max(1, -(-self._blocks // (_COLUMNS * _ROWS)))
        cells = -(-self._blocks // self.per_cell)
        self.rows = -(-cells // _COLUMNS)
        self.rows_gib = self.per_cell * _COLUMNS * BLOCK_SIZE / GIB
        self._cells = bytearray(cells)
        self._stored = [0.0] * self.rows
        self._listed = [0] * self.rows
        self._counts = [self._blocks - volume.indexed.blocks, 0, 0, 0]
        for lost in volume.lost_blocks:
            self._counts[_LOST] += lost.block_count
            self._counts[_HOLE] -= lost.block_count
            first = lost.first_block // self.per_cell
            last = (lost.end - 1) // self.per_cell
            self._cells[first : last + 1] = bytes([_LOST]) * (last + 1 - first)

    def add(self, segment: SegmentDescriptor) -> None:
        """Blocks of a segment; what weighs most in a cell gives it its colour: lost, data, zeros."""
        for at, (index, digest) in enumerate(zip(segment.runs.indexes(), segment.digests, strict=True)):
            kind = _ZERO if digest == ZERO_DIGEST else _DATA
            self._counts[kind] += 1
            cell = index // self.per_cell
            self._cells[cell] = max(self._cells[cell], kind)
            row = cell // _COLUMNS
            frame = at // self._per_frame
            in_frame = min(self._per_frame, segment.runs.blocks - frame * self._per_frame)
            self._stored[row] += segment.frames[frame].size / in_frame
            self._listed[row] += 1

    def legend(self) -> list[tuple[int, str]]:
        """Each kind that there is, and how much of it."""
        return [
            (kind, f"{_NAMES[kind]}: {_size(self._counts[kind])}")
            for kind in (_DATA, _ZERO, _HOLE, _LOST)
            if self._counts[kind]
        ]

    def kinds(self) -> Any:
        """The cells as rows of a masked array; those behind the disk's end are masked."""
        import numpy

        grid = numpy.full(self.rows * _COLUMNS, -1, dtype=numpy.int8)
        grid[: len(self._cells)] = numpy.frombuffer(bytes(self._cells), dtype=numpy.int8)
        return numpy.ma.masked_less(grid.reshape(self.rows, _COLUMNS), 0)

    def ratios(self) -> Sequence[float | None]:
        """Compressed size as a part of the blocks', for each row; None where none is listed."""
        return [
            stored / (listed * BLOCK_SIZE) if listed else None
            for stored, listed in zip(self._stored, self._listed, strict=True)
        ]


def _size(blocks: int) -> str:
    size = blocks * BLOCK_SIZE
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.1f} MiB"
