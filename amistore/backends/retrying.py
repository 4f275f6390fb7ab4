"""`RetryingBackend`: any backend, with the retries of `retries.py`.

It knows the calls that a second attempt must not do twice: starting, completing, removing and registering,
where only the first attempt's answer was lost.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar, cast

from typing_extensions import Buffer, Self

from amistore.backends.base import Backend, check_backend
from amistore.backends.blocks import BlockStore, SnapshotBlock, beginner, check_answer, check_digest
from amistore.backends.forwarding import Forwarding
from amistore.backends.images import ImageRegistry
from amistore.backends.interface import Interface
from amistore.backends.locations import ObjectInfo, version_option
from amistore.backends.objects import ObjectStore
from amistore.backends.receiving import Content
from amistore.backends.retries import Attempts, Retrier, RetryPolicy
from amistore.backends.uploads import UploadedPart
from amistore.errors import AlreadyExistsError, BackendError, NotFoundError
from amistore.model import Image, Tag

__all__ = ["RetryingBackend"]

R = TypeVar("R")
S = TypeVar("S", bound=Interface)


class _Retrying(Forwarding[S]):
    """A service whose calls go through a retrier."""

    _pace: str
    """Of which calls slow down together: a service."""

    def __init__(self, inner: S, retrier: Retrier) -> None:
        super().__init__(inner)
        self.retrier = retrier

    def _call(self, verb: str, function: Callable[..., R], /, *arguments: Any, **options: Any) -> R:
        return self.retrier.call(self._pace, function, *arguments, **options)


# The calls that EC2 answers, not the EBS direct APIs; and those that are limited by snapshot.
_OF_EC2: Final = frozenset({"delete_snapshot", "describe_snapshot", "encrypts_snapshots"})
_OF_SNAPSHOT: Final = frozenset({"list_snapshot_blocks", "get_snapshot_block", "put_snapshot_block"})


class _RetryingBlockStore(_Retrying[BlockStore], BlockStore):
    def limited(self, rate: float) -> Self:
        """The same store, whose calls keep to so many a second."""
        return self.around(self.inner, self.retrier.limited(rate))

    @property
    def throttled(self) -> int:
        """How many calls to EBS were refused as too many; a run's log says so."""
        return sum(count for pace, count in self.retrier.throttled.items() if pace not in ("ec2", "s3"))

    def _call(self, verb: str, function: Callable[..., R], /, *arguments: Any, **options: Any) -> R:
        pace = "ec2" if verb in _OF_EC2 else "ebs"
        if verb in _OF_SNAPSHOT:
            pace = str(arguments[0] if arguments else options["snapshot_id"])
        return self.retrier.call(pace, function, *arguments, **options)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        return self.retrier.call(snapshot_id, self._get, snapshot_id, block_index, block_token)

    def _get(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        """Get a block with the digest that its source gives, so that a damaged answer is asked for again."""
        answer = self.inner.get_snapshot_block(snapshot_id, block_index, block_token)
        return check_digest(check_answer(answer, snapshot_id, block_index), snapshot_id, block_index)

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        # With a token, so that an answer that was lost leaves no second snapshot.
        return self.retrier.call(
            "ebs",
            self.inner.start_snapshot,
            volume_size,
            description=description,
            tags=tags,
            client_token=client_token or secrets.token_hex(16),
        )

    def delete_snapshot(self, snapshot_id: str) -> None:
        self.retrier.call("ec2", _Removal(self.inner.delete_snapshot), snapshot_id)


class _ManyInFlight(_RetryingBlockStore):
    """A store whose inner one has many requests in flight, and makes their further attempts itself."""

    inner: Any

    def attempts(self, snapshot_id: str) -> Attempts:
        """The attempts of one get, for who begins it, and compares its block with the digest."""
        return self.retrier.attempts(snapshot_id)

    def begin_get(
        self, snapshot_id: str, block_index: int, block_token: str, attempts: Attempts | None = None
    ) -> Future[SnapshotBlock]:
        """Begin to get a block, or go on with its attempts; the digest is not compared."""
        found: Future[SnapshotBlock] = self.inner.begin_get(
            snapshot_id, block_index, block_token, attempts or self.attempts(snapshot_id)
        )
        return found

    def begin_put(self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes) -> Future[None]:
        done: Future[None] = self.inner.begin_put(
            snapshot_id, block_index, content, checksum, self.retrier.attempts(snapshot_id)
        )
        return done


def _retrying_blocks(inner: BlockStore, retrier: Retrier) -> _RetryingBlockStore:
    begins = beginner(inner, "begin_get", "get_snapshot_block") and beginner(
        inner, "begin_put", "put_snapshot_block"
    )
    kind = _ManyInFlight if begins else _RetryingBlockStore
    return kind.around(inner, retrier)


class _Removal:
    """A call that removes: "not found" is success, once an attempt's answer was lost."""

    def __init__(self, remove: Callable[[str], None]) -> None:
        self._remove = remove
        self._lost = False

    def __call__(self, name: str) -> None:
        try:
            self._remove(name)
        except NotFoundError:
            if not self._lost:
                raise
        except BackendError:
            self._lost = True
            raise


class _RetryingObjectStore(_Retrying[ObjectStore], ObjectStore):
    _pace = "s3"

    def get_intact_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        intact: Callable[[Content], bool],
        *,
        if_match: str | None = None,
        version: str | None = None,
    ) -> Content:
        get = functools.partial(self.inner.get_intact_range, bucket, key, start, length, intact)
        return self.retrier.call_until(intact, "s3", get, if_match=if_match, **version_option(version))

    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        completion = _Completion(self.inner, bucket, key, upload_id)
        return self.retrier.call("s3", completion, parts, if_none_match)


class _Completion:
    """Completes an upload; after a lost answer, an upload that is gone was completed.

    Only its own run completes it. S3 may answer that the object exists before it looks for the upload.
    """

    def __init__(self, store: ObjectStore, bucket: str, key: str, upload_id: str) -> None:
        self._store = store
        self._object = bucket, key
        self._upload_id = upload_id
        self._lost = False

    def __call__(self, parts: Sequence[UploadedPart], if_none_match: bool) -> ObjectInfo:
        if self._lost and (made := self._made(parts, gone=self._gone())):
            return made
        try:
            return self._store.complete_multipart_upload(
                *self._object, self._upload_id, parts, if_none_match=if_none_match
            )
        except (NotFoundError, AlreadyExistsError) as error:
            gone = self._lost and (isinstance(error, NotFoundError) or self._gone())
            if made := self._made(parts, gone=gone):
                return made
            self._lost = self._lost or error.retryable
            raise
        except BackendError:
            self._lost = True
            raise

    def _made(self, parts: Sequence[UploadedPart], *, gone: bool) -> ObjectInfo | None:
        """The object that an upload that is gone became; None where it is another one."""
        if not gone:
            return None
        try:
            found = self._store.head_object(*self._object)
        except NotFoundError as error:  # some stores show an object a little later
            error.message += "; its upload is completed, or gone"
            error.retryable = True
            raise
        return found if found.size == sum(part.size for part in parts) else None

    def _gone(self) -> bool:
        """Whether the upload is known to be gone; some stores do not list parts."""
        if not self._store.traits.part_listing:
            return False
        try:
            self._store.list_parts(*self._object, self._upload_id)
        except NotFoundError:
            return True
        except BackendError:
            return False
        return False


class _RetryingImageRegistry(_Retrying[ImageRegistry], ImageRegistry):
    _pace = "ec2"

    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        return self.retrier.call("ec2", _Registration(self.inner), image, name, image_id)

    def deregister_image(self, image_id: str) -> None:
        self.retrier.call("ec2", _Removal(self.inner.deregister_image), image_id)


class _Registration:
    """RegisterImage has no client token: after a lost answer, a taken name may be our own image's.

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
        except BackendError:
            self._lost = True
            raise


def _once(service: S) -> S:
    """The service without its retries: retries around retries would make 25 attempts of 5."""
    return cast(S, service.inner) if isinstance(service, _Retrying) else service


class RetryingBackend(Forwarding[Backend], Backend):
    """A backend with retries.

    Args:
        inner: the backend to wrap. If it has retries of its own, as an `AWSBackend` does, they are left out.
        retries: the limits of retries, or a `Retrier` to share; None for what AWS advises.
    """

    def __init__(self, inner: Backend, retries: RetryPolicy | Retrier | None = None) -> None:
        check_backend(inner, "backend")
        retrier = retries if isinstance(retries, Retrier) else Retrier(retries or RetryPolicy())
        Forwarding.__init__(self, inner)
        Backend.__init__(
            self,
            ebs=_retrying_blocks(_once(inner.ebs), retrier),
            s3=_RetryingObjectStore.around(_once(inner.s3), retrier),
            ec2=_RetryingImageRegistry.around(_once(inner.ec2), retrier),
        )
        self._retrier = retrier

    def _call(self, verb: str, function: Callable[..., R], /, *arguments: Any, **options: Any) -> R:
        if isinstance(self.inner, RetryingBackend):  # which makes its own calls again
            return function(*arguments, **options)
        return self._retrier.call("ec2", function, *arguments, **options)
