"""Processes that are killed while they store and restore, and what those after them do again."""

from __future__ import annotations

import collections
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import boto3
from backends.aws import moves
from backends.aws.moves import KEY, LAYOUT

import amistore
from amistore import AWSBackend, Backend, DirectoryBackend
from amistore.testing import FaultyBackend
from amistore.testing.aws import FakeAWS

R = TypeVar("R")
Call = tuple[object, ...]

KILLS = 200 if os.environ.get("AMISTORE_LONG") else 10
WORKERS = 2
BLOCKS = sum(len(moves.volume(number)) for number in range(2))
IN_FLIGHT = 2 * WORKERS  # what `worker_pool` lets be begun and not taken


class Killing(FaultyBackend):
    """Writes each call into a file; the one that was drawn kills this process, before or after its effect."""

    def __init__(self, inner: Backend, journal: Path, kill_at: int) -> None:
        super().__init__(inner)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._left = kill_at

    def _call(self, verb: str, ids: Call, place: Call, function: Callable[[], R]) -> R:
        os.write(self._journal, f"{verb} {' '.join(map(str, place))}\n".encode())
        with self._lock:
            self._left -= 2
            left = self._left
        if left == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        result = super()._call(verb, ids, place, function)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def work(direction: str, options: dict[str, Any], folder: Path, image_id: str, kill_at: int) -> None:
    """One run, in a process of its own."""
    url = options.pop("endpoint_url")
    aws = AWSBackend(boto3.Session(**options), endpoint_urls={"ec2": url, "ebs": url})
    store = DirectoryBackend(folder / "cloud").s3
    backend = Killing(Backend(ebs=aws.ebs, s3=store, ec2=aws.ec2), folder / "calls", kill_at)
    with amistore.FileResumeLog(folder / "log") as log:
        if direction == "store":
            image = aws.ec2.describe_image(image_id)
            amistore.store(
                image,
                backend.ebs,
                backend.s3.at("archive", KEY),
                log=log,
                workers=WORKERS,
                options=amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB),
            )
        else:
            made = amistore.unpack(backend.s3.at("archive", KEY), backend.ebs, log=log, workers=WORKERS)
            (folder / "restored").write_text(" ".join(made.snapshot_ids))


def run(direction: str, aws: FakeAWS, folder: Path, image_id: str, kill_at: int) -> list[list[str]]:
    """A run in a fresh process; its calls."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["boto3", "amistore.testing", "botocore.auth", "urllib3"])
    arguments = (direction, aws.client_options(), folder, image_id, kill_at)
    process = processes.Process(target=work, args=arguments)
    process.start()
    process.join()
    # It may come to its end before the call that was drawn.
    assert process.exitcode == 0 or (kill_at and process.exitcode == -signal.SIGKILL)
    calls = [line.split() for line in (folder / "calls").read_text().splitlines()]
    (folder / "calls").unlink()
    return calls


def parts_in(path: Path) -> int:
    """How many parts a log has."""
    with amistore.FileResumeLog(path) as log:
        return sum(b'{"part":' in entry for entry in log.entries())


def undisturbed(aws: FakeAWS, image_id: str) -> bytes:
    """The object that a run without trouble makes."""
    backend = AWSBackend(
        boto3.Session(**{k: v for k, v in aws.client_options().items() if k != "endpoint_url"}),
        endpoint_urls={"ec2": aws.endpoint_url, "ebs": aws.endpoint_url},
    )
    image = backend.ec2.describe_image(image_id)
    return b"".join(
        amistore.pack(
            image,
            backend.ebs,
            workers=1,
            options=amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB),
        )
    )


def test_a_killed_store_goes_on_and_sends_again_only_what_was_under_way(tmp_path: Path) -> None:
    rng = random.Random(6)
    kills = again = worst = 0
    with FakeAWS() as aws:
        image_id = moves.add_ami(aws)
        expected = undisturbed(aws, image_id)
        cloud = DirectoryBackend(tmp_path / "cloud")
        cloud.s3.create_bucket("archive")
        while kills < KILLS:
            sent: collections.Counter[str] = collections.Counter()
            for kill_at in (rng.randrange(1, 100), rng.randrange(1, 100), 0):
                carried = parts_in(tmp_path / "log")
                calls = run("store", aws, tmp_path, image_id, kill_at)
                # A part before the last has five segments at least; no block of it is read again.
                gets = sum(words[0] == "get_snapshot_block" for words in calls)
                assert gets <= BLOCKS - 10 * carried
                before = set(sent)
                parts = [words[1] for words in calls if words[0] == "upload_part"]
                repeated = len(before & set(parts))
                sent.update(parts)
                worst = max(worst, repeated)
                again += repeated
                assert repeated <= IN_FLIGHT
                kills += kill_at != 0
                if not (tmp_path / "log").exists() and cloud.s3.path("archive", KEY).exists():
                    break
            assert cloud.s3.path("archive", KEY).read_bytes() == expected
            # An upload whose id was never logged is the one thing that a kill may leave.
            for upload in cloud.s3.list_multipart_uploads("archive"):
                assert cloud.s3.list_parts("archive", KEY, upload.upload_id) == []
                cloud.s3.abort_multipart_upload("archive", KEY, upload.upload_id)
            cloud.s3.delete_object("archive", KEY)
        moves.check_nothing_made(aws)
    sys.stdout.write(f"\n{kills} kills of storing: {again} parts sent again, {worst} at most after one")


def test_a_killed_restore_goes_on_and_puts_again_only_what_was_under_way(tmp_path: Path) -> None:
    rng = random.Random(7)
    kills = again = worst = 0
    with FakeAWS() as aws:
        image_id = moves.add_ami(aws)
        cloud = DirectoryBackend(tmp_path / "cloud")
        cloud.s3.create_bucket("archive")
        run("store", aws, tmp_path, image_id, 0)
        own = set(aws.snapshots)
        while kills < KILLS:
            puts: set[str] = set()
            for kill_at in (rng.randrange(1, 130), rng.randrange(1, 100), 0):
                aws.log.reset()
                run("restore", aws, tmp_path, image_id, kill_at)
                now = {
                    f"{snapshot_id} {index}"
                    for (operation, snapshot_id, index) in aws.log.blocks
                    if operation == "PutSnapshotBlock"
                }
                repeated = len(now & puts)
                puts |= now
                worst = max(worst, repeated)
                again += repeated
                assert repeated <= IN_FLIGHT * LAYOUT.blocks_per_segment
                kills += kill_at != 0
                if (tmp_path / "restored").exists():
                    break
            made = (tmp_path / "restored").read_text().split()
            assert set(aws.snapshots) - own == set(made), "a snapshot beside those restored"
            assert {aws.snapshots[each].state for each in made} == {"completed"}
            source = [
                aws.read_snapshot(each) for each in sorted(own, key=lambda i: aws.snapshots[i].volume_size)
            ]
            restored = [
                aws.read_snapshot(each) for each in sorted(made, key=lambda i: aws.snapshots[i].volume_size)
            ]
            assert restored == source
            (tmp_path / "restored").unlink()
            delete(aws, made)
    sys.stdout.write(f"\n{kills} kills of restoring: {again} blocks put again, {worst} at most after one")


def delete(aws: FakeAWS, snapshot_ids: list[str]) -> None:
    ec2 = boto3.client("ec2", **aws.client_options())
    for snapshot_id in snapshot_ids:
        ec2.delete_snapshot(SnapshotId=snapshot_id)
