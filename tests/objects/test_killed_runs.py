"""R6: processes killed at any moment, and the runs after them that go on to the end."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from deaths import Processes, Words
from objects import runs
from objects.runs import BUCKET, KEY
from objects.test_unpack import DISKS

import amistore

KILLS = 2000 if os.environ.get("AMISTORE_LONG") else 30
WORKERS = 2
MOST = {"pack": WORKERS, "unpack": 2 * 2 * WORKERS}
"""Parts, or blocks of segments of two, that are begun and not in the log when a process dies."""

VERB = {"pack": "upload_part", "unpack": "put_snapshot_block"}


def shape(disk: tuple[int, dict[int, bytes]]) -> tuple[int, int]:
    """Another for each disk."""
    return disk[0], len(disk[1])


class Runs:
    """Runs of one kind in a folder, each in a process.

    Attributes:
        again: of each run, how many parts or blocks it has sent that an earlier one had.
        worst: the most of them.
    """

    def __init__(self, what: str, root: Path) -> None:
        self.what = what
        self.root = root
        self.worst = 0
        self._processes = Processes("objects.killable")
        self.renew()

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *exception: object) -> None:
        self._processes.__exit__(*exception)

    def renew(self) -> None:
        """Everything as at the beginning."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.cloud = amistore.DirectoryBackend(self.root)
        self.cloud.s3.create_bucket(BUCKET)
        if self.what == "unpack":
            self.cloud.s3.put_object(BUCKET, KEY, [runs.expected()])
        self._sent: set[tuple[str, ...]] = set()

    def run(
        self, *, die: list[object] | None = None, kill: tuple[int, int] | None = None
    ) -> tuple[int, list[Words]]:
        """Go on; die at a place, or be killed after so many lines and turns of a loop.

        Returns:
            The exit code, and what the process told.
        """
        code, lines = self._processes.run(self.what, str(self.root), die=die, kill=kill)
        sent = {tuple(line[2:]) for line in lines if line[:2] == ["done", VERB[self.what]]}
        tried = {tuple(line[2:]) for line in lines if line[:2] == ["begin", VERB[self.what]]}
        again = len(tried & self._sent)
        assert again <= MOST[self.what]
        self.worst = max(self.worst, again)
        self._sent |= sent
        return code, lines

    def finished(self, code: int, lines: list[Words]) -> bool:
        """Whether the run has come to its end; if it died, whether there is nothing to go on with."""
        assert code in (0, 9, -9), lines[-1:]
        # A log is also cleared to start over, when it ends before the upload's id.
        cleared = ["begin", "clear"] in lines and runs.stored(self.cloud.s3) is not None
        return code == 0 or (cleared and not (self.root / "run.log").exists())

    def check(self) -> None:
        """The object or the disks are right, and nothing else is there."""
        assert runs.stored(self.cloud.s3) == runs.expected()
        for upload in self.cloud.s3.list_multipart_uploads(BUCKET):
            # One whose id the process died with: nobody can know it, and it holds nothing.
            assert self.cloud.s3.list_parts(BUCKET, KEY, upload.upload_id) == []
        assert not (self.root / "run.log").exists()
        if self.what == "unpack":
            there = [folder.name for folder in (self.root / "ebs").glob("snap-*")]
            found = [images.contents(self.cloud.ebs, snapshot_id) for snapshot_id in there]
            assert sorted(found, key=shape) == sorted(DISKS, key=shape)


@pytest.fixture
def packing(tmp_path: Path) -> Iterator[Runs]:
    with Runs("pack", tmp_path / "cloud") as made:
        yield made


@pytest.fixture
def restoring(tmp_path: Path) -> Iterator[Runs]:
    with Runs("unpack", tmp_path / "cloud") as made:
        yield made


def kill_at_random(given: Runs) -> None:
    """Kill, go on and kill again until a run comes to its end; then from the beginning."""
    rng = random.Random(f"kills {given.what}")
    kills = ends = 0
    _, lines = given.run()
    given.check()
    whole = len(lines)
    given.renew()
    while kills < KILLS:
        code, lines = given.run(kill=(rng.randrange(whole), rng.randrange(20_000)))
        kills += code == -9
        if given.finished(code, lines):
            given.check()
            given.renew()
            ends += 1
    code, lines = given.run()
    assert given.finished(code, lines)
    given.check()
    print(f"{given.what}: {kills} kills, {ends + 1} ends, sent again at worst: {given.worst}")


def test_packing_killed_at_random_moments_goes_on_to_the_same_object(packing: Runs) -> None:
    kill_at_random(packing)


def test_restoring_killed_at_random_moments_goes_on_to_the_same_disks(restoring: Runs) -> None:
    kill_at_random(restoring)


def die_everywhere(given: Runs, places: list[tuple[str, int]]) -> None:
    """Die before and after each of these calls, then go on in another process."""
    for verb, number in places:
        for when in ("before", "after"):
            given.renew()
            code, lines = given.run(die=[when, verb, number])
            assert code == 9, (when, verb, number)
            if not given.finished(code, lines):
                code, lines = given.run()
                assert code == 0, lines[-1]
            given.check()
            uploads = given.cloud.s3.list_multipart_uploads(BUCKET)
            unknown = (when, verb, number) in [
                ("after", "create_multipart_upload", 1),
                ("before", "append", 2),
            ]
            assert len(uploads) == (unknown and given.what == "pack")
    print(f"{given.what}: {2 * len(places)} named points, sent again at worst: {given.worst}")


def test_packing_that_dies_around_any_step_goes_on_to_the_same_object(packing: Runs) -> None:
    steps = [("create_multipart_upload", 1), ("complete_multipart_upload", 1), ("clear", 1)]
    parts = [("upload_part", number) for number in range(1, runs.PARTS + 1)]
    die_everywhere(packing, [*steps, *parts, *(("append", number) for number in range(1, runs.PARTS + 2))])


def test_restoring_that_dies_around_any_step_goes_on_to_the_same_disks(restoring: Runs) -> None:
    snapshots = range(1, len(DISKS) + 1)
    segments = sum(-(-len(blocks) // 2) for _, blocks in DISKS)
    step = 1 if os.environ.get("AMISTORE_LONG") else 4  # a segment's end is like the one before it
    die_everywhere(
        restoring,
        [
            ("clear", 1),
            *(("start_snapshot", number) for number in snapshots),
            *(("complete_snapshot", number) for number in snapshots),
            *(("put_snapshot_block", number) for number in range(1, 34, 10)),
            *(("append", number) for number in range(1, 5)),
            *(("append", number) for number in range(5, 2 + len(DISKS) + segments, step)),
        ],
    )
