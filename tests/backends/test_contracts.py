"""Our backends keep every contract that is shipped for others."""

from __future__ import annotations

from pathlib import Path

import pytest

import amistore
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.testing import (
    BlockSourceContract,
    BlockStoreContract,
    BucketCase,
    ImageRegistryContract,
    ObjectStoreContract,
    RegistryCase,
    SnapshotCase,
    block,
    store_snapshot,
)


def case(store: amistore.backends.BlockStore) -> SnapshotCase:
    blocks = {0: block(1), 1: block(0), 2: block(2), 7: block(3), 2047: block(4), 4095: block(5)}
    snapshot_id = store_snapshot(store, 2, blocks)
    return SnapshotCase(source=store, snapshot_id=snapshot_id, volume_size=2, blocks=blocks)


def bucket_of(backend: amistore.MemoryBackend | amistore.DirectoryBackend) -> BucketCase:
    backend.s3.create_bucket("archive")
    return BucketCase(store=backend.s3, bucket="archive")


class TestMemoryBlockSource(BlockSourceContract):
    @pytest.fixture
    def source(self):
        return case(amistore.MemoryBackend(page_size=2).ebs)


class TestMemoryBlockStore(BlockStoreContract):
    @pytest.fixture
    def store(self):
        return amistore.MemoryBackend(page_size=3).ebs


class TestMemoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self):
        return bucket_of(amistore.MemoryBackend())


class TestMemoryImageRegistry(ImageRegistryContract):
    @pytest.fixture
    def registry(self):
        backend = amistore.MemoryBackend()
        return RegistryCase(registry=backend.ec2, store=backend.ebs)


class TestDirectoryBlockSource(BlockSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path):
        return case(DirectoryEBS(tmp_path, page_size=2))


class TestDirectoryBlockStore(BlockStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path):
        return DirectoryEBS(tmp_path, page_size=3)


class TestDirectoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def objects(self, tmp_path: Path):
        return bucket_of(amistore.DirectoryBackend(tmp_path))


class TestDirectoryImageRegistry(ImageRegistryContract):
    @pytest.fixture
    def registry(self, tmp_path: Path):
        backend = amistore.DirectoryBackend(tmp_path)
        return RegistryCase(registry=backend.ec2, store=backend.ebs)


@pytest.mark.parametrize("name", [None, 5, b"archive", ["archive"]], ids=str)
@pytest.mark.parametrize("kind", ["memory", "directory", "aws"])
def test_a_bucket_and_a_key_that_are_no_text_are_refused(kind: str, name: object, tmp_path: Path) -> None:
    if kind == "aws":
        boto3 = pytest.importorskip("boto3")
        session = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-2")
        endpoints = {"s3": "http://127.0.0.1:9"}  # where nothing answers: it is not asked
        store = amistore.AWSBackend(session, endpoint_urls=endpoints).s3
    else:
        backend = amistore.MemoryBackend() if kind == "memory" else amistore.DirectoryBackend(tmp_path)
        store = bucket_of(backend).store
    for bucket, key in ((name, "key"), ("archive", name)):
        with pytest.raises(amistore.InvalidRequestError):
            store.head_object(bucket, key)
        with pytest.raises(amistore.InvalidRequestError):
            store.get_object_range(bucket, key, 0, 1)
        with pytest.raises(amistore.InvalidRequestError):
            store.delete_object(bucket, key)
        with pytest.raises(amistore.InvalidRequestError):
            store.create_multipart_upload(bucket, key)
