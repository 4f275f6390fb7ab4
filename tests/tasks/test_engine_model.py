"""R12: engines against a small model of tasks, through crashes, faults, cancellations and sweeps."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tasks.accounts import BUCKET, DISKS, disks, registered, snapshots

import amistore
from amistore import MemoryBackend, TaskEngine
from amistore.tasks import run
from amistore.testing import FaultyBackend

LONG = bool(os.environ.get("AMISTORE_LONG"))
EXAMPLES, STEPS = (2000, 50) if LONG else (25, 25)
R = TypeVar("R")

AMIS = 2
PLACES = 2
NAMES = 3
KINDS = ("error", "throttle", "refusal", "lost-reply", "short", "flipped")
PICK = st.integers(min_value=0, max_value=99)


class Mortal(FaultyBackend):
    """Makes no call any more once its engine has died."""

    dead = False

    def make(self, verb: str, ids: Any, place: Any, function: Callable[[], R]) -> R:
        if self.dead:
            raise amistore.AccessDeniedError("the process has died")
        return super().make(verb, ids, place, function)


@attrs.define
class Expected:
    """What is known of a task.

    Attributes:
        makes: the key of its object, or the name of its image.
        may_fail: it was cancelled, or calls went wrong while it was in progress.
        progress: the highest percentage that was told.
    """

    task: amistore.tasks.Task
    makes: str
    may_fail: bool = False
    progress: int = 0
    state: str = "InProgress"


class Engines(RuleBasedStateMachine):
    """Rules choose by numbers, and have no preconditions: nothing drawn depends on how far threads are."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="amistore-model-"))
        self.cloud = MemoryBackend(page_size=2)
        self.cloud.s3.create_bucket(BUCKET)
        self.amis = [registered(self.cloud, f"web-{number}") for number in range(AMIS)]
        for image_id in self.amis:
            with TaskEngine(self.cloud) as engine:
                engine.wait(engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/old"))
        self.own = snapshots(self.cloud)
        self.tasks: list[Expected] = []
        self.faults = False
        self._open()

    def _open(self) -> None:
        self.backend = Mortal(self.cloud)
        self.engine = TaskEngine(
            self.backend, journal=self.folder / "tasks.db", workers=1, quotas=amistore.Quotas.unlimited()
        )
        self.faults = False

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.engine.close()
            shutil.rmtree(self.folder)

    @rule(ami=st.integers(0, AMIS - 1), place=st.integers(0, PLACES - 1))
    def store(self, ami: int, place: int) -> None:
        key = f"{place}/{self.amis[ami]}.bin"
        with self._created(key):
            task = self.engine.create_store_image_task(image_id=self.amis[ami], bucket=f"{BUCKET}/{place}")
            assert task.object_key == key
            self.tasks.append(Expected(task, key, self.faults))

    @rule(ami=st.integers(0, AMIS - 1), number=st.integers(0, NAMES - 1))
    def restore(self, ami: int, number: int) -> None:
        name = f"restored-{number}"
        with self._created(name):
            task = self.engine.create_restore_image_task(
                bucket=BUCKET, object_key=f"old/{self.amis[ami]}.bin", name=name
            )
            self.tasks.append(Expected(task, name, self.faults))

    @contextlib.contextmanager
    def _created(self, makes: str) -> Iterator[None]:
        """Two tasks never make the same; what a task has made stays."""
        same = [each for each in self.tasks if each.makes == makes and each.state != "Failed"]
        count = len(self.tasks)
        try:
            yield
        except amistore.AlreadyExistsError:
            assert same
        except amistore.AmistoreError:
            assert self.faults
        else:
            # One that comes to its end just now lets another be begun, which then fails.
            assert all(each.may_fail or each.state == "InProgress" for each in same)
            self.tasks[-1].may_fail |= bool(same)
        assert len(self.tasks) - count in (0, 1)

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        if not self.tasks:
            return
        expected = self.tasks[pick % len(self.tasks)]
        before = expected.may_fail
        expected.may_fail = True
        try:
            self.engine.cancel(expected.task)
        except amistore.InvalidRequestError as error:
            assert error.code == "IncorrectState"
            expected.may_fail = before

    @rule(
        kind=st.sampled_from(KINDS),
        verb=st.sampled_from(["*", "get_object_range", "get_snapshot_block"]),
        seed=PICK,
        times=st.integers(1, 6),
    )
    def go_wrong(self, kind: Any, verb: str, seed: int, times: int) -> None:
        if kind in ("short", "flipped") and verb == "*":
            verb = "get_object_range"
        self.faults = True
        for each in self.tasks:
            each.may_fail |= each.state == "InProgress"
        self.backend.add_fault(verb, kind, probability=0.3, seed=seed, times=times)

    @rule()
    def go_well(self) -> None:
        self.backend.clear_faults()
        self.faults = False

    @rule()
    def resume(self) -> None:
        self.engine.resume()

    @rule()
    def sweep(self) -> None:
        report = self.engine.sweep()
        assert self.faults or not any("could not be listed" in each for each in report.left)

    @rule(pick=PICK)
    def wait(self, pick: int) -> None:
        if not self.tasks:
            return
        expected = self.tasks[pick % len(self.tasks)]
        try:
            assert self.engine.wait(expected.task).state == "Completed"
        except amistore.TaskFailedError as error:
            assert error.task_ids == (expected.task.task_id,)
            assert expected.may_fail
        except amistore.AmistoreError:  # it could not be asked whether it was done
            assert expected.may_fail

    @rule()
    def close(self) -> None:
        self.engine.close()
        self._open()

    @rule()
    def crash(self) -> None:
        """The process dies: what it holds is let go of, and nothing is written any more."""
        self.engine._journal.close()
        self.backend.dead = True
        self.engine._runner.close()
        self.engine._ownership._let_go()
        self._open()

    @rule()
    def settle(self) -> None:
        """With all well, each task comes to its end, and all that is there is theirs."""
        self.go_well()
        self.engine.resume()
        for expected in self.tasks:
            with contextlib.suppress(amistore.TaskFailedError):
                self._finish(expected.task)
        assert self.engine.sweep().left == ()
        assert self.engine.resume() == ()
        self.described()
        assert all(each.state != "InProgress" for each in self.tasks)
        completed = {each.makes: each.task for each in self.tasks if each.state == "Completed"}
        assert len(completed) == sum(each.state == "Completed" for each in self.tasks)
        assert self.cloud.s3.list_multipart_uploads(BUCKET) == []
        keys = {key for key in self.cloud.s3._buckets[BUCKET] if not key.startswith("old/")}
        assert keys == {
            makes for makes, task in completed.items() if isinstance(task, amistore.StoreImageTask)
        }
        made = [each for each in self.cloud.ec2.describe_images() if str(each.name).startswith("restored-")]
        assert {image.name: image.image_id for image in made} == {
            makes: task.image_id
            for makes, task in completed.items()
            if isinstance(task, amistore.RestoreImageTask)
        }
        assert snapshots(self.cloud) == self.own | {each for image in made for each in image.snapshot_ids}
        for key in keys:
            old = f"old/{key.partition('/')[2]}"
            assert (
                self.cloud.s3.open_object(BUCKET, key).read() == self.cloud.s3.open_object(BUCKET, old).read()
            )
        for image in made:
            assert disks(self.cloud, image.image_id) == DISKS

    def _finish(self, task: amistore.tasks.Task) -> None:
        try:
            self.engine.wait(task)
        except amistore.TaskFailedError:
            raise
        except amistore.AmistoreError:  # its run was under way, and had met its last fault before
            self.engine.resume()
            self.engine.wait(task)

    @invariant()
    def described(self) -> None:
        """Each task is told once, the newest first; an end is for ever, and progress never falls."""
        told = [*self.engine.describe_store_image_tasks(), *self.engine.describe_restore_image_tasks()]
        by_id = {task.task_id: task for task in told}
        assert len(by_id) == len(told)
        assert set(by_id) == {each.task.task_id for each in self.tasks}
        for kind in (amistore.StoreImageTask, amistore.RestoreImageTask):
            order = [each.task.task_id for each in reversed(self.tasks) if isinstance(each.task, kind)]
            assert [task.task_id for task in told if isinstance(task, kind)] == order
        for expected in self.tasks:
            task = by_id[expected.task.task_id]
            assert expected.state in ("InProgress", task.state)
            assert task.state != "Failed" or expected.may_fail, task.failure_reason
            assert task.progress_percentage >= expected.progress
            expected.state, expected.progress = task.state, task.progress_percentage


def test_engines_do_what_the_model_says() -> None:
    pause, report = run._PAUSE, run._REPORT
    run._PAUSE = run._REPORT = 0.0  # type: ignore[misc]
    try:
        run_state_machine_as_test(
            Engines, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
        )
    finally:
        run._PAUSE, run._REPORT = pause, report  # type: ignore[misc]
    print(f"{EXAMPLES} engines of {STEPS} steps")
