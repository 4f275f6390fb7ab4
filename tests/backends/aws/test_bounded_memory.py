"""A tebibyte is stored in bounded memory, with few calls and few connections."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import textwrap

import pytest

from amistore import BLOCK_SIZE
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

    class Forgetting(amistore.ObjectStore):
        def head_object(self, bucket, key):
            raise amistore.NotFoundError("no such object")
        def get_object_range(self, bucket, key, start, length, *, if_match=None):
            raise amistore.NotFoundError("no such object")
        def delete_object(self, bucket, key, *, if_match=None):
            pass
        def create_multipart_upload(self, bucket, key, *, metadata=None, tags=None):
            return "upload"
        def upload_part(self, bucket, key, upload_id, part_number, content):
            return amistore.UploadedPart(part_number=part_number, size=len(content), etag="etag")
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
    layout = amistore.Layout(part_size=int(part_size)) if int(part_size) else None
    try:
        amistore.pack_object(
            image, backend.ebs, Forgetting(), "b", "k", workers=2, progress=stop, layout=layout
        )
    except Enough:
        # VmHWM is this program's; ru_maxrss is inherited from the process that started it.
        status = open("/proc/self/status").read()
        print("peak", int(status.partition("VmHWM:")[2].split()[0]) // 1024, "MiB")
    """
)


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
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, aws.endpoint_url, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "4"},
        )
        found = re.search(r"peak (\d+) MiB", done.stdout)
        assert found, done.stderr
        pages = aws.log.counts["ListSnapshotBlocks"]
        sys.stdout.write(f"\n{found[0]}, {pages} pages, {aws.log.connections} connections")
        assert int(found[1]) <= 256
        # Listed once to plan, and once more, as it goes on, for the blocks' tokens.
        assert pages <= 2 * -(-BLOCKS // 10_000) + 1
        gets = {call: count for call, count in aws.log.blocks.items() if call[0] == "GetSnapshotBlock"}
        assert len(gets) >= 600
        assert max(gets.values()) == 1
        assert aws.log.connections <= 4 * WORKERS
