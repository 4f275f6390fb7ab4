"""A plugin of pytest that prints what archives do on each store, in a table: ``nox -s stores``."""

from __future__ import annotations

import collections
import re
from typing import Any

import pytest

COLUMNS = {
    "contract": "contract",
    "killed": "killed, gone on with, verified, restored",
    "copied": "copied in, within, out",
    "racing": "race of 8",
    "tags": "tags",
    "metadata": "metadata",
    "probe": "probe",
}
CONTRACTS = {
    "TestMotoObjectStore": "moto",
    "TestSwiftObjectStore": "swift_connection",
    "TestSeaweedFSObjectStore": "seaweedfs",
    "TestJuiceFSObjectStore": "juicefs",
    "TestRcloneObjectStore": "rclone",
}
counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        file, _, test = report.nodeid.partition("::")
        place = re.search(r"\[([a-z0-9_-]+)", test)
        store = CONTRACTS.get(test.partition("::")[0]) or (place[1] if place else "")
        column = next((column for column in COLUMNS if f"_{column}" in test), "")
        if "every_store" not in file and "probing" not in file:
            column = "contract"
        counts[store, column][report.outcome] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    from backends.aws.places import SERVERS, TRAITS

    def cell(store: str, column: str) -> str:
        traits = {**SERVERS, **TRAITS}[store]
        # A test of the contract may have parameters behind the store's name.
        found: collections.Counter[str] = sum(
            (
                count
                for (name, kind), count in counts.items()
                if kind == column and (name == store or name.startswith(f"{store}-"))
            ),
            collections.Counter(),
        )
        if found["failed"]:
            return "FAILED"
        if column == "contract":
            return f"{found['passed']} passed, {found['skipped']} not offered"
        if column == "tags" and not traits.tags:
            return "refused"
        if column == "racing" and not traits.conditional_completion:
            return "best effort"
        return "passed" if found["passed"] else "not run"

    terminalreporter.line(f"| store | {' | '.join(COLUMNS.values())} |")
    terminalreporter.line("|---" * (len(COLUMNS) + 1) + "|")
    for store in (*SERVERS, *TRAITS):
        row = (store.removesuffix("_connection"), *(cell(store, column) for column in COLUMNS))
        terminalreporter.line(f"| {' | '.join(row)} |")
    terminalreporter.line(
        "Refused, before anything is sent: the store's objects have no tags: leave out tags"
    )
