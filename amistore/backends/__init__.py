"""The outside world. `blocks.py`, `objects.py` and `images.py` have the interfaces.

Never imports the container or the pipeline.
"""

from amistore.backends.base import Backend
from amistore.backends.blocks import Block, BlockPage, BlockSink, BlockSource, BlockStore, SnapshotBlock
from amistore.backends.directory.backend import DirectoryBackend
from amistore.backends.forwarding import Forwarding
from amistore.backends.images import ImageRegistry
from amistore.backends.locations import ObjectInfo, ObjectLocation
from amistore.backends.memory import MemoryBackend
from amistore.backends.objects import ObjectStore
from amistore.backends.quotas import Quotas
from amistore.backends.retries import RetryPolicy
from amistore.backends.retrying import RetryingBackend
from amistore.backends.stores import STORES
from amistore.backends.traits import StoreTraits
from amistore.backends.uploads import MultipartUpload, UploadedPart

__all__ = [
    "STORES",
    "Backend",
    "Block",
    "BlockPage",
    "BlockSink",
    "BlockSource",
    "BlockStore",
    "DirectoryBackend",
    "Forwarding",
    "ImageRegistry",
    "MemoryBackend",
    "MultipartUpload",
    "ObjectInfo",
    "ObjectLocation",
    "ObjectStore",
    "Quotas",
    "RetryPolicy",
    "RetryingBackend",
    "SnapshotBlock",
    "StoreTraits",
    "UploadedPart",
]
