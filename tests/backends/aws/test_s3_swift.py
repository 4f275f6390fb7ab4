"""The contract and the races, on OpenStack Swift."""

from __future__ import annotations

import pytest
from backends.aws.conftest import bucket_of

from amistore.backends.aws.connection import Connection
from amistore.testing import BucketCase, ObjectStoreContract

pytestmark = pytest.mark.xdist_group("swift")


class TestSwiftObjectStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self, swift_connection: Connection) -> BucketCase:
        return bucket_of(swift_connection)
