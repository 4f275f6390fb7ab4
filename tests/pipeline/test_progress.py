"""Progress is typed, rises, and ends at the total, for every phase."""

from __future__ import annotations

import io
from pathlib import Path

import images

import amistore
from amistore import Progress
from amistore.pipeline import Phase


def of(events: list[Progress], phase: Phase) -> list[Progress]:
    return [event for event in events if event.phase is phase]


def test_progress_rises_to_the_total_in_every_phase(tmp_path: Path) -> None:
    source = images.Volumes([(1, {i: images.block(i) for i in range(30)}), (1, {3: images.block(3)})])
    events: list[Progress] = []
    container = b"".join(
        amistore.pack(
            images.image(source.volumes),
            source,
            progress=events.append,
            options=amistore.PackOptions(layout=images.SMALL),
        )
    )
    amistore.unpack(io.BytesIO(container), amistore.MemoryBackend().ebs, progress=events.append)
    with amistore.open(io.BytesIO(container)) as archive:
        archive.verify(progress=events.append).check()
        archive.volumes[0].extract(tmp_path / "disk.raw", progress=events.append)
    assert [event.blocks for event in of(events, Phase.LIST)] == [30, 31]
    for phase, total in ((Phase.PACK, 31), (Phase.UNPACK, 31), (Phase.VERIFY, 31), (Phase.EXTRACT, 30)):
        seen = of(events, phase)
        assert [event.blocks for event in seen] == sorted(event.blocks for event in seen)
        assert (seen[-1].blocks, {event.total_blocks for event in seen}) == (total, {total})
        stored = [event.stored_bytes for event in seen]
        assert stored == sorted(stored)
        assert stored[-1] <= len(container)
