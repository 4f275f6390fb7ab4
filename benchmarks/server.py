"""EBS, a little of EC2, and an object to read, over TLS, as far as a network's speed is measured.

``python -m benchmarks.server CERTIFICATE BLOCKS OBJECT`` is a process of its own, with a thread for each
connection. It answers from memory and checks nothing. It shares the machine's CPUs with the client.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import mmap
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
from typing_extensions import Buffer

from amistore import BLOCK_SIZE
from amistore.testing.aws.certificate import make_certificate
from amistore.units import KIB

__all__ = ["BUCKET", "KEY", "SNAPSHOTS", "Counts", "Network", "NetworkServer", "noise", "serve_network"]

R = TypeVar("R")

BUCKET, KEY = "bucket", "archive.bin"
SNAPSHOTS = {
    "files": "snap-00000000000000001",
    "noise": "snap-00000000000000002",
    "zeros": "snap-00000000000000003",
}
PAGE = 1000  # blocks of a listing's page
_PIECE = 256 * KIB  # bytes of an object that are sent at once, where the bandwidth is limited
TOKEN = "AAABASKjvq" * 10 + "=="  # as long as EBS's
ETAG = '"feedfeedfeedfeedfeedfeedfeedfeed-3"'


@attrs.frozen
class Network:
    """What lies between client and service.

    Attributes:
        latency: the milliseconds before each answer.
        jitter: the mean of the milliseconds added to them, exponentially distributed.
        limit: the block calls a second that are admitted; 0 for any number.
        breaks: the part of the answers in which the connection breaks.
        bandwidth: the MB a second in which a connection gets an object's bytes; 0 for any number.
    """

    latency: float = 0
    jitter: float = 0
    limit: int = 0
    breaks: float = 0
    bandwidth: float = 0


@attrs.frozen
class Counts:
    """What the server has done since it was last asked.

    Attributes:
        blocks: the block calls that it answered.
        refused: those that it throttled.
        broken: the answers in which it broke the connection.
        sent: the bytes of the object that it sent.
        cpu: its CPU seconds.
    """

    blocks: int
    refused: int
    broken: int
    sent: int
    cpu: float


def noise() -> list[bytes]:
    """Blocks that no compressor makes smaller."""
    random_numbers = random.Random(1)
    return [random_numbers.randbytes(BLOCK_SIZE) for _ in range(31)]


class _Limit:
    """A token bucket of one second's calls."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left, self._at = float(rate), time.monotonic()
        self._lock = threading.Lock()

    def admits(self) -> bool:
        if not self._rate:
            return True
        with self._lock:
            now = time.monotonic()
            self._left = min(self._rate, self._left + (now - self._at) * self._rate)
            self._at = now
            admitted = self._left >= 1
            self._left -= admitted
            return admitted


class _Server:
    def __init__(self, context: ssl.SSLContext, blocks: Path, archive: Path) -> None:
        self._context = context
        files = _mapped(blocks)
        self._count = len(files) // BLOCK_SIZE
        self._blocks: dict[str, list[bytes]] = {
            SNAPSHOTS["files"]: [files[at : at + BLOCK_SIZE] for at in range(0, len(files), BLOCK_SIZE)],
            SNAPSHOTS["noise"]: noise(),
            SNAPSHOTS["zeros"]: [bytes(BLOCK_SIZE)],
        }
        self._checksums = {
            snapshot: [_checksum(block) for block in blocks] for snapshot, blocks in self._blocks.items()
        }
        self._archive = _mapped(archive)
        self._network, self._limit = Network(), _Limit(0)
        self._counts = dict.fromkeys(("blocks", "refused", "broken", "sent"), 0)
        self._cpu = 0.0
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
                    head += _received(connection.recv(65_536))
                text, _, body = head.partition(b"\r\n\r\n")
                lines = text.decode("latin-1")
                length = re.search(r"(?i)\ncontent-length: *(\d+)", lines)
                left = int(length[1]) - len(body) if length else 0
                if left <= 65_536:
                    while left > 0:
                        body += _received(connection.recv(left))
                        left = int(length[1]) - len(body) if length else 0
                while left > 0:
                    left -= _received(connection.recv_into(buffer[:left]))
                if not self._answer(connection, lines, body):
                    return

    def _answer(self, connection: ssl.SSLSocket, head: str, body: bytes) -> bool:
        """Answer one request; False where the connection is to break."""
        method, target, _ = head.split(" ", 2)
        path = target.partition("?")[0]
        if path == "/network":
            return _send(connection, self._set(body))
        network = self._network
        time.sleep(
            (network.latency + (random.expovariate(1 / network.jitter) if network.jitter else 0)) / 1e3
        )
        block = re.fullmatch(r"/snapshots/([^/]+)/blocks/(\d+)", path)
        if not block:
            return self._other(connection, method, target, head, body)
        if not self._limit.admits():
            self._counts["refused"] += 1
            return _send(connection, _THROTTLED, "x-amzn-ErrorType: RequestThrottledException", status=400)
        self._counts["blocks"] += 1
        if network.breaks and random.random() < network.breaks:
            self._counts["broken"] += 1
            if method == "GET":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 524288\r\n\r\n" + bytes(100_000))
            return False
        blocks, checksums = self._blocks[block[1]], self._checksums[block[1]]
        number = int(block[2]) % len(blocks)
        if method == "GET":
            return _send(
                connection, blocks[number], f"x-amz-Data-Length: {BLOCK_SIZE}", *_sums(checksums[number])
            )
        checksum = re.search(r"(?i)\nx-amz-checksum: *(\S+)", head)
        return _send(connection, b"{}", *_sums(checksum[1] if checksum else ""), status=201)

    def _other(self, connection: ssl.SSLSocket, method: str, target: str, head: str, body: bytes) -> bool:
        path, _, query = target.partition("?")
        if path == f"/{BUCKET}/{KEY}":
            return self._object(connection, method, head)
        if path == "/":
            return _send(connection, _ec2(body))
        if path == "/snapshots":
            return _send(connection, json.dumps(_SNAPSHOT).encode(), status=201)
        if path.startswith("/snapshots/completion/"):
            return _send(connection, b'{"Status": "completed"}', status=202)
        if path.endswith("/blocks"):
            return _send(connection, self._page(query))
        return _send(connection, b"", status=404)

    def _page(self, query: str) -> bytes:
        token = re.search(r"pageToken=(\d+)", query)
        first = int(token[1]) if token else 0
        end = min(first + PAGE, self._count)
        page = {
            "Blocks": [{"BlockIndex": index, "BlockToken": TOKEN} for index in range(first, end)],
            "VolumeSize": -(-self._count // 2048),
            "BlockSize": BLOCK_SIZE,
            "ExpiryTime": time.time() + 86_400,
        }
        if end < self._count:
            page["NextToken"] = str(end)
        return json.dumps(page).encode()

    def _object(self, connection: ssl.SSLSocket, method: str, head: str) -> bool:
        size = len(self._archive)
        given = re.search(r"(?i)\nrange: *bytes=(\d*)-(\d*)", head)
        first, last = 0, size - 1
        if given and given[1]:
            first, last = int(given[1]), min(int(given[2]), size - 1) if given[2] else size - 1
        elif given:
            first = max(0, size - int(given[2]))
        headers = [f"ETag: {ETAG}", "Accept-Ranges: bytes", "Last-Modified: Sun, 01 Nov 2026 00:00:00 GMT"]
        if method == "HEAD":
            return _send(connection, b"", *headers, length=size)
        self._counts["sent"] += last + 1 - first
        content_range = [f"Content-Range: bytes {first}-{last}/{size}"] if given else []
        content = memoryview(self._archive)[first : last + 1]
        status, rate = 206 if given else 200, self._network.bandwidth * 1e6
        if not rate:
            return _send(connection, content, *headers, *content_range, status=status)
        _send(connection, b"", *headers, *content_range, status=status, length=len(content))
        begun = time.monotonic()
        for at in range(0, len(content), _PIECE):
            time.sleep(max(0.0, begun + at / rate - time.monotonic()))
            connection.sendall(content[at : at + _PIECE])
        return True

    def _set(self, body: bytes) -> bytes:
        cpu = time.process_time()
        answer = json.dumps({**self._counts, "cpu": cpu - self._cpu}).encode()
        self._cpu = cpu
        self._counts = dict.fromkeys(self._counts, 0)
        self._network = Network(**json.loads(body))
        self._limit = _Limit(self._network.limit)
        return answer


_THROTTLED = b'{"Message": "slow down", "Reason": "ACCOUNT_THROTTLED"}'
_SNAPSHOT = {"SnapshotId": SNAPSHOTS["files"], "BlockSize": BLOCK_SIZE, "VolumeSize": 1, "Status": "pending"}


def _received(what: R) -> R:
    """What came; a client that went away ends its thread."""
    if not what:
        raise ConnectionError
    return what


def _ec2(body: bytes) -> bytes:
    action = re.search(r"Action=(\w+)", body.decode())
    name = action[1] if action else ""
    snapshot = f"<snapshotId>{SNAPSHOTS['files']}</snapshotId><volumeSize>1</volumeSize>"
    snapshot += "<status>completed</status><encrypted>false</encrypted>"
    members = {
        "DescribeSnapshots": f"<snapshotSet><item>{snapshot}</item></snapshotSet>",
        "GetEbsEncryptionByDefault": "<ebsEncryptionByDefault>false</ebsEncryptionByDefault>",
    }
    inner = members.get(name, "<return>true</return>")
    namespace = "http://ec2.amazonaws.com/doc/2016-11-15/"
    return f'<{name}Response xmlns="{namespace}">{inner}</{name}Response>'.encode()


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _checksum(block: Buffer) -> str:
    return base64.b64encode(hashlib.sha256(block).digest()).decode()


def _sums(checksum: str) -> list[str]:
    return [f"x-amz-Checksum: {checksum}", "x-amz-Checksum-Algorithm: SHA256"]


def _send(
    connection: ssl.SSLSocket, body: Buffer, *headers: str, status: int = 200, length: int | None = None
) -> bool:
    size = memoryview(body).nbytes if length is None else length
    lines = [f"HTTP/1.1 {status} Answer", *headers, f"Content-Length: {size}", "", ""]
    connection.sendall("\r\n".join(lines).encode())
    if memoryview(body).nbytes:
        connection.sendall(body)
    return True


class NetworkServer:
    """A server that runs, seen from its clients' side."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self.certificate = certificate
        self._port = port

    def set(self, network: Network) -> Counts:
        """Have the network be so, and give what the server did since the last time."""
        body = json.dumps(attrs.asdict(network)).encode()
        context = ssl.create_default_context(cafile=str(self.certificate))
        with (
            socket.create_connection(("127.0.0.1", self._port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as asking,
        ):
            asking.sendall(b"PUT /network HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            answer = b""
            while not answer.endswith(b"}"):
                answer += asking.recv(65_536)
        return Counts(**json.loads(answer.partition(b"\r\n\r\n")[2]))


@contextlib.contextmanager
def serve_network(folder: Path, blocks: Path, archive: Path) -> Iterator[NetworkServer]:
    """Run a server that has these blocks and this object."""
    certificate = make_certificate(folder)
    command = [sys.executable, "-m", "benchmarks.server", str(certificate), str(blocks), str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield NetworkServer(int(process.stdout.readline()), certificate)
        finally:
            process.terminate()


def _main(arguments: Sequence[str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments[0])
    server = _Server(context, Path(arguments[1]), Path(arguments[2]))
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    _main(sys.argv[1:])
