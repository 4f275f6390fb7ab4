"""What a stranger named, in text for people: it is shown and does not act. Imports nothing of ours."""

from __future__ import annotations

import re

__all__ = ["printable"]

# C0 and C1 controls and DEL move a terminal's cursor, colour and title; the marks of direction (Unicode
# bidi, UAX 9) and the line separators show a name as another; a lone surrogate cannot be written.
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    """The text with what acts on a terminal, or turns the order of its letters, escaped as Python does.

    Args:
        text: of one line.
        lines: it may have several; line feeds stay.
    """
    return _ACTING.sub(
        lambda found: "\n" if lines and found[0] == "\n" else found[0].encode("unicode_escape").decode(), text
    )
