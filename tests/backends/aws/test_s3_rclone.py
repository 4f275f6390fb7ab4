from __future__ import annotations
from collections.abc import Iterator
from pathlib import Path
import pytest
from archive.servers import free_port, running
from amistore.backends.aws.connection import Connection
from amistore.testing import BucketCase, ObjectStoreContract
from backends.aws.conftest import bucket_of, connect
import shutil, sysconfig
pytestmark = pytest.mark.xdist_group("rclone")

@pytest.fixture(scope="session")
def rclone(tmp_path_factory) -> Iterator[Connection]:
    program = f"{sysconfig.get_path('scripts')}/rclone"
    port = free_port()
    folder = tmp_path_factory.mktemp("rclone")
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secretsecret", "--config", "/dev/null", folder]
    with running(command, port):
        yield connect(f"http://127.0.0.1:{port}", access_key="key", secret_key="secretsecret")

class TestRcloneObjectStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self, rclone) -> BucketCase:
        return bucket_of(rclone)
