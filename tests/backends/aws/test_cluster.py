"""A cluster of Dask between the fake of EBS and a real S3 server: same object, same disks, whoever dies."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import children
import images
import pytest
from backends.aws import gateways
from backends.aws.conftest import bucket_of
from distributed import Client, LocalCluster

import amistore
from amistore import AWSBackend, Layout
from amistore.backends.aws.connection import Connection
from amistore.testing.aws import FakeAWS

pytestmark = pytest.mark.xdist_group("seaweedfs")

LONG = bool(os.environ.get("AMISTORE_LONG"))
BLOCKS = 4096 if LONG else 128  # of 512 KiB, in two volumes
MANY = max(BLOCKS, 512)
only_long = pytest.mark.skipif(not LONG, reason="test_orders.py has a short form")


@functools.lru_cache(64)
def _noise(seed: int) -> bytes:
    return images.noise(seed)


def block(index: int) -> bytes:
    """Noise that no other block has."""
    return index.to_bytes(8, "big") + _noise(index % 64)[8:]


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of the accounts' profiles, which workers find by their names."""
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "config").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
        patch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
        yield folder / "credentials"


class Account:
    """An AMI, its backend, and a bucket, all of which can be sent to workers."""

    def __init__(self, aws: FakeAWS, seaweedfs: Connection, credentials: Path, blocks: int) -> None:
        self.aws = aws
        self.volumes = [range(0, blocks, 2), range(3000, 3000 + blocks // 2)]
        # Orders end with their shards: sixteen of them.
        form = Layout(blocks_per_frame=2, blocks_per_segment=4, segments_per_shard=blocks // 64)
        self.options = amistore.PackOptions(layout=form)
        options = aws.client_options()
        keys = {
            "fake": (options["aws_access_key_id"], options["aws_secret_access_key"]),
            "store": (gateways.ACCESS_KEY, gateways.SECRET_KEY),
        }
        lines = [
            f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
            for name, (key, secret) in keys.items()
        ]
        credentials.write_text("".join(lines))
        url, region = options["endpoint_url"], options["region_name"]
        self.backend = AWSBackend(
            profile_name="fake", region_name=region, endpoint_urls={"ec2": url, "ebs": url}
        )
        store = AWSBackend(
            profile_name="store",
            region_name="us-east-1",
            endpoint_urls=seaweedfs.endpoint_urls,
            traits=amistore.backends.STORES["seaweedfs"],
        )
        self.to = store.s3.at(bucket_of(seaweedfs).bucket, "ami.bin")
        ids = [aws.add_snapshot(volume_size=4, blocks=block, indexes=indexes) for indexes in self.volumes]
        self.image = images.image(ids)

    def store(self, client: Client, **options: Any) -> amistore.StoredArchive:
        return amistore.store(
            self.image,
            self.backend.ebs,
            self.to,
            executor=client.get_executor(),
            options=self.options,
            **{"workers": 4, **options},
        )

    def unpack(self, client: Client, **options: Any) -> amistore.Image:
        return amistore.unpack(
            self.to, self.backend.ebs, executor=client.get_executor(), **{"workers": 4, **options}
        )

    def expected(self) -> str:
        """SHA-256 of the archive that is packed without orders."""
        digest = hashlib.sha256()
        for piece in amistore.pack(self.image, self.backend.ebs, options=self.options):
            digest.update(piece)
        return digest.hexdigest()

    def check_stored(self) -> None:
        digest = hashlib.sha256()
        content = self.to.store.open_object(self.to.bucket, self.to.key)
        while piece := content.read(1 << 20):
            digest.update(piece)
        assert digest.hexdigest() == self.expected()
        assert self.to.store.list_multipart_uploads(self.to.bucket) == []

    def check_restored(self, image: amistore.Image) -> None:
        for snapshot_id, indexes in zip(sorted_ids(image), self.volumes, strict=True):
            there = set(indexes)
            for index, content in enumerate(self.aws.read_volume(snapshot_id)):
                assert content == (block(index) if index in there else bytes(amistore.BLOCK_SIZE))
            assert set(self.aws.snapshots[snapshot_id].content.indexes) == there
        assert len(self.aws.snapshots) == 4


def sorted_ids(image: amistore.Image) -> list[str]:
    return [str(each.ebs.snapshot_id) for each in image.block_device_mappings if each.ebs]


@pytest.fixture
def account(request: pytest.FixtureRequest, credentials: Path, seaweedfs: Connection) -> Iterator[Account]:
    with FakeAWS() as aws:
        made = Account(aws, seaweedfs, credentials, getattr(request, "param", BLOCKS))
        yield made
        made.to.store.delete_object(made.to.bucket, made.to.key)


@pytest.fixture(scope="module")
def clients(credentials: Path) -> Iterator[Callable[[int], Client]]:
    """A client of a cluster of so many processes."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def sized(workers: int) -> Client:
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
            return stack.enter_context(Client(stack.enter_context(cluster)))

        yield sized


def kill_a_worker(client: Client) -> Callable[[amistore.Progress], None]:
    """Kills one of the workers at the first progress of blocks, while others and it have orders."""
    left = list(client.run(os.getpid).values())[:1]

    def progress(event: amistore.Progress) -> None:
        if event.phase is not amistore.pipeline.Phase.LIST and left:
            os.kill(left.pop(), signal.SIGKILL)

    return progress


@pytest.mark.parametrize(
    ("workers", "account"), [(2, MANY), (4, MANY if LONG else BLOCKS)], indirect=["account"]
)
def test_an_image_of_two_volumes_is_stored_and_restored(
    account: Account, clients: Callable[[int], Client], workers: int
) -> None:
    client = clients(workers)
    account.store(client, workers=workers)
    account.check_stored()
    account.check_restored(account.unpack(client, workers=workers))
    with amistore.open(account.to) as archive:
        assert archive.verify(executor=client.get_executor(), workers=workers).ok


@only_long
def test_a_worker_that_is_killed_while_storing_costs_its_order(
    account: Account, clients: Callable[[int], Client]
) -> None:
    client = clients(2)
    account.store(client, progress=kill_a_worker(client))
    account.check_stored()


def test_a_worker_that_is_killed_while_restoring_costs_its_order(
    account: Account, clients: Callable[[int], Client]
) -> None:
    client = clients(2)
    account.store(client)
    account.check_restored(account.unpack(client, progress=kill_a_worker(client)))


@pytest.mark.parametrize("verb", [pytest.param("store", marks=only_long), "unpack"])
def test_a_coordinator_that_is_killed_is_gone_on_with(
    account: Account, clients: Callable[[int], Client], tmp_path: Path, verb: str
) -> None:
    client = clients(2)
    if verb == "unpack":
        account.store(client)
    address = client.scheduler_info()["address"]
    log = tmp_path / "run.log"

    def killed() -> None:
        def progress(event: amistore.Progress) -> None:
            if event.total_blocks and event.blocks >= event.total_blocks // 3:
                os.kill(os.getpid(), signal.SIGKILL)

        with Client(address) as own:
            getattr(account, verb)(own, log=log, progress=progress, workers=2)

    child = children.fork()
    if not child:
        try:
            killed()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    told: list[int] = []
    made = getattr(account, verb)(client, log=log, progress=lambda event: told.append(event.blocks))
    assert not log.exists()
    account.check_stored()
    if verb == "unpack":
        account.check_restored(made)


@only_long
@pytest.mark.parametrize("way", ["expired", "listed by somebody else", "ended by a further page"])
def test_block_tokens_that_end_while_orders_wait_are_renewed_by_the_coordinator(
    account: Account, clients: Callable[[int], Client], way: str
) -> None:
    client = clients(2)
    aws = account.aws
    left = [1]

    def progress(event: amistore.Progress) -> None:
        if event.phase is amistore.pipeline.Phase.PACK and left:
            left.pop()
            if way == "expired":
                aws.clock.advance(8 * 24 * 3600)
            elif way == "listed by somebody else":
                for snapshot_id in account.image.snapshot_ids:
                    list(account.backend.ebs.pages(snapshot_id))

    if way == "ended by a further page":
        aws.behaviour.pages_renew_tokens = aws.behaviour.short_pages = True
    account.store(client, progress=progress)
    account.check_stored()


def test_an_image_is_handed_on_to_another_account_though_a_worker_is_killed(
    account: Account, clients: Callable[[int], Client], tmp_path: Path
) -> None:
    client = clients(2)
    folder = amistore.DirectoryBackend(tmp_path)
    image_id = account.backend.ec2.register_image(account.image, name="web")
    made = amistore.transfer(
        image_id,
        source=account.backend,
        destination=folder,
        fill_holes=False,
        executor=client.get_executor(),
        workers=4,
        progress=kill_a_worker(client),
    )
    for snapshot_id, indexes in zip(sorted_ids(made.image), account.volumes, strict=True):
        there = set()
        for index, content in images.blocks_of(folder.ebs, snapshot_id):
            assert content == block(index)
            there.add(index)
        assert there == set(indexes)


@pytest.mark.skipif(not LONG, reason="it takes as long as 8,000 calls at 200 a second; a figure, not a law")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_at_200_calls_a_second_a_server_gets_no_more_and_hardly_less(
    credentials: Path, seaweedfs: Connection, clients: Callable[[int], Client], workers: int
) -> None:
    times: list[float] = []

    def timed(index: int) -> bytes:
        times.append(time.monotonic())
        return index.to_bytes(8, "big") + bytes(amistore.BLOCK_SIZE - 8)

    with FakeAWS() as aws:
        given = Account(aws, seaweedfs, credentials, 128)
        snapshot_id = aws.add_snapshot(volume_size=4, blocks=timed, indexes=range(8000))
        form = Layout(blocks_per_frame=2, blocks_per_segment=4, segments_per_shard=250)
        url, region = aws.client_options()["endpoint_url"], aws.client_options()["region_name"]
        backend = AWSBackend(
            profile_name="fake", region_name=region, endpoint_urls={"ec2": url, "ebs": url}, block_rate=200
        )
        amistore.store(
            images.image([snapshot_id]),
            backend.ebs,
            given.to,
            executor=clients(workers).get_executor(),
            workers=workers,
            options=amistore.PackOptions(layout=form),
        )
    times.sort()
    most = max(bisect_left(times, at + 1) - number for number, at in enumerate(times))
    middle = times[800:-800]
    rate = (len(middle) - 1) / (middle[-1] - middle[0])
    print(f"{workers} workers: {most} in a second at most, {rate:.0f} a second while all have orders")
    assert most <= 220 and rate >= 180
