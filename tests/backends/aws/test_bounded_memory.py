"""A tebibyte is stored, and restored, in bounded memory, with few calls and few connections."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import http.server
import itertools
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import attrs
import images
import pytest

from amistore import BLOCK_SIZE
from amistore.container.encoder import ContainerWriter, EncodedSegment, encode_segment
from amistore.container.plan import plan
from amistore.container.runs import Runs
from amistore.testing.aws import FakeAWS

LONG = bool(os.environ.get("AMISTORE_LONG"))
GIBIBYTES = 1024 if LONG else 64  # listing a tebibyte takes half a minute
BLOCKS = GIBIBYTES * 2**30 // BLOCK_SIZE
NOISE = hashlib.shake_128(b"noise").digest(BLOCK_SIZE)
WORKERS = 2

# S3 is a store that forgets what it is sent: where the parts go is not what is measured.
SCRIPT = textwrap.dedent(
    """
    import sys
    import boto3
    import amistore

    url, secret, image_id, part_size, until, key = sys.argv[1:]

    class Forgetting(amistore.backends.ObjectStore):
        def head_object(self, bucket, key):
            raise amistore.NotFoundError("no such object")
        def get_object_range(self, bucket, key, start, length, *, if_match=None):
            raise amistore.NotFoundError("no such object")
        def delete_object(self, bucket, key, *, if_match=None):
            pass
        def create_multipart_upload(self, bucket, key, *, metadata=None, tags=None):
            return "upload"
        def upload_part(self, bucket, key, upload_id, part_number, content):
            return amistore.backends.UploadedPart(part_number=part_number, size=len(content), etag="etag")
        def list_parts(self, bucket, key, upload_id):
            return []
        def complete_multipart_upload(self, bucket, key, upload_id, parts, *, if_none_match=False):
            raise NotImplementedError
        def abort_multipart_upload(self, bucket, key, upload_id):
            pass

    class Enough(Exception):
        pass

    def stop(progress):
        if progress.phase.value != "list" and progress.blocks >= int(until):
            raise Enough

    session = boto3.Session(key, secret, region_name="us-east-1")
    backend = amistore.AWSBackend(session, endpoint_urls={"ec2": url, "ebs": url})
    image = backend.ec2.describe_image(image_id)
    try:
        options = amistore.PackOptions(part_size=int(part_size) or None)
        place = Forgetting().at("b", "k")
        amistore.store(image, backend.ebs, place, workers=2, progress=stop, options=options)
    except Enough:
        # VmHWM is this program's; ru_maxrss is inherited from the process that started it.
        status = open("/proc/self/status").read()
        print("peak", int(status.partition("VmHWM:")[2].split()[0]) // 1024, "MiB")
    """
)


def measured(script: str, *words: str) -> int:
    """The most memory that a program had, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "4"},
    )
    found = re.search(r"peak (\d+) MiB", done.stdout)
    assert found, done.stderr
    return int(found[1])


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
@pytest.mark.parametrize("part_size", [0, 64 * 2**20], ids=["parts that fit", "parts in files"])
def test_a_large_volume_is_packed_in_256_mib_with_one_get_a_block(part_size: int) -> None:
    with FakeAWS() as aws:
        snapshot_id = aws.add_snapshot(
            volume_size=GIBIBYTES,
            blocks=lambda index: index.to_bytes(8, "big") + NOISE[8:],
            indexes=range(BLOCKS),
        )
        mapping = {"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}
        image_id = aws.add_image(name="huge", mappings=[mapping])
        given = aws.client_options()
        words = [given["aws_secret_access_key"], image_id, str(part_size), "600", given["aws_access_key_id"]]
        peak = measured(SCRIPT, aws.endpoint_url, *words)
        pages = aws.log.counts["ListSnapshotBlocks"]
        sys.stdout.write(f"\npeak {peak} MiB, {pages} pages, {aws.log.connections} connections")
        assert peak <= 256
        # Listed once to plan, and once more, as it goes on, for the blocks' tokens.
        assert pages <= 2 * -(-BLOCKS // 10_000) + 1
        gets = {call: count for call, count in aws.log.blocks.items() if call[0] == "GetSnapshotBlock"}
        assert len(gets) >= 600
        assert max(gets.values()) == 1
        assert aws.log.connections <= 64 + 2 * WORKERS  # requests in flight, and the other calls


RESTORE = textwrap.dedent(
    """
    import sys
    import boto3
    import amistore

    url, secret, key, s3, until = sys.argv[1:]

    class Enough(Exception):
        pass

    def stop(progress):
        if progress.blocks >= int(until):
            raise Enough

    session = boto3.Session(key, secret, region_name="us-east-1")
    backend = amistore.AWSBackend(session, endpoint_urls={"ec2": url, "ebs": url, "s3": s3})
    try:
        amistore.unpack(backend.s3.at("bucket", "key"), backend.ebs, workers=2, progress=stop)
    except Enough:
        status = open("/proc/self/status").read()
        print("peak", int(status.partition("VmHWM:")[2].split()[0]) // 1024, "MiB")
    """
)


def archive_of_noise() -> list[bytes]:
    """The pieces of an archive of a tebibyte whose segments all share the frames of the first."""
    snapshot_id = "snap-0123456789abcdef0"
    planned = plan(images.image([snapshot_id]), [(snapshot_id, 1024, Runs([(0, 1024 * 2048)]))])
    writer = ContainerWriter(planned, 1)
    pieces = [*writer.front(), *writer.volume(planned.volumes[0])]
    first = encode_segment(planned.segment(0), itertools.repeat((NOISE, None)), level=1, check=False)
    for sequence in range(planned.segments):
        segment = planned.segment(sequence)
        assert segment.runs.blocks == first.descriptor.runs.blocks
        place = {"sequence": sequence, "ordinal": segment.ordinal, "runs": segment.runs}
        descriptor = attrs.evolve(first.descriptor, **place)
        pieces += writer.segment(EncodedSegment(descriptor, descriptor.encode(), first.frames))
    return pieces + writer.tail()


@contextlib.contextmanager
def served(pieces: list[bytes]) -> Iterator[str]:
    """The URL of a server that gives the pieces as S3 gives an object."""
    ends = list(itertools.accumulate(map(len, pieces)))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._begin(200, ends[-1])

        def do_GET(self) -> None:
            start, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self._begin(206, last + 1 - start, f"bytes {start}-{last}/{ends[-1]}")
            number = bisect.bisect_right(ends, start)
            while start <= last:
                begin = ends[number] - len(pieces[number])
                self.wfile.write(pieces[number][start - begin : last + 1 - begin])
                start, number = ends[number], number + 1

        def _begin(self, status: int, size: int, content_range: str = "") -> None:
            self.send_response(status)
            self.send_header("ETag", '"etag"')
            self.send_header("Content-Length", str(size))
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_a_tebibyte_is_restored_in_256_mib_with_one_put_a_block() -> None:
    with FakeAWS() as aws, served(archive_of_noise()) as url:
        given = aws.client_options()
        words = [given["aws_secret_access_key"], given["aws_access_key_id"], url, "600"]
        peak = measured(RESTORE, aws.endpoint_url, *words)
        sys.stdout.write(f"\npeak {peak} MiB, {aws.log.connections} connections")
        assert peak <= 256
        puts = {call: count for call, count in aws.log.blocks.items() if call[0] == "PutSnapshotBlock"}
        assert len(puts) >= 600
        assert max(puts.values()) == 1
        assert aws.log.connections <= 64 + 2 * WORKERS  # requests in flight, and the other calls
        assert dict(aws.snapshots) == {}  # what was begun is deleted again
