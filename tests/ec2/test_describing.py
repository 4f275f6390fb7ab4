"""Filters, owners and pages of DescribeImages and DescribeSnapshots, and paginators on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from ec2.checked import CheckedClient, accounts, refused
from tasks.accounts import BUCKET, DISKS, registered

from amistore import MemoryBackend, Tag, TaskEngine
from amistore.wire.describing import IMAGE_FILTERS, SNAPSHOT_FILTERS
from amistore.wire.members import OPERATIONS

NAMES = ["web", "web-1", "web-2", "sql", "sql [x]", "cache", "proxy"]


@pytest.fixture(scope="module")
def ec2() -> Iterator[Any]:
    """Seven images on two snapshots."""
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    first = cloud.ec2.describe_image(registered(cloud, NAMES[0]))
    for number, name in enumerate(NAMES[1:]):
        tags = (Tag(key="team", value=f"t{number % 2}"), Tag(key=f"only-{number}", value=""))
        if name == "sql":
            tags += (Tag(key="glob", value="a*b"),)
        owner = {"owner_id": "111122223333", "image_owner_alias": "amazon"} if name == "sql" else {}
        image = attrs.evolve(first, tags=tags, source_image_region="eu-west-1", **owner)
        if name == "cache":
            image = attrs.evolve(image, state="disabled")
        cloud.ec2.register_image(image, name=name)
        if name == "cache":  # as EC2 tells of one; a memory registers no such image
            (cached,) = cloud.ec2.find_images(name)
            cloud.ec2._images[cached.image_id] = attrs.evolve(cached, state="disabled")
    with TaskEngine(cloud) as engine:
        yield CheckedClient(engine)


def names(answer: dict[str, Any]) -> set[str]:
    return {image["Name"] for image in answer["Images"]}


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"name": ["web"]}, {"web"}),
        ({"name": ["web", "sql"]}, {"web", "sql"}),
        ({"name": ["web*"]}, {"web", "web-1", "web-2"}),
        ({"name": ["web-?"]}, {"web-1", "web-2"}),
        ({"name": ["sql [x]"]}, {"sql [x]"}),
        ({"name": ["we"]}, set()),
        ({"name": ["web?"]}, set()),
        ({"tag:glob": [r"a\*b"]}, {"sql"}),
        ({"tag:glob": [r"a\*"]}, set()),
        ({"tag:glob": ["a*"]}, {"sql"}),
        ({"tag:team": ["t1"]}, {"web-2", "sql [x]", "proxy"}),
        ({"tag:team": ["t1"], "name": ["web*"]}, {"web-2"}),
        ({"tag-key": ["only-0", "only-1"]}, {"web-1", "web-2"}),
        ({"tag:absent": ["*"]}, set()),
        ({"owner-id": ["111122223333"]}, {"sql"}),
        ({"source-image-region": ["eu-*"], "name": ["w*"]}, {"web-1", "web-2"}),
        ({"state": ["pending", "failed"]}, set()),
        ({"block-device-mapping.device-name": ["/dev/none"]}, set()),
    ],
)
def test_images_are_found_by_every_filter_and_any_of_its_values(
    ec2: Any, filters: dict[str, list[str]], found: set[str]
) -> None:
    given = [{"Name": name, "Values": values} for name, values in filters.items()]
    assert names(ec2.describe_images(Filters=given)) == found


def test_images_and_snapshots_are_found_by_what_others_say_of_them(ec2: Any) -> None:
    (image,) = ec2.describe_images(Filters=[{"Name": "name", "Values": ["web"]}])["Images"]
    first = image["BlockDeviceMappings"][0]["Ebs"]
    by_id = [{"Name": "image-id", "Values": [image["ImageId"]]}]
    assert ec2.describe_images(Filters=by_id)["Images"] == [image]
    on = [{"Name": "block-device-mapping.snapshot-id", "Values": [first["SnapshotId"]]}]
    assert names(ec2.describe_images(Filters=on)) == set(NAMES) - {"cache"}
    for name, value in (("snapshot-id", first["SnapshotId"]), ("volume-size", "1"), ("status", "completed")):
        found = ec2.describe_snapshots(Filters=[{"Name": name, "Values": [value]}])["Snapshots"]
        assert first["SnapshotId"] in [each["SnapshotId"] for each in found]
    assert ec2.describe_snapshots(Filters=[{"Name": "progress", "Values": ["5?%"]}])["Snapshots"] == []
    assert len(ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]) == len(DISKS)
    assert ec2.describe_snapshots(OwnerIds=["111122223333"])["Snapshots"] == []


def test_owners_are_accounts_aliases_or_self(ec2: Any) -> None:
    assert names(ec2.describe_images(Owners=["111122223333"])) == {"sql"}
    assert names(ec2.describe_images(Owners=["amazon"])) == {"sql"}
    assert names(ec2.describe_images(Owners=["aws-marketplace"])) == set()
    assert names(ec2.describe_images(Owners=["self", "amazon"])) == set(NAMES) - {"cache"}


def test_a_disabled_image_is_listed_only_if_asked_for(ec2: Any) -> None:
    assert names(ec2.describe_images(IncludeDisabled=True)) == set(NAMES)
    (image,) = ec2.describe_images(IncludeDisabled=True, Filters=[{"Name": "state", "Values": ["disabled"]}])[
        "Images"
    ]
    assert names(ec2.describe_images(ImageIds=[image["ImageId"]])) == {"cache"}


def test_pages_hold_all_once_and_the_last_has_no_token(ec2: Any) -> None:
    first = ec2.describe_images(MaxResults=5)
    second = ec2.describe_images(MaxResults=5, NextToken=first["NextToken"])
    assert len(first["Images"]) == 5
    assert "NextToken" not in second
    assert first["Images"] + second["Images"] == ec2.describe_images()["Images"]


def test_pages_stay_as_they_are_while_images_come_and_go(tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, "memory")
    image = cloud.ec2.describe_image(image_id)
    for number in range(8):
        cloud.ec2.register_image(image, name=f"web-{number}")
    with TaskEngine(cloud) as engine:
        client = CheckedClient(engine)
        before = [each["ImageId"] for each in client.describe_images()["Images"]]
        first = client.describe_images(MaxResults=5)
        cloud.ec2.deregister_image(before[4])  # that the token names
        second = client.describe_images(NextToken=first["NextToken"])
        assert [each["ImageId"] for each in second["Images"]] == before[5:]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"MaxResults": 4}, "InvalidParameterValue"),
        ({"MaxResults": 1001}, "InvalidParameterValue"),
        ({"MaxResults": 5, "ImageIds": ["ami-00000000"]}, "InvalidAMIID.NotFound"),
        ({"NextToken": "?"}, "InvalidNextToken"),
        ({"NextToken": "c25hcHNob3Q="}, "InvalidNextToken"),
        ({"Filters": [{"Name": "nme", "Values": ["x"]}]}, "InvalidParameterValue"),
        ({"Filters": [{"Values": ["x"]}]}, "InvalidParameterValue"),
        ({"Filters": [{"Name": "name"}]}, "InvalidParameterValue"),
        ({"ExecutableUsers": ["all"]}, "UnsupportedOperation"),
        ({"ImageIds": ["web"]}, "InvalidAMIID.Malformed"),
        ({"DryRun": True}, "DryRunOperation"),
    ],
)
def test_a_list_of_images_that_breaks_a_rule_is_refused(ec2: Any, request_: Any, code: str) -> None:
    assert refused(ec2.describe_images, **request_)[0] == code


def test_ids_and_a_number_of_results_exclude_each_other(ec2: Any) -> None:
    image = ec2.describe_images()["Images"][0]
    given = {"ImageIds": [image["ImageId"]], "MaxResults": 5}
    assert refused(ec2.describe_images, **given)[0] == "InvalidParameterCombination"
    assert ec2.describe_images(ImageIds=[image["ImageId"]])["Images"] == [image]
    assert len(ec2.describe_images(ImageIds=[], MaxResults=5)["Images"]) == 5


def test_a_token_of_images_is_none_of_snapshots(ec2: Any) -> None:
    token = ec2.describe_images(MaxResults=5)["NextToken"]
    assert refused(ec2.describe_snapshots, NextToken=token)[0] == "InvalidNextToken"
    assert refused(ec2.describe_snapshots, RestorableByUserIds=["self"])[0] == "UnsupportedOperation"


def test_every_filter_looks_at_a_member_of_the_answer() -> None:
    for operation, filters in (("DescribeImages", IMAGE_FILTERS), ("DescribeSnapshots", SNAPSHOT_FILTERS)):
        (kind,) = OPERATIONS[operation].answer[operation.removeprefix("Describe")]
        for path in filters.values():
            found: Any = kind
            for name in path.split("."):
                found = (found[0] if isinstance(found, list) else found)[name]


def test_botocores_paginator_gives_every_image_and_task_once(ec2: Any) -> None:
    pages = list(ec2.get_paginator("describe_images").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(page["Images"]) for page in pages] == [5, 1]
    everything = ec2.get_paginator("describe_images").paginate(Owners=["self"]).build_full_result()
    assert everything["Images"] == ec2.describe_images()["Images"]
    taken = ec2.get_paginator("describe_images").paginate(PaginationConfig={"MaxItems": 3, "PageSize": 5})
    full = taken.build_full_result()
    again = ec2.get_paginator("describe_images").paginate(
        PaginationConfig={"StartingToken": full["NextToken"], "PageSize": 5}
    )
    assert full["Images"] + again.build_full_result()["Images"] == everything["Images"]


def test_botocores_paginator_gives_the_store_tasks_newest_first(tmp_path: Path) -> None:
    cloud, image_id = accounts(tmp_path, "memory")
    image = cloud.ec2.describe_image(image_id)
    with TaskEngine(cloud) as engine:
        client = CheckedClient(engine)
        for number in range(4):
            made = cloud.ec2.register_image(image, name=f"web-{number}")
            client.create_store_image_task(ImageId=made, Bucket=f"{BUCKET}/p{number}")
        engine.wait()
        paginator = client.get_paginator("describe_store_image_tasks")
        pages = list(paginator.paginate(PaginationConfig={"PageSize": 3}))
        assert [len(page["StoreImageTaskResults"]) for page in pages] == [3, 1]
        keys = [task["S3objectKey"][:2] for page in pages for task in page["StoreImageTaskResults"]]
        assert keys == ["p3", "p2", "p1", "p0"]
        by = [{"Name": "task-state", "Values": ["Failed"]}, {"Name": "bucket", "Values": [BUCKET]}]
        assert client.describe_store_image_tasks(Filters=by)["StoreImageTaskResults"] == []
        assert len(client.describe_store_image_tasks(Filters=by[1:])["StoreImageTaskResults"]) == 4


def test_only_what_has_pages_has_a_paginator_and_only_known_waiters_wait(ec2: Any) -> None:
    assert ec2.can_paginate("describe_snapshots")
    assert not ec2.can_paginate("delete_snapshot")
    with pytest.raises(ValueError, match="cannot be paginated"):
        ec2.get_paginator("delete_snapshot")
    for name in ("instance_running", "Nonsense"):  # EC2 has the first
        with pytest.raises(ValueError, match="does not exist"):
            ec2.get_waiter(name)
