"""Images registered, described and deregistered, as the EC2 API reference has it."""

from __future__ import annotations

import base64
import datetime
from typing import Any

import pytest
from testing.models import ModelError, client, refusal

from amistore.testing.aws import FakeAWS
from amistore.wire.describing import IMAGE_FILTERS


@pytest.fixture
def snapshot_id(aws: FakeAWS) -> str:
    return aws.add_snapshot(volume_size=8)


def request(snapshot_id: str, ebs: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    root = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id, **(ebs or {})}}
    usual = {
        "Name": "web",
        "RootDeviceName": "/dev/xvda",
        "VirtualizationType": "hvm",
        "BlockDeviceMappings": [root],
    }
    return usual | members


def registered(ec2: Any, snapshot_id: str, **members: Any) -> str:
    image_id: str = ec2.register_image(**request(snapshot_id, **members))["ImageId"]
    return image_id


def described(ec2: Any, image_id: str) -> dict[str, Any]:
    (found,) = ec2.describe_images(ImageIds=[image_id])["Images"]
    return dict(found)


def test_everything_that_is_registered_is_described(aws: FakeAWS, ec2: Any, snapshot_id: str) -> None:
    """EC2 API reference: RegisterImage, EbsBlockDevice, Image."""
    uefi = base64.b64encode(b"variables").decode()
    volume = {
        "VolumeSize": 9,
        "VolumeType": "gp3",
        "Iops": 4000,
        "Throughput": 200,
        "DeleteOnTermination": False,
    }
    empty = {"VolumeSize": 1, "VolumeType": "io2", "Iops": 100, "Encrypted": True}
    mappings = [
        {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id, **volume}},
        {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
        {"DeviceName": "/dev/sdc", "NoDevice": ""},
        {"DeviceName": "/dev/sdd", "Ebs": {**empty, "VolumeSize": 4}},
    ]
    simple = {
        "Name": "web (1) [a]/b.c-d'e@f_g",
        "Description": "<the web> & more",
        "Architecture": "arm64",
        "RootDeviceName": "/dev/xvda",
        "VirtualizationType": "hvm",
        "EnaSupport": True,
        "SriovNetSupport": "simple",
        "BootMode": "uefi",
        "TpmSupport": "v2.0",
        "ImdsSupport": "v2.0",
    }
    tags = [{"Key": "Name", "Value": "web"}, {"Key": "empty", "Value": ""}]
    image_id = ec2.register_image(
        **simple,
        UefiData=uefi,
        BlockDeviceMappings=mappings,
        TagSpecifications=[{"ResourceType": "image", "Tags": tags}],
    )["ImageId"]
    found = described(ec2, image_id)
    assert {name: found[name] for name in simple} == simple
    assert (found["Tags"], found["State"], found["OwnerId"]) == (tags, "available", aws.account_id)
    root, ephemeral, none, blank = found["BlockDeviceMappings"]
    assert root["Ebs"] == {"SnapshotId": snapshot_id, "Encrypted": False, **volume}
    assert (ephemeral, none) == (mappings[1], mappings[2])
    assert blank["Ebs"]["Encrypted"]
    told = {
        name: ec2.describe_image_attribute(ImageId=image_id, Attribute=name)
        for name in ("uefiData", "description", "deregistrationProtection", "bootMode", "tpmSupport")
    }
    assert told["uefiData"]["UefiData"]["Value"] == uefi
    assert told["description"]["Description"]["Value"] == simple["Description"]
    assert told["deregistrationProtection"]["DeregistrationProtection"]["Value"] == "disabled"
    assert told["tpmSupport"]["TpmSupport"]["Value"] == "v2.0"


def test_defaults_are_those_of_the_reference(ec2: Any, snapshot_id: str) -> None:
    """EC2 API reference: RegisterImage: i386 and paravirtual."""
    mappings = request(snapshot_id)["BlockDeviceMappings"]
    image_id = ec2.register_image(Name="old", RootDeviceName="/dev/xvda", BlockDeviceMappings=mappings)[
        "ImageId"
    ]
    found = described(ec2, image_id)
    assert (found["Architecture"], found["VirtualizationType"]) == ("i386", "paravirtual")
    assert found["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 8
    attribute = ec2.describe_image_attribute(ImageId=image_id, Attribute="uefiData")
    assert "Value" not in attribute.get("UefiData", {})


@pytest.mark.parametrize("name", ["ab", "x" * 129, "web*", "wéb", "a\nb"])
def test_a_name_has_rules(aws: FakeAWS, snapshot_id: str, name: str) -> None:
    """EC2 API reference: RegisterImage, Name, "Constraints"."""
    unchecked = client(aws, "ec2", parameter_validation=False)
    found = refusal(unchecked.register_image, **request(snapshot_id, Name=name))
    assert found[:2] == (400, "InvalidAMIName.Malformed")
    unchecked.close()


def test_a_name_is_used_once_in_an_account(aws: FakeAWS, ec2: Any, snapshot_id: str) -> None:
    """EC2 API reference: "Error codes", InvalidAMIName.Duplicate."""
    image_id = registered(ec2, snapshot_id)
    assert refusal(registered, ec2, snapshot_id)[:2] == (400, "InvalidAMIName.Duplicate")
    other = client(aws, "ec2", aws.add_credential(account_id="210987654321"))
    shared = aws.add_snapshot(volume_size=8, public=True)
    registered(other, shared)
    ec2.deregister_image(ImageId=image_id)
    registered(ec2, snapshot_id)
    other.close()


BAD_VOLUMES = [
    ({"Encrypted": False}, "InvalidBlockDeviceMapping"),
    ({"VolumeSize": 7}, "InvalidBlockDeviceMapping"),
    ({"VolumeType": "gp4"}, "InvalidParameterValue"),
    ({"VolumeType": "gp2", "Iops": 3000}, "InvalidParameterCombination"),
    ({"VolumeType": "gp2", "Throughput": 125}, "InvalidParameterCombination"),
    ({"VolumeType": "io1"}, "MissingParameter"),
    ({"VolumeType": "gp3", "Iops": 100}, "InvalidParameterValue"),
    ({"VolumeType": "st1"}, "InvalidParameterValue"),
    ({"KmsKeyId": "alias/aws/ebs"}, "InvalidParameterCombination"),
    ({"SnapshotId": "snap-0123456789abcdef0"}, "InvalidSnapshot.NotFound"),
    ({"SnapshotId": "vol-0123456789abcdef0"}, "InvalidSnapshotID.Malformed"),
]


@pytest.mark.parametrize(("ebs", "code"), BAD_VOLUMES)
def test_a_volume_has_rules(ec2: Any, snapshot_id: str, ebs: dict[str, Any], code: str) -> None:
    """EC2 API reference: EbsBlockDevice."""
    assert refusal(ec2.register_image, **request(snapshot_id, ebs))[:2] == (400, code)


BAD_IMAGES = [
    ({"RootDeviceName": "/dev/sda1"}, "InvalidBlockDeviceMapping"),
    ({"BlockDeviceMappings": []}, "MissingParameter"),
    ({"BlockDeviceMappings": [{"DeviceName": "/dev/xvda"}]}, "InvalidBlockDeviceMapping"),
    (
        {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeType": "gp2"}}]},
        "MissingParameter",
    ),
    ({"Architecture": "mips"}, "InvalidParameterValue"),
    ({"BootMode": "bios"}, "InvalidParameterValue"),
    ({"TpmSupport": "v2.0"}, "InvalidParameterCombination"),
    ({"VirtualizationType": "paravirtual", "EnaSupport": True}, "InvalidParameterCombination"),
    ({"KernelId": "aki-0123abcd"}, "InvalidParameterCombination"),
    ({"UefiData": "not base64!"}, "InvalidParameterValue"),
    ({"Description": "x" * 256}, "InvalidParameterValue"),
    (
        {"TagSpecifications": [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]},
        "InvalidParameterValue",
    ),
    (
        {"TagSpecifications": [{"ResourceType": "image", "Tags": [{"Key": "aws:a", "Value": "b"}]}]},
        "InvalidParameterValue",
    ),
]


@pytest.mark.parametrize(("members", "code"), BAD_IMAGES)
def test_an_image_has_rules(
    aws: FakeAWS, ec2: Any, snapshot_id: str, members: dict[str, Any], code: str
) -> None:
    """EC2 API reference: RegisterImage; "Error codes"."""
    assert refusal(ec2.register_image, **request(snapshot_id, **members))[:2] == (400, code)
    assert not aws.images


def test_a_snapshot_has_to_be_completed(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: "Error codes", IncorrectState."""
    for facts in ({"state": "pending"}, {"state": "error"}, {"storage_tier": "archive"}):
        snapshot_id = aws.add_snapshot(volume_size=8, **facts)  # type: ignore[arg-type]
        assert refusal(registered, ec2, snapshot_id)[:2] == (400, "IncorrectState")


def test_an_image_is_pending_for_some_time_and_looks(aws: FakeAWS, ec2: Any, snapshot_id: str) -> None:
    """EC2 API reference: Image, imageState."""
    aws.behaviour.image_seconds, aws.behaviour.image_describes = 60, 1
    image_id = registered(ec2, snapshot_id)
    aws.clock.advance(60)
    assert [described(ec2, image_id)["State"] for _ in range(2)] == ["pending", "available"]
    aws.behaviour.image_failure = "The snapshot is damaged."
    failed = registered(ec2, snapshot_id, Name="web-2")
    aws.clock.advance(60)
    described(ec2, failed)
    found = described(ec2, failed)
    assert (found["State"], found["StateReason"]["Message"]) == ("failed", "The snapshot is damaged.")


def test_a_deregistered_image_is_no_longer_available(ec2: Any, snapshot_id: str) -> None:
    """EC2 API reference: "Error codes", InvalidAMIID.Unavailable."""
    image_id = registered(ec2, snapshot_id)
    assert ec2.deregister_image(ImageId=image_id)["Return"]
    assert refusal(described, ec2, image_id)[:2] == (400, "InvalidAMIID.Unavailable")
    assert ec2.describe_images(Owners=["self"])["Images"] == []


def test_snapshots_go_with_their_image_if_asked(aws: FakeAWS, ec2: Any, snapshot_id: str) -> None:
    """EC2 API reference: DeregisterImage, DeleteAssociatedSnapshots."""
    both = registered(ec2, snapshot_id)
    other = registered(ec2, snapshot_id, Name="web-2")
    answers = [
        ec2.deregister_image(ImageId=image_id, DeleteAssociatedSnapshots=True) for image_id in (both, other)
    ]
    codes = [answer["DeleteSnapshotResults"][0]["ReturnCode"] for answer in answers]
    assert codes == ["skipped", "success"]
    assert not aws.snapshots


def test_a_protected_image_stays(ec2: Any, snapshot_id: str) -> None:
    """EC2 user guide: "Protect an AMI from deregistration"."""
    image_id = registered(ec2, snapshot_id)
    ec2.enable_image_deregistration_protection(ImageId=image_id)
    assert described(ec2, image_id)["DeregistrationProtection"] == "enabled-without-cooldown"
    assert refusal(ec2.deregister_image, ImageId=image_id)[1] == "OperationNotPermitted"
    ec2.disable_image_deregistration_protection(ImageId=image_id)
    ec2.deregister_image(ImageId=image_id)


def test_deprecation_hides_an_image_from_others(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: EnableImageDeprecation; DescribeImages, IncludeDeprecated."""
    image_id = aws.add_image(name="web", mappings=[], public=True)
    at = aws.clock.now() + datetime.timedelta(days=1)
    ec2.enable_image_deprecation(ImageId=image_id, DeprecateAt=at)
    told = datetime.datetime.fromisoformat(described(ec2, image_id)["DeprecationTime"].replace("Z", "+00:00"))
    assert abs(told - at) <= datetime.timedelta(seconds=30)
    assert told.second == 0
    other = client(aws, "ec2", aws.add_credential(account_id="210987654321"))
    aws.clock.advance(2 * 86_400)
    assert other.describe_images()["Images"] == []
    assert len(other.describe_images(IncludeDeprecated=True)["Images"]) == 1
    assert len(ec2.describe_images(Owners=["self"])["Images"]) == 1
    ec2.disable_image_deprecation(ImageId=image_id)
    assert "DeprecationTime" not in described(ec2, image_id)
    past = aws.clock.now() - datetime.timedelta(days=1)
    assert refusal(ec2.enable_image_deprecation, ImageId=image_id, DeprecateAt=past)[0] == 400
    other.close()


@pytest.mark.parametrize("names", [("deviceName", "ebs", "snapshotId"), ("DeviceName", "Ebs", "SnapshotId")])
def test_an_image_is_put_in_with_mappings_as_boto3_or_the_xml_spells_them(
    aws: FakeAWS, ec2: Any, snapshot_id: str, names: tuple[str, str, str]
) -> None:
    image_id = aws.add_image(
        name="web", mappings=[{names[0]: "/dev/xvda", names[1]: {names[2]: snapshot_id}}]
    )
    assert described(ec2, image_id)["BlockDeviceMappings"] == [
        {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id}}
    ]


@pytest.mark.parametrize(
    ("ebs", "message"),
    [
        ({"SnapshotId": "snap-00000000000000000"}, "no snapshot snap-0"),
        ({"snapshot_id": "snap-00000000000000000"}, "'snapshot_id' is no member"),
    ],
)
def test_a_mapping_of_what_is_not_there_is_not_put_in(
    aws: FakeAWS, ebs: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        aws.add_image(name="web", mappings=[{"DeviceName": "/dev/xvda", "Ebs": ebs}])
    assert not aws.images


def test_each_fake_has_ids_of_its_own_and_those_of_a_seed_are_the_same() -> None:
    ids = [FakeAWS(seed=seed).add_snapshot(volume_size=1) for seed in (None, None, 1, 1, 2)]
    assert len(set(ids)) == 4
    assert ids[2] == ids[3]


def test_images_are_seen_by_their_owner_those_they_are_shared_with_and_all(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: DescribeImages, Owners."""
    other = "210987654321"
    own = aws.add_image(name="own", mappings=[])
    shared = aws.add_image(name="shared", mappings=[], owner_id=other, shared_with=[aws.account_id])
    public = aws.add_image(name="public", mappings=[], owner_id=other, public=True, imageOwnerAlias="amazon")
    private = aws.add_image(name="private", mappings=[], owner_id=other)

    def ids(**arguments: Any) -> list[str]:
        return [image["ImageId"] for image in ec2.describe_images(**arguments)["Images"]]

    assert ids() == [own, shared, public]
    assert ids(Owners=["self"]) == [own]
    assert ids(Owners=["amazon"]) == [public]
    assert ids(Owners=[other]) == [shared, public]
    assert refusal(ids, ImageIds=[private])[:2] == (400, "InvalidAMIID.NotFound")
    assert refusal(ids, ImageIds=["image"])[:2] == (400, "InvalidAMIID.Malformed")
    assert refusal(ec2.deregister_image, ImageId=public)[1] == "AuthFailure"


def test_filters_choose_images(aws: FakeAWS, ec2: Any, snapshot_id: str) -> None:
    """EC2 API reference: DescribeImages, Filters; EC2 user guide: "wildcards"."""
    mapping = {"deviceName": "/dev/xvda", "ebs": {"snapshotId": snapshot_id, "volumeSize": 8}}
    web = aws.add_image(name="web-1", mappings=[mapping], tags={"Team": "a", "x*": "1"}, architecture="arm64")
    aws.add_image(name="db-1", mappings=[], tags={"Team": "b"})

    def ids(name: str, *values: str) -> list[str]:
        found = ec2.describe_images(Filters=[{"Name": name, "Values": list(values)}])["Images"]
        return [image["ImageId"] for image in found]

    for name, values in {
        "name": ["web-?", "nothing"],
        "tag:Team": ["a"],
        "tag-key": ["x\\*"],
        "image-id": [web],
        "architecture": ["arm*"],
        "block-device-mapping.snapshot-id": [snapshot_id],
    }.items():
        assert ids(name, *values) == [web], name
    assert len(ids("state", "available")) == 2
    assert ids("is-public", "true") == []
    assert refusal(ids, "colour", "red")[:2] == (400, "InvalidParameterValue")


def test_every_filter_finds_an_image_by_what_the_sdk_tells_of_it(
    aws: FakeAWS, ec2: Any, snapshot_id: str
) -> None:
    """EC2 API reference: DescribeImages, Filters."""
    ebs = {"snapshotId": snapshot_id, "volumeSize": 8, "volumeType": "gp3", "encrypted": False}
    mapping = {"deviceName": "/dev/sda1", "ebs": {**ebs, "deleteOnTermination": True}}
    members = {
        "bootMode": "uefi",
        "description": "a server",
        "enaSupport": True,
        "imageOwnerAlias": "amazon",
        "kernelId": "aki-01234567",
        "platform": "Windows",
        "ramdiskId": "ari-01234567",
        "sourceImageId": "ami-01234567",
        "sourceImageRegion": "eu-west-1",
        "sourceInstanceId": "i-01234567",
        "sriovNetSupport": "simple",
        "tpmSupport": "v2.0",
    }
    aws.add_image(name="another", mappings=[], owner_id="210987654321")
    aws.clock.advance(1)
    web = aws.add_image(
        name="web",
        mappings=[mapping],
        root_device_name="/dev/sda1",
        tags={"Team": "a"},
        public=True,
        architecture="arm64",
        imageType="kernel",
        hypervisor="ovm",
        virtualizationType="paravirtual",
        rootDeviceType="instance-store",
        productCodes=[{"productCode": "abc", "type": "marketplace"}],
        **members,
    )
    aws.images[web].state_message = "why"
    told = described(ec2, web)
    for name, path in {**IMAGE_FILTERS, "is-public": "Public"}.items():
        value: Any = told
        for member in path.split("."):
            value = (value[0] if isinstance(value, list) else value)[member]
        text = str(value).lower() if isinstance(value, bool) else value
        asked = [{"Name": name.replace("<key>", "Team"), "Values": [str(text)]}]
        found = [image["ImageId"] for image in ec2.describe_images(Filters=asked)["Images"]]
        assert web in found, name
        assert name == "state" or len(found) == 1, name


def test_images_come_in_pages_that_stay_while_images_are_added(aws: FakeAWS, ec2: Any) -> None:
    """EC2 API reference: "Pagination"."""
    names = [f"image-{number:02}" for number in range(12)]
    for name in names:
        aws.add_image(name=name, mappings=[])
    found: list[str] = []
    arguments: dict[str, Any] = {"MaxResults": 5}
    while True:
        page = ec2.describe_images(**arguments)
        found += [image["Name"] for image in page["Images"]]
        if "NextToken" not in page:
            break
        aws.behaviour.short_pages = True
        arguments["NextToken"] = page["NextToken"]
    assert found == names
    image_id = next(iter(aws.images))
    both = refusal(ec2.describe_images, ImageIds=[image_id], MaxResults=5)
    assert both[1] == "InvalidParameterCombination"
    assert refusal(ec2.describe_images, MaxResults=4)[1] == "InvalidParameterValue"
    assert refusal(ec2.describe_images, MaxResults=5, NextToken="x")[1] == "InvalidNextToken"


def test_an_answer_that_the_model_does_not_know_fails_these_tests(aws: FakeAWS, ec2: Any) -> None:
    image_id = aws.add_image(name="web", mappings=[], colour="red")
    with pytest.raises(ModelError, match="unknown or repeated member colour"):
        described(ec2, image_id)
