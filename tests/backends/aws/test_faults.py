"""One fault at a time in a whole move: the same bytes or a typed error, and nothing orphaned."""

from __future__ import annotations

import collections
import itertools
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
from backends.aws import moves
from backends.aws.accounts import QUICK, account, new_bucket
from backends.aws.proxy import Fault, fault_proxy

import amistore
from amistore import Backend, MemoryBackend, RetryingBackend
from amistore.backends.aws import connection as connection_module
from amistore.backends.aws.ebs_connections import TimeLimits
from amistore.pipeline import orders
from amistore.testing.aws import FakeAWS

pytestmark = pytest.mark.xdist_group("swift")

LONG = bool(os.environ.get("AMISTORE_LONG"))

EBS = ["ListSnapshotBlocks", "GetSnapshotBlock", "StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot"]
EC2 = ["DescribeImages", "DescribeSnapshots", "RegisterImage"]
KINDS = [
    "500",
    "500-after",
    "503",
    "throttle",
    "reset-before-body",
    "reset-before-answer",
    "lost-reply",
    "silence",
    "short-body",
    "flipped-bit",
    "error-inside",
    "slow-drip",
]
# A bit that flips in an answer without a checksum is for TLS to notice.
CHECKED = ["GetSnapshotBlock"]
S3 = [
    "create_multipart_upload",
    "upload_part",
    "complete_multipart_upload",
    "head_object",
    "get_object",
]


@attrs.frozen
class Case:
    operation: str
    kind: str
    place: str  # first, middle or last of its calls
    by_orders: bool


def cases(operations: list[str], kinds: list[str]) -> list[Case]:
    """All of them, or each operation with each kind at one of the places."""
    rng = random.Random(4)
    places = ["first", "middle", "last"]
    return [
        Case(operation, kind, place, by_orders)
        for operation, kind in itertools.product(operations, kinds)
        for place in (places if LONG else [rng.choice(places)])
        for by_orders in ([False, True] if LONG else [rng.random() < 0.5])
        if kind != "flipped-bit" or operation in CHECKED
    ]


def number_of(place: str, calls: int) -> int:
    return {"first": 1, "middle": (calls + 1) // 2, "last": calls}[place]


def move(backend: Backend, image_id: str, bucket: str, *, by_orders: bool = False) -> amistore.Image:
    if not by_orders:
        moves.store(backend, image_id, bucket)
        return moves.restore(backend, bucket)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as executor:
        patch.setattr(orders, "ORDER_BLOCKS", 6)
        moves.store(backend, image_id, bucket, executor=executor)
        return moves.restore(backend, bucket, executor=executor)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are waited for a few seconds at most."""
    monkeypatch.setattr(connection_module, "READ_TIMEOUT", 2.0)
    monkeypatch.setattr(connection_module, "PART_TIMEOUT", 3.0)
    monkeypatch.setattr(connection_module, "COMPLETION_TIMEOUT", 3.0)


def on_memory(aws: FakeAWS) -> tuple[Backend, MemoryBackend]:
    """The fake, with a store in memory."""
    memory = MemoryBackend()
    memory.s3.create_bucket("archive")
    backend = account(aws, aws.endpoint_url)
    backend.s3 = RetryingBackend(memory, QUICK).s3
    return backend, memory


@pytest.fixture(scope="module")
def usual() -> dict[str, int]:
    """How often each operation is called where nothing goes wrong."""
    with FakeAWS() as aws:
        image_id = moves.add_ami(aws)
        backend, _ = on_memory(aws)
        moves.check_restored(aws, move(backend, image_id, "archive"))
        return dict(aws.log.counts)


@pytest.mark.parametrize("case", cases(EBS + EC2, KINDS), ids=str)
def test_a_fault_of_ebs_or_ec2_is_got_over_or_told(
    case: Case, usual: dict[str, int], impatient: None, outcomes: collections.Counter[tuple[str, str, str]]
) -> None:
    with FakeAWS() as aws:
        image_id = moves.add_ami(aws)
        backend, memory = on_memory(aws)
        backend.ebs.inner.limits = TimeLimits(read=2.0)  # type: ignore[attr-defined]
        number = number_of(case.place, usual[case.operation])
        fault = aws.faults.add(case.operation, case.kind, calls=[number])  # type: ignore[arg-type]
        # One fault is got over, of whatever kind.
        image = move(backend, image_id, "archive", by_orders=case.by_orders)
        assert fault.fired == 1
        moves.check_restored(aws, image)
        assert memory.s3.list_multipart_uploads("archive") == []
        assert max(aws.log.blocks.values()) <= 2
        outcomes["ebs, ec2", case.kind, "complete"] += 1


# Not DescribeImages: after RegisterImage it is asked patiently, for a minute and a half.
@pytest.mark.parametrize("operation", [*EBS, "DescribeSnapshots", "RegisterImage"])
def test_when_an_operation_of_ebs_or_ec2_fails_for_good_nothing_is_left(
    operation: str, usual: dict[str, int]
) -> None:
    with FakeAWS() as aws:
        image_id = moves.add_ami(aws)
        backend, memory = on_memory(aws)
        fault = aws.faults.add(operation, "503", calls=range(number_of("middle", usual[operation]), 10_000))
        with pytest.raises(amistore.BackendError) as raised:
            move(backend, image_id, "archive")
        # StartSnapshot is asked once more, for the id of what it may have begun.
        fired = QUICK.attempts * (2 if operation == "StartSnapshot" else 1)
        assert fault.fired == fired or operation in ("GetSnapshotBlock", "PutSnapshotBlock")
        assert raised.value.attempts == QUICK.attempts
        moves.check_nothing_made(aws)
        assert memory.s3.list_multipart_uploads("archive") == []
        if operation in ("ListSnapshotBlocks", "GetSnapshotBlock"):
            with pytest.raises(amistore.NotFoundError):
                memory.s3.head_object("archive", moves.KEY)


@pytest.mark.parametrize("kind", ["503", "lost-reply"])
def test_a_snapshot_that_cannot_be_deleted_at_once_is_deleted_all_the_same(kind: str) -> None:
    with FakeAWS() as aws:
        image_id = moves.add_ami(aws)
        backend, _ = on_memory(aws)
        moves.store(backend, image_id, "archive")
        aws.faults.add("PutSnapshotBlock", "500", calls=range(8, 10_000))
        fault = aws.faults.add("DeleteSnapshot", kind, calls=[1, 2])  # type: ignore[arg-type]
        with pytest.raises(amistore.BackendError, match="InternalServer"):
            moves.restore(backend, "archive")
        assert fault.fired == 2
        moves.check_nothing_made(aws)


@pytest.fixture(scope="module")
def usual_s3(swift: str) -> dict[str, int]:
    """How often each operation of S3 is called where nothing goes wrong."""
    with fault_proxy(swift) as proxy, FakeAWS() as aws:
        image_id = moves.add_ami(aws)
        moves.check_restored(aws, move(account(aws, proxy.url), image_id, new_bucket(swift)))
        return dict(proxy.requests)


def s3_cases() -> list[Case]:
    """All of them, or some: Swift takes seconds for a move. test_s3_faults.py has each call by itself."""
    found = cases(S3, [fault.name for fault in Fault if fault is not Fault.FLIPPED_REQUEST])
    found += cases(["upload_part"], [Fault.FLIPPED_REQUEST.name])
    # An answer to HEAD has no body to hold an error: such a 200 says that the object is there.
    found = [case for case in found if (case.operation, case.kind) != ("head_object", "ERROR_IN_200")]
    return found if LONG else random.Random(5).sample(found, 10)


@pytest.mark.parametrize("case", s3_cases(), ids=str)
def test_a_fault_of_s3_is_got_over(
    case: Case,
    usual_s3: dict[str, int],
    swift: str,
    impatient: None,
    outcomes: collections.Counter[tuple[str, str, str]],
) -> None:
    fault = Fault[case.kind]
    bucket = new_bucket(swift)
    with FakeAWS() as aws, fault_proxy(swift) as proxy:
        image_id = moves.add_ami(aws)
        backend = account(aws, proxy.url)
        number = number_of(case.place, usual_s3[case.operation])
        proxy.fail(case.operation, fault, nth=number)
        # One fault is got over, of whatever kind.
        image = move(backend, image_id, bucket, by_orders=case.by_orders)
        moves.check_restored(aws, image)
        assert proxy.requests[case.operation] >= number
        left = backend.s3.list_multipart_uploads(bucket)
        lost = case.operation == "create_multipart_upload" and fault in LOSING
        assert len(left) == lost, (case, left)
        outcomes["s3", case.kind, "complete"] += 1


# An upload was created and its id not told: it is found by listing. (What is flipped is the bucket's name.)
LOSING = (Fault.RESET_AFTER, Fault.LOST_REPLY, Fault.SILENT, Fault.SHORT_BODY)


@pytest.fixture(scope="module")
def outcomes() -> Iterator[collections.Counter[tuple[str, str, str]]]:
    """What became of the moves; shown at the end with ``-s``."""
    table: collections.Counter[tuple[str, str, str]] = collections.Counter()
    yield table
    for (service, kind, outcome), count in sorted(table.items()):
        sys.stdout.write(f"\n{service:10}{kind:22}{outcome:24}{count:4}")
