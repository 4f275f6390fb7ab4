"""The EBS direct APIs: which request is which operation, what goes along with a block, how errors are told.

Sources: EBS direct APIs reference; AWS REST-JSON protocol, "Operation errors".
"""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Mapping
from typing import Final

import attrs

from amistore.units import BLOCK_SIZE
from amistore.wire.calls import Call
from amistore.wire.errors import ServiceError

__all__ = ["ROUTES", "block_path", "checksum_headers", "data_headers", "error_of", "routed"]

ROUTES: Final[tuple[tuple[str, re.Pattern[str], str], ...]] = (
    ("POST", re.compile("/snapshots"), "StartSnapshot"),
    ("POST", re.compile("/snapshots/completion/([^/]+)"), "CompleteSnapshot"),
    ("GET", re.compile("/snapshots/([^/]+)/blocks"), "ListSnapshotBlocks"),
    ("GET", re.compile("/snapshots/([^/]+)/changedblocks"), "ListChangedBlocks"),
    ("GET", re.compile("/snapshots/([^/]+)/blocks/([^/]+)"), "GetSnapshotBlock"),
    ("PUT", re.compile("/snapshots/([^/]+)/blocks/([^/]+)"), "PutSnapshotBlock"),
)
"""HTTP's method, the path with a snapshot and a block, and the operation that they mean."""


def routed(call: Call) -> Call:
    """A call with the operation, the snapshot and the block that its method and path mean, if any."""
    for method, pattern, operation in ROUTES:
        found = pattern.fullmatch(call.path)
        if found is not None and method == call.method:
            groups = [urllib.parse.unquote(text) for text in found.groups()] + [None, None]
            return attrs.evolve(
                call, service="ebs", operation=operation, snapshot_id=groups[0], block_index=groups[1]
            )
    return attrs.evolve(call, service="ebs")


def block_path(snapshot_id: str, block_index: int) -> str:
    """The path of GetSnapshotBlock and PutSnapshotBlock."""
    return f"/snapshots/{snapshot_id}/blocks/{block_index}"


def checksum_headers(checksum: bytes) -> dict[str, str]:
    """The headers that tell a raw SHA-256."""
    return {
        "X-Amz-Checksum": base64.b64encode(checksum).decode(),
        "X-Amz-Checksum-Algorithm": "SHA256",
    }


def data_headers(checksum: bytes) -> dict[str, str]:
    """The headers that go along with the data of a block, whichever way they go."""
    return {
        "Content-Type": "application/octet-stream",
        "X-Amz-Data-Length": str(BLOCK_SIZE),
        **checksum_headers(checksum),
    }


def error_of(status: int, headers: Mapping[str, str], content: bytes) -> ServiceError:
    """The error that an answer is; what it does not tell is empty.

    Args:
        status: of HTTP.
        headers: by their names in any case.
        content: the body.
    """
    code = headers.get("x-amzn-ErrorType", "").split(":")[0].rpartition("#")[2]
    try:
        described = json.loads(content)
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        return ServiceError(code, "", status=status)
    code = code or str(described.get("__type", described.get("code", ""))).rpartition("#")[2]
    message = described.get("message", described.get("Message", ""))
    reason = str(described.get("Reason", "") or "")
    return ServiceError(code, str(message or ""), status=status, reason=reason or None)
