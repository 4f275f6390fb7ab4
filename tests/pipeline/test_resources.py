"""Where the machine has no memory or no thread left, the error says so, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import images
import pytest

import amistore

SCRIPT = textwrap.dedent(
    """
    import io, os, resource, sys, threading
    import amistore, images

    what, which, path = sys.argv[1:]
    kept = open(path, "rb").read()
    small = io.BytesIO(kept)
    cloud = amistore.MemoryBackend()
    source = images.Volumes([(1, {at: images.noise(at) for at in range(16)})])

    def unpack(): amistore.unpack(small, cloud.ebs, workers=2)
    def verify(): amistore.open(small).verify(workers=2).check()
    def pack(): b"".join(amistore.pack(images.image(source.volumes), source, workers=2))
    def read(): amistore.open(small).volumes[0].open(workers=2).read(1 << 16)
    def recover(): amistore.recover(small, path + ".new", workers=2)

    if which == "threads":  # each wants a stack that cannot be had
        threading.stack_size(1 << 30)
        room = 512 << 20
    else:
        threading.stack_size(256 << 10)
        room = 5 << 20
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
    try:
        globals()[what]()
        told = "nothing"
    except BaseException as error:
        told = type(error).__name__
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print(told, images.leftovers(cloud), threading.active_count())
    """
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "a.bin"
    blocks = {at: images.block(at + 1) for at in range(64)}
    path.write_bytes(
        images.packed([(1, blocks)], amistore.Layout(blocks_per_frame=16, blocks_per_segment=32))
    )
    return path


# To read goes without threads: only the next frames are begun by some.
@pytest.mark.parametrize(
    ("what", "which"),
    [(what, "memory") for what in ("unpack", "verify", "pack", "read", "recover")]
    + [(what, "threads") for what in ("unpack", "verify", "pack", "recover")],
)
def test_what_has_run_out_is_told_and_nothing_is_left(stored: Path, what: str, which: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what, which, str(stored)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == "ResourcesExhaustedError [] 1\n", done.stderr
    assert list(stored.parent.iterdir()) == [stored]
