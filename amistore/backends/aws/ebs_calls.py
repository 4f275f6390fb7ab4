"""GetSnapshotBlock and PutSnapshotBlock as requests and answers, whoever sends and receives them."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from typing_extensions import Buffer

from amistore.backends import checks
from amistore.backends.aws.ebs_wire import Answer, Request
from amistore.backends.blocks import SnapshotBlock
from amistore.errors import BackendError
from amistore.units import BLOCK_SIZE
from amistore.wire.ebs import block_path, data_headers

__all__ = ["check_stored", "get_request", "got_block", "put_request"]


def get_request(snapshot_id: str, block_index: int, token: str) -> Request:
    """The request for a block, with EBS's own token."""
    return Request(
        method="GET",
        path=block_path(snapshot_id, block_index),
        query={"blockToken": token},
        operation="get_snapshot_block",
        facts={"snapshot_id": snapshot_id, "block_index": block_index},
    )


def got_block(answer: Answer) -> SnapshotBlock:
    """The block that an answer holds, and its SHA-256, which is not compared."""
    with memoryview(answer.content) as content:
        size = content.nbytes
    if size != BLOCK_SIZE:
        raise BackendError(f"EBS gave {size} bytes for a block", retryable=True)
    return SnapshotBlock(answer.content, _checksum(answer.headers))


def put_request(snapshot_id: str, block_index: int, content: Buffer, checksum: bytes) -> Request:
    """The request that stores a block."""
    if memoryview(content).nbytes != BLOCK_SIZE or block_index < 0:
        checks.check_block(snapshot_id, 65_536, block_index, content, checksum)
    return Request(
        method="PUT",
        path=block_path(snapshot_id, block_index),
        headers=data_headers(checksum),
        body=content,
        operation="put_snapshot_block",
        facts={"snapshot_id": snapshot_id, "block_index": block_index},
    )


def check_stored(answer: Answer, request: Request) -> None:
    """Refuse an answer of who has not stored the block.

    Whoever has says so with its checksum; a page of a proxy's has none.
    """
    if answer.headers.get("X-Amz-Checksum") != request.headers["X-Amz-Checksum"]:
        raise BackendError("EBS did not acknowledge the block's checksum", retryable=True)


def _checksum(headers: Mapping[str, str]) -> bytes:
    """The block's SHA-256, from EBS's answer."""
    if headers.get("X-Amz-Checksum-Algorithm", "SHA256") != "SHA256":
        raise BackendError(f"EBS gave a checksum of {headers['X-Amz-Checksum-Algorithm'][:20]}, not SHA256")
    try:
        checksum = base64.b64decode(headers.get("X-Amz-Checksum", ""), validate=True)
    except ValueError:
        checksum = b""
    if len(checksum) != 32:
        raise BackendError("EBS sent no SHA-256 with the block", retryable=True)
    return checksum
