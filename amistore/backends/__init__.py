"""The outside world. `base.py` has the interfaces; never imports the container or the pipeline."""

from amistore.backends.base import (
    Backend,
    Block,
    BlockPage,
    BlockSink,
    BlockSource,
    BlockStore,
    ImageRegistry,
    ObjectInfo,
    ObjectStore,
    SnapshotBlock,
    UploadedPart,
)
from amistore.backends.directory import DirectoryBackend
from amistore.backends.memory import MemoryBackend

__all__ = [
    "Backend",
    "Block",
    "BlockPage",
    "BlockSink",
    "BlockSource",
    "BlockStore",
    "DirectoryBackend",
    "ImageRegistry",
    "MemoryBackend",
    "ObjectInfo",
    "ObjectStore",
    "SnapshotBlock",
    "UploadedPart",
]
