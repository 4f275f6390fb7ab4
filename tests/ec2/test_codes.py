"""The codes of errors, as the calls meet them, and the one mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ec2.checked import CheckedClient, accounts, refused
from tasks.accounts import BUCKET, stored

import amistore
from amistore import Quotas, TaskEngine, errors
from amistore.ec2.errors import refusal
from amistore.testing import FaultyBackend

ABSENT = "ami-0123456789abcdef0"
HERE = "the AMI"
STORED = "its object"


@pytest.mark.parametrize(
    ("call", "parameters", "code", "status"),
    [
        ("create_store_image_task", {"ImageId": ABSENT, "Bucket": BUCKET}, "InvalidAMIID.NotFound", 400),
        ("create_store_image_task", {"ImageId": "web", "Bucket": BUCKET}, "InvalidAMIID.Malformed", 400),
        ("create_store_image_task", {"ImageId": HERE, "Bucket": "none"}, "InaccessibleStorageLocation", 400),
        ("create_store_image_task", {"ImageId": HERE, "Bucket": "A"}, "InaccessibleStorageLocation", 400),
        ("create_store_image_task", {"ImageId": HERE, "Bucket": BUCKET}, "InvalidRequest", 400),
        (
            "create_store_image_task",
            {"ImageId": HERE, "Bucket": f"{BUCKET}/p", "DryRun": True},
            "DryRunOperation",
            412,
        ),
        (
            "create_store_image_task",
            {"ImageId": HERE, "Bucket": f"{BUCKET}/p", "S3ObjectTags": [{"Key": "aws:x", "Value": ""}]},
            "InvalidTagKey.Malformed",
            400,
        ),
        (
            "create_store_image_task",
            {"ImageId": HERE, "Bucket": f"{BUCKET}/p", "S3ObjectTags": [{"Value": "no key"}]},
            "InvalidParameterValue",
            400,
        ),
        (
            "create_store_image_task",
            {"ImageId": HERE, "Bucket": BUCKET, "S3ObjectTags": [{"Key": f"{n}"} for n in range(11)]},
            "TagLimitExceeded",
            400,
        ),
        (
            "create_restore_image_task",
            {"Bucket": BUCKET, "ObjectKey": STORED},
            "InvalidAMIName.Duplicate",
            400,
        ),
        (
            "create_restore_image_task",
            {"Bucket": BUCKET, "ObjectKey": STORED, "Name": "no:colons"},
            "InvalidAMIName.Malformed",
            400,
        ),
        (
            "create_restore_image_task",
            {"Bucket": BUCKET, "ObjectKey": STORED, "Name": "web-2", "DryRun": True},
            "DryRunOperation",
            412,
        ),
        (
            "create_restore_image_task",
            {"Bucket": BUCKET, "ObjectKey": STORED, "TagSpecifications": [{"ResourceType": "volume"}]},
            "InvalidParameterValue",
            400,
        ),
        (
            "create_restore_image_task",
            {"Bucket": BUCKET, "ObjectKey": "absent.bin"},
            "InaccessibleStorageLocation",
            400,
        ),
        (
            "create_restore_image_task",
            {"Bucket": "none", "ObjectKey": STORED},
            "InaccessibleStorageLocation",
            400,
        ),
        ("create_restore_image_task", {"Bucket": BUCKET, "ObjectKey": ""}, "MissingParameter", 400),
        ("create_restore_image_task", {"Bucket": BUCKET, "ObjectKey": "damaged.bin"}, "InvalidManifest", 400),
        ("describe_store_image_tasks", {"MaxResults": 201}, "InvalidMaxResults", 400),
        ("describe_store_image_tasks", {"NextToken": "x"}, "InvalidNextToken", 400),
        (
            "describe_store_image_tasks",
            {"MaxResults": 5, "ImageIds": [ABSENT]},
            "InvalidParameterCombination",
            400,
        ),
        ("describe_store_image_tasks", {"Filters": [{"Name": "x", "Values": ["y"]}]}, "InvalidFilter", 400),
        ("describe_store_image_tasks", {"Filters": [{"Name": "bucket"}] * 2}, "InvalidFilter", 400),
        ("describe_store_image_tasks", {"DryRun": True}, "DryRunOperation", 412),
        ("describe_images", {"ImageIds": [ABSENT]}, "InvalidAMIID.NotFound", 400),
        ("describe_snapshots", {"SnapshotIds": ["snap-00000000"]}, "InvalidSnapshot.NotFound", 400),
        ("describe_snapshots", {"SnapshotIds": ["snap"]}, "InvalidSnapshotID.Malformed", 400),
        ("describe_snapshots", {"DryRun": True}, "DryRunOperation", 412),
        ("deregister_image", {"ImageId": ABSENT}, "InvalidAMIID.NotFound", 400),
        ("deregister_image", {"ImageId": HERE, "DryRun": True}, "DryRunOperation", 412),
        ("delete_snapshot", {"SnapshotId": "snap-00000000"}, "InvalidSnapshot.NotFound", 400),
    ],
)
def test_a_call_that_breaks_a_rule_is_refused_with_ec2s_code_and_changes_nothing(
    call: str, parameters: dict[str, Any], code: str, status: int, tmp_path: Path
) -> None:
    cloud, image_id = accounts(tmp_path, "memory")
    key = stored(cloud, image_id)
    cloud.s3.put_object(BUCKET, "damaged.bin", [b"no archive"])
    meant = {HERE: image_id, STORED: key}
    given = {
        name: meant.get(value, value) if isinstance(value, str) else value
        for name, value in parameters.items()
    }
    with TaskEngine(cloud) as engine:
        before = engine.describe_images(), engine.describe_snapshots()
        assert refused(getattr(CheckedClient(engine), call), **given) == (code, status)
        assert (engine.describe_images(), engine.describe_snapshots()) == before
        assert list(engine.describe_store_image_tasks()) == []
        assert list(engine.describe_restore_image_tasks()) == []


def test_a_dry_run_of_deleting_a_snapshot_deletes_none(tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, "memory")
    (first, *_) = cloud.ec2.describe_image(image_id).snapshot_ids
    cloud.ec2.deregister_image(image_id)
    with TaskEngine(cloud) as engine:
        assert refused(CheckedClient(engine).delete_snapshot, SnapshotId=first, DryRun=True)[1] == 412
    assert cloud.ebs.describe_snapshot(first).state == "completed"


def test_an_ami_above_the_quota_is_refused_with_ec2s_code(tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, "memory")
    with TaskEngine(cloud, quotas=Quotas(image_size=1)) as engine:
        given = {"ImageId": image_id, "Bucket": BUCKET}
        found = refused(CheckedClient(engine).create_store_image_task, **given)
    assert found == ("ResourceLimitExceeded", 400)


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (errors.NotFoundError("x", image_id=ABSENT), "InvalidAMIID.NotFound", 400),
        (errors.NotFoundError("x", image_id=ABSENT, snapshot_id="snap-1"), "InvalidSnapshot.NotFound", 400),
        (errors.NotFoundError("x", bucket="b"), "InaccessibleStorageLocation", 400),
        (errors.NotFoundError("x", bucket="b", key="k"), "InaccessibleStorageLocation", 400),
        (errors.ArchivedObjectError("x", bucket="b", key="k"), "InaccessibleStorageLocation", 400),
        (errors.AlreadyExistsError("x"), "InvalidAMIName.Duplicate", 400),
        (errors.AlreadyExistsError("x", bucket="b", key="k"), "InvalidRequest", 400),
        (errors.AccessDeniedError("x"), "UnauthorizedOperation", 403),
        (errors.CredentialsExpiredError("x"), "UnauthorizedOperation", 403),
        (errors.ThrottledError("x"), "RequestLimitExceeded", 503),
        (errors.CorruptArchiveError("x"), "InvalidManifest", 400),
        (errors.TruncatedArchiveError("x"), "InvalidManifest", 400),
        (errors.UnsupportedArchiveError("x"), "InvalidManifest", 400),
        (errors.LostBlocksError("x"), "InvalidManifest", 400),
        (errors.InvalidRequestError("x", code="UnsupportedOperation"), "UnsupportedOperation", 400),
        (errors.InvalidRequestError("x"), "InvalidRequest", 400),
        (errors.InvalidValueError("x", code="InvalidAMIName.Malformed"), "InvalidAMIName.Malformed", 400),
        (errors.InvalidValueError("x", field="Tag.key"), "InvalidParameterValue", 400),
        (errors.BackendError("x"), "InternalError", 500),
        (errors.ChecksumMismatchError("x"), "InternalError", 500),
        (errors.JournalError("x"), "InternalError", 500),
        (errors.StorageFullError("x"), "InternalError", 500),
        (errors.ResourcesExhaustedError("x"), "InternalError", 500),
        (errors.SourceChangedError("x"), "InternalError", 500),
        (errors.TaskFailedError("x"), "InternalError", 500),
        (errors.AmistoreError("x"), "InternalError", 500),
    ],
)
def test_each_error_has_a_code_and_a_status(error: amistore.AmistoreError, code: str, status: int) -> None:
    refused = refusal(error)
    assert (refused.code, refused.status) == (code, status)
    assert refused.message.startswith("x")


def test_every_error_of_the_tree_is_in_the_table_above() -> None:
    (mark,) = test_each_error_has_a_code_and_a_status.pytestmark  # type: ignore[attr-defined]
    tried = {type(case[0]).__name__ for case in mark.args[1]}
    assert set(errors.__all__) - tried == {"ArchiveError"}  # which is never raised itself


def test_an_error_of_a_backend_is_the_cause_of_what_a_script_catches(tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, "memory")
    faulty = FaultyBackend(cloud)
    with TaskEngine(faulty) as engine:
        client = CheckedClient(engine)
        faulty.add_fault("head_bucket", "throttle", times=1)
        given = {"ImageId": image_id, "Bucket": BUCKET}
        assert refused(client.create_store_image_task, **given) == ("RequestLimitExceeded", 503)
        faulty.add_fault("head_bucket", "refusal")
        with pytest.raises(client.exceptions.ClientError) as caught:
            client.create_store_image_task(**given)
        assert isinstance(caught.value.__cause__, amistore.BackendError)


def test_a_restore_that_is_waited_for_and_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, "memory")
    key = stored(cloud, image_id)
    cloud.ec2.reserve_image_id = lambda: None  # as on AWS
    faulty = FaultyBackend(cloud)
    with TaskEngine(faulty) as engine:
        client = CheckedClient(engine)
        faulty.add_fault("put_snapshot_block", "refusal", times=1)
        given = {"Bucket": BUCKET, "ObjectKey": key, "Name": "web-2"}
        assert refused(client.create_restore_image_task, **given) == ("UnauthorizedOperation", 403)
        (task,) = engine.resume()  # what it has made is kept for that
        restored = engine.wait(task)
        assert cloud.ec2.describe_image(str(restored.image_id)).name == "web-2"
