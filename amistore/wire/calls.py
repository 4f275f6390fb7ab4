"""One request and one answer of HTTP, as values."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

__all__ = ["Answer", "Call", "block_number"]


@attrs.frozen(kw_only=True)
class Call:
    """One request, as far as its head and body say what it is.

    Attributes:
        method, path, query: of the request line; path and query as they came, still quoted.
        headers: by their names in lower case.
        request_id: the server's name for it, which its answer tells.
        service: ``ebs``, ``ec2``, ``sts``, or ``s3``, which nothing here serves.
        operation: its name in the service's reference; empty where there is none such.
        snapshot_id, block_index: as in the path, unchecked.
        parameters: of a Query API's form.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    request_id: str
    body: bytes = attrs.field(default=b"", repr=False)
    service: str = ""
    operation: str = ""
    snapshot_id: str | None = None
    block_index: str | None = None
    parameters: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Answer:
    """One response; Content-Length is the server's business."""

    status: int
    body: bytes = attrs.field(default=b"", repr=False)
    headers: Mapping[str, str] = attrs.field(factory=dict)


def block_number(call: Call) -> int | None:
    """The index in a call's path, where it is one."""
    text = call.block_index or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
