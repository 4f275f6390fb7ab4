"""qemu's server as a test watches it: which ones were started, and what is run in its place."""

from __future__ import annotations

from pathlib import Path

import attrs

__all__ = ["Qemu"]


@attrs.frozen
class Qemu:
    """A `qemu-nbd` in PATH that notes its process id; it is the real one unless a test says otherwise."""

    program: Path
    real: str

    @property
    def started(self) -> list[int]:
        """The process ids of all servers that were started."""
        notes = self.program.with_name("started")
        return [int(line) for line in notes.read_text().split()] if notes.exists() else []

    def be(self, script: str) -> None:
        """Do this instead, in sh, where `"$@"` are the arguments."""
        self.program.write_text(f"#!/bin/sh\necho $$ >> '{self.program.with_name('started')}'\n{script}\n")
        self.program.chmod(0o755)
