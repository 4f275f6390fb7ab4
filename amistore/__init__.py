"""Store a whole Amazon Machine Image as one compressed, verifiable file, and restore it.

`pack` and `unpack` turn an image and its snapshots into a container's bytes and back,
`open` looks into one, and a `Backend` says where images, snapshots and objects are. `AWSBackend`,
`ObjectSettings`, `SnapshotSettings` (extra ``aws``) and `amistore.ec2` are imported when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from amistore.archive import (
    Archive,
    AttributeChange,
    Difference,
    RecoveryReport,
    VerifyReport,
    Volume,
    VolumeDifference,
    VolumeRecovery,
    compare,
    diff,
    recover,
)
from amistore.archive import open_archive as open
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
    MultipartUpload,
    ObjectInfo,
    ObjectStore,
    RetryingBackend,
    RetryPolicy,
    SnapshotBlock,
    UploadedPart,
)
from amistore.container import Layout
from amistore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    AmistoreError,
    ArchivedObjectError,
    ArchiveError,
    BackendError,
    ChecksumMismatchError,
    CorruptArchiveError,
    CredentialsExpiredError,
    InvalidRequestError,
    InvalidValueError,
    JournalError,
    LostBlocksError,
    NotFoundError,
    ResourcesExhaustedError,
    SourceChangedError,
    StorageFullError,
    TaskFailedError,
    ThrottledError,
    TruncatedArchiveError,
    UnsupportedArchiveError,
)
from amistore.model import (
    AttributeReport,
    BlockDeviceMapping,
    BlockRange,
    EbsBlockDevice,
    Fate,
    Image,
    ProductCode,
    Snapshot,
    Tag,
)
from amistore.objects import (
    FileResumeLog,
    ResumeLog,
    StoredArchive,
    TransferredImage,
    abandon,
    copy_object,
    pack_object,
    restore_image,
    transfer,
    unpack_object,
)
from amistore.pipeline import ArchiveBytes, Phase, Progress, pack, unpack
from amistore.tasks import (
    Prices,
    Quotas,
    RequestRates,
    RestoreImageTask,
    RestorePlan,
    StoreImageTask,
    StorePlan,
    SweepReport,
    TagSpecification,
    Task,
    TaskEngine,
    TaskPage,
    TaskPlan,
)
from amistore.units import BLOCK_SIZE, GIB, KIB, MIB, TIB

if TYPE_CHECKING:
    from amistore import ec2 as ec2
    from amistore.backends.aws.backend import AWSBackend as AWSBackend
    from amistore.backends.aws.settings import ObjectSettings as ObjectSettings
    from amistore.backends.aws.settings import SnapshotSettings as SnapshotSettings

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
    "ArchiveBytes",
    "ArchiveError",
    "ArchivedObjectError",
    "AttributeChange",
    "AttributeReport",
    "Backend",
    "BackendError",
    "Block",
    "BlockDeviceMapping",
    "BlockPage",
    "BlockRange",
    "BlockSink",
    "BlockSource",
    "BlockStore",
    "ChecksumMismatchError",
    "CorruptArchiveError",
    "CredentialsExpiredError",
    "Difference",
    "DirectoryBackend",
    "EbsBlockDevice",
    "Fate",
    "FileResumeLog",
    "Image",
    "ImageRegistry",
    "InvalidRequestError",
    "InvalidValueError",
    "JournalError",
    "Layout",
    "LostBlocksError",
    "MemoryBackend",
    "MultipartUpload",
    "NotFoundError",
    "ObjectInfo",
    "ObjectStore",
    "Phase",
    "Prices",
    "ProductCode",
    "Progress",
    "Quotas",
    "RecoveryReport",
    "RequestRates",
    "ResourcesExhaustedError",
    "RestoreImageTask",
    "RestorePlan",
    "ResumeLog",
    "RetryPolicy",
    "RetryingBackend",
    "Snapshot",
    "SnapshotBlock",
    "SourceChangedError",
    "StorageFullError",
    "StoreImageTask",
    "StorePlan",
    "StoredArchive",
    "SweepReport",
    "Tag",
    "TagSpecification",
    "Task",
    "TaskEngine",
    "TaskFailedError",
    "TaskPage",
    "TaskPlan",
    "ThrottledError",
    "TransferredImage",
    "TruncatedArchiveError",
    "UnsupportedArchiveError",
    "UploadedPart",
    "VerifyReport",
    "Volume",
    "VolumeDifference",
    "VolumeRecovery",
    "abandon",
    "compare",
    "copy_object",
    "diff",
    "open",
    "pack",
    "pack_object",
    "recover",
    "restore_image",
    "transfer",
    "unpack",
    "unpack_object",
]

__version__ = "0.1.0"

# What needs an extra, or uses one, is imported when it is used, and not named in `__all__`.
_OF_AWS = {"AWSBackend": "backend", "ObjectSettings": "settings", "SnapshotSettings": "settings"}


def __dir__() -> list[str]:
    return sorted([*__all__, *_OF_AWS, "__version__", "ec2"])


def __getattr__(name: str) -> Any:
    if name == "ec2":
        return importlib.import_module("amistore.ec2")
    if name not in _OF_AWS:
        raise AttributeError(f"module 'amistore' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"amistore.backends.aws.{_OF_AWS[name]}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs {error.name}: pip install 'amistore[aws]'") from error
    return getattr(module, name)
