"""Tokens and credentials that end in the middle of a run (reliability row R7), on the fake's clock."""

from __future__ import annotations

import contextlib
import datetime
import functools

import boto3
import botocore.credentials
import botocore.session
import images
import pytest
from backends.aws.accounts import QUICK, disks
from backends.aws.cases import START

import amistore
from amistore import MIB, AWSBackend, Layout, MemoryBackend
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.objects.store import StoreJob
from amistore.tasks import store as tasks_store
from amistore.testing import block
from amistore.testing.aws import FakeAWS
from amistore.testing.snapshots import sha256

HOUR = 3600.0
SMALL = Layout(blocks_per_frame=2, blocks_per_segment=4, part_size=5 * MIB)
BLOCKS = {
    index + (index + 1) // 2: images.noise(index) if index < 40 else block(index) for index in range(120)
}
"""Of four pages, where they are short; some indexes follow each other, and some do not."""


@contextlib.contextmanager
def account():
    """The same one each time, so that it makes the same container."""
    with FakeAWS(start=START, seed=1) as fake:
        fake.snapshot_id = fake.add_snapshot(volume_size=1, blocks=BLOCKS)
        fake.image_id = fake.add_image(
            name="web", mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": fake.snapshot_id}}]
        )
        yield fake


@pytest.fixture
def aws(monkeypatch):
    monkeypatch.setattr("amistore.backends.aws.ebs_tokens.PAGE_SIZE", 100)
    with account() as fake:
        fake.behaviour.short_pages = True
        yield fake


@pytest.fixture(scope="module")
def expected():
    """The container that an undisturbed run makes."""
    with account() as aws:
        return pack_while(aws, lambda: None)


def backend(aws, session=None):
    given = aws.client_options()
    url = given.pop("endpoint_url")
    return AWSBackend(
        session or boto3.Session(**given),
        region_name=aws.region,
        endpoint_urls={"ec2": url, "ebs": url},
        retries=QUICK,
    )


def pack_while(aws, disturb, workers=2):
    cloud = backend(aws)
    image = cloud.ec2.describe_image(aws.image_id)
    return b"".join(
        amistore.pack(
            image,
            cloud.ebs,
            workers=workers,
            progress=lambda _: disturb(),
            options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB),
        )
    )


def relist(aws):
    options = aws.client_options()
    boto3.client("ebs", **options).list_snapshot_blocks(SnapshotId=aws.snapshot_id, MaxResults=100)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("renewing", [False, True], ids=["listings end tokens", "pages end tokens"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "disturb",
    [
        lambda aws: None,
        lambda aws: aws.clock.advance(1.1 * HOUR),
        lambda aws: aws.clock.advance(8 * 24 * HOUR),
        relist,
        lambda aws: (relist(aws), aws.clock.advance(1.1 * HOUR)),
    ],
    ids=[
        "nothing",
        "pages expire",
        "blocks expire",
        "listed by another",
        "listed by another, and pages expire",
    ],
)
def test_tokens_that_end_at_any_time_change_no_byte(aws, expected, disturb, workers, renewing):
    aws.behaviour.pages_renew_tokens = renewing
    assert pack_while(aws, lambda: disturb(aws), workers) == expected
    assert aws.log.counts["ListSnapshotBlocks"] >= 2 * 4


@pytest.mark.usefixtures("way")
def test_one_listing_renews_the_tokens_of_all_workers(aws, monkeypatch):
    monkeypatch.setattr("amistore.backends.aws.ebs_tokens.PAGE_SIZE", 10_000)
    aws.behaviour.short_pages = False
    aws.log.reset()
    done = []

    def relist_once():
        done.append(1)
        if len(done) == 6:
            relist(aws)

    assert len(pack_while(aws, relist_once, workers=4)) > 0
    # Two for packing, ours, and those of tokens: one for all that were in flight together.
    assert aws.log.counts["ListSnapshotBlocks"] <= 3 + 2
    # Those in flight at the relisting are refused, each once.
    assert aws.log.counts["GetSnapshotBlock"] <= len(BLOCKS) + 64 + 2 * 4


@pytest.mark.usefixtures("way")
def test_a_block_that_is_not_listed_any_more_is_a_changed_source(aws):
    cloud = backend(aws)
    page = cloud.ebs.list_snapshot_blocks(aws.snapshot_id)
    relist(aws)
    with pytest.raises(amistore.SourceChangedError, match="listed before"):
        cloud.ebs.get_snapshot_block(aws.snapshot_id, 1, page.blocks[0].block_token)


@pytest.mark.usefixtures("way")
def test_a_snapshot_deleted_during_the_run_is_not_found(aws):
    boto = boto3.client("ec2", **aws.client_options())

    def delete():
        if aws.snapshot_id in aws.snapshots and aws.log.counts["GetSnapshotBlock"] > 10:
            boto.deregister_image(ImageId=aws.image_id)
            boto.delete_snapshot(SnapshotId=aws.snapshot_id)

    with pytest.raises(amistore.NotFoundError, match=aws.snapshot_id):
        pack_while(aws, delete)


class Rotating:
    """Credentials that live for an hour, and new ones from the account when they are asked for."""

    def __init__(self, aws):
        self.aws = aws
        self.given = 0

    def fetch(self):
        self.given += 1
        credential = self.aws.add_credential(session_token=f"token-{self.given}", expires_in=HOUR)
        # botocore looks at its own clock, which stands still: so these are always due.
        soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
        return {
            "access_key": credential.access_key_id,
            "secret_key": credential.secret_access_key,
            "token": credential.session_token,
            "expiry_time": soon.isoformat(),
        }

    def session(self):
        inner = botocore.session.get_session()
        inner._credentials = botocore.credentials.RefreshableCredentials.create_from_metadata(
            self.fetch(), self.fetch, "test"
        )
        return boto3.Session(botocore_session=inner, region_name=self.aws.region)


@pytest.mark.usefixtures("way")
def test_credentials_that_are_renewed_carry_a_run_of_days(aws, expected):
    rotating = Rotating(aws)
    cloud = backend(aws, rotating.session())
    image = cloud.ec2.describe_image(aws.image_id)
    packed = amistore.pack(
        image,
        cloud.ebs,
        progress=lambda _: aws.clock.advance(0.1 * HOUR),
        options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB),
    )
    assert b"".join(packed) == expected
    assert rotating.given > 2


def test_credentials_that_end_stop_the_run_and_new_ones_go_on_with_it(aws, expected, tmp_path):
    store = MemoryBackend().s3
    store.create_bucket("bucket")
    ending = aws.add_credential(session_token="token", expires_in=HOUR)
    session = boto3.Session(ending.access_key_id, ending.secret_access_key, ending.session_token, aws.region)

    def pack(cloud, progress=None):
        with amistore.FileResumeLog(tmp_path / "log") as log:
            image = cloud.ec2.describe_image(aws.image_id)
            return amistore.store(
                image,
                cloud.ebs,
                store.at("bucket", "key"),
                log=log,
                workers=1,
                progress=progress,
                options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB),
            )

    def end_after_half(event):
        if event.phase is amistore.pipeline.Phase.PACK and event.blocks > 30:
            aws.clock.advance(2 * HOUR)

    with pytest.raises(amistore.CredentialsExpiredError, match=r"Expired.*renew the credentials"):
        pack(backend(aws, session), end_after_half)
    aws.log.reset()
    pack(backend(aws))
    assert store.get_object_range("bucket", "key", 0, 2 * len(expected)) == expected
    assert aws.log.counts["GetSnapshotBlock"] < len(BLOCKS)


def test_a_task_whose_credentials_end_stays_and_new_ones_go_on_with_it(aws, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tasks_store,
        "StoreJob",
        functools.partial(StoreJob, options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB)),
    )
    store = amistore.DirectoryBackend(tmp_path / "store").s3
    store.create_bucket("bucket")
    ending = aws.add_credential(session_token="token", expires_in=HOUR)
    session = boto3.Session(ending.access_key_id, ending.secret_access_key, ending.session_token, aws.region)

    def engine(cloud):
        cloud.s3 = store
        return amistore.TaskEngine(cloud, journal=tmp_path / "tasks.db", workers=1)

    put = store.upload_part

    def upload_part(*arguments):
        part = put(*arguments)
        aws.clock.advance(2 * HOUR)
        return part

    with engine(backend(aws, session)) as first:
        object.__setattr__(store, "upload_part", upload_part)
        task = first.create_store_image_task(image_id=aws.image_id, bucket="bucket")
        with pytest.raises(amistore.CredentialsExpiredError):
            first.wait(task)
        assert first.describe_store_image_tasks()[0].state == "InProgress"
    object.__setattr__(store, "upload_part", put)
    aws.log.reset()
    with engine(backend(aws)) as second:
        (task,) = second.resume()
        assert second.wait(task).state == "Completed"
    assert aws.log.counts["GetSnapshotBlock"] < len(BLOCKS)
    with amistore.open(store.at("bucket", task.object_key)) as archive:
        assert archive.verify().ok


@pytest.mark.parametrize("trouble", ["appears late", "a 500 after its completion"])
def test_a_snapshot_that_completes_late_is_waited_for(aws, trouble):
    aws.behaviour.completion_describes = 2
    cloud = backend(aws)
    image = cloud.ec2.describe_image(aws.image_id)
    store = MemoryBackend().s3
    store.create_bucket("bucket")
    amistore.store(image, cloud.ebs, store.at("bucket", "key"))
    fault = None
    if trouble == "appears late":
        aws.behaviour.missing_calls = 4
    else:
        fault = aws.faults.add("CompleteSnapshot", "500-after", times=1)
    made = amistore.unpack(store.at("bucket", "key"), cloud.ebs)
    assert fault is None or fault.fired == 1
    assert disks(aws, made) == disks(aws, image)
    assert [each.state for each in aws.snapshots.values()] == ["completed", "completed"]


@pytest.mark.usefixtures("way")
def test_a_snapshot_that_one_call_has_found_may_still_be_unknown_to_the_next(aws):
    cloud = backend(aws)
    snapshot_id = cloud.ebs.start_snapshot(1)
    for index in range(3):
        cloud.ebs.put_snapshot_block(snapshot_id, index, block(index), sha256(block(index)))
        aws.snapshots[snapshot_id].missing_calls = 1
    assert aws.read_snapshot(snapshot_id) == {index: block(index) for index in range(3)}


@pytest.mark.parametrize(("missing", "calls"), [(9, 10), (10_000, None)])
def test_a_snapshot_just_started_is_waited_for_two_minutes_and_no_longer(aws, missing, calls):
    """Longer and longer, however often it is not found, whatever the policy of retries."""
    now = [1000.0]

    def sleep(seconds):
        now[0] += seconds

    store = AWSBlockStore(backend(aws).connection, sleep=sleep, clock=lambda: now[0])
    snapshot_id = store.start_snapshot(1)
    aws.snapshots[snapshot_id].missing_calls = missing
    aws.log.reset()
    if calls is None:
        with pytest.raises(amistore.NotFoundError) as raised:
            store.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
        assert not raised.value.retryable
        assert 1110 < now[0] <= 1120
    else:
        store.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
        assert aws.log.counts["PutSnapshotBlock"] == calls
        assert now[0] == pytest.approx(1000 + 0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 3 * 5.0)


@pytest.mark.parametrize("who", ["this process", "another one"])
def test_a_block_for_a_snapshot_that_was_completed_is_refused_at_once(aws, who):
    writer, other = backend(aws), backend(aws)
    snapshot_id = writer.ebs.start_snapshot(1)
    (writer if who == "this process" else other).ebs.complete_snapshot(snapshot_id, 0, sha256(b""))
    aws.log.reset()
    with pytest.raises(amistore.BackendError, match="not pending") as refused:
        writer.ebs.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
    assert not isinstance(refused.value, amistore.NotFoundError)
    assert not refused.value.retryable
    assert aws.log.counts["PutSnapshotBlock"] == 1


@pytest.mark.usefixtures("way")
def test_a_snapshot_that_vanishes_after_its_completion_is_not_waited_for(aws):
    cloud = backend(aws)
    snapshot_id = cloud.ebs.start_snapshot(1)
    cloud.ebs.complete_snapshot(snapshot_id, 0, sha256(b""))
    backend(aws).ebs.delete_snapshot(snapshot_id)  # another process
    aws.log.reset()
    with pytest.raises(amistore.NotFoundError):
        cloud.ebs.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
    assert aws.log.counts["PutSnapshotBlock"] == 1


def test_a_pending_snapshot_that_ebs_cancelled_is_begun_anew(aws, tmp_path):
    cloud = backend(aws)
    image = cloud.ec2.describe_image(aws.image_id)
    store = MemoryBackend().s3
    store.create_bucket("bucket")
    amistore.store(
        image,
        cloud.ebs,
        store.at("bucket", "key"),
        options=amistore.PackOptions(layout=SMALL, part_size=5 * amistore.MIB),
    )

    def unpack(progress=None):
        with amistore.FileResumeLog(tmp_path / "log") as log:
            return amistore.unpack(store.at("bucket", "key"), cloud.ebs, log=log, progress=progress)

    def stop(event):
        if event.blocks > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(stop)
    aws.clock.advance(4 * 24 * HOUR)  # StartSnapshot's Timeout is three days
    made = unpack()
    assert disks(aws, made) == disks(aws, image)
    states = {each.snapshot_id: each.state for each in aws.snapshots.values()}
    assert sorted(states.values()) == ["completed", "completed", "error"]
    assert states[made.snapshot_ids[0]] == "completed"


def test_a_page_token_that_has_died_is_replaced_by_listing_from_the_next_block_on(aws):
    cloud = backend(aws)
    first = cloud.ebs.list_snapshot_blocks(aws.snapshot_id)
    aws.clock.advance(1.1 * HOUR)
    second = cloud.ebs.list_snapshot_blocks(aws.snapshot_id, next_token=first.next_token)
    listed = [each.block_index for each in (*first.blocks, *second.blocks)]
    assert 0 < len(first.blocks) < len(listed) < len(BLOCKS)
    assert listed == sorted(BLOCKS)[: len(listed)]
    got = cloud.ebs.get_snapshot_block(aws.snapshot_id, listed[0], first.blocks[0].block_token)
    assert bytes(got.content) == BLOCKS[0]
