"""Facts about the machine, without which a number means nothing."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import zstandard

import amistore

__all__ = ["facts", "peak_memory"]


def facts() -> Iterator[tuple[str, str]]:
    """Name and value of each."""
    lines = _cpuinfo()
    yield "CPU", lines.get("model name", platform.processor() or platform.machine())
    yield "cores", str(os.cpu_count())
    yield "SHA instructions", "yes" if {"sha_ni", "sha2"} & _flags(lines) else "no"
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    yield "system", f"{platform.system()} {platform.release()}"
    yield "Python", platform.python_version()
    yield "amistore", amistore.__version__
    yield "zstandard", f"{zstandard.__version__}, libzstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
    yield "crcmod", "C extension" if "crcmod._crcfunext" in sys.modules else "pure Python"


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _flags(lines: dict[str, str]) -> set[str]:
    return set((lines.get("flags") or lines.get("Features") or "").split())


def peak_memory() -> float:
    """Most bytes of memory this process had, in MiB.

    Linux counts the parent's memory into `ru_maxrss` when it starts a program; VmHWM is ours alone.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
