"""Versions of objects: read where a location names one, pinned to its ETag, and refused everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from backends.aws.conftest import bucket_of
from backends.aws.proxy import Answer, error_answer, fault_proxy

import amistore
from amistore import AWSBackend, BackendError, InvalidRequestError, NotFoundError
from amistore.backends import Forwarding, ObjectInfo, ObjectLocation, ObjectStore
from amistore.backends.aws.connection import Connection
from amistore.testing import FaultyBackend

FIRST = images.packed([(1, {0: images.block(1)})])
OTHER = images.packed([(1, {0: images.block(2)})])
ONCE = amistore.RetryPolicy(attempts=1)


@attrs.frozen
class Versioned:
    """An object of two versions."""

    cloud: AWSBackend
    bucket: str
    first: str
    latest: str

    def at(self, version: str | None) -> ObjectLocation:
        return self.cloud.s3.at(self.bucket, "ami.bin", version=version)


@pytest.fixture
def client(moto: Connection) -> Any:
    return moto.client("s3")


@pytest.fixture
def versioned(moto: Connection, client: Any) -> Versioned:
    bucket = bucket_of(moto).bucket
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    ids = [
        client.put_object(Bucket=bucket, Key="ami.bin", Body=body, Metadata={"of": name})["VersionId"]
        for name, body in (("first", FIRST), ("other", OTHER))
    ]
    return Versioned(AWSBackend(moto.session, endpoint_urls=moto.endpoint_urls, retries=ONCE), bucket, *ids)


def first_block(location: ObjectLocation) -> bytes:
    with amistore.open(location) as archive:
        assert archive.verify().ok
        return archive.root_volume.open().read(amistore.BLOCK_SIZE)


def test_each_version_is_opened_verified_and_described(versioned: Versioned) -> None:
    assert first_block(versioned.at(versioned.first)) == images.block(1)
    assert first_block(versioned.at(versioned.latest)) == images.block(2)
    assert first_block(versioned.at(None)) == images.block(2)
    assert versioned.at(versioned.first).head().metadata == {"of": "first"}


def test_a_version_is_copied_and_restored_and_shown(versioned: Versioned, tmp_path: Path) -> None:
    location = versioned.at(versioned.first)
    amistore.copy(location, tmp_path / "ami.bin")
    assert (tmp_path / "ami.bin").read_bytes() == FIRST
    destination = amistore.MemoryBackend()
    restored = amistore.restore(location, destination, name="web")
    (snapshot_id,) = restored.image.snapshot_ids
    assert images.contents(destination.ebs, snapshot_id) == (1, {0: images.block(1)})
    assert str(location) == f"s3://{versioned.bucket}/ami.bin?versionId={versioned.first}"


def test_an_open_version_stays_readable_when_its_object_is_deleted(versioned: Versioned) -> None:
    with amistore.open(versioned.at(versioned.first)) as archive:
        versioned.cloud.s3.delete_object(versioned.bucket, "ami.bin")
        assert archive.verify().ok
        with pytest.raises(NotFoundError):
            versioned.at(None).head()


def test_a_version_is_pinned_to_its_etag(versioned: Versioned) -> None:
    where = versioned.bucket, "ami.bin"
    latest = versioned.at(None).head()
    store = versioned.cloud.s3
    with pytest.raises(amistore.SourceChangedError):
        store.get_object_range(*where, 0, 1, if_match=latest.etag, version=versioned.first)
    with pytest.raises(amistore.SourceChangedError):
        store.get_object_range(*where, 0, 0, if_match=latest.etag, version=versioned.first)


@pytest.mark.parametrize("version", ["00000000-0000-0000-0000-000000000000", "null"])
def test_a_version_that_is_not_there_is_not_found(versioned: Versioned, version: str) -> None:
    location = versioned.at(version)
    with pytest.raises(NotFoundError, match="version"):
        location.head()
    with pytest.raises(NotFoundError):
        location.store.get_object_range(location.bucket, location.key, 0, 1, version=version)
    assert not location.exists()


def asked(method: str, target: str) -> str:
    return f"{method} {target}"


def test_version_null_is_of_an_object_from_before_versions_whose_answer_does_not_say_so(
    moto: Connection,
) -> None:
    with fault_proxy(None, operation=asked) as server:
        cloud = AWSBackend(moto.session, endpoint_urls={"s3": server.url}, retries=ONCE)
        server.fail("HEAD /bucket/key?versionId=null", Answer(headers={"ETag": '"etag"'}))
        assert cloud.s3.at("bucket", "key", version="null").head().etag == "etag"


def test_a_version_is_restored_from_glacier(moto: Connection) -> None:
    """Moto restores the latest in any case."""
    with fault_proxy(None, operation=asked) as server:
        cloud = AWSBackend(moto.session, endpoint_urls={"s3": server.url}, retries=ONCE)
        server.fail("POST /bucket/key?restore&versionId=v1", Answer(status=202))
        cloud.restore_object("bucket", "key", days=1, version="v1")
        assert sum(server.requests.values()) == 1


def test_a_server_that_takes_no_notice_of_the_version_is_refused(moto: Connection) -> None:
    """As one that keeps no versions: it gives what it has."""
    headers = {"ETag": '"etag"', "Content-Range": "bytes 0-0/7", "x-amz-version-id": "v2"}
    with fault_proxy(None) as server:
        store = AWSBackend(moto.session, endpoint_urls={"s3": server.url}, retries=ONCE).s3
        server.fail("head_object", Answer(headers={"ETag": '"etag"'}))
        with pytest.raises(BackendError, match="asked for version 'v1', the server gave 'null'"):
            store.head_object("bucket", "key", version="v1")
        server.fail("get_object", Answer(status=206, headers=headers, body=b"c"))
        with pytest.raises(BackendError, match="asked for version 'v1', the server gave 'v2'"):
            store.get_object_range("bucket", "key", 0, 1, version="v1")


def test_a_version_that_is_a_delete_marker_is_told(moto: Connection) -> None:
    with fault_proxy(None) as server:
        cloud = AWSBackend(moto.session, endpoint_urls={"s3": server.url}, retries=ONCE)
        marker = {"x-amz-delete-marker": "true", "Content-Type": "application/xml"}
        refusal = attrs.evolve(error_answer(405, "MethodNotAllowed"), headers=marker)
        server.fail("head_object", attrs.evolve(refusal, body=b""))
        server.fail("get_object", refusal)
        with pytest.raises(NotFoundError, match="the object was deleted: give the one before it"):
            cloud.s3.at("bucket", "key", version="v1").head()


def test_nothing_is_written_to_a_version(versioned: Versioned, tmp_path: Path) -> None:
    location = versioned.at(versioned.first)
    source = amistore.MemoryBackend()
    image = images.image([images.snapshot(source.ebs, 1, {})])
    image_id = source.ec2.register_image(image)
    with pytest.raises(InvalidRequestError, match=r"versionId=.* is a version, which can only be read"):
        amistore.store(image_id, source, location)
    with pytest.raises(InvalidRequestError, match="only be read"):
        amistore.copy(versioned.at(None), location)
    with pytest.raises(InvalidRequestError, match="only be read"):
        amistore.transfer(image_id, source=source, destination=amistore.MemoryBackend(), keep=location)
    assert first_block(versioned.at(None)) == images.block(2)


# Other stores.


@pytest.mark.parametrize("version", ["", 5])
def test_a_version_that_is_no_text_is_refused(versioned: Versioned, version: Any) -> None:
    with pytest.raises(InvalidRequestError, match="version must be a string"):
        versioned.at(version)


@pytest.mark.parametrize("kind", ["memory", "directory", "wrapped"])
def test_a_store_that_keeps_no_versions_refuses_one(kind: str, tmp_path: Path) -> None:
    backends: dict[str, Callable[[], amistore.Backend]] = {
        "memory": amistore.MemoryBackend,
        "directory": lambda: amistore.DirectoryBackend(tmp_path),
        "wrapped": lambda: amistore.RetryingBackend(FaultyBackend(amistore.MemoryBackend())),
    }
    store = backends[kind]().s3
    told = "keeps no versions of objects: leave out version="
    with pytest.raises(InvalidRequestError, match=told):
        store.at("bucket", "key", version="v1")
    with pytest.raises(InvalidRequestError, match=told):
        store.head_object("bucket", "key", version="v1")
    with pytest.raises(InvalidRequestError, match=told):
        store.get_object_range("bucket", "key", 0, 1, version="v1")


class OfLast(Forwarding[ObjectStore], ObjectStore):
    """A user's store that knows no versions."""

    def head_object(self, bucket: str, key: str) -> ObjectInfo:
        return self.inner.head_object(bucket, key)

    def get_object_range(
        self, bucket: str, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> bytes:
        return self.inner.get_object_range(bucket, key, start, length, if_match=if_match)


def test_a_store_that_knows_no_versions_works_as_it_did() -> None:
    memory = amistore.MemoryBackend()
    memory.s3.create_bucket("bucket")
    memory.s3.put_object("bucket", "ami.bin", FIRST)
    own = amistore.Backend(ebs=memory.ebs, s3=OfLast.around(memory.s3), ec2=memory.ec2)
    for store in (own.s3, amistore.RetryingBackend(own).s3):
        assert first_block(store.at("bucket", "ami.bin")) == images.block(1)


class Keeping(OfLast):
    """A user's store that keeps versions."""

    takes_versions = True
    kept: dict[str, bytes]

    def head_object(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        return ObjectInfo(size=len(self.kept[version or "last"]), etag=str(version))

    def get_object_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        *,
        if_match: str | None = None,
        version: str | None = None,
    ) -> bytes:
        assert if_match == str(version)
        return self.kept[version or "last"][start : start + length]


@pytest.fixture
def keeping() -> Iterator[amistore.Backend]:
    memory = amistore.MemoryBackend()
    store = Keeping.around(memory.s3)
    store.kept = {"v1": FIRST, "last": OTHER}
    yield amistore.Backend(ebs=memory.ebs, s3=store, ec2=memory.ec2)


def test_an_own_store_with_versions_is_given_them_through_wrappers_too(keeping: amistore.Backend) -> None:
    wrapped = amistore.RetryingBackend(FaultyBackend(keeping), retries=ONCE)
    for store in (keeping.s3, wrapped.s3):
        assert first_block(store.at("bucket", "ami.bin", version="v1")) == images.block(1)
        assert first_block(store.at("bucket", "ami.bin")) == images.block(2)


def test_an_own_stores_errors_name_the_call_of_a_version(keeping: amistore.Backend) -> None:
    with pytest.raises(BackendError, match="KeyError: 'v9'") as caught:
        keeping.s3.at("bucket", "ami.bin", version="v9").head()
    assert (caught.value.operation, caught.value.key) == ("head_object", "ami.bin")
