"""Filling a hole takes no more memory than leaving it, however large it is."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import images

from amistore import MIB
from amistore.backends.directory.s3 import DirectoryS3

LONG = bool(os.environ.get("AMISTORE_LONG"))
GIBIBYTES = 1024 if LONG else 32

# Where the blocks go is not what is measured: the sink counts them.
SCRIPT = textwrap.dedent(
    """
    import pathlib
    import resource
    import sys
    import threading
    import amistore
    from amistore.backends.directory.s3 import DirectoryS3

    class Counting(amistore.backends.BlockSink):
        blocks, lock = 0, threading.Lock()
        def start_snapshot(self, volume_size, **options):
            return "snap-0123456789abcdef0"
        def put_snapshot_block(self, snapshot_id, block_index, content, checksum):
            with self.lock:
                self.blocks += 1
        def complete_snapshot(self, snapshot_id, changed_blocks_count, checksum):
            print(changed_blocks_count, self.blocks)
        def delete_snapshot(self, snapshot_id):
            pass

    root, fill = sys.argv[1:]
    place = DirectoryS3(pathlib.Path(root)).at("archive", "web.bin"), Counting()
    amistore.unpack(*place, fill_holes=fill == "fill", workers=2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
)


def peak(root: Path, fill: str) -> tuple[int, int]:
    """Blocks that were put, as the snapshot is completed with them, and the process's peak in bytes."""
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), fill], capture_output=True, text=True, check=True
    ).stdout.split()
    assert told[0] == told[1]
    return int(told[0]), int(told[2]) * 1024


def test_a_hole_is_filled_in_the_memory_that_leaving_it_takes(tmp_path: Path) -> None:
    store = DirectoryS3(tmp_path)
    store.create_bucket("archive")
    disk = {index: images.block(index) for index in (0, 5000, 60_000)}
    store.put_object("archive", "web.bin", [images.packed([(GIBIBYTES, disk)], None)])
    blocks, left = peak(tmp_path, "leave")
    assert blocks == 3
    blocks, filled = peak(tmp_path, "fill")
    assert blocks == GIBIBYTES * 2048
    print(f"{GIBIBYTES} GiB: peak {left / MIB:.1f} MiB with its hole, {filled / MIB:.1f} MiB filled")
    assert filled < left + 16 * MIB  # Linux counts who starts a program into its peak
