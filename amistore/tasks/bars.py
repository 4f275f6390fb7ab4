"""`progress_reports`: how far tasks are, for who waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from amistore.errors import InvalidRequestError
from amistore.tasks.task import Task

__all__ = ["ProgressReport", "progress_reports"]

ProgressReport = Callable[[Task], None]


@contextlib.contextmanager
def progress_reports(progress: bool | ProgressReport) -> Iterator[ProgressReport]:
    """What to call with a task each time it was looked at.

    Args:
        progress: True for a bar a task, of tqdm, on stderr or in a notebook; False for nothing;
            or what to call with the task each time its percentage or state has changed.

    Raises:
        ImportError: bars are wanted, and tqdm is not installed.
    """
    if callable(progress):
        yield _changes(progress)
    elif not isinstance(progress, bool):
        raise InvalidRequestError(f"progress is True, False or a function, not {progress!r}")
    elif progress:
        with contextlib.ExitStack() as bars:
            yield _changes(_bars(bars))
    else:
        yield lambda task: None


def _changes(report: ProgressReport) -> ProgressReport:
    last: dict[str, tuple[int, str]] = {}

    def changed(task: Task) -> None:
        now = task.progress_percentage, task.state
        if last.get(task.task_id) != now:
            last[task.task_id] = now
            report(task)

    return changed


def _bars(stack: contextlib.ExitStack) -> ProgressReport:
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        raise ImportError(
            "a progress bar needs tqdm: pip install 'amistore[progress]', or give a function"
        ) from None
    bars: dict[str, Any] = {}
    shape = "{percentage:3.0f} % |{bar:20}| {elapsed} {desc}"

    def report(task: Task) -> None:
        if task.task_id not in bars:
            bar = stack.enter_context(tqdm(total=100, desc=task.purpose, bar_format=shape))
            bars[task.task_id] = bar
        bar = bars[task.task_id]
        bar.update(task.progress_percentage - bar.n)
        if task.state != "InProgress":
            bar.close()  # or its time would go on with that of the others

    return report
