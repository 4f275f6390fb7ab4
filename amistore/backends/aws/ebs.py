"""`AWSBlockStore`: the EBS direct APIs, one attempt a call.

A block's token expires after seven days, and when its snapshot is listed again; a page's after an hour (EBS
user guide, "Read snapshots with EBS direct APIs"). Both are renewed here, so that a run may last: a refused
token is replaced by a listing from its block on, one for all that wait for it.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import attrs
import botocore.exceptions
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import checks
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs_connections import TimeLimits
from amistore.backends.aws.ebs_wire import Wire
from amistore.backends.aws.ec2_images import snapshot_from, without_reserved
from amistore.backends.aws.errors import InvalidTokenError, aws_errors, member_of
from amistore.backends.aws.settings import SnapshotSettings
from amistore.backends.blocks import MOST_EMPTY_PAGES, Block, BlockPage, BlockStore, SnapshotBlock
from amistore.errors import (
    AccessDeniedError,
    BackendError,
    ChecksumMismatchError,
    NotFoundError,
    SourceChangedError,
)
from amistore.model import Snapshot, Tag
from amistore.units import BLOCK_SIZE
from amistore.wire.ebs import block_path, data_headers

__all__ = ["AWSBlockStore"]

F = TypeVar("F", bound=Callable[..., Any])

_logger = logging.getLogger("amistore")

PAGE_SIZE = 10_000  # ListSnapshotBlocks, MaxResults: 100 to 10,000
TIMEOUT = 4320  # minutes; StartSnapshot, Timeout: 10 to 4320. EBS cancels a pending snapshot after it
_IN_FLIGHT = 4096  # blocks before a refused one for which a new listing gives tokens too
APPEARING = 120.0  # seconds in which a snapshot just started may be unknown (EBS user guide: up to 2 minutes)
_FIRST_PAUSE = 0.1  # seconds between two calls then
_LAST_PAUSE = 5.0


def _appearing(method: F) -> F:
    """Repeat a call if a snapshot is not found soon after this store started it.

    It may even have been found before: not every host of the service knows it at the same time.
    """

    @functools.wraps(method)
    def call(self: AWSBlockStore, snapshot_id: str, *arguments: Any, **options: Any) -> Any:
        pause = _FIRST_PAUSE
        while True:
            try:
                return method(self, snapshot_id, *arguments, **options)
            except NotFoundError as error:
                started = self._started.get(snapshot_id)
                if started is None or self.clock() + pause - started > APPEARING:
                    raise
                _logger.info(
                    "%s was just started and is not found yet, trying again in %.1f s: %s",
                    snapshot_id,
                    pause,
                    error,
                )
            self.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)

    return cast("F", call)


class _Tokens:
    """The newest block tokens of one snapshot, in place of refused ones."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.listing = 0
        self.renewed: dict[int, str] = {}

    def newer(self, block_index: int, listing: int) -> str | None:
        """A token from a newer listing than this one's."""
        return self.renewed.get(block_index) if self.listing > listing else None


def _status(error: Exception) -> int:
    """The HTTP status of an error's answer; 599 where there was no answer."""
    if not isinstance(error, botocore.exceptions.ClientError):
        return 599
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


@attrs.define(eq=False)
class AWSBlockStore(BlockStore):
    """EBS in one Region. Any number of threads.

    Attributes:
        connection: the connection to AWS.
        settings: the settings for restored snapshots.
        limits: the time limits for each block.
        requests: how many blocks to get or put at once.
        sleep: a function that waits for so many seconds.
        clock: a monotonic clock, in seconds.
    """

    connection: Connection
    settings: SnapshotSettings = attrs.field(factory=SnapshotSettings)
    limits: TimeLimits = attrs.field(factory=TimeLimits, repr=False)
    requests: int = attrs.field(default=64, kw_only=True)  # 32 are too few at 100 ms; 128 gain nothing
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True, repr=False)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True, repr=False)
    _wire: Wire | None = attrs.field(init=False, repr=False, default=None)
    _tokens: dict[str, _Tokens] = attrs.field(init=False, repr=False, factory=dict)
    _started: dict[str, float] = attrs.field(init=False, repr=False, factory=dict)
    _completing: set[str] = attrs.field(init=False, repr=False, factory=set)
    _lock: Any = attrs.field(init=False, repr=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        forks.register(self, AWSBlockStore._renew_locks)

    def _renew_locks(self) -> None:
        """Renew the locks in a forked child: nobody there releases those that the parent's threads hold."""
        self._lock = threading.Lock()
        for tokens in self._tokens.values():
            tokens.lock = threading.Lock()

    @property
    def where(self) -> str:  # type: ignore[override]
        return f"EBS {self.connection.region_name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return AWSBlockStore, (self.connection, self.settings, self.limits)

    # Reading.

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        if next_token is None:
            return self._page(snapshot_id, 0, {})
        # Ours: the index behind the last block listed so far, then EBS's own token.
        first, _, token = next_token.partition(":")
        start = int(first) if first.isdecimal() else 0
        try:
            return self._page(snapshot_id, start, {"NextToken": token})
        except InvalidTokenError:
            return self._page(snapshot_id, start, {"StartingBlockIndex": start})

    def _page(self, snapshot_id: str, first: int, place: dict[str, Any]) -> BlockPage:
        tokens = self._tokens_of(snapshot_id)
        with tokens.lock, aws_errors("list_snapshot_blocks", snapshot_id=snapshot_id):
            checks.check_snapshot_id(snapshot_id)
            answer = self.connection.client("ebs").list_snapshot_blocks(
                SnapshotId=snapshot_id, MaxResults=PAGE_SIZE, **place
            )
            tokens.listing += 1
            listing = tokens.listing
            tokens.renewed = {}
            if member_of(answer, "BlockSize") != BLOCK_SIZE:
                raise BackendError(f"EBS has blocks of {answer['BlockSize']} bytes, not {BLOCK_SIZE}")
        blocks = [
            Block(block["BlockIndex"], f"{listing}:{block['BlockToken']}")
            for block in answer.get("Blocks", ())
        ]
        following = answer.get("NextToken")
        if following and blocks:
            first = blocks[-1].block_index + 1
        return BlockPage(
            volume_size=member_of(answer, "VolumeSize"),
            blocks=blocks,
            next_token=f"{first}:{following}" if following else None,
        )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        with aws_errors("get_snapshot_block", snapshot_id=snapshot_id, block_index=block_index):
            checks.check_snapshot_id(snapshot_id)
            listing, _, token = block_token.partition(":")
            number = int(listing) if listing.isdecimal() else 0
            tokens = self._tokens_of(snapshot_id)
            newer = tokens.newer(block_index, number)
            try:
                return self._get(snapshot_id, block_index, newer or token)
            except InvalidTokenError:
                # Alone, so that no listing of ours ends the new token before it is used.
                with tokens.lock:
                    again = tokens.newer(block_index, number)
                    if again not in (None, newer):
                        with contextlib.suppress(InvalidTokenError):
                            return self._get(snapshot_id, block_index, again)
                    return self._get(snapshot_id, block_index, self._renew(tokens, snapshot_id, block_index))

    def _get(self, snapshot_id: str, block_index: int, token: str) -> SnapshotBlock:
        answer = self._lean().request(
            "GET",
            block_path(snapshot_id, block_index),
            {"blockToken": token},
            {},
            None,
            "get_snapshot_block",
            snapshot_id=snapshot_id,
            block_index=block_index,
        )
        if len(answer.content) != BLOCK_SIZE:
            raise BackendError(f"EBS gave {len(answer.content)} bytes for a block", retryable=True)
        return SnapshotBlock(answer.content, _checksum(answer.headers))

    def _renew(self, tokens: _Tokens, snapshot_id: str, block_index: int) -> str:
        """List again, for the token of a block and of the blocks beside it."""
        client = self.connection.client("ebs")
        renewed: dict[int, str] = {}
        place: dict[str, Any] = {"StartingBlockIndex": max(0, block_index - _IN_FLIGHT)}
        empty = 0
        while block_index not in renewed:
            answer = client.list_snapshot_blocks(SnapshotId=snapshot_id, MaxResults=PAGE_SIZE, **place)
            empty = 0 if answer.get("Blocks") else empty + 1
            if empty > MOST_EMPTY_PAGES:
                raise BackendError("the listing makes no progress")
            renewed.update((each["BlockIndex"], each["BlockToken"]) for each in answer.get("Blocks", ()))
            if not answer.get("NextToken") or max(renewed, default=0) > block_index:
                break
            place = {"NextToken": answer["NextToken"]}
        if block_index not in renewed:
            raise SourceChangedError("the block was listed before and is no longer listed")
        tokens.listing += 1
        tokens.renewed = renewed
        return renewed[block_index]

    # Writing.

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        checks.check_volume_size(volume_size)
        options: dict[str, Any] = {}
        if self.settings.encrypted is not None:
            options["Encrypted"] = self.settings.encrypted
        if self.settings.kms_key_arn is not None:
            options["Encrypted"] = True
            options["KmsKeyArn"] = self.settings.kms_key_arn
        merged = {tag.key: tag.value or "" for tag in without_reserved((*tags, *self.settings.tags))}
        kept = [{"Key": key, "Value": value} for key, value in sorted(merged.items())]
        # StartSnapshot's model takes a character less of both than EC2, which gets those later.
        early = [tag for tag in kept if len(tag["Key"]) < 128 and len(tag["Value"]) < 256]
        if early:
            options["Tags"] = early
        if client_token is not None:
            options["ClientToken"] = client_token
        if description:  # an empty one is refused
            options["Description"] = description
        with aws_errors("start_snapshot"):
            answer = self.connection.client("ebs").start_snapshot(
                VolumeSize=volume_size, Timeout=TIMEOUT, **options
            )
            snapshot_id: str = member_of(answer, "SnapshotId")
            key = answer.get("KmsKeyArn")
            _logger.info("started %s, %s", snapshot_id, f"encrypted with {key}" if key else "not encrypted")
            if len(early) < len(kept):
                late = [tag for tag in kept if tag not in early]
                try:
                    self.connection.client("ec2").create_tags(Resources=[snapshot_id], Tags=late)
                except BaseException:
                    _logger.error("started %s without all its tags: delete it if the run fails", snapshot_id)
                    raise
        with self._lock:
            self._started[snapshot_id] = self.clock()
        return snapshot_id

    @_appearing
    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        if memoryview(content).nbytes != BLOCK_SIZE or block_index < 0:
            checks.check_block(snapshot_id, 65_536, block_index, content, checksum)
        facts: dict[str, Any] = {"snapshot_id": snapshot_id, "block_index": block_index}
        with aws_errors("put_snapshot_block", **facts):
            checks.check_snapshot_id(snapshot_id)
            headers = data_headers(checksum)
            path = block_path(snapshot_id, block_index)
            answer = self._lean().request("PUT", path, {}, headers, content, "put_snapshot_block", **facts)
            # Whoever stored the block says so with its checksum; a page of a proxy's has none.
            if answer.headers.get("X-Amz-Checksum") != headers["X-Amz-Checksum"]:
                raise BackendError("EBS did not acknowledge the block's checksum", retryable=True)

    @_appearing
    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        with aws_errors("complete_snapshot", snapshot_id=snapshot_id):
            checks.check_snapshot_id(snapshot_id)
            client = self.connection.client("ebs")
            try:
                answer = client.complete_snapshot(
                    SnapshotId=snapshot_id,
                    ChangedBlocksCount=changed_blocks_count,
                    Checksum=base64.b64encode(checksum).decode(),
                    ChecksumAlgorithm="SHA256",
                    ChecksumAggregationMethod="LINEAR",
                )
                # Else nothing was completed, and its completion would be waited for, for ever.
                member_of(answer, "Status")
            except client.exceptions.ValidationException as refusal:
                # A snapshot gets completed, and cannot be completed again, by a call that was
                # checked against the checksum: by an earlier one, whose answer may be lost.
                state = self.describe_snapshot(snapshot_id).state
                if state != "pending":
                    if state != "completed":
                        raise
                elif snapshot_id not in self._completing:
                    told = refusal.response["Error"].get("Message", "")
                    raise ChecksumMismatchError(f"EBS has other blocks than were counted: {told}") from None
            except Exception as error:
                # Refused or throttled, nothing was completed. Failed, or without an answer that can
                # be read, it may be.
                if _status(error) >= 500:
                    self._completing.add(snapshot_id)
                raise
        self._started.pop(snapshot_id, None)

    def delete_snapshot(self, snapshot_id: str) -> None:
        with aws_errors("delete_snapshot", snapshot_id=snapshot_id):
            checks.check_snapshot_id(snapshot_id)
            self._started.pop(snapshot_id, None)
            self.connection.client("ec2").delete_snapshot(SnapshotId=snapshot_id)

    @_appearing
    def describe_snapshot(self, snapshot_id: str) -> Snapshot:
        with aws_errors("describe_snapshot", snapshot_id=snapshot_id):
            checks.check_snapshot_id(snapshot_id)
            answer = self.connection.client("ec2").describe_snapshots(SnapshotIds=[snapshot_id])
            for found in member_of(answer, "Snapshots"):
                member_of(found, "State")  # what broke off must not pass for a completed snapshot
                return snapshot_from(found)
            raise NotFoundError("no such snapshot")

    def encryption_by_default(self) -> str | None:
        """The KMS key that EBS encrypts every new snapshot with; None where it does not."""
        with aws_errors("encryption_by_default"):
            client = self.connection.client("ec2")
            if not client.get_ebs_encryption_by_default()["EbsEncryptionByDefault"]:
                return None
            return str(client.get_ebs_default_kms_key_id()["KmsKeyId"])

    def encrypts_snapshots(self) -> bool | None:
        """Whether these settings, or the account's encryption by default, encrypt new snapshots."""
        if self.settings.encrypted or self.settings.kms_key_arn is not None:
            return True
        try:
            return self.encryption_by_default() is not None
        except AccessDeniedError:  # a permission that a restore does without
            return None

    # What both need.

    def _lean(self) -> Wire:
        with self._lock:
            if self._wire is None:
                self._wire = Wire(self.connection, self.limits)
            return self._wire

    def _tokens_of(self, snapshot_id: str) -> _Tokens:
        with self._lock:
            return self._tokens.setdefault(snapshot_id, _Tokens())


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
