"""Requests that break a rule: EC2's code, and nothing is left of them."""

from __future__ import annotations

import pytest
from tasks.accounts import BUCKET, account, snapshots, stored

import amistore
from amistore import Tag, TagSpecification, TaskEngine
from amistore.tasks.requests import object_place

AMI = "ami-0123456789abcdef0"
MANY = {f"key-{number}": "" for number in range(51)}


def tags(*keys: str, value: str = "") -> list[Tag]:
    return [Tag(key=key, value=value) for key in keys]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"image_id": "web"}, "InvalidAMIID.Malformed"),
        ({"image_id": "ami-0123"}, "InvalidAMIID.Malformed"),
        ({"image_id": "ami-0123456789ABCDEF0"}, "InvalidAMIID.Malformed"),
        ({"image_id": None}, "InvalidAMIID.Malformed"),
        ({"bucket": ""}, "MissingParameter"),
        ({"bucket": None}, "MissingParameter"),
        ({"bucket": "No_Bucket"}, "InaccessibleStorageLocation"),
        ({"bucket": f"{BUCKET}/{'x' * 1024}"}, "InvalidParameterValue"),
        ({"s3_object_tags": tags("aws:x")}, "InvalidTagKey.Malformed"),
        ({"s3_object_tags": tags("AWS:x")}, "InvalidTagKey.Malformed"),
        ({"s3_object_tags": tags("x" * 129)}, "InvalidTagKey.Malformed"),
        ({"s3_object_tags": tags("x", value="y" * 257)}, "InvalidParameterValue"),
        ({"s3_object_tags": tags("x", "x")}, "InvalidParameterValue"),
        ({"s3_object_tags": dict(list(MANY.items())[:11])}, "TagLimitExceeded"),
        ({"s3_object_tags": [("key", "value")]}, "InvalidParameterValue"),
        ({"s3_object_tags": 5}, "InvalidParameterValue"),
        ({"dry_run": True}, "DryRunOperation"),
    ],
)
def test_a_store_that_breaks_a_rule_is_refused_with_ec2s_code(asked: dict[str, object], code: str) -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.InvalidRequestError) as caught:
            engine.create_store_image_task(**{"image_id": image_id, "bucket": BUCKET, **asked})
        assert caught.value.code == code
        assert len(engine.describe_store_image_tasks()) == 0
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"bucket": ""}, "MissingParameter"),
        ({"object_key": ""}, "MissingParameter"),
        ({"object_key": None}, "MissingParameter"),
        ({"bucket": "No_Bucket"}, "InaccessibleStorageLocation"),
        ({"name": "ab"}, "InvalidAMIName.Malformed"),
        ({"name": "x" * 129}, "InvalidAMIName.Malformed"),
        ({"name": "größe"}, "InvalidAMIName.Malformed"),
        ({"name": "semi;colon"}, "InvalidAMIName.Malformed"),
        ({"name": 7}, "InvalidAMIName.Malformed"),
        (
            {"tag_specifications": [TagSpecification(resource_type="volume", tags=())]},
            "InvalidParameterValue",
        ),
        (
            {"tag_specifications": [TagSpecification(resource_type="image", tags=())] * 2},
            "InvalidParameterValue",
        ),
        ({"tag_specifications": [{"resource_type": "image"}]}, "InvalidParameterValue"),
        ({"tag_specifications": 5}, "InvalidParameterValue"),
        (
            {"tag_specifications": [TagSpecification(resource_type="image", tags=tags(*MANY))]},
            "TagLimitExceeded",
        ),
        (
            {"tag_specifications": [TagSpecification(resource_type="snapshot", tags=tags("aws:x"))]},
            "InvalidTagKey.Malformed",
        ),
        ({"dry_run": True}, "DryRunOperation"),
    ],
)
def test_a_restore_that_breaks_a_rule_is_refused_with_ec2s_code(asked: dict[str, object], code: str) -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    before = snapshots(cloud)
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.InvalidRequestError) as caught:
            engine.create_restore_image_task(
                **{"bucket": BUCKET, "object_key": key, "name": "web-2", **asked}
            )
        assert caught.value.code == code
        assert len(engine.describe_restore_image_tasks()) == 0
    assert snapshots(cloud) == before


def test_tags_of_a_specification_are_a_list() -> None:
    with pytest.raises(amistore.InvalidValueError, match="a list of Tag"):
        TagSpecification(resource_type="image", tags=5)


def test_what_is_not_there_is_not_found() -> None:
    cloud, image_id = account()
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.NotFoundError, match="image"):
            engine.create_store_image_task(image_id=AMI, bucket=BUCKET)
        with pytest.raises(amistore.NotFoundError, match="bucket"):
            engine.create_store_image_task(image_id=image_id, bucket="nowhere")
        with pytest.raises(amistore.NotFoundError, match="bucket"):
            engine.create_restore_image_task(bucket="nowhere", object_key="web.bin")
        with pytest.raises(amistore.NotFoundError, match="object"):
            engine.create_restore_image_task(bucket=BUCKET, object_key="web.bin")
        assert len(engine.describe_store_image_tasks()) == 0


def test_a_dry_run_meets_the_errors_of_a_real_one() -> None:
    cloud, image_id = account()
    key = stored(cloud, image_id)
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.AlreadyExistsError):
            engine.create_store_image_task(image_id=image_id, bucket=BUCKET, dry_run=True)
        with pytest.raises(amistore.AlreadyExistsError):
            engine.create_restore_image_task(bucket=BUCKET, object_key=key, dry_run=True)


@pytest.mark.parametrize("task", [None, 5, "store-0"])
def test_a_task_that_is_not_there_is_told(task: object) -> None:
    cloud, _ = account()
    with TaskEngine(cloud) as engine:
        with pytest.raises(amistore.InvalidRequestError):
            engine.cancel(task)
        if task is not None:
            with pytest.raises(amistore.InvalidRequestError):
                engine.wait(task)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"concurrency": 0},
        {"concurrency": None},
        {"quotas": {"store_in_progress": 1}},
        {"journal": 5},
    ],
)
def test_an_engine_is_refused_wrong_options(options: dict[str, object]) -> None:
    cloud, _ = account()
    with pytest.raises(amistore.InvalidRequestError, match=next(iter(options))):
        TaskEngine(cloud, **options)


def test_an_engine_wants_a_backend() -> None:
    cloud, _ = account()
    with pytest.raises(amistore.InvalidRequestError, match="Backend"):
        TaskEngine(cloud.s3)


POINT = "arn:aws:s3:us-east-2:123456789012:accesspoint/web"
OUTPOST = "arn:aws:s3-outposts:us-east-2:123456789012:outpost/op-1/accesspoint/web"


@pytest.mark.parametrize("bucket", ["archive", POINT, POINT.replace("/", ":"), OUTPOST])
def test_a_prefix_follows_the_buckets_name_or_an_access_points_whole_arn(bucket: str) -> None:
    assert object_place(bucket, AMI) == (bucket, f"{AMI}.bin")
    assert object_place(f"{bucket}/", AMI) == (bucket, f"{AMI}.bin")
    assert object_place(f"{bucket}/2026/web", AMI) == (bucket, f"2026/web/{AMI}.bin")
