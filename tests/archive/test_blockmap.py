"""The picture of a volume shows each block as what it is."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import images
import pytest

import amistore

HOLE, ZERO, DATA, LOST = range(4)


@pytest.fixture(autouse=True)
def _draw_to_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")


def test_each_cell_has_the_kind_of_its_block(tmp_path: Path) -> None:
    blocks = {0: images.noise(1), 1: images.block(0), 130: images.block(3), 2047: images.block(0)}
    with amistore.open(io.BytesIO(images.packed([(1, blocks)]))) as archive:
        axes = archive.volumes[0].plot()
        cells = axes.images[0].get_array()
        assert cells is not None
        assert cells.shape == (16, 128)
        kinds = {index: int(kind) for index, kind in enumerate(cells.reshape(-1)) if kind != HOLE}
        assert kinds == {0: DATA, 1: ZERO, 130: DATA, 2047: ZERO}
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [
            "data: 1.0 MiB",
            "zeros: 1.0 MiB",
            "hole: 1,022.0 MiB",
        ]
        # Rows 0, 1 and 15 hold blocks; noise is stored as it is, the rest in next to nothing.
        (strip,) = axes.child_axes
        heights = [bar.get_width() for bar in strip.patches]
        assert len(heights) == 3
        assert 45 < heights[0] < 55
        assert heights[1] < 1
        assert axes.figure is not None
        axes.figure.savefig(tmp_path / "map.png")  # type: ignore[union-attr]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_lost_blocks_are_shown_and_the_axes_are_those_given(tmp_path: Path) -> None:
    from matplotlib import pyplot

    container = bytearray(images.packed([(1, {i: images.block(i + 1) for i in range(8)})]))
    container[container.index(b"AMISSEGD") + 100] ^= 1  # the first segment: blocks 0 to 3
    amistore.recover(io.BytesIO(bytes(container)), tmp_path / "new.bin")
    figure, axes = pyplot.subplots()
    with amistore.open(tmp_path / "new.bin") as archive:
        assert archive.volumes[0].plot(axes) is axes
    cells = axes.images[0].get_array()
    assert cells is not None
    assert [int(kind) for kind in cells[0][:9]] == [LOST] * 4 + [DATA] * 4 + [HOLE]
    pyplot.close(figure)


def test_a_large_volume_has_cells_of_several_blocks() -> None:
    container = images.packed([(4096, {i * 100_000: images.block(1) for i in range(80)})])
    with amistore.open(io.BytesIO(container)) as archive:
        axes = archive.volumes[0].plot()
    cells = axes.images[0].get_array()
    assert cells is not None
    assert cells.size <= 128 * 48
    assert sum(int(kind) == DATA for kind in cells.compressed()) == 80


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    archive = amistore.open(io.BytesIO(images.packed([(1, {})])))
    with archive, pytest.raises(ImportError, match=r"pip install 'amistore\[plot\]'"):
        archive.volumes[0].plot()
