"""qemu's tools, watched: nothing is left of them at a test's end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import require
from qemus import Qemu


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemu]:
    """At the test's end no server runs, none is a zombie, and no folder is left."""
    real = require("qemu-nbd")
    require("qemu-img")
    folder, temporary = tmp_path / "bin", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))  # of the processes that a test starts
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    watched = Qemu(folder / "qemu-nbd", real)
    watched.be(f'exec {real} "$@"')
    yield watched
    assert [pid for pid in watched.started if _is_left(pid)] == []
    assert list(temporary.iterdir()) == []


def _is_left(pid: int) -> bool:
    """Whether a process runs, or is a zombie of ours; a killed parent's is another's to wait for."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" or int(parent) == os.getpid()
