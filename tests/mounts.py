"""Filesystems for a test, in a mount namespace of its own: nothing is left of them when it is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

__all__ = ["in_namespace", "mounted", "require"]


def require(tool: str) -> str:
    """The tool's path; CI sets AMISTORE_REQUIRE_TOOLS, so that there it may not be missing."""
    path = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        if os.environ.get("AMISTORE_REQUIRE_TOOLS"):
            pytest.fail(f"{tool} is not installed")
        pytest.skip(f"{tool} is not installed")
    return path


def in_namespace(module: str, *arguments: object) -> Any:
    """What a module that is run in a mount namespace of its own prints, as JSON."""
    command = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() or not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode:
        pytest.skip("needs the right to mount")
    ended = subprocess.run(
        [*command, sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def mounted(kind: str, folder: Path, *mkfs: str, size: int = 0) -> Path | None:
    """A new filesystem on a sparse file; None where the kernel has none of this kind. In a namespace only."""
    mount = folder / kind
    mount.mkdir()
    what = "none"
    if mkfs:
        device = folder / f"{kind}.img"
        with device.open("wb") as file:
            file.truncate(size)
        subprocess.run([*mkfs, str(device)], check=True, stdout=sys.stderr)
        what = str(device)
    # mount's loop devices go with the mount, and that with the namespace.
    options = ["-o", "loop"] if mkfs else []
    done = subprocess.run(["mount", "-t", kind, *options, what, str(mount)], stderr=sys.stderr)
    return None if done.returncode else mount
