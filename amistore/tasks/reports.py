"""`reporting_tasks`: how far tasks are, for who waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from amistore.pipeline.bars import Bars
from amistore.pipeline.progress import reporting_by
from amistore.tasks.task import Task
from amistore.text import printable

__all__ = ["TaskCallback", "reporting_tasks"]

TaskCallback = Callable[[Task], None]


@contextlib.contextmanager
def reporting_tasks(progress: bool | TaskCallback | None, count: int) -> Iterator[TaskCallback | None]:
    """What to call with a task each time it was looked at.

    Args:
        progress: True for a bar, or what to call with the task each time its percentage or state has changed.
        count: of tasks that are waited for.

    Raises:
        ImportError, InvalidRequestError: as `reporting` does.
    """

    def draw(bars: Bars) -> TaskCallback:
        return _drawn(bars, count)

    with reporting_by(progress, draw) as report:
        yield None if report is None else _changes(report)


def _changes(report: TaskCallback) -> TaskCallback:
    last: dict[str, tuple[int, str]] = {}

    def changed(task: Task) -> None:
        now = task.progress_percentage, task.state
        if last.get(task.task_id) != now:
            last[task.task_id] = now
            report(task)

    return changed


def _drawn(bars: Bars, count: int) -> TaskCallback:
    """One bar for all tasks: what a task has done is its part of it."""
    seen: dict[str, Task] = {}

    def draw(task: Task) -> None:
        seen[task.task_id] = task
        ended = sum(each.state != "InProgress" for each in seen.values())
        title = printable(task.purpose) if count == 1 else f"{ended} of {count} tasks"
        bars.show_percent(title, sum(each.progress_percentage for each in seen.values()), 100 * count)

    return draw
