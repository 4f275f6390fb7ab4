"""R20 over orders: hundreds of requests of four workers in flight, and what goes wrong among them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import images
import pytest
from backends.aws.accounts import QUICK
from objects import ordered

import amistore
from amistore import AWSBackend, BackendError, DirectoryBackend
from amistore.pipeline import orders
from amistore.testing.aws import FakeAWS
from amistore.testing.aws.faults import FaultRule

WORKERS, EACH = 4, 64  # requests that AWS's backend has in flight, of each worker
COUNT = 384
TOGETHER = 200
SECONDS = 60  # until what does not come is missed
FORM = amistore.Layout(blocks_per_frame=2, blocks_per_segment=64, segments_per_shard=1)
OPTIONS = amistore.PackOptions(layout=FORM)
BUCKET, KEY = "archive", "ami.bin"


def block(index: int) -> bytes:
    """Noise for every eighth: an order of 64 blocks is as large as its part needs to be."""
    return ordered.content(-1 - index % 32 if index % 4 == 0 else 1 + index % 200)


class Move:
    """An AMI of the fake, whose backend and folder of objects other processes can open."""

    def __init__(self, aws: FakeAWS, executor: Executor, folder: Path) -> None:
        self.aws = aws
        url = aws.endpoint_url
        self.backend = AWSBackend(
            region_name=aws.region, endpoint_urls={"ec2": url, "ebs": url}, retries=QUICK
        )
        cloud = DirectoryBackend(folder)
        cloud.s3.create_bucket(BUCKET)
        self.to = cloud.s3.at(BUCKET, KEY)
        self.stored_id = aws.add_snapshot(volume_size=1, blocks=block, indexes=range(COUNT))
        self.before = set(aws.snapshots)
        self.image = images.image([self.stored_id])
        self.given: dict[str, Any] = {"executor": executor, "workers": WORKERS}

    def run(self, verb: str, **options: Any) -> None:
        """Store the AMI, or unpack its archive."""
        if verb == "store":
            amistore.store(self.image, self.backend.ebs, self.to, options=OPTIONS, **self.given, **options)
        else:
            amistore.unpack(self.to, self.backend.ebs, **self.given, **options)

    def check(self, verb: str) -> None:
        """The right bytes, and nothing beside them."""
        if verb == "store":
            packed = b"".join(amistore.pack(self.image, self.backend.ebs, options=OPTIONS))
            assert self.to.store.open_object(BUCKET, KEY).read() == packed
        else:
            (restored,) = set(self.aws.snapshots) - self.before
            found = self.aws.read_snapshot(restored)
            assert found.keys() == set(range(COUNT))
            assert all(content == block(index) for index, content in found.items())
        assert self.to.store.list_multipart_uploads(BUCKET) == []

    def check_nothing(self, verb: str) -> None:
        """Nothing was made."""
        assert verb == "unpack" or not self.to.exists()
        assert set(self.aws.snapshots) == self.before
        assert self.to.store.list_multipart_uploads(BUCKET) == []


@pytest.fixture(scope="module")
def aws() -> Iterator[FakeAWS]:
    """An account, whose keys this process and its children find in their environment."""
    with FakeAWS() as aws, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", aws.credential.access_key_id)
        patch.setenv("AWS_SECRET_ACCESS_KEY", aws.credential.secret_access_key)
        yield aws


@pytest.fixture(scope="module")
def executor(aws: FakeAWS) -> Iterator[Executor]:
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def move(aws: FakeAWS, executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Move]:
    monkeypatch.setattr(orders, "ORDER_BLOCKS", EACH)
    yield Move(aws, executor, tmp_path / "cloud")
    aws.faults.clear()


OPERATIONS = {"store": "GetSnapshotBlock", "unpack": "PutSnapshotBlock"}


@pytest.fixture(params=OPERATIONS)
def verb(request: pytest.FixtureRequest, move: Move) -> str:
    """What is done; an archive to restore is there."""
    given: str = request.param
    if given == "unpack":
        amistore.store(move.image, move.backend.ebs, move.to, options=OPTIONS)
    return given


@pytest.fixture
def crowd(move: Move, verb: str) -> Iterator[FaultRule]:
    """No call is answered until hundreds are in flight; then all of them are reset, and others go on."""
    rule = move.aws.faults.add(OPERATIONS[verb], "silence", times=TOGETHER)

    def release() -> None:
        try:
            rule.wait_until_held(TOGETHER, SECONDS)
        finally:
            rule.release()

    with ThreadPoolExecutor(1) as pool:
        released = pool.submit(release)
        yield rule
        released.result()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "500", "probability": 0.05},
        {"kind": "reset-before-answer", "probability": 0.05},
        {"kind": "throttle", "times": 60},  # few enough that no block is refused at all its attempts
    ],
    ids=lambda fault: fault["kind"],
)
def test_faults_among_hundreds_in_flight_change_no_byte(
    move: Move, verb: str, crowd: FaultRule, fault: dict[str, Any]
) -> None:
    """R4, R5."""
    rule = move.aws.faults.add(OPERATIONS[verb], **fault)
    move.run(verb)
    assert crowd.fired == TOGETHER and rule.fired
    move.aws.faults.clear()
    move.check(verb)


@pytest.mark.parametrize("log", [False, True])
def test_an_error_among_hundreds_in_flight_ends_all_and_the_next_run_goes_on(
    move: Move, verb: str, crowd: FaultRule, tmp_path: Path, log: bool
) -> None:
    """R6, R7: once the run is over, no call of it is."""
    given = {"log": tmp_path / "run.log"} if log else {}
    refused = move.aws.faults.add(OPERATIONS[verb], "500", block_index=COUNT // 2)
    with pytest.raises(BackendError, match="attempts 5"):
        move.run(verb, **given)
    assert crowd.fired == TOGETHER and refused.fired
    made = move.aws.log.counts[OPERATIONS[verb]]
    if not log:
        move.check_nothing(verb)
    move.aws.faults.clear()
    move.run(verb, **given)
    again = move.aws.log.counts[OPERATIONS[verb]] - made
    # A restore's log has its orders in order: where the first one is the last to end, all are put again.
    most = COUNT if verb == "unpack" else COUNT - 1
    assert again <= most if log else again >= COUNT
    move.check(verb)
