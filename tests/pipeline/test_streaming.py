"""Streaming is streaming: pipes, and images larger than the memory a process may have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import images
import pytest

import amistore
from amistore.container.encoder import ContainerWriter
from amistore.container.plan import plan
from amistore.container.runs import Runs
from amistore.units import MIB

LONG = bool(os.environ.get("AMISTORE_LONG"))

# A source of 1.5 GiB of blocks that do not compress, made from their index, and a sink that
# checks them against the same rule; both cheap, so that the pipe is what is tested.
SCRIPT = textwrap.dedent(
    """
    import hashlib, os, resource, sys
    import amistore

    BLOCKS = 3000
    NOISE = os.urandom(0) + hashlib.shake_128(b"noise").digest(amistore.BLOCK_SIZE)

    def block(index):
        return index.to_bytes(8, "big") + NOISE[8:]

    class Source(amistore.backends.BlockSource):
        def list_snapshot_blocks(self, snapshot_id, *, next_token=None):
            blocks = [amistore.backends.Block(i) for i in range(BLOCKS)]
            return amistore.backends.BlockPage(volume_size=2, blocks=blocks)
        def get_snapshot_block(self, snapshot_id, block_index, block_token):
            return amistore.backends.SnapshotBlock(block(block_index))

    class Sink(amistore.backends.BlockSink):
        count = 0
        def start_snapshot(self, volume_size, *, description="", tags=(), client_token=None):
            return "snap-11111111"
        def put_snapshot_block(self, snapshot_id, block_index, content, checksum):
            assert content == block(block_index)
        def complete_snapshot(self, snapshot_id, changed_blocks_count, checksum):
            self.count = changed_blocks_count
        def delete_snapshot(self, snapshot_id):
            pass

    ebs = amistore.EbsBlockDevice(snapshot_id="snap-00000000000000001")
    mapping = amistore.BlockDeviceMapping(device_name="/dev/xvda", ebs=ebs)
    image = amistore.Image(image_id="ami-00000000000000001", block_device_mappings=(mapping,))

    limit = 1 << 30  # of address space: threads' stacks and libraries take some of it
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if sys.argv[1] == "pack":
        with os.fdopen(1, "wb") as pipe:
            for piece in amistore.pack(image, Source(), workers=2):
                pipe.write(piece)
    else:
        sink = Sink()
        with os.fdopen(0, "rb") as pipe:
            amistore.unpack(pipe, sink, workers=2)
        assert sink.count == BLOCKS
    # VmHWM is this program's; ru_maxrss is inherited from the process that started it.
    status = open("/proc/self/status").read()
    peak = int(status.partition("VmHWM:")[2].split()[0]) // 1024
    print(sys.argv[1], "peak", peak, "MiB", file=sys.stderr)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and VmHWM are Linux's")
def test_an_image_larger_than_the_processes_memory_goes_through_a_pipe_in_256_mib() -> None:
    environment = {**os.environ, "MALLOC_ARENA_MAX": "4"}
    packer = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "pack"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    unpacker = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "unpack"],
        stdin=packer.stdout,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert packer.stdout is not None
    packer.stdout.close()
    said = unpacker.communicate()[1].decode() + packer.communicate()[1].decode()
    assert (packer.returncode, unpacker.returncode) == (0, 0), said
    peaks = {verb: int(peak) for verb, peak in re.findall(r"(\w+) peak (\d+) MiB", said)}
    assert set(peaks) == {"pack", "unpack"}
    assert max(peaks.values()) <= 256, peaks


def test_unpack_reads_a_pipe_that_gives_a_few_bytes_at_a_time() -> None:
    import images

    container = images.packed([(1, {3: images.block(1), 9: images.block(0)})])

    class Trickle:
        def __init__(self) -> None:
            self.at = 0

        def read(self, size: int) -> bytes:
            piece = container[self.at : self.at + min(size, 7)]
            self.at += len(piece)
            return piece

    backend = amistore.MemoryBackend()
    amistore.unpack(Trickle(), backend.ebs)  # type: ignore[arg-type]
    (snapshot_id,) = images.leftovers(backend)
    assert images.contents(backend.ebs, snapshot_id)[1] == {3: images.block(1), 9: images.block(0)}


def test_the_pieces_of_a_container_that_are_kept_take_no_more_memory_than_it_is_long() -> None:
    source = images.Volumes([(1, {index: images.block(index % 8) for index in range(512)})])
    tracemalloc.start()
    try:
        pieces = list(amistore.pack(images.image(source.volumes), source, workers=2))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < sum(map(len, pieces)) + 2 * amistore.MIB  # of an image of 256 MiB


UNPACK = textwrap.dedent(
    """
    import sys
    import amistore

    def peak():  # not ru_maxrss, which begins with that of the process that forked this one
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

    before = peak()
    try:
        amistore.unpack(open(sys.argv[1], "rb"), amistore.MemoryBackend().ebs, workers=1)
    except amistore.TruncatedArchiveError as error:
        assert error.record == "SEGD"  # the prelude has passed
        print(peak() // 1024, (peak() - before) // 1024)
    """
)


def test_a_sparse_map_of_very_many_runs_takes_the_memory_of_its_runs_only(tmp_path: Path) -> None:
    count = 2**22 if LONG else 2**19
    snapshot_id = "snap-00000000000000001"
    volumes = [(snapshot_id, 65_536, Runs((2 * at + at // 9, 1) for at in range(count)))]
    planned = plan(images.image([snapshot_id]), volumes)
    writer = ContainerWriter(planned, 1)
    path = tmp_path / "front.bin"
    path.write_bytes(b"".join([*writer.front(), *writer.volume(planned.volumes[0])]))
    del writer, planned, volumes
    done = subprocess.run(
        [sys.executable, "-c", UNPACK, str(path)], capture_output=True, text=True, check=True
    )
    peak, grown = map(int, done.stdout.split())
    assert peak < 256
    assert grown < 24 + 12 * count // MIB  # a frame's content and its text; three numbers of 4 bytes a run
