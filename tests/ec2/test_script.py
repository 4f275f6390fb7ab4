"""A script that was written for boto3's client, on every backend."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from backends.aws.accounts import account
from backends.aws.moves import add_ami
from ec2.checked import CheckedClient, accounts, refused
from tasks.accounts import BUCKET, DISKS, disks, held

import amistore
from amistore import MemoryBackend, TaskEngine
from amistore.testing.aws import FakeAWS

AT_ONCE = {"Delay": 0, "MaxAttempts": 10**6}


def script(ec2: Any, image_id: str, bucket: str) -> str:
    """Store an AMI, restore it under another name, and show what becomes of it: nothing of ours in it."""
    key = ec2.create_store_image_task(
        ImageId=image_id, Bucket=bucket, S3ObjectTags=[{"Key": "team", "Value": "images"}]
    )["ObjectKey"]
    ec2.get_waiter("store_image_task_complete").wait(ImageIds=[image_id], WaiterConfig=AT_ONCE)
    (task,) = ec2.describe_store_image_tasks(ImageIds=[image_id])["StoreImageTaskResults"]
    assert task["S3objectKey"] == key
    assert task["StoreTaskState"] == "Completed"
    assert task["ProgressPercentage"] == 100
    assert "StoreTaskFailureReason" not in task
    assert datetime.datetime.now(task["TaskStartTime"].tzinfo) >= task["TaskStartTime"]
    restored: str = ec2.create_restore_image_task(
        Bucket=bucket,
        ObjectKey=key,
        Name="web-2",
        TagSpecifications=[
            {"ResourceType": "image", "Tags": [{"Key": "stage", "Value": "test"}]},
            {"ResourceType": "snapshot", "Tags": [{"Key": "stage", "Value": "test"}]},
        ],
    )["ImageId"]
    ec2.get_waiter("image_exists").wait(ImageIds=[restored], WaiterConfig=AT_ONCE)
    ec2.get_waiter("image_available").wait(ImageIds=[restored], WaiterConfig=AT_ONCE)
    (image,) = ec2.describe_images(ImageIds=[restored], Owners=["self"])["Images"]
    assert image["State"] == "available"
    assert {"Key": "stage", "Value": "test"} in image["Tags"]
    ids = [mapping["Ebs"]["SnapshotId"] for mapping in image["BlockDeviceMappings"]]
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=ids, WaiterConfig=AT_ONCE)
    for snapshot in ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"]:
        assert (snapshot["State"], snapshot["Progress"]) == ("completed", "100%")
        assert {"Key": "stage", "Value": "test"} in snapshot["Tags"]
    try:
        ec2.create_restore_image_task(Bucket=bucket, ObjectKey=key, Name="web-2")
    except ec2.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "InvalidAMIName.Duplicate"
    else:
        raise AssertionError("the name is taken")
    return restored


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_a_script_for_boto3_stores_and_restores(kind: str, tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, kind)
    with TaskEngine(cloud) as engine:
        restored = script(CheckedClient(engine), image_id, BUCKET)
    assert disks(cloud, restored) == DISKS
    assert cloud.s3.get_object_tagging(BUCKET, f"{image_id}.bin") == {"team": "images"}


def test_a_script_for_boto3_stores_and_restores_where_ids_come_with_images() -> None:
    with FakeAWS() as aws:
        cloud = account(aws, aws.endpoint_url)
        memory = MemoryBackend()
        memory.s3.create_bucket(BUCKET)
        cloud.s3 = memory.s3
        image_id = add_ami(aws)
        with TaskEngine(cloud, journal=":memory:") as engine:
            client = CheckedClient(engine)
            assert client.meta.region_name == aws.region
            restored = script(client, image_id, BUCKET)
        assert cloud.ec2.describe_image(restored).name == "web-2"


def test_a_restored_image_and_its_snapshots_are_seen_from_pending_to_their_end() -> None:
    cloud, image_id = accounts(Path(), "memory")
    with TaskEngine(cloud) as engine:
        ec2 = CheckedClient(engine)
        key = ec2.create_store_image_task(ImageId=image_id, Bucket=BUCKET)["ObjectKey"]
        with held(cloud.s3, "complete_multipart_upload") as reached:
            assert reached.wait(60)
            (task,) = ec2.describe_store_image_tasks()["StoreImageTaskResults"]
            assert task["StoreTaskState"] == "InProgress"
        engine.wait()
        with held(cloud.ebs, "put_snapshot_block") as reached:
            with held(cloud.ebs, "start_snapshot") as begun:
                restored = ec2.create_restore_image_task(Bucket=BUCKET, ObjectKey=key, Name="web-2")[
                    "ImageId"
                ]
                assert begun.wait(60)
                (image,) = ec2.describe_images(ImageIds=[restored])["Images"]
                assert (image["State"], image["BlockDeviceMappings"]) == ("pending", [])
            assert reached.wait(60)
            (image,) = ec2.describe_images(ImageIds=[restored])["Images"]
            assert (image["State"], image["Name"]) == ("pending", "web-2")
            ids = [mapping["Ebs"]["SnapshotId"] for mapping in image["BlockDeviceMappings"]]
            states = [each["State"] for each in ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"]]
            assert set(states) == {"pending"}
            assert refused(ec2.delete_snapshot, SnapshotId=ids[0]) == ("InvalidSnapshot.InUse", 400)
            assert refused(ec2.deregister_image, ImageId=restored) == ("InvalidAMIID.Unavailable", 400)
            engine.cancel(engine.describe_restore_image_tasks()[0])
        with pytest.raises(amistore.TaskFailedError):
            engine.wait()
        (image,) = ec2.describe_images(Filters=[{"Name": "state", "Values": ["failed"]}])["Images"]
        assert image["ImageId"] == restored
        assert image["StateReason"]["Message"] == "cancelled"
        for snapshot in ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"]:
            assert (snapshot["State"], snapshot["StateMessage"]) == ("error", "cancelled")
        assert refused(ec2.delete_snapshot, SnapshotId=ids[0]) == ("InvalidSnapshot.NotFound", 400)


def test_a_store_task_that_failed_tells_its_reason_and_ends_the_waiter() -> None:
    cloud, image_id = accounts(Path(), "memory")
    with TaskEngine(cloud) as engine:
        ec2 = CheckedClient(engine)
        with held(cloud.s3, "create_multipart_upload") as reached:
            ec2.create_store_image_task(ImageId=image_id, Bucket=BUCKET)
            assert reached.wait(60)
            engine.cancel(engine.describe_store_image_tasks()[0])
        with pytest.raises(Exception, match="terminal failure state"):
            ec2.get_waiter("store_image_task_complete").wait(ImageIds=[image_id], WaiterConfig=AT_ONCE)
        (task,) = ec2.describe_store_image_tasks()["StoreImageTaskResults"]
        assert (task["StoreTaskState"], task["StoreTaskFailureReason"]) == ("Failed", "cancelled")


@pytest.mark.parametrize("together", [False, True])
def test_what_was_restored_is_removed_image_first(together: bool, tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, "directory")
    image = cloud.ec2.describe_image(image_id)
    ids = [str(mapping.ebs.snapshot_id) for mapping in image.block_device_mappings if mapping.ebs]
    shared = image.with_snapshots({ids[0]: ids[0]})
    with TaskEngine(cloud) as engine:
        ec2 = CheckedClient(engine)
        assert refused(ec2.delete_snapshot, SnapshotId=ids[1]) == ("InvalidSnapshot.InUse", 400)
        if together:
            other = cloud.ec2.register_image(shared, name="other")
            answer = ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True)
            codes = {each["SnapshotId"]: each["ReturnCode"] for each in answer["DeleteSnapshotResults"]}
            assert codes == {ids[0]: "skipped", ids[1]: "success"}
            assert [image["ImageId"] for image in ec2.describe_images()["Images"]] == [other]
        else:
            assert ec2.deregister_image(ImageId=image_id)["Return"] is True
            ec2.delete_snapshot(SnapshotId=ids[1])
            assert ec2.describe_images()["Images"] == []
        assert refused(ec2.describe_snapshots, SnapshotIds=[ids[1]]) == ("InvalidSnapshot.NotFound", 400)
        assert cloud.ebs.describe_snapshot(ids[0]).state == "completed"


WITHOUT = """
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("botocore", "boto3"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
    import pickle
    import amistore

    with amistore.TaskEngine(amistore.MemoryBackend()) as engine:
        ec2 = amistore.ec2.EC2Client(engine)
        assert ec2.describe_images()["Images"] == []
        try:
            ec2.create_store_image_task(ImageId="ami-00000000", Bucket="archive")
        except ec2.exceptions.ClientError as error:
            assert error.response["Error"]["Code"] == "InvalidAMIID.NotFound"
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
            assert str(pickle.loads(pickle.dumps(error))) == str(error)
            print(error.operation_name, error)
        try:
            ec2.describe_images(ImageIds="ami-00000000")
        except amistore.AmistoreError as error:
            print(error)
        for call, name in ((ec2.get_waiter, "image_available"), (ec2.get_paginator, "describe_images")):
            try:
                call(name)
            except ImportError as error:
                print(error)
"""


def test_the_plain_calls_need_no_botocore(tmp_path: Path) -> None:
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=path,
    )  # fmt: skip
    assert done.stderr == ""
    told, report, kind, *remedies = done.stdout.splitlines()
    assert told == (
        "CreateStoreImageTask An error occurred (InvalidAMIID.NotFound) when calling the "
        "CreateStoreImageTask operation: no such image (operation describe_image, image id ami-00000000)"
    )
    assert report == "Parameter validation failed:"
    assert kind.startswith("Invalid type for parameter ImageIds, value: ami-00000000")
    assert remedies == ["paginators and waiters are botocore's own: pip install 'amistore[aws]'"] * 2
