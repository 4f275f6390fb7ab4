"""File to file through `DirectoryBackend`, beside other tools that store a disk.

The tools neither hash blocks nor check what they wrote; amistore's unpack also makes its
snapshot durable (fsync) and checks each block's SHA-256 twice, as it reads and as it is put.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import attrs

import amistore
from amistore import DirectoryBackend, Image
from benchmarks.table import Row

__all__ = ["compare_peers"]


@attrs.frozen
class Peer:
    """A way to store a disk in a file and back; `program` must be installed, None for ours."""

    name: str
    program: str | None
    store: Callable[[Path], object]
    restore: Callable[[Path, Path], object]


def compare_peers(
    disk: Path, cloud: DirectoryBackend, image: Image, size: int, repeats: int
) -> Iterable[Row]:
    """Two rows per tool: storing and restoring, in MB of blocks (`size` bytes) per second."""
    work = cloud.path.parent
    stored: dict[str, list[float]] = {}
    restored: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    peers = [_amistore(cloud, image), *_tools(disk)]
    for _ in range(repeats):
        for peer in peers:
            if peer.program and not shutil.which(peer.program):
                continue
            archive, copy = work / "peer.archive", work / "peer.copy"
            stored.setdefault(peer.name, []).append(_timed(peer.store, archive))
            sizes[peer.name] = archive.stat().st_size
            restored.setdefault(peer.name, []).append(_timed(peer.restore, archive, copy))
            archive.unlink()
            if copy.is_dir():
                shutil.rmtree(copy)
            copy.unlink(missing_ok=True)
    for action, measured in (("store", stored), ("restore", restored)):
        for peer in peers:
            name = f"{action}: {peer.name}"
            if peer.name not in measured:
                yield Row(name=name, value=None, note=f"{peer.program} is not installed")
                continue
            seconds = median(measured[peer.name])
            note = f"{seconds:.1f} s, {sizes[peer.name] / 1e6:,.0f} MB stored"
            yield Row(name=name, value=size / seconds / 1e6, unit="MB/s", note=note)


def _timed(function: Callable[..., object], *arguments: Path) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _amistore(cloud: DirectoryBackend, image: Image) -> Peer:
    def store(archive: Path) -> None:
        with archive.open("wb") as file:
            file.writelines(amistore.pack(image, cloud.ebs, workers=2))

    def restore(archive: Path, copy: Path) -> None:
        with archive.open("rb") as file:
            restored = amistore.unpack(file, cloud.ebs, workers=2)
        shutil.move(cloud.ebs.root / restored.snapshot_ids[0], copy)

    return Peer("amistore", None, store, restore)


def _tools(disk: Path) -> list[Peer]:
    folder, name = disk.parent, disk.name

    def untar(archive: Path, copy: Path) -> None:
        copy.mkdir()
        _shell('zstd -dcq "$0" | tar -xf - -C "$1"', archive, copy)

    return [
        Peer(
            "zstd -T2 -3",
            "zstd",
            lambda archive: _run("zstd", "-q", "-T2", "-3", disk, "-o", archive),
            lambda archive, copy: _run("zstd", "-q", "-d", "--sparse", archive, "-o", copy),
        ),
        Peer(
            "tar -S, zstd -T2 -3",
            "zstd",
            lambda archive: _shell(
                'tar -S -C "$1" -cf - "$2" | zstd -q -T2 -3 -o "$0"', archive, folder, name
            ),
            untar,
        ),
        Peer(
            "qemu-img convert -c, zstd",
            "qemu-img",
            lambda archive: _run(
                *("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"),
                *("-o", "compression_type=zstd", disk, archive),
            ),
            lambda archive, copy: _run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", archive, copy),
        ),
    ]


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def _shell(script: str, *arguments: str | Path) -> None:
    _run("sh", "-c", script, *arguments)
