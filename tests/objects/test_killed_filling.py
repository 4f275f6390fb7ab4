"""R6 and R21: processes killed while they fill holes, and those after them that go on inside a hole."""

from __future__ import annotations

import os
import random
from pathlib import Path

import images
import pytest
from deaths import Processes
from objects.runs import BUCKET, KEY

import amistore
from amistore import BLOCK_SIZE, GIB

GIBIBYTES = 2 if os.environ.get("AMISTORE_LONG") else 1
BLOCKS = GIBIBYTES * GIB // BLOCK_SIZE
DISK = {index: images.block(index % 40) for index in range(0, BLOCKS, 10)}
"""Data in a tenth of the blocks, some of it listed zeros."""

FORM = amistore.Layout(blocks_per_frame=4, blocks_per_segment=16)
IN_FLIGHT = 2 * 2 * 16
"""Blocks that two workers have begun and that are not in the log."""


@pytest.mark.parametrize(
    ("module", "what"), [("objects.killable", "fill"), ("tasks.killable", "restore-filled")]
)
def test_who_goes_on_puts_again_what_was_in_flight_and_the_disk_is_right(
    module: str, what: str, tmp_path: Path
) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    cloud.s3.put_object(BUCKET, KEY, [images.packed([(GIBIBYTES, DISK)], FORM)])
    rng = random.Random(what)
    kills = worst = 0
    done: set[tuple[str, ...]] = set()
    with Processes(module) as processes:
        code = -9
        while code:
            kill = (rng.randrange(300, 1500), rng.randrange(20_000))
            code, lines = processes.run(what, str(tmp_path), "", kill=kill)
            assert code in (0, -9), lines[-1:]
            kills += code == -9
            begun = {tuple(line[2:]) for line in lines if line[:2] == ["begin", "put_snapshot_block"]}
            worst = max(worst, len(begun & done))
            assert worst <= IN_FLIGHT
            done |= {tuple(line[2:]) for line in lines if line[:2] == ["done", "put_snapshot_block"]}
    assert kills >= 2
    (snapshot_id,) = (path.name for path in (tmp_path / "ebs").glob("snap-*"))
    listed = 0
    for page in cloud.ebs.pages(snapshot_id):
        for block in page.blocks:
            found = cloud.ebs.get_snapshot_block(snapshot_id, block.block_index, block.block_token).content
            assert found == DISK.get(block.block_index, bytes(BLOCK_SIZE))
            listed += 1
    assert listed == BLOCKS
    print(f"{what}: {kills} kills, blocks put again at worst: {worst}")
