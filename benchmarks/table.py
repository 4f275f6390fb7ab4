"""Rows of the result, and fair timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import attrs

__all__ = ["Row", "interleave", "print_heading", "print_row"]


@attrs.frozen(kw_only=True)
class Row:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number; None where it could not be measured.
        unit: of value and goal; "" for a ratio.
        goal: the number that is aimed for, or None.
        at_least: whether the goal is a lower bound; otherwise an upper one.
        note: what else was seen.
    """

    name: str
    value: float | None
    unit: str = ""
    goal: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.goal is None or self.value is None:
            return ""
        met = self.value >= self.goal if self.at_least else self.value <= self.goal
        return "met" if met else "MISSED"


def interleave(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, run in turn (A B A B) so that all see the same machine."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, measured in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in seconds]


def print_heading(title: str) -> None:
    print(f"\n### {title}\n\n| what | measured | goal | | |\n|---|---:|---:|---|---|", flush=True)


def print_row(row: Row) -> None:
    value = "-" if row.value is None else f"{row.value:,.2f} {row.unit}".strip()
    sign = ">=" if row.at_least else "<="
    goal = "" if row.goal is None else f"{sign} {row.goal:g} {row.unit}".strip()
    print(f"| {row.name} | {value} | {goal} | {row.verdict} | {row.note} |", flush=True)
