"""Children forked from a parent at work, and pools: right or typed, none wrong, none that hangs."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import images
import pytest
from children import answers
from tasks.accounts import BUCKET

import amistore
from amistore import DirectoryBackend, FileResumeLog, Layout, TaskEngine
from amistore.container.members import PREAMBLE

CHILDREN = 200 if os.environ.get("AMISTORE_LONG") else 10
IMAGES = 4
BLOCKS = 24
LAYOUT = Layout(blocks_per_frame=2, blocks_per_segment=4)


def marked(number: int) -> dict[int, bytes]:
    """The blocks of an image, which no other one has."""
    return {index: images.block(1000 * number + index) for index in range(1, BLOCKS + 1)}


class Parent:
    """A process with everything open, whose threads read, write and run tasks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cloud = DirectoryBackend(root / "cloud")
        self.cloud.s3.create_bucket(BUCKET)
        self.images = []
        for number in range(IMAGES):
            snapshot_id = images.snapshot(self.cloud.ebs, 1, marked(number))
            image_id = self.cloud.ec2.register_image(images.image([snapshot_id], name=f"web-{number}"))
            self.images.append(self.cloud.ec2.describe_image(image_id))
            (root / f"{number}.bin").write_bytes(self.pack(number))
        self.archives = [amistore.open(root / f"{number}.bin") for number in range(IMAGES)]
        self.disks = [archive.volumes[0].open(workers=2) for archive in self.archives]
        self.engine = TaskEngine(self.cloud, workers=1)
        self.log = FileResumeLog(root / "parent.log")
        self.log.append(b"parent")
        self.iterator = iter(self._pieces(0))
        next(self.iterator)
        self.errors: list[BaseException] = []
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(each,))
            for each in (self.read, self.write, self.store)
        ]

    def __enter__(self) -> Parent:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
        self.engine.close()
        for each in (*self.disks, *self.archives, self.log):
            each.close()

    def _repeat(self, work: Callable[[int], None]) -> None:
        number = 0
        try:
            while not self._end.is_set():
                work(number % IMAGES)
                number += 1
        except BaseException as error:
            self.errors.append(error)

    def _pieces(self, number: int) -> Iterator[bytes]:
        return amistore.pack(
            self.images[number], self.cloud.ebs, workers=2, options=amistore.PackOptions(layout=LAYOUT)
        )

    def pack(self, number: int) -> bytes:
        return b"".join(self._pieces(number))

    # What both do: a child with what it has inherited, and its parent meanwhile.

    def packs(self, number: int) -> bool:
        return self.pack(number) == (self.root / f"{number}.bin").read_bytes()

    def restores(self, number: int) -> bool:
        with (self.root / f"{number}.bin").open("rb") as stream:
            made = amistore.unpack(stream, self.cloud.ebs, workers=2)
        right = images.contents(self.cloud.ebs, made.snapshot_ids[0]) == (1, marked(number))
        self.cloud.ebs.delete_snapshot(made.snapshot_ids[0])
        return right

    def verifies(self, number: int) -> bool:
        return self.archives[number].verify(workers=2).ok

    def reads(self, number: int) -> bool:
        disk = self.disks[number]
        disk.seek(amistore.BLOCK_SIZE)
        return disk.read(BLOCKS * amistore.BLOCK_SIZE) == b"".join(marked(number).values())

    def read(self, number: int) -> None:
        assert self.reads(number)
        assert self.verifies(number)

    def write(self, number: int) -> None:
        assert self.restores(number)
        assert self.packs(number)
        self.log.append(b"more")

    def store(self, number: int) -> None:
        key = f"parent/{self.images[number].image_id}.bin"
        task = self.engine.create_store_image_task(
            image_id=self.images[number].image_id, bucket=f"{BUCKET}/parent"
        )
        assert self.engine.wait(task).state == "Completed"
        self.cloud.s3.delete_object(BUCKET, key)

    # What a child does alone.

    def stores(self, number: int) -> bool:
        prefix = f"{os.getpid()}"
        image_id = self.images[number].image_id
        with TaskEngine(self.cloud, workers=1) as own:
            task = own.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/{prefix}")
            own.wait(task)
        stored = amistore.open(self.cloud.s3.at(BUCKET, f"{prefix}/{image_id}.bin"))
        with amistore.open(self.root / f"{number}.bin") as archive:
            return stored.content_id == archive.content_id and stored.verify(workers=1).ok

    def logs(self, number: int) -> bool:
        log = FileResumeLog(self.root / f"{os.getpid()}.log")
        with log:
            log.append(b"child")
        return log.entries() == [b"child"]

    def child(self, number: int) -> dict[str, str]:
        jobs: dict[str, Callable[[], object]] = {
            "packs": lambda: self.packs(number),
            "restores": lambda: self.restores(number),
            "verifies": lambda: self.verifies(number),
            "reads": lambda: self.reads(number),
            "stores": lambda: self.stores(number),
            "logs": lambda: self.logs(number),
            "the parent's engine": self.engine.resume,
            "the parent's iterator": lambda: next(self.iterator),
            "the parent's log": self.log.entries,
        }
        return {name: _outcome(job) for name, job in jobs.items()}


REFUSED = "InvalidRequestError"
OUTCOMES = {
    **dict.fromkeys(("packs", "restores", "verifies", "reads", "stores", "logs"), "right"),
    **dict.fromkeys(("the parent's engine", "the parent's iterator", "the parent's log"), REFUSED),
}


def _outcome(job: Callable[[], object]) -> str:
    try:
        return "right" if job() is True else "WRONG"
    except Exception as error:
        return type(error).__name__ if type(error) is amistore.InvalidRequestError else repr(error)


def test_children_of_a_parent_at_work_are_right_or_refused_and_none_hangs(tmp_path: Path) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    with Parent(tmp_path) as parent:
        children = [lambda number=number: parent.child(number % IMAGES) for number in range(CHILDREN)]
        for found in answers(children):
            seen.update(found.items())
    for (job, outcome), count in sorted(seen.items()):
        print(f"{count:4} children, {job}: {outcome}")
    assert parent.errors == []
    assert seen == dict.fromkeys(OUTCOMES.items(), CHILDREN)
    assert b"".join(parent.iterator) == (tmp_path / "0.bin").read_bytes()[len(PREAMBLE) :]


@pytest.fixture
def threads() -> Iterator[None]:
    """Python 3.12 warns of a fork beside threads, which is what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _pack_and_read(cloud: amistore.Backend, image: amistore.Image, number: int) -> bool:
    content = b"".join(amistore.pack(image, cloud.ebs, workers=2))
    with amistore.open(io.BytesIO(content)) as archive, archive.volumes[0].open() as disk:
        disk.seek(amistore.BLOCK_SIZE)
        return disk.read(BLOCKS * amistore.BLOCK_SIZE) == b"".join(marked(number).values())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools_of_processes_pack_what_their_parent_has_packed(tmp_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    with Parent(tmp_path) as parent:
        cloud = amistore.RetryingBackend(parent.cloud)
        tasks = [(cloud, parent.images[each % IMAGES], each % IMAGES) for each in range(8)]
        with context.Pool(2) as pool:
            assert pool.starmap(_pack_and_read, tasks) == [True] * 8
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            for number in range(IMAGES):
                packed = b"".join(
                    amistore.pack(
                        parent.images[number],
                        parent.cloud.ebs,
                        executor=executor,
                        options=amistore.PackOptions(layout=LAYOUT),
                    )
                )
                assert packed == (tmp_path / f"{number}.bin").read_bytes()
                made = amistore.unpack(io.BytesIO(packed), parent.cloud.ebs, executor=executor)
                assert images.contents(parent.cloud.ebs, made.snapshot_ids[0]) == (1, marked(number))
    assert parent.errors == []


PROGRAM = """
import os, sys
from pathlib import Path
from test_forked_children import Parent

with Parent(Path(sys.argv[1])) as parent:
    pid = os.fork()
    if not pid:
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
assert parent.errors == [], parent.errors
"""


def test_a_child_that_ends_as_a_program_does_waits_for_nothing_of_its_parent_s(tmp_path: Path) -> None:
    """The interpreter's own clean-up at the end: threads, pools, files, connections, generators."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, told = process.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, told
    assert "Traceback" not in told
