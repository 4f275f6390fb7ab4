"""What holds for every test: its memory, no process left behind, and hypothesis without time limits.

A test takes at most a GiB, and so does each process that it starts; the five that took most are printed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import reaper
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

MOST = 1024  # MiB that a test may take
LIMIT = 2048  # MiB of memory of its own that a process gets, which is more than it touches


def pytest_configure(config: pytest.Config) -> None:
    # Inherited by all that a test starts: too much memory is its MemoryError, not the machine's end.
    _limit(LIMIT)
    _keep_little()
    threading.stack_size(1 << 20)  # the limit counts whole stacks, of which a thread touches little
    config.stash[_KEPT] = 0
    # Each worker too: what it leaves holds its pipe open, and the run would wait for it.
    reaper.watch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what would end last, and alone: its tests take ten seconds each."""
    items.sort(key=lambda item: item.path.name not in ("test_docs.py", "test_owners.py", "test_kills.py"))


def pytest_collection_finish() -> None:
    """What modules hold stays until the end: it is not of a test's memory, and no collection looks at it."""
    gc.collect()
    gc.freeze()
    if _STATUS.exists():
        _limit(_memory("VmData") + LIMIT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if _STATUS.exists():
        if _memory("VmRSS") > item.config.stash[_KEPT] + MOST // 4:
            _let_go()
            item.config.stash[_KEPT] = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        item.stash[_BEFORE] = _memory("VmRSS")
    item.stash[_CHILDREN] = _children()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    yield
    if not _STATUS.exists():
        return
    # What children took is known only where it is more than any before did, and than this process: Linux
    # counts the memory of who starts a program into the program's.
    children, own = _children(), _memory("VmHWM")
    known = children > max(item.stash[_CHILDREN], own)
    peak = max(own - item.stash[_BEFORE], children if known else 0)
    item.user_properties.append(("peak MiB", peak))
    if peak > MOST:
        pytest.fail(f"took {peak} MiB of memory; a test may take {MOST}", pytrace=False)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str) -> None:
    """A worker died: another one would run its test again, or wait for ever for its group."""
    pytest.exit(f"a worker died in {crashitem}", returncode=1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    peaks = {
        report.nodeid: dict(report.user_properties).get("peak MiB", 0)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown"
    }
    if peaks:
        terminalreporter.section("most memory")
    for name in sorted(peaks, key=peaks.__getitem__, reverse=True)[:5]:
        terminalreporter.line(f"{peaks[name]:5d} MiB  {name}")


_CHILDREN = pytest.StashKey[int]()
_BEFORE = pytest.StashKey[int]()  # MiB that the worker holds, which is not this test's
_KEPT = pytest.StashKey[int]()  # MiB after all that could be let go of was
_STATUS = Path("/proc/self/status")  # Linux's: elsewhere memory is not watched


def _limit(most: int) -> None:
    """MiB of memory of its own, for this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most << 20, hard))


def _children() -> int:
    """The most MiB that a child that has ended took."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10


def _memory(member: str) -> int:
    """MiB of this process: VmRSS of now, VmHWM the most since the test began."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[member].split()[0]) >> 10


def _keep_little() -> None:
    """Have glibc give back what is freed: hundreds of tests' threads would each leave an arena of blocks.

    The limit counts what is kept. Of 64 tests of restoring 682 MiB stayed, and 273 do with this.
    """
    with contextlib.suppress(AttributeError):  # not of glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 2)  # M_ARENA_MAX
        # M_MMAP_THRESHOLD, which else grows with what is freed. A block's memory is used again: to map each
        # anew took half the time of restoring, in the system.
        libc.mallopt(-3, 4 << 20)


def _let_go() -> None:
    """Of what earlier tests took: garbage, and what malloc keeps for each thread that there was."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not of glibc
        ctypes.CDLL(None).malloc_trim(0)
