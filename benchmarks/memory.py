"""Peak memory of pack and unpack, the cost of planning and opening 1 TiB, and of a slow CRC.

Each is measured in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from benchmarks.table import Row

__all__ = ["measure_checksum", "measure_index", "measure_memory", "measure_plan"]

PEAK_GOAL = 256  # MiB


def measure_memory(volume_size: int) -> Iterable[Row]:
    """Pack into nothing, then unpack from a pipe that another process packs into."""
    with _start("pack", volume_size, stdout=subprocess.DEVNULL) as process:
        yield _peak(f"pack of {volume_size} GiB", _result(process))
    with (
        _start("pack", volume_size, stdout=subprocess.PIPE) as writer,
        _start("unpack", volume_size, stdin=writer.stdout) as reader,
    ):
        if writer.stdout:
            writer.stdout.close()
        unpacked = _result(reader)
        _result(writer)
        yield _peak(f"unpack of {volume_size} GiB, from a pipe", unpacked)


def measure_plan(volume_size: int = 1024) -> Iterable[Row]:
    """Planning a volume whose every block is listed, in pages of 10,000."""
    with _start("plan", volume_size) as process:
        result = _result(process)
    yield Row(
        name=f"planning {volume_size:,} GiB, all blocks listed", value=result["seconds"], unit="s", goal=10
    )
    yield _peak(f"planning {volume_size:,} GiB", result)


def measure_index(volume_size: int = 1024) -> Iterable[Row]:
    """Opening an archive of so many GiB."""
    with _start("index", volume_size) as process:
        seconds = _result(process)["seconds"]
    yield Row(name=f"opening an archive of {volume_size:,} GiB", value=seconds, unit="s", goal=1)


def measure_checksum(repeats: int, volume_size: int = 1) -> Iterable[Row]:
    """Pack where crcmod has its C extension against pack where it has not."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats):
        for pure in seconds:
            options = ["--pure-crc"] if pure else []
            with _start("pack", volume_size, *options, stdout=subprocess.DEVNULL) as process:
                seconds[pure].append(_result(process)["seconds"])
    fast, slow = statistics.median(seconds[False]), statistics.median(seconds[True])
    yield Row(
        name="pack with CRC-32C in pure Python: speed as a part of that with C",
        value=fast / slow,
        note=f"{slow:.2f} s against {fast:.2f} s for {volume_size} GiB",
    )


def _peak(name: str, result: dict[str, float]) -> Row:
    note = f"in {result['seconds']:.1f} s"
    return Row(name=f"peak memory, {name}", value=result["peak"], unit="MiB", goal=PEAK_GOAL, note=note)


def _start(work: str, volume_size: int, *options: str, **streams: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.child", work, str(volume_size), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **streams)


def _result(process: subprocess.Popen[bytes]) -> dict[str, float]:
    assert process.stderr is not None
    message = process.stderr.read().decode()
    if process.wait():
        sys.exit(message)
    result: dict[str, float] = json.loads(message)
    return result
