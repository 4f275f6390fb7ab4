"""R4 and R5: a backend whose calls go wrong; a task makes the same bytes, or fails and leaves nothing."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest
from tasks.accounts import BUCKET, DISKS, disks, registered

import amistore
from amistore import DirectoryBackend, MemoryBackend, RetryingBackend, RetryPolicy, TaskEngine
from amistore.backends import Backend, pace
from amistore.tasks import run
from amistore.testing import FaultyBackend

LONG = bool(os.environ.get("AMISTORE_LONG"))
RUNS = 1000 if LONG else 18  # as many of each rate
RATES = (0.01, 0.05, 0.2)
KINDS = ("error", "throttle", "refusal", "lost-reply", "short", "flipped")
# As many attempts as ever; pauses short, since nobody is to be spared.
QUICK = RetryPolicy(base_delay=0.0001, max_delay=0.001)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PAUSE", 0.0)
    monkeypatch.setattr(pace, "_LEAST", 1000.0)  # of calls a second, after those that were throttled


class Account:
    """A backend with an AMI, what its object is, and what is there beside a task's own."""

    def __init__(self, kind: str, root: Path) -> None:
        self.inner: MemoryBackend | DirectoryBackend
        self.inner = MemoryBackend(page_size=2) if kind == "memory" else DirectoryBackend(root)
        self.inner.s3.create_bucket(BUCKET)
        self.image_id = registered(self.inner)
        self.key = f"{self.image_id}.bin"
        with TaskEngine(self.inner) as engine:
            engine.wait(engine.create_store_image_task(image_id=self.image_id, bucket=BUCKET))
        self.expected = self.object()
        self.own = self.snapshots()

    def object(self) -> bytes | None:
        try:
            return self.inner.s3.open_object(BUCKET, self.key).read()
        except amistore.NotFoundError:
            return None

    def snapshots(self) -> set[str]:
        if isinstance(self.inner, MemoryBackend):
            return set(self.inner.ebs._snapshots)
        return {path.name for path in (self.inner.path / "ebs").iterdir() if path.name[0] != "."}

    def move(self, what: str, backend: Backend, faulty: FaultyBackend) -> str:
        """Store or restore, give everything up that failed, and say how it ended."""
        if what == "store":
            self.inner.s3.delete_object(BUCKET, self.key)
        name = f"web-{amistore.backends.checks.new_id('x')}"
        with TaskEngine(backend, workers=1, journal=":memory:") as engine:
            outcome = "complete"
            try:
                if what == "store":
                    engine.create_store_image_task(image_id=self.image_id, bucket=BUCKET)
                else:
                    engine.create_restore_image_task(bucket=BUCKET, object_key=self.key, name=name)
                engine.wait()
            except amistore.AmistoreError as error:
                outcome = type(error).__name__
            faulty.clear_faults()
            if engine.resume():  # it could not be asked whether it was done
                engine.wait()
                outcome = "complete after resume"
            assert engine.sweep().left == ()
            tasks = [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]
        states = [task.state for task in tasks]
        assert states in ([], ["Failed"], ["Completed"])
        self.check(what, name, completed=states == ["Completed"])
        assert outcome.startswith("complete") == (states == ["Completed"])
        return outcome if states else f"refused: {outcome}"

    def check(self, what: str, name: str, *, completed: bool) -> None:
        """The same bytes or nothing; no more than that in any case."""
        assert self.inner.s3.list_multipart_uploads(BUCKET) == []
        assert self.object() == (self.expected if completed or what == "restore" else None), "wrong bytes"
        made = self.inner.ec2.find_images(name)
        assert len(made) == (completed and what == "restore")
        snapshot_ids = {each for image in made for each in image.snapshot_ids}
        assert self.snapshots() == self.own | snapshot_ids
        for image in made:
            assert disks(self.inner, image.image_id) == DISKS, "wrong bytes"
            self.inner.ec2.deregister_image(image.image_id)
        for snapshot_id in snapshot_ids:
            self.inner.ebs.delete_snapshot(snapshot_id)


@pytest.mark.parametrize("retrying", [False, True])
@pytest.mark.parametrize("what", ["store", "restore"])
@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_a_fault_in_any_call_lets_a_task_complete_or_fail_and_leave_nothing(
    kind: str, what: str, retrying: bool, tmp_path: Path
) -> None:
    account = Account(kind, tmp_path)
    counted = FaultyBackend(account.inner)
    assert account.move(what, counted, counted) == "complete"
    calls = sum(counted.calls.values())
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    for fault in KINDS if LONG or kind == "memory" else ("refusal", "lost-reply"):
        for number in range(1, calls + 1):
            faulty = FaultyBackend(account.inner)
            added = faulty.add_fault("*", fault, calls=[number])  # type: ignore[arg-type]
            backend = RetryingBackend(faulty, QUICK) if retrying else faulty
            outcome = account.move(what, backend, faulty)
            assert not retrying or fault == "refusal" or outcome == "complete"
            if added.fired:
                outcomes[fault, outcome] += 1
    for (fault, outcome), count in sorted(outcomes.items()):
        print(f"{kind}, {what}{', calls tried again' * retrying}: {fault}: {outcome}: {count} of {calls}")


def add_faults(faulty: FaultyBackend, rate: float, seed: int) -> None:
    """So many of all calls go wrong, in one way or another."""
    for kind in ("error", "throttle", "lost-reply"):
        faulty.add_fault("*", kind, probability=rate / 3, seed=seed)  # type: ignore[arg-type]
    for kind in ("short", "flipped"):
        faulty.add_fault("get_snapshot_block", kind, probability=rate / 2, seed=seed)  # type: ignore[arg-type]
        faulty.add_fault("get_object_range", kind, probability=rate / 10, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_random_faults_in_every_call_give_the_same_bytes_or_a_typed_error(kind: str, tmp_path: Path) -> None:
    account = Account(kind, tmp_path)
    outcomes: dict[float, collections.Counter[str]] = {rate: collections.Counter() for rate in RATES}
    for seed in range(RUNS):
        rate = RATES[seed % len(RATES)]
        for what in ("store", "restore"):
            if account.object() is None:
                account.inner.s3.put_object(BUCKET, account.key, [account.expected or b""])
            faulty = FaultyBackend(account.inner)
            add_faults(faulty, rate, seed)
            outcomes[rate][account.move(what, RetryingBackend(faulty, QUICK), faulty)] += 1
    for rate, ended in outcomes.items():
        print(f"{kind}: {rate:.0%} faults in every call: {dict(ended)}")
    for rate in RATES[:2]:
        assert set(outcomes[rate]) == {"complete"}
