"""Python blocks of README.md and docs/ run, and relative links lead somewhere, those to headings too."""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PLACE = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=name)
def test_the_python_blocks_of_a_page_run_in_their_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    # A module, so that what a page defines can be pickled and collected by pytest.
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start(1))
        code = compile("\n" * line + found[1], str(page), "exec")
        exec(code, module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_with_can_be_pasted_into_pythons_prompt_which_ends_it_at_a_blank_line(page: Path) -> None:
    for found in BLOCK.finditer(page.read_text()):
        lines = found[1].splitlines()
        for each in ast.parse(found[1]).body:
            if isinstance(each, ast.With):
                assert each.end_lineno is not None
                assert "" not in lines[each.lineno - 1 : each.end_lineno], lines[each.lineno - 1]
                assert lines[each.end_lineno : each.end_lineno + 1] in ([], [""]), lines[each.lineno - 1]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    links = [link for link in PLACE.findall(page.read_text()) if "://" not in link[0]]
    lost = [(to, place) for to, place in links if place not in places(page.parent / to if to else page)]
    assert lost == []


def places(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
