"""A process that is killed leaves nothing half made in a directory."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import amistore
from amistore.testing import block, read_snapshot
from amistore.testing.snapshots import linear, sha256

SETUP = """
import itertools, sys, amistore
from amistore.testing import block
from amistore.testing.snapshots import linear, sha256
cloud = amistore.DirectoryBackend(sys.argv[1])
blocks = {index: block(index) for index in range(8)}
digests = {index: sha256(content) for index, content in blocks.items()}
image = amistore.Image(image_id="ami-01234567", name="web", tags=[amistore.Tag(key="x" * 5000)])
def did(*words):
    print(*words, flush=True)
"""

WORK = {
    "snapshots": """
for number in itertools.count():
    snapshot_id = cloud.ebs.start_snapshot(1)
    did("started", snapshot_id)
    for index, content in blocks.items():
        cloud.ebs.put_snapshot_block(snapshot_id, index, content, digests[index])
        did("put", snapshot_id, index)
    cloud.ebs.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
    did("completed", snapshot_id)
    if number % 2:
        cloud.ebs.delete_snapshot(snapshot_id)
        did("deleted", snapshot_id)
""",
    "objects": """
for number in itertools.count():
    content = b"%d " % number * 100_000
    key = f"key{number % 3}"
    cloud.s3.put_object("archive", key, [content], metadata={"number": str(number)}, part_size=100_000)
    did("stored", key, number)
""",
    "images": """
for number in itertools.count():
    image_id = cloud.ec2.register_image(image, name=f"web-{number}")
    did("registered", image_id)
    if number % 2:
        cloud.ec2.deregister_image(image_id)
        did("deregistered", image_id)
""",
}

Word = list[str]


def killed(work: str, path: Path, rng: random.Random) -> list[Word]:
    """Do some work in a process, kill -9 it at a random moment, and tell what it had done."""
    process = subprocess.Popen(
        [sys.executable, "-c", SETUP + WORK[work], str(path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        # After some steps and a random number of turns the kill lands anywhere in the next one.
        lines = [process.stdout.readline() for _ in range(rng.randrange(1, 40))]
        for _ in range(rng.randrange(1, 30_000)):
            pass
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -9
    return [line.split() for line in lines if line.endswith("\n")]  # the last may be half a line


def snapshots_are_pending_or_whole(cloud: amistore.DirectoryBackend, done: list[Word]) -> None:
    blocks = {index: block(index) for index in range(8)}
    deleted = {snapshot_id for word, snapshot_id, *_ in done if word == "deleted"}
    completed = {snapshot_id for word, snapshot_id, *_ in done if word == "completed"} - deleted
    last = done[-1][1]
    for folder in (cloud.path / "ebs").glob("snap-*"):
        try:
            state = cloud.ebs.describe_snapshot(folder.name).state
        except amistore.NotFoundError:  # killed before its id was told
            cloud.ebs.delete_snapshot(folder.name)
            continue
        if state == "completed":
            assert read_snapshot(cloud.ebs, folder.name) == (1, blocks)
            completed.discard(folder.name)
        else:
            with pytest.raises(amistore.BackendError):
                cloud.ebs.list_snapshot_blocks(folder.name)
            # It can be taken up where it was left.
            for index, content in blocks.items():
                cloud.ebs.put_snapshot_block(folder.name, index, content, sha256(content))
            cloud.ebs.complete_snapshot(folder.name, len(blocks), linear(blocks))
            assert read_snapshot(cloud.ebs, folder.name) == (1, blocks)
            cloud.ebs.delete_snapshot(folder.name)
    assert completed <= {last}  # its deletion was under way, or it is there
    for snapshot_id in deleted:
        with pytest.raises(amistore.NotFoundError):
            cloud.ebs.describe_snapshot(snapshot_id)


def objects_are_whole(cloud: amistore.DirectoryBackend, done: list[Word]) -> None:
    stored = {key: int(number) for word, key, number in done if word == "stored"}
    for key in ("key0", "key1", "key2"):
        try:
            with cloud.s3.open_object("archive", key) as file:
                content = file.read()
        except amistore.NotFoundError:
            assert key not in stored
            continue
        number = int(content.split()[0])
        assert content == b"%d " % number * 100_000
        assert cloud.s3.head_object("archive", key).metadata == {"number": str(number)}
        assert number in (stored.get(key), stored.get(key, int(key[-1]) - 3) + 3)


def images_are_whole(cloud: amistore.DirectoryBackend, done: list[Word]) -> None:
    there = {image.image_id for image in cloud.ec2.describe_images()}
    assert all(image.tags[0].key == "x" * 5000 for image in cloud.ec2.describe_images())
    gone = {image_id for word, image_id in done if word == "deregistered"}
    registered = {image_id for word, image_id in done if word == "registered"} - gone
    assert not there & gone
    assert registered - there <= {done[-1][1]}
    assert len(there - registered) <= 1
    cloud.ec2.register_image(amistore.Image(image_id="ami-01234567", name="after"))


CHECK: dict[str, Callable[[amistore.DirectoryBackend, list[Word]], None]] = {
    "snapshots": snapshots_are_pending_or_whole,
    "objects": objects_are_whole,
    "images": images_are_whole,
}


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("work", WORK)
def test_a_killed_process_leaves_nothing_half_made(tmp_path: Path, work: str, seed: int):
    cloud = amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket("archive")
    done = killed(work, tmp_path, random.Random(f"{work} {seed}"))
    CHECK[work](cloud, done)


@pytest.mark.parametrize(
    "call",
    [
        'cloud.ec2.register_image(image, name="other")',
        'cloud.s3.put_object("archive", "key", [bytes(9000)])',
        'cloud.s3.put_object("archive", "key", [b"new"], metadata={"new": "x" * 5000})',
        'cloud.ebs.start_snapshot(1, description="x" * 5000)',
    ],
)
def test_a_process_killed_in_the_middle_of_a_file_leaves_what_was_there(tmp_path: Path, call: str):
    """The kernel kills it, at the 3,000th byte."""
    cloud = amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket("archive")
    info = cloud.s3.put_object("archive", "key", [b"old"], metadata={"old": "x"})
    image_id = cloud.ec2.register_image(amistore.Image(image_id="ami-01234567", name="web"))
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
"""
    ended = subprocess.run([sys.executable, "-c", SETUP + limit + call, str(tmp_path)])
    assert ended.returncode == -signal.SIGXFSZ
    assert cloud.s3.head_object("archive", "key") == info
    assert cloud.s3.open_object("archive", "key").read() == b"old"
    assert [image.image_id for image in cloud.ec2.describe_images()] == [image_id]
    for folder in (tmp_path / "ebs").iterdir():
        with pytest.raises(amistore.NotFoundError):
            cloud.ebs.describe_snapshot(folder.name)
