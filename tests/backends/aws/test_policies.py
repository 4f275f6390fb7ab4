"""Policies allow what a flow needs, and nothing else: taken away, each action is missed by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("boto3")

import botocore.session
from backends.aws.cases import START, Account

import amistore
from amistore.backends.aws.actions import ACTIONS
from amistore.backends.aws.policies import FLOWS, actions, policy
from amistore.backends.aws.preflight import preflight
from amistore.testing import block, read_snapshot
from amistore.testing.aws import FakeAWS
from amistore.testing.snapshots import linear, sha256

KEY = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-00000000aeb5"

GOVERNMENT_KEY = "arn:aws-us-gov:kms:us-gov-east-1:123456789012:key/00000000-0000-4000-8000-00000000aeb5"

Flow = Callable[[FakeAWS, Account], None]


def every_action() -> Iterator[str]:
    """All that EC2, EBS and KMS can be asked."""
    session = botocore.session.get_session()
    for service in ("ec2", "ebs", "kms"):
        for operation in session.get_service_model(service).operation_names:
            yield f"{service}:{operation}"


EVERY = frozenset(every_action())


def allowed(made: dict[str, Any]) -> set[str]:
    """Those of all actions that a policy allows on some resource."""
    patterns = [action for statement in made["Statement"] for action in statement["Action"]]
    return {
        action
        for action in EVERY
        if any(re.fullmatch(re.escape(each).replace(r"\*", ".*"), action) for each in patterns)
    }


def account(aws: FakeAWS, may: set[str]) -> Account:
    return Account.of(aws, aws.add_credential(denied=EVERY - may))


def read(aws: FakeAWS, account: Account) -> None:
    """What reads an image and its snapshots."""
    (image_id,) = aws.images
    image = account.registry.describe_image(image_id)
    preflight(image, registry=account.registry, blocks=account.store)
    assert account.registry.describe_images() == [image]
    for snapshot_id in image.snapshot_ids:
        assert read_snapshot(account.store, snapshot_id) == (1, {0: block(1)})


def restore(aws: FakeAWS, account: Account) -> None:
    """What writes a snapshot, registers an image on it, and removes a snapshot after a failure."""
    tags = (amistore.Tag(key="Name", value="web"),)
    assert account.store.encryption_by_default() == KEY
    failed = account.store.start_snapshot(1)
    account.store.delete_snapshot(failed)
    snapshot_id = account.store.start_snapshot(1, tags=tags)
    account.store.put_snapshot_block(snapshot_id, 0, block(1), sha256(block(1)))
    account.store.complete_snapshot(snapshot_id, 1, linear({0: block(1)}))
    account.store.wait_snapshot(snapshot_id)
    ebs = amistore.EbsBlockDevice(snapshot_id=snapshot_id)
    image = amistore.Image(
        image_id="ami-0123456789abcdef0",
        name="restored",
        root_device_name="/dev/xvda",
        block_device_mappings=(amistore.BlockDeviceMapping(device_name="/dev/xvda", ebs=ebs),),
        tags=tags,
        deprecation_time="2030-01-01T00:00:00.000Z",
        deregistration_protection="enabled-without-cooldown",
    )
    image_id = account.registry.register_image(image)
    assert [found.image_id for found in account.registry.find_images("restored")] == [image_id]


def transfer(aws: FakeAWS, account: Account) -> None:
    """Both in one account."""
    read(aws, account)
    restore(aws, account)


PARTS: dict[str, Flow] = {"read": read, "store": read, "restore": restore, "transfer": transfer}
# S3's part of these flows is not on this fake.
HERE = {flow: tuple(action for action in actions(flow) if not action.startswith("s3:")) for flow in FLOWS}


@pytest.fixture
def aws():
    with FakeAWS(start=START) as fake:
        snapshot_id = fake.add_snapshot(volume_size=1, blocks={0: block(1)}, encrypted=True, kms_key_arn=KEY)
        fake.add_image(name="web", mappings=[{"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id}}])
        fake.behaviour.encryption_by_default = True
        fake.behaviour.default_kms_key = KEY
        yield fake


@pytest.mark.parametrize("flow", FLOWS)
def test_what_a_policy_allows_is_enough(aws, flow) -> None:
    made = policy(flow, bucket="archive", kms_key_arns=[KEY])
    PARTS[flow](aws, account(aws, allowed(made)))


@pytest.mark.parametrize(("flow", "action"), [(flow, action) for flow in FLOWS for action in HERE[flow]])
def test_each_action_is_needed_and_named_when_it_is_missing(aws, flow, action, caplog) -> None:
    may = allowed(policy(flow, bucket="archive", kms_key_arns=[KEY])) - {action}
    try:
        PARTS[flow](aws, account(aws, may))
    except amistore.AccessDeniedError as error:
        told = str(error)
    else:
        # After registering, the image is there: what is missing then is logged.
        told = caplog.text
    assert action in told


@pytest.mark.parametrize(("flow", "key"), [("store", "kms:Decrypt"), ("restore", "kms:GenerateDataKey")])
def test_a_policy_without_the_key_does_not_do_for_encrypted_snapshots(aws, flow, key) -> None:
    with pytest.raises(amistore.AccessDeniedError, match=key):
        PARTS[flow](aws, account(aws, allowed(policy(flow, bucket="archive"))))


@pytest.mark.parametrize("flow", FLOWS)
def test_a_policy_names_every_action_of_its_flow_once_and_no_other(flow) -> None:
    made = policy(flow, bucket="archive")
    named = [action for statement in made["Statement"] for action in statement["Action"]]
    assert sorted(named) == list(actions(flow))
    assert len({statement["Sid"] for statement in made["Statement"]}) == len(made["Statement"])


def test_every_verb_of_a_flow_has_its_actions() -> None:
    assert {verb for verbs in FLOWS.values() for verb in verbs} <= set(ACTIONS)


def test_only_what_cannot_be_limited_is_allowed_on_everything() -> None:
    for flow in FLOWS:
        made = policy(flow, bucket="archive", kms_key_arns=[KEY], archived=True)
        for statement in made["Statement"]:
            if "*" in statement["Resource"]:
                assert all(
                    re.fullmatch("ec2:(Describe(Images|Snapshots)|GetEbs.*)", each)
                    for each in statement["Action"]
                )


def test_resources_are_those_of_the_arguments() -> None:
    made = policy(
        "restore",
        partition="aws-us-gov",
        region="us-gov-east-1",
        bucket="archive",
        prefix="amis/",
        kms_key_arns=[GOVERNMENT_KEY],
    )
    by_action = {each: statement for statement in made["Statement"] for each in statement["Action"]}
    assert by_action["s3:GetObject"]["Resource"] == ["arn:aws-us-gov:s3:::archive/amis/*"]
    assert by_action["s3:ListBucket"]["Resource"] == ["arn:aws-us-gov:s3:::archive"]
    assert by_action["ebs:PutSnapshotBlock"]["Resource"] == ["arn:aws-us-gov:ec2:us-gov-east-1::snapshot/*"]
    assert by_action["kms:CreateGrant"]["Condition"] == {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    assert by_action["kms:Decrypt"]["Resource"] == [GOVERNMENT_KEY]


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("us-gov-east-1", "aws-us-gov"),
        ("cn-north-1", "aws-cn"),
        ("eusc-de-east-1", "aws-eusc"),
        ("eu-west-1", "aws"),
        (None, "aws"),
    ],
)
def test_the_partition_is_the_regions(region: str | None, partition: str) -> None:
    assert policy("store", region=region, bucket="archive") == policy(
        "store", region=region, bucket="archive", partition=partition
    )
    assert f"arn:{partition}:s3:::archive/*" in json.dumps(policy("store", region=region, bucket="archive"))


@pytest.mark.parametrize(
    "key",
    [KEY, KEY.replace("us-east-1", "*"), KEY.replace("key/", "key/mrk-"), KEY.split("key/")[0] + "key/*"],
)
def test_a_key_of_the_region_is_taken(key: str) -> None:
    made = policy("restore", region="us-east-1", bucket="archive", kms_key_arns=[key])
    assert key in json.dumps(made)


@pytest.mark.parametrize(
    "given",
    [
        {"region": "us-gov-east-1", "partition": "aws"},
        {"region": "us-east-1", "partition": "aws-cn"},
        {"partition": "aws-foo"},
        {"kms_key_arns": ["nonsense"]},
        {"kms_key_arns": [KEY], "region": "us-gov-east-1"},
        {"kms_key_arns": [KEY], "region": "eu-west-1"},
        {"kms_key_arns": ["arn:aws:kms:us-east-1:123456789012:alias/disks"]},
        {"region": "eu west 1"},
        {"prefix": None},
        {"prefix": "a*"},
        {"bucket_kms_key_arns": [KEY.replace("kms", "s3")]},
        {"bucket": "arn:aws:s3:::archive"},
        {"bucket": "a/b c"},
    ],
    ids=str,
)
def test_what_would_match_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(amistore.InvalidRequestError):
        policy("store", **{"bucket": "archive", **given})


def test_reading_snapshots_allows_no_writing() -> None:
    writes = re.compile("Put|Start|Complete|Create|Delete|Register|Enable|Abort|ReEncrypt|Generate")
    assert [each for each in allowed(policy("read", kms_key_arns=[KEY])) if writes.search(each)] == []


def test_a_transfer_may_use_the_bucket_that_it_keeps_the_archive_in() -> None:
    made = policy("transfer", bucket="archive", prefix="amis/", bucket_kms_key_arns=[KEY])
    by_action = {each: statement for statement in made["Statement"] for each in statement["Action"]}
    for action in set(actions("store")) | set(actions("restore")):
        if action.startswith("s3:"):
            assert by_action[action]["Resource"][0].startswith("arn:aws:s3:::archive")
    assert by_action["s3:PutObject"]["Resource"] == ["arn:aws:s3:::archive/amis/*"]
    assert by_action["kms:GenerateDataKey"]["Resource"] == [KEY]
    assert "s3" not in str(policy("transfer"))
    printed = json.loads(run("transfer", "--bucket", "archive").stdout)
    assert printed == policy("transfer", bucket="archive")
    assert "s3:PutObject" in str(printed)


@pytest.mark.parametrize(
    "given", [{"prefix": "amis/"}, {"archived": True}, {"bucket_kms_key_arns": iter([KEY])}], ids=list
)
def test_what_is_said_of_a_bucket_is_not_ignored_where_there_is_none(given: dict[str, Any]) -> None:
    with pytest.raises(amistore.InvalidRequestError, match="go with the bucket"):
        policy("transfer", **given)


@pytest.mark.parametrize("flow", ["store", "restore"])
def test_flows_with_archives_need_a_bucket(flow) -> None:
    with pytest.raises(amistore.InvalidRequestError, match="bucket"):
        policy(flow)


def test_a_bucket_of_an_old_name_can_be_in_a_policy_and_an_access_point_cannot() -> None:
    assert "arn:aws:s3:::Under_Score" in str(policy("store", bucket="Under_Score"))
    with pytest.raises(amistore.InvalidRequestError, match="is no bucket's name"):
        policy("store", bucket="arn:aws:s3:us-east-2:123456789012:accesspoint/web")


def test_an_unknown_flow_is_refused() -> None:
    with pytest.raises(amistore.InvalidRequestError, match="'copy'"):
        policy("copy")


def test_glacier_is_allowed_where_it_is_asked_for() -> None:
    assert "s3:RestoreObject" in actions("restore", archived=True)
    assert "s3:RestoreObject" not in actions("restore")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amistore.backends.aws.policies", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_program_prints_the_policy() -> None:
    done = run("store", "--bucket", "archive", "--kms-key-arn", KEY)
    assert json.loads(done.stdout) == policy("store", bucket="archive", kms_key_arns=[KEY])
    assert done.returncode == 0


def test_the_program_runs_without_boto3() -> None:
    program = (
        "import runpy, sys; sys.modules['boto3'] = sys.modules['botocore'] = None; "
        "sys.argv[1:] = ['read']; runpy.run_module('amistore.backends.aws.policies', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == policy("read")


def test_the_program_says_what_is_missing() -> None:
    done = run("store")
    assert done.returncode == 2
    assert "bucket" in done.stderr
