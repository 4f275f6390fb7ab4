"""Store a whole Amazon Machine Image as one compressed, verifiable file, and restore it.

`pack` and `unpack` turn an image and its snapshots into a container's bytes and back,
`open` looks into one, and a `Backend` says where images, snapshots and objects are.
"""

from amistore.backends import (
    Backend,
    Block,
    BlockPage,
    BlockSink,
    BlockSource,
    BlockStore,
    DirectoryBackend,
    ImageRegistry,
    MemoryBackend,
    ObjectInfo,
    ObjectStore,
    SnapshotBlock,
    UploadedPart,
)
from amistore.container import Layout
from amistore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    AmistoreError,
    ArchiveError,
    BackendError,
    ChecksumMismatchError,
    CorruptArchiveError,
    InvalidRequestError,
    InvalidValueError,
    NotFoundError,
    SourceChangedError,
    StorageFullError,
    TruncatedArchiveError,
    UnsupportedArchiveError,
)
from amistore.model import (
    BlockDeviceMapping,
    EbsBlockDevice,
    Image,
    ProductCode,
    Snapshot,
    Tag,
)
from amistore.pipeline import Archive, Phase, Progress, Volume, pack, unpack
from amistore.pipeline import open_archive as open
from amistore.units import BLOCK_SIZE, GIB, KIB, MIB, TIB

__all__ = [
    "BLOCK_SIZE",
    "GIB",
    "KIB",
    "MIB",
    "TIB",
    "AccessDeniedError",
    "AlreadyExistsError",
    "AmistoreError",
    "Archive",
    "ArchiveError",
    "Backend",
    "BackendError",
    "Block",
    "BlockDeviceMapping",
    "BlockPage",
    "BlockSink",
    "BlockSource",
    "BlockStore",
    "ChecksumMismatchError",
    "CorruptArchiveError",
    "DirectoryBackend",
    "EbsBlockDevice",
    "Image",
    "ImageRegistry",
    "InvalidRequestError",
    "InvalidValueError",
    "Layout",
    "MemoryBackend",
    "NotFoundError",
    "ObjectInfo",
    "ObjectStore",
    "Phase",
    "ProductCode",
    "Progress",
    "Snapshot",
    "SnapshotBlock",
    "SourceChangedError",
    "StorageFullError",
    "Tag",
    "TruncatedArchiveError",
    "UnsupportedArchiveError",
    "UploadedPart",
    "Volume",
    "open",
    "pack",
    "unpack",
]

__version__ = "0.1.0"
