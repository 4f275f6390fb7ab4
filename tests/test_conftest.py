"""A run of the tests ends when a part of it dies, leaves no process behind, and keeps to its memory."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("xdist")
if not hasattr(os, "pidfd_open"):
    pytest.skip("processes are watched on Linux only", allow_module_level=True)

SECONDS = 60
# A test that never ends, and one that starts processes that never end; both tell which those are.
ENDLESS = """
import multiprocessing, os, signal, subprocess, sys

def tell(*processes):
    with open("told", "a") as told:
        told.write(" ".join(map(str, processes)) + "\\n")

def test_that_waits():
    tell(os.getpid())
    signal.pause()

def test_that_starts_processes():
    forked = multiprocessing.get_context("fork").Process(target=signal.pause)
    spawned = multiprocessing.get_context("spawn").Process(target=signal.pause)
    forked.start()
    spawned.start()
    program = "import os, signal; os.fork() or print(os.getpid(), flush=True); signal.pause()"
    command = [sys.executable, "-c", program]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    tell(forked.pid, spawned.pid, server.pid, int(server.stdout.readline()), os.getpid())
    signal.pause()
"""


@contextlib.contextmanager
def run(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The tests of a folder under this project's own conftest."""
    for name in ("conftest.py", "reaper.py"):
        shutil.copy(Path(__file__).parent / name, folder)
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    # How long xdist waits for a worker, which here never ends by itself.
    (folder / "hasty.py").write_text(
        "from xdist.workermanage import NodeManager\nNodeManager.EXIT_TIMEOUT = 0\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "hasty", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def begun(folder: Path, process: subprocess.Popen[str], workers: int) -> dict[int, int]:
    """Descriptors of all processes of an endless run by their ids, the one that started others last."""
    with open(os.open(folder / "told", os.O_RDWR)) as told:
        assert select.select([told], [], [], SECONDS)[0], "nothing began"
        lines = [told.readline() for _ in range(workers)]
    ids = [int(word) for line in sorted(lines, key=len) for word in line.split()]
    assert len(ids) == workers + 4
    return {each: os.pidfd_open(each) for each in (process.pid, *ids)}


@pytest.mark.parametrize(
    ("victim", "options"),
    [
        ("a worker", ["-n2", "--dist=loadgroup", "--max-worker-restart=0"]),
        ("the run", ["-n2", "--dist=loadgroup", "--max-worker-restart=0"]),
        ("the run", ["-k", "starts"]),
    ],
)
def test_when_a_process_of_a_run_is_killed_all_of_it_ends(
    victim: str, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "test_endless.py").write_text(ENDLESS)
    os.mkfifo(tmp_path / "told")
    with run(tmp_path, *options) as process, contextlib.ExitStack() as opened:
        processes = begun(tmp_path, process, 2 if "-n2" in options else 1)
        for each in processes.values():
            opened.callback(os.close, each)
        os.kill(process.pid if victim == "the run" else list(processes)[-1], signal.SIGKILL)
        for each in processes.values():
            assert select.select([each], [], [], SECONDS)[0], "a process was left"
        output, _ = process.communicate()
    assert process.returncode == (1 if victim == "a worker" else -signal.SIGKILL)
    assert victim == "the run" or "a worker died in test_endless.py::test_that_starts_processes" in output


def test_a_test_that_takes_too_much_memory_fails_and_the_hungriest_are_printed(tmp_path: Path) -> None:
    (tmp_path / "test_memory.py").write_text(
        "import conftest, pytest\n"
        "conftest.MOST = 300\n"
        "def test_that_is_modest():\n    assert len(bytearray(1 << 20))\n"
        "def test_that_is_hungry():\n    assert bytearray(305 << 20).count(0)\n"
        "def test_that_would_take_the_machine():\n"
        "    with pytest.raises(MemoryError):\n        bytearray(3 << 30)\n"
    )
    with run(tmp_path) as process:
        output, _ = process.communicate()
    assert process.returncode == 1
    assert "ERROR test_memory.py::test_that_is_hungry - Failed: took 3" in output
    assert "3 passed, 1 error" in output
    hungriest = output.partition("most memory")[2].splitlines()[1]
    assert hungriest.endswith("MiB  test_memory.py::test_that_is_hungry")
