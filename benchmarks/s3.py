"""Parts of an upload over TLS on loopback: what our settings save beside boto3's.

``python -m benchmarks.s3 CERTIFICATE`` is the server, a process of its own: it reads parts and
drops them, so that the client's work is what is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3

from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from benchmarks.table import Row

__all__ = ["measure_parts"]

PART = 16 << 20  # bytes
PARTS = 24


class Drop(http.server.BaseHTTPRequestHandler):
    """Answers each part as S3 does, after reading it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        pass

    def do_PUT(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self._skip(size + 2)
            self.rfile.readline()
        else:
            self._skip(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", '"a part"')
        if sent := self.headers.get("x-amz-checksum-crc32"):
            self.send_header("x-amz-checksum-crc32", sent)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self.rfile.read(min(size, 1 << 20)))


def serve(certificate: str) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drop)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def measure_parts(repeats: int) -> Iterable[Row]:
    """CPU of the client, and speed, of parts of 16 MiB sent one after the other."""
    content = os.urandom(PART)
    with _serving() as url:
        session = boto3.Session("key", "secret", region_name="us-east-1")
        store = AWSObjectStore(Connection(session, None, {"s3": url}))
        plain = session.client("s3", endpoint_url=url)
        signing = session.client(
            "s3", endpoint_url=url, config=boto3.session.Config(s3={"payload_signing_enabled": True})
        )

        def ours() -> None:
            store.upload_part("bucket", "key", "upload", 1, content)

        def ours_from_file() -> None:
            store.upload_part_file("bucket", "key", "upload", 1, io.BytesIO(content))

        def with_md5() -> None:
            ours()
            hashlib.md5(content, usedforsecurity=False).digest()

        def by(client: Any) -> Callable[[], None]:
            place = {"Bucket": "bucket", "Key": "key", "UploadId": "upload"}
            return lambda: client.upload_part(**place, PartNumber=1, Body=content)

        ways = {
            "amistore": ours,
            "amistore, from a file": ours_from_file,
            "amistore, and MD5": with_md5,
            "boto3's defaults": by(plain),
            "boto3, payload signed": by(signing),
        }
        figures = _measure(list(ways.values()), repeats)
    for name, (cpu, speed) in zip(ways, figures, strict=True):
        yield Row(
            name=name,
            value=cpu,
            unit="CPU s/GB",
            note=f"{speed:,.0f} MB/s; CPU {cpu / figures[0][0]:.2f} of amistore's",
        )


def _measure(ways: list[Callable[[], None]], repeats: int) -> list[tuple[float, float]]:
    """Medians of CPU seconds per GB and of MB/s, the ways in turn."""
    taken: list[list[tuple[float, float]]] = [[] for _ in ways]
    for way in ways:
        way()  # opens the connection
    for _ in range(repeats):
        for way, times in zip(ways, taken, strict=True):
            cpu, start = time.process_time(), time.perf_counter()
            for _ in range(PARTS):
                way()
            times.append((time.process_time() - cpu, time.perf_counter() - start))
    size = PART * PARTS
    return [
        (
            statistics.median(cpu for cpu, _ in times) / size * 1e9,
            size / 1e6 / statistics.median(seconds for _, seconds in times),
        )
        for times in taken
    ]


@contextlib.contextmanager
def _serving() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="amistore-benchmarks-") as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *names]
        subprocess.run(
            ["openssl", *words, "-keyout", key, "-out", certificate], check=True, capture_output=True
        )
        both = Path(folder, "both.pem")
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        command = [sys.executable, "-m", "benchmarks.s3", str(both)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            before = os.environ.get("AWS_CA_BUNDLE")
            os.environ["AWS_CA_BUNDLE"] = str(certificate)
            try:
                assert server.stdout is not None
                yield f"https://127.0.0.1:{server.stdout.readline().strip()}"
            finally:
                server.terminate()
                os.environ.pop("AWS_CA_BUNDLE")
                if before is not None:
                    os.environ["AWS_CA_BUNDLE"] = before


if __name__ == "__main__":
    serve(sys.argv[1])
