"""`FaultyBackend`: any backend, with faults in its calls, to prove what is done about them.

Wrap what you test in it, and it in `amistore.RetryingBackend`::

    faulty = FaultyBackend(MemoryBackend())
    fault = faulty.add_fault("put_snapshot_block", "lost-reply", calls=[3])
    faulty.add_fault("*", "error", probability=0.05, seed=7)
    backend = RetryingBackend(faulty)
    ...
    assert fault.fired == 1
    assert max(faulty.calls.values()) <= 5  # attempts

The same seed lets the same calls fail, in whatever order threads make them: a draw depends on
the verb, on the block, part or range, and on how often that was asked for. Ids, which are
new in each run, do not matter.
"""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, cast

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import (
    Backend,
    BlockPage,
    BlockStore,
    ImageRegistry,
    MultipartUpload,
    ObjectInfo,
    ObjectLocation,
    ObjectStore,
    SnapshotBlock,
    UploadedPart,
)
from amistore.errors import AccessDeniedError, BackendError, ThrottledError
from amistore.model import AttributeReport, Image, Snapshot, Tag

__all__ = ["BackendFault", "BackendFaultKind", "FaultyBackend"]

R = TypeVar("R")

BackendFaultKind = Literal["error", "throttle", "refusal", "lost-reply", "short", "flipped"]

_CONTENT = ("get_snapshot_block", "get_object_range")
_VERBS = frozenset(
    {name for kind in (BlockStore, ObjectStore, ImageRegistry) for name in kind.__abstractmethods__}
    | {"describe_snapshot", "head_bucket", "bucket_warnings", "get_object_tagging", "list_multipart_uploads"}
    | {"list_objects"}
    | {
        "encrypts_snapshots",
        "reserve_image_id",
        "find_images",
        "finish_registration",
        "dry_run_register_image",
    }
)


@attrs.define(eq=False)
class BackendFault:
    """Which calls go wrong, and how; made by `FaultyBackend.add_fault`.

    Attributes:
        verb: of the calls, or ``"*"``.
        kind: what happens.
        calls: numbers, from 1, of the calls of that verb since the fault was added; None is every one.
        probability: of each of these calls to go wrong.
        seed: of the probability.
        times: after so many the fault rests.
        fired: how often it happened.
    """

    verb: str
    kind: BackendFaultKind
    calls: Container[int] | None
    probability: float | None
    seed: int
    times: int | None
    fired: int = 0
    _seen: int = 0

    def meets(self, verb: str, place: tuple[object, ...], attempt: int) -> bool:
        """Whether this call goes wrong; each is to be asked about once, by one thread at a time."""
        if self.verb not in ("*", verb) or (self.kind in ("short", "flipped") and verb not in _CONTENT):
            return False
        self._seen += 1
        wanted = self.calls is None or self._seen in self.calls
        if wanted and self.probability is not None:
            draw = random.Random(f"{self.seed} {self.kind} {verb} {place} {attempt}")  # noqa: S311 - repeatable
            wanted = draw.random() < self.probability
        return wanted and (self.times is None or self.fired < self.times)


class FaultyBackend(Backend):
    """A backend whose calls go wrong when they are told to.

    Args:
        inner: any backend; it is not changed.

    Attributes:
        calls: how often each call was made, those that went wrong too: by the verb, and by
            what tells its calls apart (snapshot and block, page, key and part, range).
    """

    def __init__(self, inner: Backend) -> None:
        self.calls: collections.Counter[tuple[object, ...]] = collections.Counter()
        self.journal = inner.journal
        self._inner = inner
        self._attempts: collections.Counter[tuple[object, ...]] = collections.Counter()
        self._faults: list[BackendFault] = []
        self._renew_lock()
        forks.register(self, FaultyBackend._renew_lock)
        super().__init__(
            ebs=_FaultyBlockStore(inner.ebs, self._call),
            s3=_FaultyObjectStore(inner.s3, self._call),
            ec2=_FaultyImageRegistry(inner.ec2, self._call),
        )

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def preflight(self, image: Image) -> None:
        self._inner.preflight(image)

    def sweep(self) -> tuple[str, ...]:
        return self._inner.sweep()

    def add_fault(
        self,
        verb: str,
        kind: BackendFaultKind,
        *,
        calls: Container[int] | None = None,
        probability: float | None = None,
        seed: int = 0,
        times: int | None = None,
    ) -> BackendFault:
        """Let calls go wrong; of several faults the first that fits a call happens.

        The kinds: ``error`` is one to try again, without any effect, ``throttle`` a
        `ThrottledError`, ``refusal`` an `AccessDeniedError`, for good. ``lost-reply`` is an error to
        try again after the effect. ``short`` and ``flipped`` give half of the content, or
        one bit of it changed; they happen to `get_snapshot_block` and `get_object_range` only, and
        a source that gives no checksum with its blocks cannot notice ``flipped``.

        Args:
            verb: such as ``"put_snapshot_block"``; ``"*"`` for all.
            kind: what happens.
            calls: numbers, from 1, of those of the calls from now on that go wrong; None is every one.
            probability: of each of these calls to go wrong.
            seed: of the probability.
            times: after so many the fault rests.

        Raises:
            ValueError: there is no such verb, or it has no content to damage.
        """
        if verb not in _VERBS | {"*"} or (kind in ("short", "flipped") and verb not in (*_CONTENT, "*")):
            raise ValueError(f"{kind} cannot happen to {verb!r}")
        fault = BackendFault(verb, kind, calls, probability, seed, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Let all go well from now on."""
        with self._lock:
            self._faults.clear()

    def _call(
        self, verb: str, ids: tuple[object, ...], place: tuple[object, ...], function: Callable[[], R]
    ) -> R:
        """Make a call on `place` of what has the `ids`, or let it go wrong."""
        with self._lock:
            call, attempted = (verb, *ids, *place), (verb, *place)
            self.calls[call] += 1
            self._attempts[attempted] += 1
            attempt = self._attempts[attempted]
            # Each is asked, so that the numbers of its calls do not depend on the others.
            met = [fault for fault in self._faults if fault.meets(verb, place, attempt)]
            for fault in met[:1]:
                fault.fired += 1
        kind = met[0].kind if met else None
        if kind == "error":
            raise BackendError("a fault of the test", retryable=True, operation=verb)
        if kind == "throttle":
            raise ThrottledError("a fault of the test: too many calls", retryable=True, operation=verb)
        if kind == "refusal":
            raise AccessDeniedError("a fault of the test: refused", operation=verb)
        result = function()
        if kind == "lost-reply":
            raise BackendError("a fault of the test: the reply is lost", retryable=True, operation=verb)
        if kind in ("short", "flipped"):
            return cast(R, _damaged(result, kind))
        return result


class _Call(Protocol):
    """`FaultyBackend._call`."""

    def __call__(
        self, verb: str, ids: tuple[object, ...], place: tuple[object, ...], function: Callable[[], R]
    ) -> R: ...


def _damaged(result: Any, kind: str) -> Any:
    """Content of a block or a range, made short or changed by a bit."""
    if isinstance(result, SnapshotBlock):
        return attrs.evolve(result, content=_damaged(bytes(result.content), kind))
    middle = len(result) // 2
    if kind == "short" or not result:
        return result[:middle]
    return result[:middle] + bytes([result[middle] ^ 1]) + result[middle + 1 :]


@attrs.frozen
class _FaultyBlockStore(BlockStore):
    inner: BlockStore
    call: _Call

    @property
    def where(self) -> str:  # type: ignore[override]
        return self.inner.where

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        def function() -> BlockPage:
            return self.inner.list_snapshot_blocks(snapshot_id, next_token=next_token)

        return self.call("list_snapshot_blocks", (snapshot_id, next_token), (), function)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        def function() -> SnapshotBlock:
            return self.inner.get_snapshot_block(snapshot_id, block_index, block_token)

        return self.call("get_snapshot_block", (snapshot_id,), (block_index,), function)

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        def function() -> str:
            return self.inner.start_snapshot(
                volume_size, description=description, tags=tags, client_token=client_token
            )

        return self.call("start_snapshot", (client_token,), (), function)

    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        def function() -> None:
            self.inner.put_snapshot_block(snapshot_id, block_index, content, checksum)

        self.call("put_snapshot_block", (snapshot_id,), (block_index,), function)

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        def function() -> None:
            self.inner.complete_snapshot(snapshot_id, changed_blocks_count, checksum)

        self.call("complete_snapshot", (snapshot_id,), (), function)

    def delete_snapshot(self, snapshot_id: str) -> None:
        self.call("delete_snapshot", (snapshot_id,), (), lambda: self.inner.delete_snapshot(snapshot_id))

    def encrypts_snapshots(self) -> bool | None:
        return self.call("encrypts_snapshots", (), (), self.inner.encrypts_snapshots)

    def describe_snapshot(self, snapshot_id: str) -> Snapshot:
        return self.call(
            "describe_snapshot", (snapshot_id,), (), lambda: self.inner.describe_snapshot(snapshot_id)
        )


@attrs.frozen
class _FaultyObjectStore(ObjectStore):
    inner: ObjectStore
    call: _Call

    @property
    def where(self) -> str:  # type: ignore[override]
        return self.inner.where

    @property
    def scheme(self) -> str:  # type: ignore[override]
        return self.inner.scheme

    def list_objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectLocation]:
        def function() -> list[str]:
            return [each.key for each in self.inner.list_objects(bucket, prefix)]

        keys = self.call("list_objects", (bucket, prefix), (), function)
        return (self.at(bucket, key) for key in keys)

    def head_bucket(self, bucket: str) -> None:
        self.call("head_bucket", (bucket,), (), lambda: self.inner.head_bucket(bucket))

    def bucket_warnings(self, bucket: str) -> tuple[str, ...]:
        return self.call("bucket_warnings", (bucket,), (), lambda: self.inner.bucket_warnings(bucket))

    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        return self.call("head_object", (bucket, key), (), lambda: self.inner.head_object(bucket, key))

    def get_object_range(
        self, bucket: str, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> bytes:
        def function() -> bytes:
            return self.inner.get_object_range(bucket, key, start, length, if_match=if_match)

        return self.call("get_object_range", (bucket, key), (start, length), function)

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        def function() -> None:
            self.inner.delete_object(bucket, key, if_match=if_match)

        self.call("delete_object", (bucket, key), (), function)

    def create_multipart_upload(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        def function() -> str:
            return self.inner.create_multipart_upload(bucket, key, metadata=metadata, tags=tags)

        return self.call("create_multipart_upload", (bucket, key), (), function)

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        def function() -> UploadedPart:
            return self.inner.upload_part(bucket, key, upload_id, part_number, content)

        return self.call("upload_part", (bucket, key, upload_id), (part_number,), function)

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        def function() -> list[UploadedPart]:
            return self.inner.list_parts(bucket, key, upload_id)

        return self.call("list_parts", (bucket, key, upload_id), (), function)

    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        def function() -> ObjectInfo:
            return self.inner.complete_multipart_upload(
                bucket, key, upload_id, parts, if_none_match=if_none_match
            )

        return self.call("complete_multipart_upload", (bucket, key, upload_id), (), function)

    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        def function() -> None:
            self.inner.abort_multipart_upload(bucket, key, upload_id)

        self.call("abort_multipart_upload", (bucket, key, upload_id), (), function)

    def get_object_tagging(self, bucket: str, key: str) -> dict[str, str]:
        def function() -> dict[str, str]:
            return self.inner.get_object_tagging(bucket, key)

        return self.call("get_object_tagging", (bucket, key), (), function)

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        def function() -> list[MultipartUpload]:
            return self.inner.list_multipart_uploads(bucket, prefix)

        return self.call("list_multipart_uploads", (bucket, prefix), (), function)


@attrs.frozen
class _FaultyImageRegistry(ImageRegistry):
    inner: ImageRegistry
    call: _Call

    def describe_image(self, image_id: str) -> Image:
        return self.call("describe_image", (image_id,), (), lambda: self.inner.describe_image(image_id))

    def describe_images(self) -> list[Image]:
        return self.call("describe_images", (), (), self.inner.describe_images)

    @property
    def region_name(self) -> str | None:  # type: ignore[override]
        return self.inner.region_name

    def reserve_image_id(self) -> str | None:
        return self.call("reserve_image_id", (), (), self.inner.reserve_image_id)

    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        def function() -> str:
            return self.inner.register_image(image, name=name, image_id=image_id)

        return self.call("register_image", (name or image.name,), (), function)

    def dry_run_register_image(self, image: Image, *, name: str | None = None) -> None:
        def function() -> None:
            self.inner.dry_run_register_image(image, name=name)

        self.call("dry_run_register_image", (name or image.name,), (), function)

    def deregister_image(self, image_id: str) -> None:
        self.call("deregister_image", (image_id,), (), lambda: self.inner.deregister_image(image_id))

    def find_images(self, name: str) -> list[Image]:
        return self.call("find_images", (name,), (), lambda: self.inner.find_images(name))

    def finish_registration(self, image_id: str, image: Image) -> None:
        def function() -> None:
            self.inner.finish_registration(image_id, image)

        self.call("finish_registration", (image_id,), (), function)

    def fidelity(self, image: Image, *, name: str | None = None) -> tuple[AttributeReport, ...]:
        return self.inner.fidelity(image, name=name)
