"""`Bars`: progress bars of tqdm, one after the other, in a terminal or a notebook.

One at a time: several need a terminal's cursor movements, which notebooks do not have (tqdm issue 625).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Final, TextIO

from typing_extensions import Self

__all__ = ["Bars"]

# Without a width, such as {bar:20}: a notebook would show that bar beside its own (tqdm issue 649).
_PERCENT: Final = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


class Bars:
    """Shows how far a call is; a context manager. Meanwhile log lines are written above the bar.

    In a forked child nothing is shown: its copy of the bar is the parent's.

    Raises:
        ImportError: tqdm is not installed.
    """

    def __init__(self) -> None:
        try:
            auto: Any = importlib.import_module("tqdm.auto")
            std: Any = importlib.import_module("tqdm.std")
        except ModuleNotFoundError:
            raise ImportError(
                "a progress bar needs tqdm: pip install 'amistore[progress]', or give a function"
            ) from None
        # No thread that watches bars: it can deadlock (tqdm issue 469). And a lock of threads only: tqdm's
        # usual one is shared with child processes, and one that dies with it stops the others (issue 1500).
        members = {"monitor_interval": 0, "_lock": std.TqdmDefaultWriteLock.th_lock}
        self._tqdm: Any = type("Bar", (auto.tqdm,), members)
        self._bar: Any = None
        self._title = ""
        self._process = os.getpid()
        self._logs = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for name in ("amistore", None):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler) and _is_console(handler.stream):
                    self._logs.enter_context(self._above(handler))
        last = logging.lastResort  # prints what no handler takes; its stream cannot be set
        if last is not None and _is_console(getattr(last, "stream", None)):
            self._logs.callback(setattr, logging, "lastResort", last)
            logging.lastResort = logging.StreamHandler(_Above(self, sys.stderr))
            logging.lastResort.setLevel(last.level)
        return self

    def __exit__(self, *exception: object) -> None:
        self._logs.close()
        self._end()

    def show(self, title: str, done: int, total: int | None) -> None:
        """Show bytes: in the bar of before, or in a new one where this is another work."""
        if self._is_ours():
            bar = self._bar
            if bar is None or (title, total) != (self._title, bar.total) or done < bar.n:
                bar = self._begin(title, total, unit="B", unit_scale=True)
            bar.update(done - bar.n)

    def show_percent(self, title: str, done: int, total: int) -> None:
        """Show a part of a whole, in one bar whose title may change."""
        if self._is_ours():
            bar = self._begin(title, total, bar_format=_PERCENT) if self._bar is None else self._bar
            bar.set_description_str(title, refresh=False)
            bar.update(done - bar.n)

    def write(self, text: str, stream: TextIO) -> None:
        """Write above the bar."""
        if self._is_ours():
            self._tqdm.write(text, file=stream, end="")
        else:
            stream.write(text)

    def _begin(self, title: str, total: int | None, **shape: Any) -> Any:
        self._end()
        self._title = title
        self._bar = self._tqdm(total=total, desc=title, dynamic_ncols=True, miniters=1, **shape)
        return self._bar

    def _end(self) -> None:
        if self._bar is not None and self._is_ours():
            self._bar.close()

    def _is_ours(self) -> bool:
        if os.getpid() == self._process:
            return True
        if self._bar is not None:
            self._bar.disable = True  # so that dropping it writes nothing
        return False

    @contextlib.contextmanager
    def _above(self, handler: logging.StreamHandler[Any]) -> Iterator[None]:
        # Not `logging_redirect_tqdm`: it loses a handler's level and filters (tqdm issues 1272, 1581).
        stream = handler.stream
        handler.setStream(_Above(self, stream))
        try:
            yield
        finally:
            handler.setStream(stream)


def _is_console(stream: object) -> bool:
    return stream is sys.stdout or stream is sys.stderr


class _Above:
    """A console whose lines are written above the bar."""

    def __init__(self, bars: Bars, stream: TextIO) -> None:
        self._bars = bars
        self._stream = stream

    def write(self, text: str) -> None:
        self._bars.write(text, self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
