"""For authors of backends: a contract suite for each interface, faults, and strategies for property tests.

Subclass a suite, name what to test in one fixture, and pytest runs it::

    class TestMyStore(amistore.testing.BlockStoreContract):
        @pytest.fixture
        def store(self):
            return MyStore()

The suites need pytest, `amistore.testing.strategies` needs hypothesis; the extra ``testing``
installs both. The rest needs neither: a suite is imported on use. Nothing of amistore imports this package.
Each module's docstring names its fixture. `FaultyBackend` injects faults into the calls of any backend.
`amistore.testing.aws` is a fake of AWS.
"""

import importlib
from typing import TYPE_CHECKING, Any

from amistore.testing.faults import BackendFault, BackendFaultKind, FaultyBackend
from amistore.testing.snapshots import SnapshotCase, block, read_snapshot, store_snapshot

if TYPE_CHECKING:
    from amistore.testing.block_sink import BlockSinkContract, SinkCase
    from amistore.testing.block_source import BlockSourceContract
    from amistore.testing.block_store import BlockStoreContract
    from amistore.testing.image_registry import ImageRegistryContract, RegistryCase
    from amistore.testing.object_store import ObjectStoreContract
    from amistore.testing.uploads import BucketCase

__all__ = [
    "BackendFault",
    "BackendFaultKind",
    "BlockSinkContract",
    "BlockSourceContract",
    "BlockStoreContract",
    "BucketCase",
    "FaultyBackend",
    "ImageRegistryContract",
    "ObjectStoreContract",
    "RegistryCase",
    "SinkCase",
    "SnapshotCase",
    "block",
    "read_snapshot",
    "store_snapshot",
]

_SUITES = {
    "BlockSinkContract": "block_sink",
    "BlockSourceContract": "block_source",
    "BlockStoreContract": "block_store",
    "BucketCase": "uploads",
    "ImageRegistryContract": "image_registry",
    "ObjectStoreContract": "object_store",
    "RegistryCase": "image_registry",
    "SinkCase": "block_sink",
}


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest
    except ImportError:
        raise ImportError(f"{name} needs pytest: pip install 'amistore[testing]'") from None
    for module in _SUITES.values():  # before its import, so that a failing assertion shows its values
        pytest.register_assert_rewrite(f"{__name__}.{module}")
    return getattr(importlib.import_module(f"{__name__}.{_SUITES[name]}"), name)
