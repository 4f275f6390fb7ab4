"""One job against a server, in a process of its own.

``python -m benchmarks.client WAY URL BLOCKS ARCHIVE KIND`` prints its seconds, CPU seconds and peak memory.
An older amistore (PYTHONPATH) runs it, too.
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import botocore.config

import amistore
from amistore import BLOCK_SIZE, GIB, AWSBackend, Image
from amistore.backends import BlockSource, ImageRegistry
from benchmarks.blocks import DroppingSink, MemorySource, image_of_one_snapshot
from benchmarks.machine import peak_memory
from benchmarks.server import BUCKET, KEY, SNAPSHOTS, noise

__all__ = ["WAYS"]

WORKERS = 2
BOTO3_THREADS = 50  # as NixOS's uploader and dsnap have


class _OneImage(ImageRegistry):
    """A registry of the image whose snapshot the server has."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def describe_image(self, image_id: str) -> Image:
        return self._image

    def describe_images(self) -> list[Image]:
        return [self._image]

    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        raise NotImplementedError

    def deregister_image(self, image_id: str) -> None:
        raise NotImplementedError


class Client:
    """What each way has: the service, and files of the blocks and of their archive."""

    def __init__(self, url: str, blocks: Path, archive: Path, kind: str) -> None:
        self.url, self.archive, self.kind = url, archive, kind
        self.snapshot_id = SNAPSHOTS[kind]
        self.image = image_of_one_snapshot(self.snapshot_id)
        self.blocks = blocks
        self.count = blocks.stat().st_size // BLOCK_SIZE
        self.session = boto3.Session("key", "secret", "token", region_name="us-east-1")
        endpoints = {"ebs": url, "ec2": url, "s3": url}
        self.backend = amistore.RetryingBackend(AWSBackend(self.session, endpoint_urls=endpoints))

    def begin(self) -> None:
        """Make the clients of boto3 beforehand, for EBS, EC2 and S3, as theirs is."""
        self.backend.ebs.list_snapshot_blocks(self.snapshot_id)
        self.backend.ebs.describe_snapshot(SNAPSHOTS["files"])
        self.backend.s3.head_object(BUCKET, KEY)

    def near(self) -> BlockSource:
        """The same blocks in memory."""
        if self.kind == "files":
            contents = self.blocks.read_bytes()
            pieces = [contents[at : at + BLOCK_SIZE] for at in range(0, len(contents), BLOCK_SIZE)]
        else:
            pieces = noise() if self.kind == "noise" else [bytes(BLOCK_SIZE)]
        size = -(-self.count // 2048)
        return MemorySource(size, range(self.count), [pieces[n % len(pieces)] for n in range(self.count)])

    def ebs(self) -> Any:
        """boto3's own client."""
        config = botocore.config.Config(max_pool_connections=BOTO3_THREADS, retries={"total_max_attempts": 3})
        return self.session.client("ebs", endpoint_url=self.url, config=config)


def _pack(client: Client, source: BlockSource) -> None:
    for _ in amistore.pack(client.image, source, workers=WORKERS):
        pass


def pack(client: Client) -> Callable[[], object]:
    return lambda: _pack(client, client.backend.ebs)


def pack_near(client: Client) -> Callable[[], object]:
    source = client.near()
    return lambda: _pack(client, source)


def boto3_to_a_file(client: Client) -> Callable[[], object]:
    ebs, lock = client.ebs(), threading.Lock()

    def run() -> None:
        with tempfile.TemporaryFile() as file, concurrent.futures.ThreadPoolExecutor(BOTO3_THREADS) as pool:

            def get(index: int) -> None:
                got = ebs.get_snapshot_block(
                    SnapshotId=client.snapshot_id, BlockIndex=index, BlockToken="token"
                )
                content = got["BlockData"].read()
                with lock:
                    file.seek(index * BLOCK_SIZE)
                    file.write(content)

            list(pool.map(get, range(client.count)))

    return run


def transfer_to_a_folder(client: Client) -> Callable[[], object]:
    source = amistore.Backend(ebs=client.backend.ebs, s3=client.backend.s3, ec2=_OneImage(client.image))

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            amistore.transfer(
                client.image.image_id,
                source=source,
                destination=amistore.DirectoryBackend(Path(folder) / "cloud"),
                workers=WORKERS,
            )

    return run


def import_snapshot(client: Client) -> Callable[[], object]:
    disk = amistore.DiskSource(client.blocks, format="raw")
    return lambda: amistore.import_snapshot(disk, client.backend.ebs, workers=WORKERS)


def boto3_from_a_file(client: Client) -> Callable[[], object]:
    """As NixOS and coldsnap upload a disk: each block is read, hashed and put by a thread."""
    ebs = client.ebs()

    def run() -> None:
        with client.blocks.open("rb") as file, concurrent.futures.ThreadPoolExecutor(BOTO3_THREADS) as pool:
            size = -(-client.count * BLOCK_SIZE // GIB)
            snapshot_id = ebs.start_snapshot(VolumeSize=size)["SnapshotId"]

            def put(index: int) -> bytes:
                content = os.pread(file.fileno(), BLOCK_SIZE, index * BLOCK_SIZE)
                digest = hashlib.sha256(content).digest()
                ebs.put_snapshot_block(
                    SnapshotId=snapshot_id,
                    BlockIndex=index,
                    BlockData=content,
                    DataLength=BLOCK_SIZE,
                    Checksum=base64.b64encode(digest).decode(),
                    ChecksumAlgorithm="SHA256",
                )
                return digest

            linear = hashlib.sha256(b"".join(pool.map(put, range(client.count)))).digest()
            ebs.complete_snapshot(
                SnapshotId=snapshot_id,
                ChangedBlocksCount=client.count,
                Checksum=base64.b64encode(linear).decode(),
                ChecksumAlgorithm="SHA256",
                ChecksumAggregationMethod="LINEAR",
            )

    return run


def unpack(client: Client) -> Callable[[], object]:
    return lambda: amistore.unpack(client.archive, client.backend.ebs, workers=WORKERS)


def unpack_near(client: Client) -> Callable[[], object]:
    return lambda: amistore.unpack(client.archive, DroppingSink(), workers=WORKERS)


def unpack_object(client: Client) -> Callable[[], object]:
    location = client.backend.s3.at(BUCKET, KEY)
    return lambda: amistore.unpack(location, client.backend.ebs, workers=WORKERS)


def verify(client: Client) -> Callable[[], object]:
    def run() -> None:
        with amistore.open(client.backend.s3.at(BUCKET, KEY)) as archive:
            archive.verify(workers=WORKERS).check()

    return run


def extract(client: Client) -> Callable[[], object]:
    def run() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            amistore.open(client.backend.s3.at(BUCKET, KEY)) as archive,
        ):
            archive.extract(folder, workers=WORKERS)

    return run


WAYS = {
    way.__name__: way
    for way in (
        pack,
        pack_near,
        boto3_to_a_file,
        transfer_to_a_folder,
        import_snapshot,
        boto3_from_a_file,
        unpack,
        unpack_near,
        unpack_object,
        verify,
        extract,
    )
}


def main() -> None:
    way, url, blocks, archive, kind = sys.argv[1:]
    client = Client(url, Path(blocks), Path(archive), kind)
    client.begin()
    run = WAYS[way](client)
    cpu, start = time.process_time(), time.perf_counter()
    run()
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak": peak_memory()}
    print(json.dumps(took))


if __name__ == "__main__":
    main()
