"""Blocks of EBS direct APIs on loopback: what one costs the client, beside boto3's own.

``python -m benchmarks.ebs`` is the server, a process of its own: it answers from memory and
checks nothing, so that the client's work is what is measured. It may speak TLS, and wait before it answers.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
import boto3
import botocore.config

from amistore import BLOCK_SIZE
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.aws.ec2 import AWSImageRegistry
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.base import Backend
from amistore.backends.blocks import BlockStore, SnapshotBlock
from amistore.backends.retrying import RetryingBackend
from benchmarks.table import Row

__all__ = [
    "CONTENT",
    "DIGEST",
    "SNAPSHOT",
    "TOKEN",
    "answer",
    "block_answer",
    "measure_blocks",
    "serving",
    "stored_answer",
]

THREADS = 8
BLOCKS = 400  # of each way in each round
CPU_GOAL, SPEED_GOAL = 0.45, 2.0  # of boto3's generated client
SNAPSHOT = "snap-00000000000000000"
TOKEN = "AAABASKjvq" * 10 + "=="  # as long as EBS's
CONTENT = bytes(range(256)) * (BLOCK_SIZE // 256)
DIGEST = hashlib.sha256(CONTENT).digest()


class Server:
    """Canned answers, with a thread for each connection: sending and receiving hold no GIL.

    Args:
        latency: the seconds before each answer.
        certificate: the PEM file of key and certificate; None for plain http.
    """

    def __init__(self, latency: float = 0.0, certificate: str | None = None) -> None:
        self._latency = latency
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._used = 0  # connections on which a block was asked for or sent
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        self._block = block_answer(CONTENT)
        self._stored = stored_answer(CONTENT)

    def serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._connected, args=(connection,), daemon=True).start()

    def _connected(self, connection: socket.socket) -> None:
        buffer = memoryview(bytearray(BLOCK_SIZE))
        new = True
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection, contextlib.suppress(ConnectionError):
            while head := connection.recv(65_536):
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65_536)
                if head.startswith(b"GET /used"):
                    connection.sendall(answer(str(self._used).encode()))
                    continue
                if new:
                    new = False
                    with self._lock:
                        self._used += 1
                if head.startswith(b"PUT"):
                    left = BLOCK_SIZE - (len(head) - head.index(b"\r\n\r\n") - 4)
                    while left:
                        left -= connection.recv_into(buffer[:left])
                    time.sleep(self._latency)
                    connection.sendall(self._stored)
                else:
                    time.sleep(self._latency)
                    connection.sendall(self._block)


def block_answer(content: bytes) -> bytes:
    """GetSnapshotBlock's answer with a block."""
    return answer(content, f"x-amz-Data-Length: {BLOCK_SIZE}", *_checksum(content))


def stored_answer(content: bytes) -> bytes:
    """PutSnapshotBlock's answer for a block."""
    return answer(b"{}", *_checksum(content))


def _checksum(content: bytes) -> list[str]:
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return [f"x-amz-Checksum: {checksum}", "x-amz-Checksum-Algorithm: SHA256"]


def answer(body: bytes, *headers: str) -> bytes:
    """An answer of HTTP."""
    lines = ["HTTP/1.1 200 OK", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@attrs.frozen
class Way:
    """One client.

    Attributes:
        name: of it.
        call: gets or puts one block.
        compared: whether it does the same work as boto3's, the first one.
    """

    name: str
    call: Callable[[], object]
    compared: bool = True


@attrs.frozen
class Round:
    """CPU seconds and seconds of `BLOCKS` blocks."""

    cpu: float
    seconds: float


class Unchecked(AWSBlockStore):
    """Gives blocks without their SHA-256, so that nobody compares it."""

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        return SnapshotBlock(super().get_snapshot_block(snapshot_id, block_index, block_token).content)


def measure_blocks(repeats: int) -> Iterable[Row]:
    """CPU and speed of GetSnapshotBlock and PutSnapshotBlock, beside boto3's client."""
    with serving() as port, concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        gets, puts = _ways(f"http://127.0.0.1:{port}")
        for verb, ways in (("get", gets), ("put", puts)):
            for way in ways:
                _take(way, pool)  # opens the connections
            rounds = [[_take(way, pool) for way in ways] for _ in range(repeats)]
            yield from _rows(verb, ways, list(zip(*rounds, strict=True)))
        used = _used(port)
    clients = 4  # boto3's, and three stores; each has a pool of its own
    yield Row(name="connections of the four clients together", value=used, goal=clients * THREADS)


def _rows(verb: str, ways: Sequence[Way], taken: Sequence[Sequence[Round]]) -> Iterator[Row]:
    for way, rounds in zip(ways, taken, strict=True):
        cpu = statistics.median(each.cpu for each in rounds) / BLOCKS * 1e3
        speed = BLOCKS / statistics.median(each.seconds for each in rounds)
        yield Row(name=f"{verb}, {way.name}", value=cpu, unit="CPU ms", note=f"{speed:,.0f} blocks/s")
    for way, rounds in list(zip(ways, taken, strict=True))[1:]:
        if way.compared:
            # Of rounds that follow each other, since the machine's speed changes.
            pairs = list(zip(rounds, taken[0], strict=True))
            cpu = statistics.median(ours.cpu / theirs.cpu for ours, theirs in pairs)
            speed = statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs)
            yield Row(name=f"{verb}, {way.name}: CPU against boto3's", value=cpu, goal=CPU_GOAL)
            yield Row(
                name=f"{verb}, {way.name}: speed against boto3's", value=speed, goal=SPEED_GOAL, at_least=True
            )


def _ways(url: str) -> tuple[list[Way], list[Way]]:
    session = boto3.Session("key", "secret", "token", region_name="us-east-1")
    once = botocore.config.Config(retries={"total_max_attempts": 1}, max_pool_connections=THREADS)
    client = session.client("ebs", endpoint_url=url, config=once)
    connection = Connection(session, None, {"ebs": url, "ec2": url, "s3": url})
    plain = AWSBlockStore(connection)
    retrying, unchecked = (
        RetryingBackend(
            Backend(ebs=kind(connection), s3=AWSObjectStore(connection), ec2=AWSImageRegistry(connection))
        ).ebs
        for kind in (AWSBlockStore, Unchecked)
    )

    def boto3_get() -> bytes:
        answer = client.get_snapshot_block(SnapshotId=SNAPSHOT, BlockIndex=7, BlockToken=TOKEN)
        content: bytes = answer["BlockData"].read()
        return content

    def boto3_get_hashing() -> None:
        hashlib.sha256(boto3_get()).digest()

    def boto3_put() -> None:
        client.put_snapshot_block(
            SnapshotId=SNAPSHOT,
            BlockIndex=7,
            BlockData=CONTENT,
            DataLength=BLOCK_SIZE,
            Checksum=base64.b64encode(DIGEST).decode(),
            ChecksumAlgorithm="SHA256",
        )

    def get_by(store: BlockStore) -> Callable[[], object]:
        return lambda: store.get_snapshot_block(SNAPSHOT, 7, f"1:{TOKEN}")

    def put_by(store: BlockStore) -> Callable[[], object]:
        return lambda: store.put_snapshot_block(SNAPSHOT, 7, CONTENT, DIGEST)

    gets = [
        Way("boto3", boto3_get),
        Way("amistore", get_by(plain)),
        Way("amistore with retries", get_by(unchecked)),
        Way("boto3, SHA-256 computed", boto3_get_hashing, False),
        Way("amistore with retries, SHA-256 compared", get_by(retrying), False),
    ]
    puts = [
        Way("boto3", boto3_put),
        Way("amistore", put_by(plain)),
        Way("amistore with retries", put_by(retrying)),
    ]
    return gets, puts


def _take(way: Way, pool: concurrent.futures.Executor) -> Round:
    def work() -> None:
        for _ in range(BLOCKS // THREADS):
            way.call()

    cpu, start = time.process_time(), time.perf_counter()
    for done in [pool.submit(work) for _ in range(THREADS)]:
        done.result()
    return Round(time.process_time() - cpu, time.perf_counter() - start)


def _used(port: int) -> int:
    """Connections that the server has seen blocks on."""
    with socket.create_connection(("127.0.0.1", port)) as asking:
        asking.sendall(b"GET /used HTTP/1.1\r\n\r\n")
        return int(asking.recv(65_536).rpartition(b"\r\n")[2])


@contextlib.contextmanager
def serving(*options: str) -> Iterator[int]:
    """The port of a server; its options are the latency in seconds and a certificate's PEM file."""
    command = [sys.executable, "-m", "benchmarks.ebs", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


if __name__ == "__main__":
    server = Server(float((sys.argv[1:] or ["0"])[0]), *sys.argv[2:3])
    print(server.port, flush=True)
    server.serve()
