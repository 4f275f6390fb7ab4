"""Storing by orders on AWS: tokens that end, secrets that stay, stores, and workers of Dask that die."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import attrs
import boto3
import cloudpickle
import distributed
import pytest
from backends.aws.accounts import QUICK
from backends.aws.cases import START
from backends.aws.conftest import bucket_of
from backends.aws.places import Place, place
from objects import ordered, runs
from objects.ordered import CASES, Case
from objects.runs import BUCKET, KEY, Calls

import amistore
from amistore import AWSBackend, DirectoryBackend
from amistore.backends.aws.connection import Connection
from amistore.testing.aws import Credential, FakeAWS

__all__ = ["place"]

# Python 3.12 warns of threads at a fork, which a pool of processes may be.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

of_dask = pytest.mark.xdist_group("dask")

HOUR = 3600.0
TOKEN = "canary-session-token"
CASE = CASES["small between large"]


@attrs.frozen
class Home:
    """Where the processes of this module find their profiles."""

    folder: Path

    def write(self, **profiles: Credential) -> None:
        """Write the profiles."""
        lines = []
        for name, each in profiles.items():
            lines += [f"[{name}]", f"aws_access_key_id = {each.access_key_id}"]
            lines += [f"aws_secret_access_key = {each.secret_access_key}"]
            lines += [f"aws_session_token = {each.session_token}"]
        (self.folder / "credentials").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
        yield Home(folder)


@pytest.fixture(scope="module")
def client(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[distributed.Client]:
    """Dask's, with two workers, which are processes of their own."""
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            local_directory=str(tmp_path_factory.mktemp("dask")),
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def dask(client: distributed.Client) -> Executor:
    client.wait_for_workers(2)
    return client.get_executor()


@contextlib.contextmanager
def account(home: Home, case: Case = CASE) -> Iterator[tuple[FakeAWS, AWSBackend, str]]:
    """A fake with the case's AMI, a backend of a profile, and the AMI's id."""
    with FakeAWS(start=START, seed=1) as aws:
        credential = aws.add_credential(session_token=TOKEN)
        denied = aws.add_credential(session_token=TOKEN, denied=["ebs:GetSnapshotBlock"])
        home.write(work=credential, denied=denied)
        ids = [
            aws.add_snapshot(
                volume_size=1, blocks={index: ordered.content(seed) for index, seed in volume.items()}
            )
            for volume in case.volumes
        ]
        mappings = [
            {"deviceName": f"/dev/sd{chr(97 + number)}", "ebs": {"snapshotId": snapshot_id}}
            for number, snapshot_id in enumerate(ids)
        ]
        image_id = aws.add_image(name="web", root_device_name="/dev/sda", mappings=mappings)
        urls = {"ec2": aws.endpoint_url, "ebs": aws.endpoint_url}
        backend = AWSBackend(profile_name="work", region_name=aws.region, endpoint_urls=urls, retries=QUICK)
        yield aws, backend, image_id


def expected(backend: AWSBackend, image_id: str, case: Case = CASE) -> bytes:
    image = backend.ec2.describe_image(image_id)
    return b"".join(amistore.pack(image, backend.ebs, options=case.options))


def folder(path: Path) -> DirectoryBackend:
    cloud = DirectoryBackend(path)
    cloud.s3.create_bucket(BUCKET)
    return cloud


# Tokens.

MANY = Case(
    ({index + (index + 1) // 2: (-1 - index if index < 24 else index) for index in range(80)},), ordered.SHORT
)
"""A volume of five orders and, where they are short, several pages."""


@attrs.define
class Elsewhere:
    """Does orders with backends of a worker's own, as in another process.

    Attributes:
        aws: the account.
        before: is called before each.
        alone: how many had to list by themselves.
    """

    aws: FakeAWS
    before: Callable[[FakeAWS, int], object]
    orders: int = 0
    alone: int = 0

    def __call__(self, function: Callable[[Any], Any], order: Any) -> Any:
        self.before(self.aws, self.orders)
        self.orders += 1
        listed = self.aws.log.counts["ListSnapshotBlocks"]
        answer = function(pickle.loads(pickle.dumps(order)))
        if order.tokens is not None:
            assert self.aws.log.counts["ListSnapshotBlocks"] == listed, "a worker has listed"
        self.alone += order.tokens is None
        return pickle.loads(pickle.dumps(answer))


def relist(aws: FakeAWS) -> None:
    ebs = boto3.client("ebs", **aws.client_options())
    ebs.list_snapshot_blocks(SnapshotId=next(iter(aws.snapshots)), MaxResults=100)


def expire(aws: FakeAWS) -> None:
    aws.clock.advance(8 * 24 * HOUR)


@pytest.mark.parametrize(
    ("disturb", "times", "alone", "renewing"),
    [
        (None, 0, False, False),
        (expire, 2, False, False),
        (relist, 2, False, False),
        (expire, 1000, True, False),
        (relist, 1000, True, False),
        (None, 0, True, True),
        (relist, 2, True, True),
    ],
    ids=[
        "nothing",
        "expire twice",
        "listed by another twice",
        "expire always",
        "listed by another always",
        "pages end those before",
        "pages end those before, and another's listing all",
    ],
)
def test_tokens_that_end_while_orders_wait_change_no_byte(
    disturb: Callable[[FakeAWS], None] | None,
    times: int,
    alone: bool,
    renewing: bool,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amistore.backends.aws.ebs_tokens.PAGE_SIZE", 100)
    cloud = folder(tmp_path)
    with account(home, MANY) as (aws, backend, image_id):
        wanted = expected(backend, image_id, MANY)
        aws.behaviour.short_pages, aws.behaviour.pages_renew_tokens = True, renewing
        work = Elsewhere(aws, lambda aws, orders: disturb(aws) if disturb and orders < times else None)
        executor = ordered.InTurn(monkeypatch, Random(5).randrange, work)
        amistore.store(
            image_id, backend, cloud.s3.at(BUCKET, KEY), executor=executor, workers=3, options=MANY.options
        )
    assert runs.stored(cloud.s3) == wanted
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    assert work.orders >= 5
    # A page that ends the tokens before it leaves no order of two pages any that last.
    assert (work.alone > 0) == alone


def test_orders_of_one_listing_are_not_disturbed_by_each_other(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = folder(tmp_path)
    with account(home, MANY) as (aws, backend, image_id):
        work = Elsewhere(aws, lambda aws, orders: None)
        executor = ordered.InTurn(monkeypatch, Random(5).randrange, work)
        aws.log.reset()
        amistore.store(
            image_id, backend, cloud.s3.at(BUCKET, KEY), executor=executor, workers=3, options=MANY.options
        )
        # For EC2's preflight, to plan, and for the orders.
        assert aws.log.counts["ListSnapshotBlocks"] == 3
        blocks = len(MANY.volumes[0])
        assert aws.log.counts["GetSnapshotBlock"] <= blocks + 1
    assert work.orders == 5


# Who may be sent.


@of_dask
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_a_backend_with_a_session_of_the_callers_is_refused(
    kind: str, home: Home, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cloud = folder(tmp_path)
    with account(home) as (aws, _, image_id), contextlib.ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(1))
        executor = request.getfixturevalue("dask") if kind == "dask" else pool
        options = aws.client_options()
        url = options.pop("endpoint_url")
        own = AWSBackend(boto3.Session(**options), endpoint_urls={"ec2": url, "ebs": url})
        aws.log.reset()
        with pytest.raises(
            amistore.InvalidRequestError, match=r"source AWSBackend cannot be sent.*profile_name="
        ):
            amistore.store(image_id, own, cloud.s3.at(BUCKET, KEY), executor=executor, workers=2)
        assert not aws.log.counts
        with ThreadPoolExecutor(2) as threads:
            amistore.store(
                image_id, own, cloud.s3.at(BUCKET, KEY), executor=threads, workers=2, options=CASE.options
            )
        assert runs.stored(cloud.s3) == expected(own, image_id)


class Watching(Executor):
    """Keeps what goes to the workers, and what comes back, as it is pickled."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self.sent: list[bytes] = []
        self.answered: list[bytes] = []

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        self.sent.append(cloudpickle.dumps((function, arguments, options)))
        future = self._inner.submit(function, *arguments, **options)
        future.add_done_callback(lambda done: self.answered.append(cloudpickle.dumps(done.result())))
        return future


@of_dask
def test_dasks_workers_store_and_no_secret_is_sent_or_told(
    dask: Executor,
    client: distributed.Client,
    home: Home,
    moto: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for logger in ("amistore", "distributed"):
        caplog.set_level(logging.DEBUG, logger)
    executor = Watching(dask)
    with account(home) as (aws, backend, image_id):
        urls = {**backend.connection.endpoint_urls, "s3": moto.endpoint_urls["s3"]}
        backend, denied = (
            AWSBackend(profile_name=name, region_name=aws.region, endpoint_urls=urls, retries=QUICK)
            for name in ("work", "denied")
        )
        bucket = bucket_of(moto)
        wanted = expected(backend, image_id)
        to = backend.s3.at(bucket.bucket, KEY)
        # Errors are told, too: one that ends a run, and those of a worker's attempts.
        image = backend.ec2.describe_image(image_id)
        with pytest.raises(amistore.AccessDeniedError):
            amistore.store(image, denied.ebs, to, executor=executor, workers=2, options=CASE.options)
        aws.faults.add("GetSnapshotBlock", "500", times=3)
        pages: list[str] = []
        stored = amistore.store(
            image_id,
            backend,
            to,
            executor=executor,
            workers=2,
            options=CASE.options,
            progress=lambda event: pages.extend(dashboard(client)),
        )
        secrets = [
            boto3.Session(profile_name=name).get_credentials().secret_key for name in ("work", "denied")
        ]
    assert bucket.store.open_object(bucket.bucket, KEY).read() == wanted
    assert runs.is_there(stored)
    assert bucket.store.list_multipart_uploads(bucket.bucket) == []
    assert any("StoreOrder" in page or "_work" in page for page in pages), "no page shows an order"
    told = [*pages, caplog.text, str(client.get_scheduler_logs()), str(client.get_worker_logs())]
    told += [client.run_on_scheduler(all_that_it_knows)]
    told += [each.decode("latin-1") for each in (*executor.sent, *executor.answered)]
    assert len(executor.sent) >= 6 and len(executor.answered) == len(executor.sent)
    for canary in (TOKEN, *secrets):
        assert not [text for text in told if canary in text]


def dashboard(client: distributed.Client) -> Iterator[str]:
    """The pages of Dask's dashboard, now; those that Bokeh draws have keys, times and memory."""
    root = client.dashboard_link.removesuffix("status")
    workers = [quote(worker, safe="") for worker in client.scheduler_info()["workers"]]
    paths = [f"info/main/{name}.html" for name in ("workers", "exceptions", "logs")]
    paths.append("json/counts.json")
    for kind in ("worker", "logs", "call-stacks"):
        paths += [f"info/{kind}/{worker}.html" for worker in workers]
    for path in paths:
        with urlopen(root + path, timeout=60) as page:
            yield page.read().decode()
    for task in client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)):
        for kind in ("task", "call-stack"):
            path = f"info/{kind}/{quote(task, safe='')}.html"
            with contextlib.suppress(HTTPError), urlopen(root + path, timeout=60) as page:  # it may be over
                yield page.read().decode()


def all_that_it_knows(dask_scheduler: Any) -> str:
    """Keys of tasks and what became of them."""
    return f"{list(dask_scheduler.tasks)} {list(dask_scheduler.transition_log)} {dask_scheduler.get_events()}"


# Stores.


def test_every_store_gets_parts_with_gaps_in_their_numbers_or_as_it_takes_them(place: Place) -> None:
    objects = place.bucket()
    calls = Calls(objects.store)
    options = attrs.evolve(CASE.options, part_size=None) if place.traits.most_parts < 100 else CASE.options
    with ThreadPoolExecutor(2) as executor:
        stored = amistore.store(
            CASE.image,
            CASE.source(),
            objects.store.at(objects.bucket, KEY),
            executor=executor,
            workers=2,
            options=options,
        )
    assert objects.store.open_object(objects.bucket, KEY).read() == CASE.expected()
    assert runs.is_there(stored)
    assert objects.store.list_multipart_uploads(objects.bucket) == []
    gaps = max(calls.parts()) > len(calls.parts())
    assert gaps == (place.traits.part_gaps and not place.traits.equal_parts)


# Dask's workers, and who gives them orders, are killed.


@of_dask
@pytest.mark.parametrize("name", ["noise and compressible", "small around a part of small", "no volumes"])
def test_dasks_workers_make_the_object_that_pack_makes(name: str, dask: Executor, tmp_path: Path) -> None:
    cloud = folder(tmp_path)
    CASES[name].store(cloud.s3, dask)
    assert runs.stored(cloud.s3) == CASES[name].expected()
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


@of_dask
def test_a_worker_that_is_killed_in_the_middle_costs_its_order_only(dask: Executor, tmp_path: Path) -> None:
    cloud = folder(tmp_path / "cloud")
    killed = tmp_path / "killed"
    ordered.store(CASE, ordered.Dying(CASE.volumes, 4, killed), cloud.s3, dask)
    assert killed.exists()
    assert runs.stored(cloud.s3) == CASE.expected()
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


class Killing(amistore.FileResumeLog):
    """Kills this process once it has an order."""

    def append(self, entry: bytes) -> None:
        super().append(entry)
        if entry.startswith(b'{"orders":'):
            os.kill(os.getpid(), signal.SIGKILL)


def begin(address: str, root: Path) -> None:
    with (
        Killing(root / "log") as log,
        distributed.Client(address, set_as_default=False) as client,
    ):
        CASE.store(DirectoryBackend(root / "cloud").s3, client.get_executor(), log=log)


@of_dask
def test_who_gave_the_orders_is_killed_and_another_one_goes_on(
    dask: Executor, client: distributed.Client, tmp_path: Path
) -> None:
    cloud = folder(tmp_path / "cloud")
    process = get_context("spawn").Process(target=begin, args=(client.scheduler.address, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with amistore.FileResumeLog(tmp_path / "log") as log:
        assert len(log.entries()) == 3
        CASE.store(cloud.s3, dask, log=log)
    assert runs.stored(cloud.s3) == CASE.expected()
    assert cloud.s3.list_multipart_uploads(BUCKET) == []
    assert not (tmp_path / "log").exists()
