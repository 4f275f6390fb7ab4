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
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import attrs
import botocore.exceptions
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import checks
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs_appearing import Appearing, appears
from amistore.backends.aws.ebs_calls import check_stored, get_request, got_block, put_request
from amistore.backends.aws.ebs_connections import TimeLimits
from amistore.backends.aws.ebs_requests import Requests
from amistore.backends.aws.ebs_tokens import Tokens, numbered
from amistore.backends.aws.ebs_wire import Wire
from amistore.backends.aws.ec2_images import snapshot_from, without_reserved
from amistore.backends.aws.errors import aws_errors, member_of
from amistore.backends.aws.settings import SnapshotSettings
from amistore.backends.blocks import BlockPage, BlockStore, SnapshotBlock
from amistore.backends.retries import Attempts
from amistore.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    InvalidTokenError,
    NotFoundError,
)
from amistore.model import Snapshot, Tag

__all__ = ["RATE", "AWSBlockStore"]

_logger = logging.getLogger("amistore")

# Amazon EBS endpoints and quotas, "GetSnapshotBlock requests per snapshot" and "per account", and the same of
# PutSnapshotBlock; that of an account can be raised.
RATE = 1000.0
TIMEOUT = 4320  # minutes; StartSnapshot, Timeout: 10 to 4320. EBS cancels a pending snapshot after it


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
        rate: the most gets, and the most puts, a second of all orders together.
        snapshot_rate: the most of them for one snapshot, which AWS does not raise.
        sleep: a function that waits for so many seconds.
        clock: a monotonic clock, in seconds.
    """

    connection: Connection
    settings: SnapshotSettings = attrs.field(factory=SnapshotSettings)
    limits: TimeLimits = attrs.field(
        repr=False, default=attrs.Factory(lambda self: TimeLimits.of(self.connection), takes_self=True)
    )
    requests: int = attrs.field(default=64, kw_only=True)  # docs/decisions/0024
    rate: float | None = attrs.field(default=RATE, kw_only=True)
    snapshot_rate: float | None = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: None if self.rate is None else RATE, takes_self=True),
    )
    sleep: Callable[[float], None] = attrs.field(default=time.sleep, kw_only=True, repr=False)
    clock: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True, repr=False)
    where: str = attrs.field(
        init=False,
        repr=False,
        default=attrs.Factory(lambda self: f"EBS {self.connection.region_name}", takes_self=True),
    )
    _wire: Wire | None = attrs.field(init=False, repr=False, default=None)
    _requests: Requests | None = attrs.field(init=False, repr=False, default=None)
    _tokens: dict[str, Tokens] = attrs.field(init=False, repr=False, factory=dict)
    _started: dict[str, float] = attrs.field(init=False, repr=False, factory=dict)
    _completing: set[str] = attrs.field(init=False, repr=False, factory=set)
    _lock: Any = attrs.field(init=False, repr=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        forks.register(self, AWSBlockStore._begin_anew)

    def _begin_anew(self) -> None:
        """Begin anew in a forked child: without the parent's requests in flight, with fresh locks."""
        if self._requests is not None:
            self._requests.let_go()
            self._requests = None
        self._lock = threading.Lock()
        for tokens in self._tokens.values():
            tokens.lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        made = functools.partial(AWSBlockStore, requests=self.requests, rate=self.rate)
        return made, (self.connection, self.settings, self.limits)

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
            return tokens.page(self.connection.client("ebs"), snapshot_id, first, place)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        with aws_errors("get_snapshot_block", snapshot_id=snapshot_id, block_index=block_index):
            checks.check_snapshot_id(snapshot_id)
            number, token = numbered(block_token)
            newer = self._tokens_of(snapshot_id).newer(block_index, number)
            try:
                return self._get(snapshot_id, block_index, newer or token)
            except InvalidTokenError:
                return self._get_renewed(snapshot_id, block_index, number, newer)

    def _get(self, snapshot_id: str, block_index: int, token: str) -> SnapshotBlock:
        return got_block(self._lean().request(get_request(snapshot_id, block_index, token)))

    def _get_renewed(
        self, snapshot_id: str, block_index: int, number: int, refused: str | None
    ) -> SnapshotBlock:
        """Get a block whose token was refused: that of its listing, or the newer one that was given."""
        tokens = self._tokens_of(snapshot_id)
        if not tokens.listing:  # another process listed it: two that do end each other's tokens for ever
            raise InvalidTokenError(
                "the block's token has ended, and this process has not listed the snapshot: list it again "
                "where it was listed"
            )
        # Alone, so that no listing of ours ends the new token before it is used.
        with tokens.lock:
            again = tokens.newer(block_index, number)
            if again not in (None, refused):
                with contextlib.suppress(InvalidTokenError):
                    return self._get(snapshot_id, block_index, again)
            token = tokens.renew(self.connection.client("ebs"), snapshot_id, block_index)
            return self._get(snapshot_id, block_index, token)

    def begin_get(
        self, snapshot_id: str, block_index: int, block_token: str, attempts: Attempts | None = None
    ) -> Future[SnapshotBlock]:
        """Begin to read a block, as `get_snapshot_block` does, and return at once.

        The content is not compared with EBS's SHA-256: that would take the time of the thread that receives
        for all. Who takes a block compares it, and goes on with its `attempts` where it is damaged.

        Args:
            snapshot_id: the id of a completed snapshot.
            block_index: the index of a listed block.
            block_token: the block's token from the listing.
            attempts: say when another attempt is made; None for one alone.
        """
        requests = self._in_flight()
        return requests.loop.submit(
            requests.repeated, attempts, self._get_in_flight, requests, snapshot_id, block_index, block_token
        )

    async def _get_in_flight(
        self, requests: Requests, snapshot_id: str, block_index: int, block_token: str
    ) -> SnapshotBlock:
        with aws_errors("get_snapshot_block", snapshot_id=snapshot_id, block_index=block_index):
            checks.check_snapshot_id(snapshot_id)
            wire = await self._lean_in_flight(requests)
            number, token = numbered(block_token)
            tokens = self._tokens_of(snapshot_id)
            newer = tokens.newer(block_index, number)
            while True:
                request = get_request(snapshot_id, block_index, newer or token)
                try:
                    return got_block(await requests.request(wire, request))
                except InvalidTokenError:
                    async with requests.renewing(snapshot_id):
                        again = tokens.newer(block_index, number)
                        if again in (None, newer):
                            return await requests.loop.in_thread(
                                self._get_renewed, snapshot_id, block_index, number, newer
                            )
                    newer = again  # the one who was before it in there has renewed it, too

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

    @appears
    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        request = put_request(snapshot_id, block_index, content, checksum)
        with aws_errors("put_snapshot_block", snapshot_id=snapshot_id, block_index=block_index):
            checks.check_snapshot_id(snapshot_id)
            check_stored(self._lean().request(request), request)

    def begin_put(
        self,
        snapshot_id: str,
        block_index: int,
        content: Buffer,
        checksum: bytes,
        attempts: Attempts | None = None,
    ) -> Future[None]:
        """Begin to write a block, as `put_snapshot_block` does, and return at once.

        Args:
            snapshot_id: the id of a pending snapshot.
            block_index: the block's index, inside the volume.
            content: the block's 524,288 bytes, which stay as they are until the future is done.
            checksum: the SHA-256 of `content`, 32 raw bytes.
            attempts: say when another attempt is made; None for one alone.
        """
        requests = self._in_flight()
        return requests.loop.submit(
            requests.repeated,
            attempts,
            self._put_in_flight,
            requests,
            snapshot_id,
            block_index,
            content,
            checksum,
        )

    async def _put_in_flight(
        self, requests: Requests, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        request = put_request(snapshot_id, block_index, content, checksum)
        appearing = Appearing(snapshot_id, self._started.get(snapshot_id), self.clock)
        while True:
            try:
                with aws_errors("put_snapshot_block", snapshot_id=snapshot_id, block_index=block_index):
                    checks.check_snapshot_id(snapshot_id)
                    wire = await self._lean_in_flight(requests)
                    return check_stored(await requests.request(wire, request), request)
            except NotFoundError as error:
                pause = appearing.pause(error)
                if pause is None:
                    raise
            await requests.loop.sleep(pause)

    @appears
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

    @appears
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

    async def _lean_in_flight(self, requests: Requests) -> Wire:
        if self._wire is not None:
            return self._wire
        async with requests.making:
            return await requests.loop.in_thread(self._lean)

    def _in_flight(self) -> Requests:
        if self._requests is not None and self._requests.process != os.getpid():
            self._begin_anew()  # another library's hook was called before ours
        with self._lock:
            if self._requests is None:
                self._requests = Requests(self.requests)
            return self._requests

    def _tokens_of(self, snapshot_id: str) -> Tokens:
        with self._lock:
            return self._tokens.setdefault(snapshot_id, Tokens())
