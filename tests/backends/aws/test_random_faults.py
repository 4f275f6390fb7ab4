"""Random faults in every call: what completes is right, and a call is tried five times at most."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import images
import pytest
from backends.aws import moves
from backends.aws.accounts import QUICK, account
from backends.aws.moves import KEY, LAYOUT

import amistore
from amistore import AmistoreError, Backend, DirectoryBackend, MemoryBackend, RetryingBackend
from amistore.backends import pace
from amistore.pipeline import orders
from amistore.testing import FaultyBackend
from amistore.testing.aws import FakeAWS

LONG = bool(os.environ.get("AMISTORE_LONG"))
RUNS = 1000 if LONG else 18  # as many of each rate
RATES = (0.01, 0.05, 0.2)
# What no client can notice where there is no checksum: the answers of EC2, which TLS guards.
HTTP_KINDS = (
    "500",
    "500-after",
    "503",
    "throttle",
    "reset-before-body",
    "reset-before-answer",
    "lost-reply",
)
READ_KINDS = ("short-body", "flipped-bit")

Outcomes = collections.Counter[tuple[float, str]]


@pytest.fixture(autouse=True)
def quick_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that were throttled go on at once: how far they slow down is what test_pace.py proves."""
    monkeypatch.setattr(pace, "_LEAST", 1000.0)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """Whose orders have a few blocks each."""
    monkeypatch.setattr(orders, "ORDER_BLOCKS", 6)
    with ThreadPoolExecutor(2) as made:
        yield made


def add_faults(faulty: FaultyBackend, rate: float, seed: int) -> None:
    """So many of all calls go wrong, in one way or another."""
    for kind in ("error", "throttle", "lost-reply"):
        faulty.add_fault("*", kind, probability=rate / 3, seed=seed)  # type: ignore[arg-type]
    for kind in ("short", "flipped"):
        faulty.add_fault("get_snapshot_block", kind, probability=rate / 2, seed=seed)  # type: ignore[arg-type]
        faulty.add_fault("get_object_range", kind, probability=rate / 10, seed=seed)  # type: ignore[arg-type]


def most_attempts(faulty: FaultyBackend, phase: Callable[[], object]) -> None:
    """Do something, and prove that no call in it was made more than five times."""
    faulty.calls.clear()
    try:
        phase()
    finally:
        # How often a call is made where nothing goes wrong: listed to plan, and again to read;
        # looked at before, after, and instead of what has its answer lost.
        # A snapshot whose start was never answered is asked for once more, to be deleted.
        usual = {"list_snapshot_blocks": 2, "head_object": 3, "list_parts": 3, "describe_snapshot": 2}
        usual["start_snapshot"] = 2
        for call, count in faulty.calls.items():
            assert count <= QUICK.attempts * usual.get(str(call[0]), 1), call


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Callable[[str], MemoryBackend | DirectoryBackend]]:
    made: list[Path] = []

    def make(kind: str) -> MemoryBackend | DirectoryBackend:
        for path in made:
            shutil.rmtree(path)
        made.clear()
        if kind == "memory":
            return MemoryBackend(page_size=10)
        made.append(tmp_path / "cloud")
        return DirectoryBackend(made[0])

    yield make


@pytest.mark.parametrize(("kind", "by_orders"), [("memory", False), ("memory", True), ("directory", False)])
def test_a_backend_with_random_faults_gives_the_same_bytes_or_a_typed_error(
    kind: str,
    by_orders: bool,
    ours: Callable[[str], MemoryBackend | DirectoryBackend],
    executor: ThreadPoolExecutor,
) -> None:
    outcomes: Outcomes = collections.Counter()
    given = executor if by_orders else None
    for seed in range(RUNS):
        rate = RATES[seed % len(RATES)]
        inner = ours(kind)
        inner.s3.create_bucket("archive")
        ids = [images.snapshot(inner.ebs, 1, moves.volume(number)) for number in range(2)]
        faulty = FaultyBackend(inner)
        add_faults(faulty, rate, seed)
        outcomes[rate, move_and_check(RetryingBackend(faulty, QUICK), faulty, inner, ids, given)] += 1
    for rate in RATES[:2]:
        assert {outcome for each, outcome in outcomes if each == rate} == {"complete"}
    report(f"{kind}, {'by orders' if by_orders else 'alone'}", outcomes)


def move_and_check(
    backend: Backend, faulty: FaultyBackend, inner: Backend, ids: list[str], executor: Executor | None
) -> str:
    """Store, restore and register in one backend; says how it ended."""
    image = images.image(ids)
    made: amistore.Image | None = None
    try:
        most_attempts(
            faulty,
            lambda: amistore.store(
                image,
                backend.ebs,
                backend.s3.at("archive", KEY),
                workers=2,
                executor=executor,
                options=amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB),
            ),
        )

        def unpack() -> None:
            nonlocal made
            made = amistore.unpack(backend.s3.at("archive", KEY), backend.ebs, workers=2, executor=executor)

        most_attempts(faulty, unpack)
        assert made is not None
        backend.ec2.register_image(made)
        outcome = "complete"
    except AmistoreError as error:
        outcome = type(error).__name__
    assert len(inner.ec2.describe_images()) == (outcome == "complete")
    for number, mapping in enumerate(made.block_device_mappings if made else ()):
        assert mapping.ebs is not None and mapping.ebs.snapshot_id is not None
        found = images.contents(inner.ebs, mapping.ebs.snapshot_id)
        assert found == (1, moves.volume(number)), "wrong bytes"
    return outcome


def test_aws_with_random_faults_gives_the_same_bytes_or_a_typed_error() -> None:
    outcomes: Outcomes = collections.Counter()
    for seed in range(RUNS if LONG else RUNS // 2):
        rate = RATES[seed % len(RATES)]
        with FakeAWS() as aws:
            image_id = moves.add_ami(aws)
            memory = MemoryBackend()
            memory.s3.create_bucket("archive")
            faulty = FaultyBackend(memory)
            add_faults(faulty, rate, seed)
            for number, kind in enumerate(HTTP_KINDS):
                aws.faults.add("*", kind, probability=rate / len(HTTP_KINDS), seed=100 * seed + number)
            for kind in READ_KINDS:
                aws.faults.add("GetSnapshotBlock", kind, probability=rate / 2, seed=seed)
            backend = account(aws, aws.endpoint_url)
            backend.s3 = RetryingBackend(faulty, QUICK).s3
            outcomes[rate, aws_outcome(aws, backend, image_id)] += 1
            assert max(aws.log.blocks.values(), default=0) <= QUICK.attempts
    for rate in RATES[:2]:
        assert {outcome for each, outcome in outcomes if each == rate} == {"complete"}
    report("aws", outcomes)


def aws_outcome(aws: FakeAWS, backend: Backend, image_id: str) -> str:
    try:
        moves.store(backend, image_id, "archive")
        image = moves.restore(backend, "archive")
    except AmistoreError as error:
        return type(error).__name__
    moves.check_restored(aws, image)
    return "complete"


def report(name: str, outcomes: Outcomes) -> None:
    for rate in RATES:
        ended = {outcome: count for (each, outcome), count in sorted(outcomes.items()) if each == rate}
        print(f"{name}: {rate:.0%} faults in every call: {ended}")
