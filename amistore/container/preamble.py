"""PREAMBLE: the constant first bytes of every container of format version 1."""

from __future__ import annotations

from amistore.container import layout
from amistore.container.tar import file_header, padding

__all__ = ["PREAMBLE"]

_MEMBER = (
    file_header(layout.README_NAME, len(layout.README), 0)
    + layout.README
    + bytes(padding(len(layout.README)))
)

PREAMBLE = layout.raw_frame(_MEMBER, layout.PREAMBLE_CHECKSUM)
"""A frame of one RAW block, so that `strings FILE | head` shows what the file is."""
