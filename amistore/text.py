"""Strangers' text made safe to show: control characters are escaped. Imports nothing of ours."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

__all__ = ["html_table", "printable"]

# C0 and C1 controls and DEL move a terminal's cursor, colour and title; the marks of direction (Unicode
# bidi, UAX 9) and the line separators show a name as another; a lone surrogate cannot be written.
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    """The text with escapes, as in Python, for whatever acts on a terminal or reverses the order of letters.

    Args:
        text: the text, of one line.
        lines: whether the text may have several lines, whose line feeds stay.
    """
    return _ACTING.sub(
        lambda found: "\n" if lines and found[0] == "\n" else found[0].encode("unicode_escape").decode(), text
    )


def html_table(
    facts: Iterable[tuple[str, str | None]], heads: Sequence[str] = (), rows: Iterable[Sequence[str]] = ()
) -> str:
    """A notebook's table; every text is escaped.

    Args:
        facts: the pairs of a name and a text, one line each; pairs without a text are left out.
        heads: the heads of the columns below.
        rows: the texts of the columns; without rows the heads are left out, too.
    """
    left = " style='text-align:left'"
    span = f" colspan={len(heads) - 1}" if len(heads) > 2 else ""
    lines = [_cell("th", name, left) + _cell("td", text, span + left) for name, text in facts if text]
    table = ["".join(_cell("td", text, left) for text in row) for row in rows]
    if table:
        lines.append("".join(_cell("th", name, left) for name in heads))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in (*lines, *table))}</table>"


def _cell(tag: str, text: str, attributes: str) -> str:
    return f"<{tag}{attributes}>{html.escape(printable(text))}</{tag}>"
