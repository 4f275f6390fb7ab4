"""The table of a run of fleet.py, in a terminal."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from amistore import GIB, MIB

__all__ = ["Screen"]


class Screen(logging.Handler):
    """What is seen of a run: a table that a terminal shows in its place; elsewhere the lines of the log."""

    def __init__(self, *, live: bool) -> None:
        super().__init__()
        self.told: dict[str, dict[str, float]] = {}  # by task and state: when the log told it
        self._live = live
        self._lines: list[str] = []  # to be shown above the table
        self._height = 0
        self._first: dict[str, int] = {}  # by task: its percentage when it was first seen
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("amistore").addHandler(self)
        logging.getLogger("amistore").setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        state = getattr(record, "task_state", "")
        if state:
            self.told.setdefault(getattr(record, "task_id", ""), {})[state] = time.monotonic()
        if not self._live:
            print(self.format(record), file=sys.stderr, flush=True)
        elif record.levelno > logging.INFO or state == "completed":
            self._lines.append(self.format(record))

    def draw(self, jobs: Sequence[Any]) -> None:
        """Draw a line for each image that is being stored, and one for all."""
        if not self._live:
            return
        ended = sum(job.state != "waiting" for job in jobs)
        running = [
            job for job in jobs if job.state == "waiting" and "running" in self.told.get(job.task_id, ())
        ]
        width, height = shutil.get_terminal_size()
        table = [
            f"{'image':21} {'name':24} {'volumes':>10} {'done':>6} {'rate':>12}",
            *map(self._row, running),
        ]
        table = [*table[: height - 2], f"{ended} of {len(jobs)} ended, {len(running)} running"]
        lines, self._lines = self._lines, []
        up = f"\x1b[{self._height}F" if self._height else ""  # to where the last table begins
        shown = (*lines, *(line[: width - 1] for line in table))  # a line that is wrapped would be two
        print(f"{up}\x1b[J" + "\n".join(shown), flush=True)
        self._height = len(table)

    def _row(self, job: Any) -> str:
        """The rate counts holes, too: a task tells its percentage, and not its blocks."""
        done = job.percent - self._first.setdefault(job.task_id, job.percent)  # in this run
        seconds = time.monotonic() - self.told[job.task_id]["running"]
        rate = done / 100 * job.volumes / MIB / max(seconds, 0.1)
        name = "".join(each if each.isprintable() else "?" for each in job.name)
        size = f"{job.volumes / GIB:,.0f} GiB"
        return f"{job.image_id:21} {name[:24]:24} {size:>10} {job.percent:4} % {rate:6,.0f} MiB/s"
