"""docs/ec2-rules.md names tests that there are, and proves each sentence with at least one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "ec2-rules.md"
ROW = re.compile(r"\| (.+) \| (`.+`) \|")


def rows() -> list[tuple[str, list[str]]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    matches = [ROW.fullmatch(line) for line in lines if line != "| the guide says | proved by |"]
    assert all(matches)
    return [(match[1], re.findall(r"`([^`]+)`", match[2])) for match in matches if match]


def names(path: Path) -> set[str]:
    """Functions of a test file, in its classes too, that pytest runs without a condition."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found |= (
                {node.name} if not any("skip" in ast.unparse(each) for each in node.decorator_list) else set()
            )
    return found


def test_every_test_that_the_page_names_is_there() -> None:
    wanted = {name for _, proofs in rows() for name in proofs}
    assert len(rows()) >= 30
    there = {
        f"{path}::{name}"
        for path in {name.partition("::")[0] for name in wanted}
        for name in (names(TESTS / path) if (TESTS / path).exists() else ())
    }
    assert wanted - there == set()
