"""Packing and unpacking at a latency, over TLS, beside the same work without a network and boto3's threads.

``python -m benchmarks.network CERTIFICATE`` is the server, a process of its own. It answers from memory,
after a latency that ``GET /latency/20`` sets in milliseconds. It shares the machine's CPUs with the client.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import os
import random
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import botocore.config
from typing_extensions import Buffer

import amistore
from amistore import BLOCK_SIZE, Tag
from amistore.backends import Block, BlockPage
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.aws.ec2 import AWSImageRegistry
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.base import Backend
from amistore.backends.retrying import RetryingBackend
from amistore.testing.aws.certificate import make_certificate
from benchmarks.blocks import SNAPSHOT_ID, DroppingSink, MemorySource, image_of_one_snapshot
from benchmarks.ebs import TOKEN, answer, block_answer, stored_answer
from benchmarks.table import Row

__all__ = ["measure_network"]

LATENCIES = (0, 20, 100)  # ms
WORKERS, BOTO3_THREADS = 2, 50  # as NixOS's uploader and dsnap have
PACK_GOALS = {20: 0.90, 100: 0.85}
UNPACK_GOALS = {20: 6.0, 100: 20.0}


class Server:
    """A thread for each connection, which waits before each answer."""

    def __init__(self, context: ssl.SSLContext, contents: Sequence[bytes]) -> None:
        self._latency = 0.0
        self._context = context
        self._blocks = [block_answer(content) for content in contents]
        self._stored = [stored_answer(content) for content in contents]
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]

    def serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._connected, args=(connection,), daemon=True).start()

    def _connected(self, plain: socket.socket) -> None:
        buffer = memoryview(bytearray(BLOCK_SIZE))
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
            while head := connection.recv(65_536):
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65_536)
                path = head.split(b" ", 2)[1]
                if path.startswith(b"/latency/"):
                    self._latency = int(path.rpartition(b"/")[2]) / 1000
                    connection.sendall(answer(b"{}"))
                    continue
                number = int(path.partition(b"/blocks/")[2].partition(b"?")[0]) % len(self._blocks)
                if head.startswith(b"PUT"):
                    left = BLOCK_SIZE - (len(head) - head.index(b"\r\n\r\n") - 4)
                    while left:
                        left -= connection.recv_into(buffer[:left])
                    time.sleep(self._latency)
                    connection.sendall(self._stored[number])
                else:
                    time.sleep(self._latency)
                    connection.sendall(self._blocks[number])


def contents() -> list[bytes]:
    """Blocks of which half is noise and half is text."""
    noise = random.Random(1)
    return [
        noise.randbytes(BLOCK_SIZE // 2) + f"block {number}\n".encode().ljust(128, b".") * (BLOCK_SIZE // 256)
        for number in range(31)
    ]


class _Store(AWSBlockStore):
    """EBS's gets and puts over the network; all else is known here."""

    count = 0

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        return BlockPage(volume_size=64, blocks=[Block(index, f"1:{TOKEN}") for index in range(self.count)])

    def start_snapshot(
        self,
        volume_size: int,
        *,
        description: str = "",
        tags: Sequence[Tag] = (),
        client_token: str | None = None,
    ) -> str:
        return SNAPSHOT_ID

    def complete_snapshot(self, snapshot_id: str, changed_blocks_count: int, checksum: bytes) -> None:
        pass

    def delete_snapshot(self, snapshot_id: str) -> None:
        pass

    def encrypts_snapshots(self) -> bool | None:
        return False

    def describe_snapshot(self, snapshot_id: str) -> amistore.Snapshot:
        return amistore.Snapshot(snapshot_id=snapshot_id, state="completed")


def measure_network(repeats: int, mebibytes: int) -> Iterator[Row]:
    """Speed at each latency, in rounds that follow each other."""
    count = mebibytes * 2
    with _serving() as (port, certificate):
        session = boto3.Session("key", "secret", "token", region_name="us-east-1")
        url = f"https://127.0.0.1:{port}"
        connection = Connection(session, None, {"ebs": url, "ec2": url, "s3": url})
        ways = _ways(connection, session, url, certificate, count)
        for latency in LATENCIES:
            _set(port, certificate, latency)
            rounds = [
                {name: _seconds(way) for name, way in ways.items() if latency or "one by one" not in name}
                for _ in range(repeats)
            ]
            yield from _rows(latency, rounds, count)


def _ways(
    connection: Connection, session: Any, url: str, certificate: Path, count: int
) -> dict[str, Callable[[], object]]:
    image = image_of_one_snapshot()
    pieces = contents()
    near = MemorySource(64, range(count), [pieces[index % len(pieces)] for index in range(count)])
    archive = b"".join(amistore.pack(image, near, workers=WORKERS))
    config = botocore.config.Config(max_pool_connections=BOTO3_THREADS, retries={"total_max_attempts": 1})
    client = session.client("ebs", endpoint_url=url, config=config, verify=str(certificate))

    def store(requests: int) -> Any:
        ebs = _Store(connection, requests=requests)
        ebs.count = count
        s3, ec2 = AWSObjectStore(connection), AWSImageRegistry(connection)
        return RetryingBackend(Backend(ebs=ebs, s3=s3, ec2=ec2)).ebs

    def pack(source: amistore.backends.BlockSource) -> None:
        for _ in amistore.pack(image, source, workers=WORKERS):
            pass

    def raw() -> None:
        with tempfile.TemporaryFile() as file, concurrent.futures.ThreadPoolExecutor(BOTO3_THREADS) as pool:
            lock = threading.Lock()

            def get(index: int) -> None:
                got = client.get_snapshot_block(SnapshotId=SNAPSHOT_ID, BlockIndex=index, BlockToken=TOKEN)
                content: Buffer = got["BlockData"].read()
                with lock:
                    file.seek(index * BLOCK_SIZE)
                    file.write(content)

            list(pool.map(get, range(count)))

    def unpack(sink: amistore.backends.BlockSink) -> None:
        amistore.unpack(io.BytesIO(archive), sink, workers=WORKERS)

    many, one = store(64), store(0)
    return {
        "pack": lambda: pack(many),
        "pack without a network": lambda: pack(near),
        "pack, one by one": lambda: pack(one),
        f"{BOTO3_THREADS} boto3 threads, raw to a file": raw,
        "unpack": lambda: unpack(many),
        "unpack without a network": lambda: unpack(DroppingSink()),
        "unpack, one by one": lambda: unpack(one),
    }


def _rows(latency: int, rounds: list[dict[str, float]], count: int) -> Iterator[Row]:
    for name in rounds[0]:
        seconds = statistics.median(each[name] for each in rounds)
        yield Row(name=f"{latency} ms: {name}", value=count / seconds, unit="blocks/s")

    def ratio(ours: str, theirs: str, goals: dict[int, float]) -> Row:
        value = statistics.median(each[theirs] / each[ours] for each in rounds)
        name = f"{latency} ms: {ours}, speed of {theirs}"
        return Row(name=name, value=value, goal=goals.get(latency), at_least=True)

    yield ratio("pack", "pack without a network", PACK_GOALS)
    yield ratio("pack", f"{BOTO3_THREADS} boto3 threads, raw to a file", {})
    if latency:
        yield ratio("unpack", "unpack, one by one", UNPACK_GOALS)


def _seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def _set(port: int, certificate: Path, latency: int) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as asking,
    ):
        asking.sendall(f"GET /latency/{latency} HTTP/1.1\r\n\r\n".encode())
        asking.recv(65_536)


@contextlib.contextmanager
def _serving() -> Iterator[tuple[int, Path]]:
    with tempfile.TemporaryDirectory(prefix="amistore-benchmarks-") as folder:
        certificate = make_certificate(Path(folder))
        command = [sys.executable, "-m", "benchmarks.network", str(certificate)]
        with (
            _trusting(certificate),
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                yield int(process.stdout.readline()), certificate
            finally:
                process.terminate()


@contextlib.contextmanager
def _trusting(certificate: Path) -> Iterator[None]:
    before = os.environ.get("AWS_CA_BUNDLE")
    os.environ["AWS_CA_BUNDLE"] = str(certificate)
    try:
        yield
    finally:
        os.environ.pop("AWS_CA_BUNDLE")
        if before is not None:
            os.environ["AWS_CA_BUNDLE"] = before


if __name__ == "__main__":
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(sys.argv[1])
    server = Server(serving, contents())
    print(server.port, flush=True)
    server.serve()
