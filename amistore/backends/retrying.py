"""`RetryingBackend`: any backend, with calls made again as `retries.py` says.

What a second attempt must not do twice is told apart here: starting, completing, removing
and registering, when it was only the first attempt's answer that was lost.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import attrs
from typing_extensions import Buffer

from amistore.backends.base import Backend, check_backend
from amistore.backends.blocks import BlockPage, BlockStore, SnapshotBlock
from amistore.backends.images import ImageRegistry
from amistore.backends.objects import MultipartUpload, ObjectInfo, ObjectLocation, ObjectStore, UploadedPart
from amistore.backends.retries import Retrier, RetryPolicy
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    ChecksumMismatchError,
    NotFoundError,
)
from amistore.model import AttributeReport, Image, Snapshot, Tag
from amistore.units import BLOCK_SIZE

__all__ = ["RetryingBackend"]

R = TypeVar("R")
S = TypeVar("S", BlockStore, ObjectStore, ImageRegistry)


@attrs.frozen
class _RetryingBlockStore(BlockStore):
    inner: BlockStore
    retrier: Retrier = attrs.field(repr=False)

    @property
    def where(self) -> str:  # type: ignore[override]
        return self.inner.where

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        return self.retrier.call(
            snapshot_id, self.inner.list_snapshot_blocks, snapshot_id, next_token=next_token
        )

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        return self.retrier.call(snapshot_id, self._get, snapshot_id, block_index, block_token)

    def _get(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        """A block that is what its source says, so that a damaged answer is asked for again."""
        block = self.inner.get_snapshot_block(snapshot_id, block_index, block_token)
        size = memoryview(block.content).nbytes
        if size != BLOCK_SIZE:
            raise BackendError(
                f"the source gave {size} bytes for a block of {BLOCK_SIZE}",
                retryable=True,
                operation="get_snapshot_block",
                snapshot_id=snapshot_id,
                block_index=block_index,
            )
        if block.checksum is not None and block.checksum != hashlib.sha256(block.content).digest():
            raise ChecksumMismatchError(
                "the block's content does not have the SHA-256 that its source gives",
                retryable=True,
                operation="get_snapshot_block",
                snapshot_id=snapshot_id,
                block_index=block_index,
            )
        return block

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        # With a token, so that an answer that was lost leaves no second snapshot.
        token = client_token or secrets.token_hex(16)
        return self.retrier.call(
            "ebs",
            self.inner.start_snapshot,
            volume_size,
            description=description,
            tags=tags,
            client_token=token,
        )

    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        self.retrier.call(
            snapshot_id, self.inner.put_snapshot_block, snapshot_id, block_index, content, checksum
        )

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        self.retrier.call("ebs", self.inner.complete_snapshot, snapshot_id, changed_blocks_count, checksum)

    def delete_snapshot(self, snapshot_id: str) -> None:
        self.retrier.call("ec2", _Removal(self.inner.delete_snapshot), snapshot_id)

    def encrypts_snapshots(self) -> bool | None:
        return self.retrier.call("ec2", self.inner.encrypts_snapshots)

    def describe_snapshot(self, snapshot_id: str) -> Snapshot:
        return self.retrier.call("ec2", self.inner.describe_snapshot, snapshot_id)


class _Removal:
    """A call that removes: not found is what it wants, once an attempt's answer was lost."""

    def __init__(self, remove: Callable[[str], None]) -> None:
        self._remove = remove
        self._lost = False

    def __call__(self, name: str) -> None:
        try:
            self._remove(name)
        except NotFoundError:
            if not self._lost:
                raise
        except (BackendError, OSError):
            self._lost = True
            raise


@attrs.frozen
class _RetryingObjectStore(ObjectStore):
    inner: ObjectStore
    retrier: Retrier = attrs.field(repr=False)

    @property
    def where(self) -> str:  # type: ignore[override]
        return self.inner.where

    @property
    def scheme(self) -> str:  # type: ignore[override]
        return self.inner.scheme

    def _call(self, function: Callable[..., R], *arguments: Any, **options: Any) -> R:
        return self.retrier.call("s3", function, *arguments, **options)

    def head_bucket(self, bucket: str) -> None:
        self._call(self.inner.head_bucket, bucket)

    def bucket_warnings(self, bucket: str) -> tuple[str, ...]:
        return self._call(self.inner.bucket_warnings, bucket)

    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        return self._call(self.inner.head_object, bucket, key)

    def get_object_range(
        self, bucket: str, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> bytes:
        return self._call(self.inner.get_object_range, bucket, key, start, length, if_match=if_match)

    def get_intact_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        intact: Callable[[bytes], bool],
        *,
        if_match: str | None = None,
    ) -> bytes:
        get = self.inner.get_object_range
        return self.retrier.call_until(intact, "s3", get, bucket, key, start, length, if_match=if_match)

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        self._call(self.inner.delete_object, bucket, key, if_match=if_match)

    def create_multipart_upload(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        return self._call(self.inner.create_multipart_upload, bucket, key, metadata=metadata, tags=tags)

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        return self._call(self.inner.upload_part, bucket, key, upload_id, part_number, content)

    def upload_part_file(
        self, bucket: str, key: str, upload_id: str, part_number: int, file: BinaryIO
    ) -> UploadedPart:
        return self._call(self.inner.upload_part_file, bucket, key, upload_id, part_number, file)

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        return self._call(self.inner.list_parts, bucket, key, upload_id)

    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        return self._call(_Completion(self.inner, bucket, key, upload_id), parts, if_none_match)

    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        self._call(self.inner.abort_multipart_upload, bucket, key, upload_id)

    def get_object_tagging(self, bucket: str, key: str) -> dict[str, str]:
        return self._call(self.inner.get_object_tagging, bucket, key)

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        return self._call(self.inner.list_multipart_uploads, bucket, prefix)

    def list_objects(self, bucket: str, prefix: str = "") -> Iterator[ObjectLocation]:
        # From its start again: a page alone cannot be asked for.
        keys = self._call(lambda: [each.key for each in self.inner.list_objects(bucket, prefix)])
        return (self.at(bucket, key) for key in keys)


class _Completion:
    """Completes an upload; after a lost answer, an upload that is gone is one that was completed.

    Nobody else knows its id. S3 may answer that the object exists before it looks for the upload.
    """

    def __init__(self, store: ObjectStore, bucket: str, key: str, upload_id: str) -> None:
        self._store = store
        self._place = bucket, key
        self._upload_id = upload_id
        self._lost = False

    def __call__(self, parts: Sequence[UploadedPart], if_none_match: bool) -> ObjectInfo:
        try:
            return self._store.complete_multipart_upload(
                *self._place, self._upload_id, parts, if_none_match=if_none_match
            )
        except (NotFoundError, AlreadyExistsError):
            if self._lost and self._gone():
                found = self._store.head_object(*self._place)
                if found.size == sum(part.size for part in parts):
                    return found
            raise
        except (BackendError, OSError):
            self._lost = True
            raise

    def _gone(self) -> bool:
        try:
            self._store.list_parts(*self._place, self._upload_id)
        except NotFoundError:
            return True
        return False


@attrs.frozen
class _RetryingImageRegistry(ImageRegistry):
    inner: ImageRegistry
    retrier: Retrier = attrs.field(repr=False)

    def _call(self, function: Callable[..., R], *arguments: Any, **options: Any) -> R:
        return self.retrier.call("ec2", function, *arguments, **options)

    def describe_image(self, image_id: str) -> Image:
        return self._call(self.inner.describe_image, image_id)

    def describe_images(self) -> list[Image]:
        return self._call(self.inner.describe_images)

    @property
    def region_name(self) -> str | None:  # type: ignore[override]
        return self.inner.region_name

    def reserve_image_id(self) -> str | None:
        return self._call(self.inner.reserve_image_id)

    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        return self._call(_Registration(self.inner), image, name, image_id)

    def dry_run_register_image(self, image: Image, *, name: str | None = None) -> None:
        self._call(self.inner.dry_run_register_image, image, name=name)

    def deregister_image(self, image_id: str) -> None:
        self._call(_Removal(self.inner.deregister_image), image_id)

    def find_images(self, name: str) -> list[Image]:
        return self._call(self.inner.find_images, name)

    def finish_registration(self, image_id: str, image: Image) -> None:
        self._call(self.inner.finish_registration, image_id, image)

    def fidelity(self, image: Image, *, name: str | None = None) -> tuple[AttributeReport, ...]:
        return self.inner.fidelity(image, name=name)


class _Registration:
    """RegisterImage has no client token: a name that is taken after a lost answer may be our own image's.

    It is if that image is on the same snapshots, since those are registered once.
    """

    def __init__(self, registry: ImageRegistry) -> None:
        self._registry = registry
        self._lost = False

    def __call__(self, image: Image, name: str | None, image_id: str | None) -> str:
        try:
            return self._registry.register_image(image, name=name, image_id=image_id)
        except AlreadyExistsError:
            if self._lost:
                for found in self._registry.find_images(name or image.name or ""):
                    if found.snapshot_ids == image.snapshot_ids:
                        self._registry.finish_registration(found.image_id, image)
                        return found.image_id
            raise
        except (BackendError, OSError):
            self._lost = True
            raise


def _once(service: S) -> S:
    """The service with one attempt a call: retries around retries would make 25 attempts of 5."""
    inner: S = getattr(service, "inner", service)
    return inner if isinstance(service, _RETRYING) else service


_RETRYING = (_RetryingBlockStore, _RetryingObjectStore, _RetryingImageRegistry)


class RetryingBackend(Backend):
    """A backend whose calls are tried again where that may help.

    Args:
        inner: makes one attempt a call. Where it makes more, as an `AWSBackend` does, only this one's
            are made.
        retries: how long is tried, or a `Retrier` to share; None for what AWS advises.
    """

    def __init__(self, inner: Backend, retries: RetryPolicy | Retrier | None = None) -> None:
        check_backend(inner, "backend")
        retrier = retries if isinstance(retries, Retrier) else Retrier(retries or RetryPolicy())
        super().__init__(
            ebs=_RetryingBlockStore(inner=_once(inner.ebs), retrier=retrier),
            s3=_RetryingObjectStore(inner=_once(inner.s3), retrier=retrier),
            ec2=_RetryingImageRegistry(inner=_once(inner.ec2), retrier=retrier),
        )
        self.journal = inner.journal
        self._inner = inner
        self._retrier = retrier

    def __repr__(self) -> str:
        return f"RetryingBackend({self._inner!r})"

    def preflight(self, image: Image) -> None:
        if isinstance(self._inner, RetryingBackend):  # which makes its own calls again
            self._inner.preflight(image)
        else:
            self._retrier.call("ec2", self._inner.preflight, image)

    def sweep(self) -> tuple[str, ...]:
        return self._inner.sweep()
