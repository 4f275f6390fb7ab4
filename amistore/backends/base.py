"""The interfaces to the outside world, in the services' own verbs.

Subclass one to reach a storage of your own; `docs/tutorial-backends.md` shows how, and
`amistore.testing` has a contract suite for each. A method may raise any `BackendError`;
other exceptions are wrapped in one. Every method may be called from several threads at
once. Imports the model, `errors` and `units`, never the container.
"""

from __future__ import annotations

import abc
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic

import attrs
from typing_extensions import Buffer, TypeVar

from amistore.backends.ranges import ObjectRanges, RangeStream
from amistore.errors import BackendError, SourceChangedError
from amistore.model import Image, Tag
from amistore.units import MIB

__all__ = [
    "Backend",
    "Block",
    "BlockPage",
    "BlockSink",
    "BlockSource",
    "BlockStore",
    "ImageRegistry",
    "ObjectInfo",
    "ObjectStore",
    "SnapshotBlock",
    "UploadedPart",
]


_logger = logging.getLogger("amistore")


@attrs.frozen
class Block:
    """A listed block: its index in the volume and the token to get it with."""

    block_index: int
    block_token: str = ""


@attrs.frozen(kw_only=True)
class BlockPage:
    """One answer of ListSnapshotBlocks.

    Attributes:
        volume_size: in GiB, the same in every page.
        blocks: ascending; a page may be short, or empty with a `next_token`.
        next_token: asks for the next page; None ends the list.
    """

    volume_size: int
    blocks: Sequence[Block]
    next_token: str | None = None


@attrs.frozen
class SnapshotBlock:
    """A block's content, 524,288 bytes, and its SHA-256 (32 raw bytes) where the source knows it.

    The digest is compared with that of the content before anything is stored.
    """

    content: Buffer
    checksum: bytes | None = None


class BlockSource(abc.ABC):
    """Where snapshots are read from: EBS's ListSnapshotBlocks and GetSnapshotBlock."""

    @abc.abstractmethod
    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        """List the blocks that exist in a completed snapshot, a page at a time, ascending.

        Raises:
            NotFoundError: no such snapshot.
        """

    @abc.abstractmethod
    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        """Read one listed block."""

    def pages(self, snapshot_id: str) -> Iterator[BlockPage]:
        """All pages of one listing, at least one, checked against each other.

        Raises:
            SourceChangedError: pages that contradict each other.
        """
        last = -1
        size = token = None
        while True:
            page = self.list_snapshot_blocks(snapshot_id, next_token=token)
            if type(page.volume_size) is not int or page.volume_size < 1:
                raise BackendError(
                    f"the listing gives a volume of {page.volume_size!r} GiB", snapshot_id=snapshot_id
                )
            if size not in (None, page.volume_size):
                raise SourceChangedError(
                    f"the volume had {size} GiB and now has {page.volume_size}", snapshot_id=snapshot_id
                )
            size = page.volume_size
            if not isinstance(page.blocks, Sequence):
                raise BackendError(f"a page's blocks are a {type(page.blocks).__name__}, not a sequence")
            for block in page.blocks:
                if not isinstance(block.block_token, str):
                    raise BackendError(f"the token of block {block.block_index!r} is no string")
                if type(block.block_index) is not int or block.block_index <= last:
                    raise BackendError(
                        f"block indexes must ascend from 0: {block.block_index!r} was listed after {last}",
                        snapshot_id=snapshot_id,
                    )
                last = block.block_index
            yield page
            if page.next_token is None:
                return
            if page.next_token == token and not page.blocks:
                raise BackendError("the listing makes no progress", snapshot_id=snapshot_id)
            token = page.next_token


class BlockSink(abc.ABC):
    """Where snapshots are written to: EBS's Start-, Put- and CompleteSnapshot, and DeleteSnapshot."""

    @abc.abstractmethod
    def start_snapshot(self, volume_size: int, *, description: str = "", tags: Sequence[Tag] = ()) -> str:
        """Begin a pending snapshot of `volume_size` GiB and return its new id."""

    @abc.abstractmethod
    def put_snapshot_block(
        self, snapshot_id: str, block_index: int, content: Buffer, checksum: bytes
    ) -> None:
        """Write a block of a pending snapshot, over what it held.

        Args:
            snapshot_id: a pending snapshot.
            block_index: inside the volume.
            content: 524,288 bytes, valid only during the call: copy what you keep.
            checksum: SHA-256 of `content`, 32 raw bytes, to be verified.

        Raises:
            ChecksumMismatchError: `content` does not have that digest.
        """

    @abc.abstractmethod
    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        """Make a pending snapshot readable, if it holds what was meant.

        Args:
            snapshot_id: a pending snapshot.
            changed_blocks_count: number of distinct blocks written.
            checksum: LINEAR, SHA-256 over the blocks' raw digests in index order.

        Raises:
            ChecksumMismatchError: count or checksum differ from what was written.
        """

    @abc.abstractmethod
    def delete_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot, pending or completed."""


class BlockStore(BlockSource, BlockSink):
    """EBS: both directions."""


@attrs.frozen(kw_only=True)
class ObjectInfo:
    """An object: size in bytes, ETag (opaque), and user metadata."""

    size: int
    etag: str
    metadata: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class UploadedPart:
    """A part of a multipart upload: its number (from 1), size in bytes and ETag (opaque)."""

    part_number: int
    size: int
    etag: str


class ObjectStore(abc.ABC):
    """Where objects lie: S3's ranged reads and multipart upload."""

    @abc.abstractmethod
    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        """What is known of an object.

        Raises:
            NotFoundError: no such bucket or object.
        """

    @abc.abstractmethod
    def get_object_range(
        self, bucket: str, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> bytes:
        """Read `length` bytes from `start`, fewer only at the object's end, and none behind it.

        Raises:
            NotFoundError: no such bucket or object.
            SourceChangedError: `if_match` is not the object's ETag.
        """

    @abc.abstractmethod
    def delete_object(self, bucket: str, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    @abc.abstractmethod
    def create_multipart_upload(
        self, bucket: str, key: str, *, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Begin an upload and return its id; the object stays invisible."""

    @abc.abstractmethod
    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        """Store one part, over an earlier one of the same number (1 to 10,000)."""

    @abc.abstractmethod
    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        """The parts that are there, ascending."""

    @abc.abstractmethod
    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        """Make the object of these parts, in ascending order, visible as a whole.

        Raises:
            AlreadyExistsError: `if_none_match` is set and the object exists.
        """

    @abc.abstractmethod
    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; one that is not there is fine."""

    def put_object(
        self,
        bucket: str,
        key: str,
        content: Iterable[Buffer],
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        part_size: int = 16 * MIB,
    ) -> ObjectInfo:
        """Store a whole object from pieces of any size; nothing is left behind on an error.

        Args:
            bucket: must exist.
            key: of the new object.
            content: pieces of bytes, such as `amistore.pack` yields.
            metadata: user metadata.
            if_none_match: refuse when the object exists.
            part_size: bytes that are collected in memory before a part is sent; doubled after
                each 1,000 parts, since an object has 10,000 at most.
        """
        upload = self.create_multipart_upload(bucket, key, metadata=metadata)
        try:
            parts: list[UploadedPart] = []
            pending = bytearray()
            for piece in content:
                pending += piece
                # Doubled every 1,000 parts, so that 10,000 of them hold the largest object.
                if len(pending) >= part_size << len(parts) // 1000:
                    parts.append(self.upload_part(bucket, key, upload, len(parts) + 1, pending))
                    pending = bytearray()
            if pending or not parts:
                parts.append(self.upload_part(bucket, key, upload, len(parts) + 1, pending))
            return self.complete_multipart_upload(bucket, key, upload, parts, if_none_match=if_none_match)
        except BaseException:
            try:
                self.abort_multipart_upload(bucket, key, upload)
            except Exception as error:  # the first error is the one to tell
                _logger.error("upload %s of %s/%s is left behind, abort it: %s", upload, bucket, key, error)
            raise

    def open_object(self, bucket: str, key: str) -> io.BufferedReader:
        """An object as a seekable binary file, pinned to the ETag it has now."""
        return io.BufferedReader(RangeStream(ObjectRanges(self, bucket, key)), 1 * MIB)


class ImageRegistry(abc.ABC):
    """Where images are described and registered: EC2."""

    @abc.abstractmethod
    def describe_image(self, image_id: str) -> Image:
        """All that is known of an image, its snapshots' descriptions included.

        Raises:
            NotFoundError: no such image.
        """

    @abc.abstractmethod
    def describe_images(self) -> list[Image]:
        """Every image of the account, by id."""

    @abc.abstractmethod
    def register_image(self, image: Image, *, name: str | None = None) -> str:
        """Register an image like `image`, whose snapshots must be there and completed, under a new id.

        Args:
            image: such as `amistore.unpack` returns.
            name: its name; None for that of `image`. Names are unique.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidRequestError: the image cannot be registered as it is.
        """

    @abc.abstractmethod
    def deregister_image(self, image_id: str) -> None:
        """Remove an image; its snapshots stay."""


EBS = TypeVar("EBS", bound=BlockStore, default=BlockStore, covariant=True)
S3 = TypeVar("S3", bound=ObjectStore, default=ObjectStore, covariant=True)
EC2 = TypeVar("EC2", bound=ImageRegistry, default=ImageRegistry, covariant=True)


class Backend(Generic[EBS, S3, EC2]):
    """The three services together; replace any one of them.

    Attributes:
        ebs: snapshots.
        s3: objects.
        ec2: images.
    """

    ebs: EBS
    s3: S3
    ec2: EC2

    def __init__(self, *, ebs: EBS, s3: S3, ec2: EC2) -> None:
        self.ebs = ebs
        self.s3 = s3
        self.ec2 = ec2
