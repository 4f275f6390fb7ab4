"""Blocks of EBS with many requests in flight, over TLS and 20 ms: one thread, many, and boto3's."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import boto3
import botocore.config

from amistore import BLOCK_SIZE, AWSBackend
from amistore.testing.aws.certificate import make_certificate
from benchmarks.ebs import CONTENT, DIGEST, SNAPSHOT, TOKEN, serving
from benchmarks.table import Row

__all__ = ["measure_requests"]

LATENCY = "0.02"
BLOCKS = 400  # in each round
BOTO3_THREADS = 50
CPU_GOAL = 0.36  # of boto3's


@attrs.frozen
class Way:
    """A client: its name, and what gets or puts so many blocks."""

    name: str
    take: Callable[[int], None]


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
    ratio = statistics.median(each[0][0] / each[-1][0] for each in rounds)
    yield Row(name=f"{verb}, {ways[0].name}: CPU against boto3's", value=ratio, goal=CPU_GOAL)


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
            Way(f"boto3, {BOTO3_THREADS} threads", _threads(BOTO3_THREADS, boto3_get)),
        ],
        "put": [
            Way(
                f"one thread, {store.requests} in flight",
                _in_flight(store, lambda: store.begin_put(SNAPSHOT, 7, CONTENT, DIGEST)),
            ),
            Way("16 threads", _threads(16, lambda: store.put_snapshot_block(SNAPSHOT, 7, CONTENT, DIGEST))),
            Way(f"boto3, {BOTO3_THREADS} threads", _threads(BOTO3_THREADS, boto3_put)),
        ],
    }


def _threads(number: int, call: Callable[[], object]) -> Callable[[int], None]:
    def take(blocks: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(number) as pool:
            for done in [pool.submit(call) for _ in range(blocks)]:
                done.result()

    return take


def _in_flight(store: Any, begin: Callable[[], concurrent.futures.Future[Any]]) -> Callable[[int], None]:
    """Keeps as many requests in flight as the store says."""

    def take(blocks: int) -> None:
        places = threading.Semaphore(store.requests)
        futures = []
        for _ in range(blocks):
            places.acquire()
            futures.append(begin())
            futures[-1].add_done_callback(lambda _: places.release())
        for future in futures:
            future.result()

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
