"""The EBS direct APIs: blocks of snapshots listed, read and written.

The rules are those of the "EBS direct APIs reference", its guide "Use EBS direct APIs to
access the contents of an EBS snapshot", and the guide's FAQ. No source tells which Reason
goes with which refusal: INVALID_SNAPSHOT_ID for a snapshot in the wrong state or place,
INVALID_BLOCK for data and indexes, and INVALID_PARAMETER_VALUE for the rest are our choice;
so is it that completing twice is refused.
"""

from __future__ import annotations

import base64
import hashlib
import re
import urllib.parse
from collections.abc import Callable, Mapping

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.listing import changed_blocks, snapshot_blocks
from amistore.testing.aws.records import Credential, Snapshot
from amistore.testing.aws.starting import start_snapshot
from amistore.units import BLOCK_SIZE, GIB
from amistore.wire.answers import json_answer
from amistore.wire.calls import Answer, Call, block_number
from amistore.wire.ebs import checksum_headers, data_headers
from amistore.wire.errors import ServiceError, invalid

__all__ = ["EbsDirect"]

SNAPSHOT_ID = re.compile(r"snap-[0-9a-f]+")
BLOCKS_PER_GIB = GIB // BLOCK_SIZE


class EbsDirect:
    """Answer the operations; whoever calls has authenticated and may do them."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._operations: dict[str, Callable[[Call, Credential], Answer]] = {
            "ListSnapshotBlocks": self._list_snapshot_blocks,
            "ListChangedBlocks": self._list_changed_blocks,
            "GetSnapshotBlock": self._get_snapshot_block,
            "StartSnapshot": self._start_snapshot,
            "PutSnapshotBlock": self._put_snapshot_block,
            "CompleteSnapshot": self._complete_snapshot,
        }

    def answer(self, call: Call, caller: Credential) -> Answer:
        """Carry out one call.

        Raises:
            ServiceError: what the service says to a call that it refuses.
        """
        return self._operations[call.operation](call, caller)

    def _list_snapshot_blocks(self, call: Call, caller: Credential) -> Answer:
        query = parameters(call, "pageToken", "maxResults", "startingBlockIndex")
        with self._cloud.lock:
            snapshot = self._readable(call.snapshot_id or "", caller)
            return json_answer(call, 200, snapshot_blocks(self._cloud, snapshot, query))

    def _list_changed_blocks(self, call: Call, caller: Credential) -> Answer:
        query = parameters(call, "firstSnapshotId", "pageToken", "maxResults", "startingBlockIndex")
        if "firstSnapshotId" not in query:
            raise invalid("FirstSnapshotId must be specified with SecondSnapshotId.")
        with self._cloud.lock:
            second = self._readable(call.snapshot_id or "", caller)
            first = self._readable(query["firstSnapshotId"], caller)
            return json_answer(call, 200, changed_blocks(self._cloud, first, second, query))

    def _get_snapshot_block(self, call: Call, caller: Credential) -> Answer:
        query = parameters(call, "blockToken")
        if "blockToken" not in query:
            raise invalid("1 validation error detected: BlockToken must not be null", "INVALID_BLOCK_TOKEN")
        index = requested_index(call)
        with self._cloud.lock:
            snapshot = self._readable(call.snapshot_id or "", caller)
            opened = self._cloud.tokens.open_block(query["blockToken"])
            if opened is None or opened[:3] != (snapshot.number, index, snapshot.generation):
                raise invalid(f"The block token of block {index} is not valid.", "INVALID_BLOCK_TOKEN")
            if self._cloud.clock.now().timestamp() >= opened[3]:
                raise invalid(f"The block token of block {index} has expired.", "INVALID_BLOCK_TOKEN")
            content = snapshot.content
        data, digest = content.block(index)
        return Answer(status=200, body=data, headers=data_headers(digest))

    def _start_snapshot(self, call: Call, caller: Credential) -> Answer:
        with self._cloud.lock:
            return json_answer(call, 201, start_snapshot(self._cloud, call, caller, self._readable))

    def _put_snapshot_block(self, call: Call, caller: Credential) -> Answer:
        parameters(call)
        index = requested_index(call)
        if call.headers.get("x-amz-data-length") != str(BLOCK_SIZE) or len(call.body) != BLOCK_SIZE:
            raise invalid(f"DataLength and the size of BlockData must be {BLOCK_SIZE}.", "INVALID_BLOCK")
        if call.headers.get("x-amz-checksum-algorithm") != "SHA256":
            raise invalid("ChecksumAlgorithm must be SHA256.")
        progress = header_number(call, "x-amz-progress", 0, 100)
        digest = hashlib.sha256(call.body).digest()
        if call.headers.get("x-amz-checksum") != base64.b64encode(digest).decode():
            raise invalid("Checksum does not match the checksum of the block data.", "INVALID_BLOCK")
        with self._cloud.lock:
            snapshot = self._writable(call.snapshot_id or "", caller)
            if index >= snapshot.volume_size * BLOCKS_PER_GIB:
                raise invalid(f"Block {index} is outside the volume.", "INVALID_BLOCK")
            snapshot.own.put(index, digest, call.body)
            snapshot.last_write = self._cloud.clock.now()
            snapshot.progress = snapshot.progress if progress is None else progress
        return json_answer(call, 201, {}, checksum_headers(digest))

    def _complete_snapshot(self, call: Call, caller: Credential) -> Answer:
        parameters(call)
        count = header_number(call, "x-amz-changedblockscount", 0, 2**31 - 1)
        if count is None:
            raise invalid("1 validation error detected: ChangedBlocksCount must not be null")
        checksum = call.headers.get("x-amz-checksum")
        algorithm = call.headers.get("x-amz-checksum-algorithm")
        method = call.headers.get("x-amz-checksum-aggregation-method")
        if checksum is None:
            if algorithm not in (None, "SHA256") or method not in (None, "LINEAR"):
                raise invalid("ChecksumAlgorithm must be SHA256 and ChecksumAggregationMethod LINEAR.")
        elif (algorithm, method) != ("SHA256", "LINEAR"):
            raise invalid(
                "A Checksum needs the ChecksumAlgorithm SHA256 and the ChecksumAggregationMethod LINEAR."
            )
        with self._cloud.lock:
            snapshot = self._writable(call.snapshot_id or "", caller)
            if count != len(snapshot.own):
                raise invalid(f"ChangedBlocksCount is {count}, but {len(snapshot.own)} blocks were written.")
            if checksum is not None and checksum != base64.b64encode(snapshot.own.linear()).decode():
                raise invalid("Checksum does not match the checksums of the blocks that were written.")
            snapshot.sealed = self._cloud.clock.now()
            snapshot.describes = self._cloud.behaviour.completion_describes
            self._cloud.settle(snapshot)
            return json_answer(call, 202, {"Status": snapshot.state})

    def _found(self, snapshot_id: str, caller: Credential) -> Snapshot:
        if SNAPSHOT_ID.fullmatch(snapshot_id) is None or len(snapshot_id) > 64:
            raise invalid(f"'{snapshot_id[:64]}' is not the ID of a snapshot.", "INVALID_SNAPSHOT_ID")
        snapshot = self._cloud.snapshots.get(snapshot_id)
        if snapshot is None:
            raise snapshot_missing(snapshot_id)
        if self._cloud.is_missing(snapshot):
            error = snapshot_missing(snapshot_id)
            if self._cloud.behaviour.missing_code == "ValidationException":
                raise invalid(error.message, "INVALID_SNAPSHOT_ID")
            raise error
        if caller.account_id != snapshot.owner_id and not (
            snapshot.public or caller.account_id in snapshot.shared_with
        ):
            message = f"Account {caller.account_id} may not access the snapshot '{snapshot_id}'."
            raise ServiceError("AccessDeniedException", message, status=403, reason="UNAUTHORIZED_ACCOUNT")
        self._cloud.settle(snapshot)
        return snapshot

    def _readable(self, snapshot_id: str, caller: Credential) -> Snapshot:
        """A snapshot whose blocks the caller may read ("FAQ for EBS direct APIs")."""
        snapshot = self._found(snapshot_id, caller)
        if snapshot.public:
            raise invalid(
                f"The snapshot '{snapshot_id}' is public, which is not supported.", "INVALID_SNAPSHOT_ID"
            )
        if snapshot.outpost_arn is not None:
            raise invalid(f"The snapshot '{snapshot_id}' is on an Outpost.", "INVALID_SNAPSHOT_ID")
        if snapshot.storage_tier != "standard":
            raise invalid(f"The snapshot '{snapshot_id}' is archived.", "INVALID_SNAPSHOT_ID")
        if snapshot.state != "completed":
            raise invalid(f"The snapshot '{snapshot_id}' is not completed.", "INVALID_SNAPSHOT_ID")
        require_key(snapshot, caller, "kms:Decrypt")
        return snapshot

    def _writable(self, snapshot_id: str, caller: Credential) -> Snapshot:
        snapshot = self._found(snapshot_id, caller)
        if snapshot.owner_id != caller.account_id:
            message = f"Account {caller.account_id} may not write to the snapshot '{snapshot_id}'."
            raise ServiceError("AccessDeniedException", message, status=403, reason="UNAUTHORIZED_ACCOUNT")
        if snapshot.state != "pending" or snapshot.sealed is not None:
            raise invalid(f"The snapshot '{snapshot_id}' is not pending.", "INVALID_SNAPSHOT_ID")
        require_key(snapshot, caller, "kms:GenerateDataKeyWithoutPlaintext")
        return snapshot


def snapshot_missing(snapshot_id: str) -> ServiceError:
    """The service's word for a snapshot that is not there."""
    message = f"The snapshot '{snapshot_id}' does not exist."
    return ServiceError("ResourceNotFoundException", message, status=404, reason="SNAPSHOT_NOT_FOUND")


def require_key(snapshot: Snapshot, caller: Credential, action: str) -> None:
    """Refuse who may not use the key ("Permissions to use AWS KMS keys")."""
    if snapshot.encrypted and caller.denies(action):
        message = f"The caller is not authorized to perform: {action} on the key of the snapshot."
        raise ServiceError("AccessDeniedException", message, status=403, reason="DEPENDENCY_ACCESS_DENIED")


def parameters(call: Call, *known: str) -> Mapping[str, str]:
    """The query's parameters; others than those known are refused."""
    pairs = urllib.parse.parse_qsl(call.query, keep_blank_values=True)
    for name, _ in pairs:
        if name not in known:
            raise invalid(f"'{name[:64]}' is not a parameter of {call.operation}.")
    return dict(pairs)


def requested_index(call: Call) -> int:
    index = block_number(call)
    if index is None or index >= 2**31:
        raise invalid(f"'{(call.block_index or '')[:64]}' is not the index of a block.", "INVALID_BLOCK")
    return index


def header_number(call: Call, name: str, least: int, most: int) -> int | None:
    text = call.headers.get(name)
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,18}", text) is None or not least <= int(text) <= most:
        raise invalid(f"{name} must be a number from {least} to {most}.")
    return int(text)
