"""Blocks of EBS with many requests in flight, over TLS and 20 ms: one thread, many, and boto3's."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import os
import selectors
import socket
import ssl
import statistics
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import boto3
import botocore.config

from amistore import BLOCK_SIZE, AWSBackend
from amistore.backends.blocks import SnapshotBlock, check_digest
from amistore.testing.aws.certificate import make_certificate
from amistore.units import KIB
from benchmarks.ebs import CONTENT, DIGEST, SNAPSHOT, TOKEN, serving
from benchmarks.table import Row

__all__ = ["measure_requests"]

LATENCY = "0.02"
BLOCKS = 400  # in each round
BOTO3_THREADS = 50
CPU_GOAL, BARE_GOAL = 0.36, 1.3  # of boto3's, and of bare receiving


@attrs.frozen
class Way:
    """A client.

    Attributes:
        name: of it.
        take: gets or puts so many blocks.
        goal: the most CPU of the first client, as a part of this one's.
    """

    name: str
    take: Callable[[int], None]
    goal: float | None = None


def measure_requests(repeats: int) -> Iterable[Row]:
    """CPU and speed of blocks that are got and put by many requests in flight; a got block is hashed."""
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder))
        with _trusted(certificate), serving(LATENCY, str(certificate)) as port:
            for verb, ways in _ways(f"https://127.0.0.1:{port}").items():
                yield from _measured(verb, ways, repeats)


def _measured(verb: str, ways: list[Way], repeats: int) -> Iterator[Row]:
    for way in ways:
        way.take(100)  # opens the connections
    rounds = [[_taken(way) for way in ways] for _ in range(repeats)]
    for number, way in enumerate(ways):
        cpu = statistics.median(each[number][0] for each in rounds) / (BLOCKS * BLOCK_SIZE / 1e9)
        speed = BLOCKS / statistics.median(each[number][1] for each in rounds)
        yield Row(name=f"{verb}, {way.name}", value=cpu, unit="CPU s/GB", note=f"{speed:,.0f} blocks/s")
    # Of rounds that follow each other, since the machine's speed changes.
    for number, way in enumerate(ways):
        if way.goal is not None:
            ratio = statistics.median(each[0][0] / each[number][0] for each in rounds)
            yield Row(name=f"{verb}, {ways[0].name}: CPU, of {way.name}", value=ratio, goal=way.goal)


def _taken(way: Way) -> tuple[float, float]:
    cpu, start = time.process_time(), time.perf_counter()
    way.take(BLOCKS)
    return time.process_time() - cpu, time.perf_counter() - start


def _ways(url: str) -> dict[str, list[Way]]:
    session = boto3.Session("key", "secret", "token", region_name="us-east-1")
    store: Any = AWSBackend(session, endpoint_urls={"ebs": url, "ec2": url}).ebs
    once = botocore.config.Config(retries={"total_max_attempts": 1}, max_pool_connections=BOTO3_THREADS)
    client = session.client("ebs", endpoint_url=url, config=once)
    token, encoded = f"1:{TOKEN}", base64.b64encode(DIGEST).decode()

    def boto3_get() -> None:
        answer = client.get_snapshot_block(SnapshotId=SNAPSHOT, BlockIndex=7, BlockToken=TOKEN)
        hashlib.sha256(answer["BlockData"].read()).digest()

    def boto3_put() -> None:
        client.put_snapshot_block(
            SnapshotId=SNAPSHOT,
            BlockIndex=7,
            BlockData=CONTENT,
            DataLength=BLOCK_SIZE,
            Checksum=encoded,
            ChecksumAlgorithm="SHA256",
        )

    return {
        "get": [
            Way(
                f"one thread, {store.requests} in flight",
                _in_flight(store, lambda: store.begin_get(SNAPSHOT, 7, token)),
            ),
            Way("16 threads", _threads(16, lambda: store.get_snapshot_block(SNAPSHOT, 7, token))),
            Way(f"boto3, {BOTO3_THREADS} threads", _threads(BOTO3_THREADS, boto3_get), CPU_GOAL),
            Way("TLS and SHA-256 alone", _bare(url, store.requests), BARE_GOAL),
        ],
        "put": [
            Way(
                f"one thread, {store.requests} in flight",
                _in_flight(store, lambda: store.begin_put(SNAPSHOT, 7, CONTENT, DIGEST)),
            ),
            Way("16 threads", _threads(16, lambda: store.put_snapshot_block(SNAPSHOT, 7, CONTENT, DIGEST))),
            Way(f"boto3, {BOTO3_THREADS} threads", _threads(BOTO3_THREADS, boto3_put), CPU_GOAL),
        ],
    }


def _threads(number: int, call: Callable[[], object]) -> Callable[[int], None]:
    def take(blocks: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(number) as pool:
            for done in [pool.submit(call) for _ in range(blocks)]:
                done.result()

    return take


def _in_flight(store: Any, begin: Callable[[], concurrent.futures.Future[Any]]) -> Callable[[int], None]:
    """Keeps as many requests in flight as the store says, and no block, as the others keep none."""

    def take(blocks: int) -> None:
        places = threading.Semaphore(store.requests)
        errors = []

        def done(future: concurrent.futures.Future[SnapshotBlock | None]) -> None:
            try:
                if block := future.result():
                    check_digest(block, SNAPSHOT, 7)
            except Exception as error:
                errors.append(error)
            places.release()

        for _ in range(blocks):
            places.acquire()
            begin().add_done_callback(done)
        for _ in range(store.requests):
            places.acquire()
        if errors:
            raise errors[0]

    return take


class _Bare:
    """A connection whose blocks are received and hashed, and nothing else: no signature, no heads."""

    def __init__(self, host: str, port: int) -> None:
        context = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
        plain = socket.create_connection((host, port))
        self.sock = context.wrap_socket(plain, server_hostname=host)
        self.sock.setblocking(False)

    def ask(self) -> None:
        self.sock.send(f"GET /snapshots/{SNAPSHOT}/blocks/7 HTTP/1.1\r\n\r\n".encode())
        self.content = memoryview(bytearray(BLOCK_SIZE))
        self.there = -1

    def receive(self) -> bool:
        """Receive what there is; return whether that is all."""
        try:
            while self.there < BLOCK_SIZE:
                if self.there < 0:
                    head = self.sock.recv(16 * KIB)
                    begun = head[head.index(b"\r\n\r\n") + 4 :]
                    self.content[: len(begun)] = begun
                    self.there = len(begun)
                else:
                    self.there += self.sock.recv_into(self.content[self.there :])
        except ssl.SSLWantReadError:
            return False
        hashlib.sha256(self.content).digest()
        return True


def _bare(url: str, number: int) -> Callable[[int], None]:
    """Receives on so many connections, in this thread."""
    parts = urllib.parse.urlsplit(url)
    selector = selectors.DefaultSelector()

    def take(blocks: int) -> None:
        if not selector.get_map():
            for _ in range(number):
                bare = _Bare(parts.hostname or "", parts.port or 0)
                selector.register(bare.sock, selectors.EVENT_READ, bare)
        idle = [key.data for key in selector.get_map().values()]
        asked = done = 0
        while done < blocks:
            while idle and asked < blocks:
                idle.pop().ask()
                asked += 1
            for key, _ in selector.select():
                if key.data.receive():
                    done += 1
                    idle.append(key.data)

    return take


@contextlib.contextmanager
def _trusted(certificate: Path) -> Iterator[None]:
    before = os.environ.get("AWS_CA_BUNDLE")
    os.environ["AWS_CA_BUNDLE"] = str(certificate)
    try:
        yield
    finally:
        if before is None:
            del os.environ["AWS_CA_BUNDLE"]
        else:
            os.environ["AWS_CA_BUNDLE"] = before
