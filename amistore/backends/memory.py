"""`MemoryBackend`: the reference implementation, for tests and demonstrations.

It keeps the services' promises: it verifies digests, block tokens expire when the snapshot is listed again,
and completing can be conditional. Nothing survives the process; a forked child has a copy of its own.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import checks
from amistore.backends.base import Backend
from amistore.backends.blocks import Block, BlockPage, BlockStore, SnapshotBlock
from amistore.backends.images import ImageRegistry
from amistore.backends.locations import ObjectInfo, refuse_version
from amistore.backends.objects import ObjectStore
from amistore.backends.uploads import MultipartUpload, UploadedPart
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
)
from amistore.model import Image, Snapshot, Tag

__all__ = ["MemoryBackend"]


@attrs.define
class _Snapshot:
    description: Snapshot
    volume_size: int
    blocks: dict[int, bytes] = attrs.field(factory=dict)
    digests: dict[int, bytes] = attrs.field(factory=dict)
    order: list[int] = attrs.field(factory=list)
    generation: int = 0
    completed_with: tuple[int, bytes] | None = None


class _MemoryEBS(BlockStore):
    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._snapshots: dict[str, _Snapshot] = {}
        self._tokens: dict[str, str] = {}
        self._renew_lock()
        forks.register(self, _MemoryEBS._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def __reduce__(self) -> str:
        raise InvalidRequestError(
            "a MemoryBackend lives in one process and cannot be sent to another: use a DirectoryBackend"
        )

    def encrypts_snapshots(self) -> bool:
        return False

    def describe_snapshot(self, snapshot_id: str) -> Snapshot:
        return self._find(snapshot_id, "describe_snapshot").description

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        with self._lock:
            snapshot = self._find(snapshot_id, "list_snapshot_blocks", state="completed")
            if next_token is None:
                snapshot.generation += 1
                snapshot.order = sorted(snapshot.blocks)
                start = 0
            else:
                generation, _, place = next_token.partition(":")
                if generation != str(snapshot.generation) or not place.isdecimal():
                    raise BackendError(
                        "the page token has expired",
                        operation="list_snapshot_blocks",
                        snapshot_id=snapshot_id,
                    )
                start = int(place)
            end = start + self._page_size
            token = str(snapshot.generation)
            return BlockPage(
                volume_size=snapshot.volume_size,
                blocks=[Block(index, token) for index in snapshot.order[start:end]],
                next_token=f"{token}:{end}" if end < len(snapshot.order) else None,
            )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        snapshot = self._find(snapshot_id, "get_snapshot_block", state="completed")
        if block_token != str(snapshot.generation):
            raise BackendError(
                "the block token has expired",
                operation="get_snapshot_block",
                snapshot_id=snapshot_id,
                block_index=block_index,
            )
        if block_index not in snapshot.blocks:
            raise NotFoundError(
                "no such block",
                operation="get_snapshot_block",
                snapshot_id=snapshot_id,
                block_index=block_index,
            )
        return SnapshotBlock(snapshot.blocks[block_index], snapshot.digests[block_index])

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        checks.check_volume_size(volume_size)
        described = Snapshot(
            snapshot_id=checks.new_id("snap"),
            volume_size=volume_size,
            description=description,
            tags=tuple(tags),
            state="pending",
        )
        with self._lock:
            if client_token is not None:
                started = self._tokens.setdefault(client_token, described.snapshot_id)
                if started != described.snapshot_id:
                    return started
            self._snapshots[described.snapshot_id] = _Snapshot(described, volume_size)
        return described.snapshot_id

    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        volume_size = self._find(snapshot_id, "put_snapshot_block", state="pending").volume_size
        checks.check_block(snapshot_id, volume_size, block_index, content, checksum)
        copy = bytes(content)
        with self._lock:
            snapshot = self._find(snapshot_id, "put_snapshot_block", state="pending")
            snapshot.blocks[block_index] = copy
            snapshot.digests[block_index] = checksum

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        with self._lock:
            snapshot = self._find(snapshot_id, "complete_snapshot")
            if snapshot.completed_with == (changed_blocks_count, checksum):
                return
            snapshot = self._find(snapshot_id, "complete_snapshot", state="pending")
            checks.check_complete(snapshot_id, snapshot.digests, changed_blocks_count, checksum)
            snapshot.completed_with = changed_blocks_count, checksum
            snapshot.description = attrs.evolve(snapshot.description, state="completed")

    def delete_snapshot(self, snapshot_id: str) -> None:
        with self._lock:
            self._find(snapshot_id, "delete_snapshot")
            del self._snapshots[snapshot_id]

    def _find(self, snapshot_id: str, operation: str, *, state: str | None = None) -> _Snapshot:
        snapshot = self._snapshots.get(snapshot_id)
        if snapshot is None:
            raise NotFoundError("no such snapshot", operation=operation, snapshot_id=snapshot_id)
        if state is not None and snapshot.description.state != state:
            raise BackendError(
                f"the snapshot is {snapshot.description.state}, not {state}",
                operation=operation,
                snapshot_id=snapshot_id,
            )
        return snapshot


@attrs.define
class _Object:
    info: ObjectInfo
    content: bytes
    tags: dict[str, str]


@attrs.define
class _Upload:
    metadata: dict[str, str]
    tags: dict[str, str]
    parts: dict[int, bytes] = attrs.field(factory=dict)


class _MemoryS3(ObjectStore):
    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, _Object]] = {}
        self._uploads: dict[tuple[str, str, str], _Upload] = {}
        self._renew_lock()
        forks.register(self, _MemoryS3._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket, unless it exists."""
        checks.check_bucket(bucket)
        with self._lock:
            self._buckets.setdefault(bucket, {})

    def head_bucket(self, bucket: str) -> None:
        self._bucket(bucket)

    def head_object(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        refuse_version(version)
        return self._object(bucket, key).info

    def get_object_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        *,
        if_match: str | None = None,
        version: str | None = None,
    ) -> bytes:
        refuse_version(version)
        checks.check_range(start, length)
        found = self._object(bucket, key)
        if if_match not in (None, found.info.etag):
            raise SourceChangedError("the object was replaced", bucket=bucket, key=key)
        return found.content[start : start + length]

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        checks.check_key(key)
        with self._lock:
            found = self._bucket(bucket).get(key)
            if found is not None and if_match not in (None, found.info.etag):
                raise SourceChangedError("the object was replaced", bucket=bucket, key=key)
            self._bucket(bucket).pop(key, None)

    def create_multipart_upload(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        self._bucket(bucket)
        checks.check_key(key)
        upload_id = checks.new_id("upload")
        with self._lock:
            self._uploads[bucket, key, upload_id] = _Upload(dict(metadata or {}), dict(tags or {}))
        return upload_id

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        checks.check_part_number(part_number)
        copy = bytes(content)
        with self._lock:
            self._upload(bucket, key, upload_id).parts[part_number] = copy
        return _part(part_number, copy)

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        parts = dict(self._upload(bucket, key, upload_id).parts)
        return [_part(number, content) for number, content in sorted(parts.items())]

    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        with self._lock:
            checks.check_parts(bucket, key, parts, self.list_parts(bucket, key, upload_id))
            upload = self._upload(bucket, key, upload_id)
            if if_none_match and key in self._bucket(bucket):
                raise AlreadyExistsError("the object exists", bucket=bucket, key=key)
            content = b"".join(upload.parts[part.part_number] for part in parts)
            etag = hashlib.sha256(content).hexdigest()[:32]
            info = ObjectInfo(size=len(content), etag=etag, metadata=upload.metadata)
            self._bucket(bucket)[key] = _Object(info, content, upload.tags)
            del self._uploads[bucket, key, upload_id]
        return info

    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        with self._lock:
            self._uploads.pop((bucket, key, upload_id), None)

    def get_object_tagging(self, bucket: str, key: str) -> dict[str, str]:
        return dict(self._object(bucket, key).tags)

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        with self._lock:
            keys = sorted(self._bucket(bucket), key=str.encode)
        return [key for key in keys if key.startswith(prefix)]

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        self._bucket(bucket)
        with self._lock:
            found = sorted((key, upload) for place, key, upload in self._uploads if place == bucket)
        return [MultipartUpload(key=key, upload_id=upload) for key, upload in found if key.startswith(prefix)]

    def _bucket(self, bucket: str) -> dict[str, _Object]:
        checks.check_bucket(bucket)
        if bucket not in self._buckets:
            raise NotFoundError("no such bucket: make it with create_bucket", bucket=bucket)
        return self._buckets[bucket]

    def _object(self, bucket: str, key: str) -> _Object:
        checks.check_key(key)
        found = self._bucket(bucket).get(key)
        if found is None:
            raise NotFoundError("no such object", bucket=bucket, key=key)
        return found

    def _upload(self, bucket: str, key: str, upload_id: str) -> _Upload:
        if (bucket, key, upload_id) not in self._uploads:
            raise NotFoundError("no such upload", bucket=bucket, key=key)
        return self._uploads[bucket, key, upload_id]


def _part(number: int, content: bytes) -> UploadedPart:
    return UploadedPart(part_number=number, size=len(content), etag=hashlib.sha256(content).hexdigest()[:32])


class _MemoryEC2(ImageRegistry):
    def __init__(self, ebs: _MemoryEBS) -> None:
        self._ebs = ebs
        self._images: dict[str, Image] = {}
        self._renew_lock()
        forks.register(self, _MemoryEC2._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def describe_image(self, image_id: str) -> Image:
        checks.check_image_id(image_id)
        if image_id not in self._images:
            raise NotFoundError("no such image", operation="describe_image", image_id=image_id)
        return self._images[image_id]

    def describe_images(self) -> list[Image]:
        with self._lock:
            return [image for _, image in sorted(self._images.items())]

    def reserve_image_id(self) -> str | None:
        return checks.new_id("ami")

    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        registered = checks.new_image(image, name, self._ebs.describe_snapshot, image_id)
        with self._lock:
            checks.check_untaken(registered, self._images.values())
            self._images[registered.image_id] = registered
        return registered.image_id

    def deregister_image(self, image_id: str) -> None:
        with self._lock:
            self.describe_image(image_id)
            del self._images[image_id]


class MemoryBackend(Backend[_MemoryEBS, _MemoryS3, _MemoryEC2]):
    """EC2, EBS and S3 in this process's memory.

    Args:
        page_size: the number of blocks in a page of ListSnapshotBlocks.
    """

    journal = ":memory:"

    def __init__(self, *, page_size: int = 10_000) -> None:
        ebs = _MemoryEBS(page_size)
        super().__init__(ebs=ebs, s3=_MemoryS3(), ec2=_MemoryEC2(ebs))

    def __repr__(self) -> str:
        return "MemoryBackend()"
