"""Store a whole Amazon Machine Image as one compressed, verifiable file, and restore it.

`store` makes an archive of an AMI, `restore` an AMI of an archive; `pack` and `unpack` do the same with
bytes. `open` looks into an archive, `transfer` copies an AMI to another backend, and a `TaskEngine` queues
such jobs. A `Backend` has the images, snapshots and objects; `amistore.backends` has what authors of backends
need. `AWSBackend`, `ObjectSettings`, `SnapshotSettings` (extra ``aws``) and `amistore.ec2` are imported on
use.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from amistore.archive import Archive, VerifyReport, recover
from amistore.archive import open_archive as open
from amistore.backends import (
    Backend,
    DirectoryBackend,
    MemoryBackend,
    ObjectLocation,
    Quotas,
    RetryingBackend,
    RetryPolicy,
)
from amistore.container.layout import Layout
from amistore.disks import DiskSource, DiskStream, import_disks, import_snapshot
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
    InvalidTokenError,
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
from amistore.model import BlockDeviceMapping, EbsBlockDevice, Image, Snapshot, Tag
from amistore.objects import (
    FileResumeLog,
    RestoredImage,
    ResumeLog,
    StoredArchive,
    abandon,
    copy,
    find_archives,
    restore,
    store,
    transfer,
    unpack,
)
from amistore.pipeline import PackOptions, Progress, pack
from amistore.tasks import (
    Prices,
    RequestRates,
    RestoreImageTask,
    StoreImageTask,
    TagSpecification,
    TaskEngine,
)
from amistore.units import BLOCK_SIZE, GIB, MIB

if TYPE_CHECKING:
    from amistore import ec2 as ec2
    from amistore.backends.aws.backend import AWSBackend as AWSBackend
    from amistore.backends.aws.settings import ObjectSettings as ObjectSettings
    from amistore.backends.aws.settings import SnapshotSettings as SnapshotSettings

__all__ = [
    "BLOCK_SIZE",
    "GIB",
    "MIB",
    "AccessDeniedError",
    "AlreadyExistsError",
    "AmistoreError",
    "Archive",
    "ArchiveError",
    "ArchivedObjectError",
    "Backend",
    "BackendError",
    "BlockDeviceMapping",
    "ChecksumMismatchError",
    "CorruptArchiveError",
    "CredentialsExpiredError",
    "DirectoryBackend",
    "DiskSource",
    "DiskStream",
    "EbsBlockDevice",
    "FileResumeLog",
    "Image",
    "InvalidRequestError",
    "InvalidTokenError",
    "InvalidValueError",
    "JournalError",
    "Layout",
    "LostBlocksError",
    "MemoryBackend",
    "NotFoundError",
    "ObjectLocation",
    "PackOptions",
    "Prices",
    "Progress",
    "Quotas",
    "RequestRates",
    "ResourcesExhaustedError",
    "RestoreImageTask",
    "RestoredImage",
    "ResumeLog",
    "RetryPolicy",
    "RetryingBackend",
    "Snapshot",
    "SourceChangedError",
    "StorageFullError",
    "StoreImageTask",
    "StoredArchive",
    "Tag",
    "TagSpecification",
    "TaskEngine",
    "TaskFailedError",
    "ThrottledError",
    "TruncatedArchiveError",
    "UnsupportedArchiveError",
    "VerifyReport",
    "abandon",
    "copy",
    "find_archives",
    "import_disks",
    "import_snapshot",
    "open",
    "pack",
    "recover",
    "restore",
    "store",
    "transfer",
    "unpack",
]

__version__ = "0.1.0"

# What needs an extra, or uses one, is imported when it is used, and not named in `__all__`.
_OF_AWS = {"AWSBackend": "backend", "ObjectSettings": "settings", "SnapshotSettings": "settings"}


def __dir__() -> list[str]:
    # `help` asks for each of these: without boto3 the lazy ones would end it with an ImportError.
    lazy = [*_OF_AWS, "ec2"] if importlib.util.find_spec("boto3") else ["ec2"]
    return sorted([*__all__, *lazy, "__version__", "backends", "model", "pipeline"])


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
