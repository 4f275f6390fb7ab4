"""A folder, and the engines that work in it for one task, each in a process of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import images
from deaths import Processes, Words
from objects import runs
from objects.runs import BUCKET, KEY
from tasks.killable import NAME

import amistore
from amistore import DirectoryBackend, TaskEngine

WORKERS = 2
VERB = {"store": "upload_part", "restore": "put_snapshot_block"}
MOST = {"store": WORKERS, "restore": 2 * 2 * WORKERS}
"""Parts, or blocks of segments of two, that are begun and not in the journal when a process dies."""


class Engines:
    """Engines for one task in a folder, each in a process of its own.

    Attributes:
        processes: that work.
        worst: of all runs, the most parts or blocks that one sent and an earlier one had.
    """

    def __init__(self, what: str, root: Path) -> None:
        self.what = what
        self.kind = what.partition("-")[0]
        self.root = root
        self.worst = 0
        self.cloud = DirectoryBackend(root)
        self.image_id = ""
        if self.kind == "store":
            ids = [images.snapshot(self.cloud.ebs, *volume) for volume in runs.VOLUMES]
            self.image_id = self.cloud.ec2.register_image(images.image(ids))
        self.expected = b""
        self.processes = Processes("tasks.killable")
        self.renew()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.processes.__exit__(*exception)

    def renew(self) -> None:
        """Everything as at the beginning."""
        for path in self.root.glob("tasks.db*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._sent: set[tuple[str, ...]] = set()
        if self.kind == "store":
            shutil.rmtree(self.root / "s3" / BUCKET, ignore_errors=True)
            self.cloud.s3.create_bucket(BUCKET)
            return
        for path in (*(self.root / "ebs").iterdir(), *(self.root / "ec2").iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not (self.root / "s3" / BUCKET).exists():
            self.cloud.s3.create_bucket(BUCKET)
            self.cloud.s3.put_object(BUCKET, KEY, [runs.expected()])

    def run(
        self, *, die: list[object] | None = None, kill: tuple[int, int] | None = None
    ) -> tuple[int, list[Words]]:
        """Go on in a process; see `Processes.run`."""
        code, lines = self.processes.run(self.what, str(self.root), self.image_id, die=die, kill=kill)
        sent = {tuple(line[2:]) for line in lines if line[:2] == ["done", VERB[self.kind]]}
        tried = {tuple(line[2:]) for line in lines if line[:2] == ["begin", VERB[self.kind]]}
        again = len(tried & self._sent)
        assert again <= MOST[self.kind]
        self.worst = max(self.worst, again)
        self._sent |= sent
        return code, lines

    def ended(self) -> bool:
        """Whether there is a task, and it has ended; there is never a second one."""
        with TaskEngine(self.cloud) as engine:
            found = [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]
        assert len(found) <= 1
        return bool(found) and found[0].state != "InProgress"

    def finish(self) -> None:
        """Go on until it has ended."""
        while not self.ended():
            code, lines = self.run()
            assert code == 0 or (self.what != self.kind and lines[-1][:2] == ["error", "TaskFailedError"])

    def check(self) -> None:
        """What was to be made is there, once, or nothing of a cancelled task; a sweep finds no more."""
        with TaskEngine(self.cloud) as engine:
            assert engine.sweep().left == ()
            (task,) = (*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks())
        assert self.cloud.s3.list_multipart_uploads(BUCKET) == []
        completed = task.state == "Completed"
        assert completed or (self.what != self.kind and task.failure_reason == "cancelled")
        if self.kind == "store":
            found = runs.stored(self.cloud.s3, f"{self.image_id}.bin")
            assert (found is not None) == completed
            self.expected = self.expected or found or b""
            assert found in (self.expected, None)
            return
        there = {path.name for path in (self.root / "ebs").iterdir() if not path.name.startswith(".")}
        registered = self.cloud.ec2.describe_images()
        assert [image.name for image in registered] == [NAME] * completed
        assert there == {snapshot_id for image in registered for snapshot_id in image.snapshot_ids}
        for image in registered:
            assert isinstance(task, amistore.RestoreImageTask)
            assert image.image_id == task.image_id
            assert runs.disks(self.cloud.ebs, image) == runs.VOLUMES
