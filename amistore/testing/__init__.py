"""For authors of backends: a contract suite for each interface, faults, and strategies for property tests.

Subclass a suite, say with one fixture what to test, and pytest runs it::

    class TestMyStore(amistore.testing.BlockStoreContract):
        @pytest.fixture
        def store(self):
            return MyStore()

The suites need pytest, `amistore.testing.strategies` needs hypothesis; the extra ``testing``
installs both. Nothing of amistore imports this package. Each module's docstring names its
fixture. `FaultyBackend` lets the calls of any backend go wrong. `amistore.testing.aws` is a fake of AWS.
"""

import pytest

# Before the modules are imported, so that a failing assertion shows its values.
pytest.register_assert_rewrite(
    "amistore.testing.block_source",
    "amistore.testing.block_store",
    "amistore.testing.image_registry",
    "amistore.testing.object_store",
)

from amistore.testing.block_source import BlockSourceContract  # noqa: E402
from amistore.testing.block_store import BlockStoreContract  # noqa: E402
from amistore.testing.faults import BackendFault, BackendFaultKind, FaultyBackend  # noqa: E402
from amistore.testing.image_registry import ImageRegistryContract, RegistryCase  # noqa: E402
from amistore.testing.object_store import BucketCase, ObjectStoreContract  # noqa: E402
from amistore.testing.snapshots import SnapshotCase, block, read_snapshot, store_snapshot  # noqa: E402

__all__ = [
    "BackendFault",
    "BackendFaultKind",
    "BlockSourceContract",
    "BlockStoreContract",
    "BucketCase",
    "FaultyBackend",
    "ImageRegistryContract",
    "ObjectStoreContract",
    "RegistryCase",
    "SnapshotCase",
    "block",
    "read_snapshot",
    "store_snapshot",
]
