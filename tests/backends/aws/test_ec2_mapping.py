"""EC2's answers become images with nothing lost; images become requests that EC2's model accepts."""

from __future__ import annotations

import datetime
from typing import Any

import attrs
import pytest

pytest.importorskip("boto3")

import botocore.session
import botocore.validate
from hypothesis import given, settings

import amistore
from amistore.backends.aws import ec2_images as mapping
from amistore.model import Fate
from amistore.model.fidelity import leaves
from amistore.model.fields import from_wire, to_wire
from amistore.testing.strategies import images

EC2 = botocore.session.get_session().get_service_model("ec2")
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
SNAPSHOT = "snap-0123456789abcdef0"
IDS = {"ImageId": "ami-0123456789abcdef0", "SnapshotId": SNAPSHOT}


def sample(shape: Any) -> Any:
    """A value of this shape with every member set, as boto3 parses it."""
    if shape.type_name == "structure":
        return {name: IDS.get(name, sample(each)) for name, each in shape.members.items()}
    if shape.type_name == "list":
        return [sample(shape.member)]
    if shape.type_name == "timestamp":
        return datetime.datetime(2026, 1, 2, 4, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    return {"string": f"the {shape.name}", "boolean": False, "integer": 7, "long": 2**40}[shape.type_name]


def written(value: Any) -> Any:
    """The same in JSON's types."""
    if isinstance(value, datetime.datetime):
        return "2026-01-02T03:04:05.000Z"
    if isinstance(value, dict):
        return {name: written(each) for name, each in value.items()}
    return [written(each) for each in value] if isinstance(value, list) else value


def test_every_member_of_an_image_that_botocore_knows_is_kept_but_sharing_and_the_moment() -> None:
    members = sample(EC2.shape_for("Image"))
    image = mapping.image_from(members, [], "the UEFI data")
    assert image.state == members["State"]
    expected = written(members) | {"UefiData": "the UEFI data"}
    for name in ("Public", "StateReason", "State"):
        del expected[name]
    assert to_wire(image) == expected


def test_every_member_of_a_snapshot_that_botocore_knows_is_kept_but_the_moment() -> None:
    members = sample(EC2.shape_for("Snapshot"))
    snapshot = mapping.snapshot_from(members)
    assert snapshot.state == members["State"]
    expected = written(members)
    for name in ("Progress", "StateMessage", "State"):
        del expected[name]
    assert to_wire(snapshot) == expected


def test_times_finer_than_a_millisecond_are_kept() -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
    found = mapping.snapshot_from({"SnapshotId": SNAPSHOT, "StartTime": moment})
    assert found.start_time == "2026-01-02T03:04:05.678901Z"


def test_an_image_has_the_descriptions_of_its_own_snapshots_only() -> None:
    members = sample(EC2.shape_for("Image"))
    own, other = (amistore.Snapshot(snapshot_id=each) for each in (SNAPSHOT, "snap-00000000000000000"))
    assert mapping.image_from(members, [other, own], None).snapshots == (own,)


def test_an_answer_that_breaks_the_model_is_the_services_fault() -> None:
    with pytest.raises(amistore.BackendError, match=r"Snapshot\.snapshot_id"):
        mapping.snapshot_from({"SnapshotId": "vol-1"})


@settings(max_examples=50)
@given(images(snapshot_ids=[SNAPSHOT]))
def test_requests_fit_ec2s_model_and_say_what_the_report_calls_kept(image: amistore.Image) -> None:
    image = attrs.evolve(image, virtualization_type="hvm", root_device_name=image.device_names(SNAPSHOT)[0])
    kept = mapping.registered(image, name="web", now=NOW)
    request = mapping.register_request(kept)
    errors = botocore.validate.ParamValidator().validate(
        request, EC2.operation_model("RegisterImage").input_shape
    )
    assert not errors.has_errors(), errors.generate_report()

    tags = [each for item in request.pop("TagSpecifications", []) for each in item["Tags"]]
    asked = from_wire(amistore.Image, {**request, "Tags": tags, "ImageId": image.image_id})
    said = {leaf.path: leaf.value for leaf in leaves(asked)}
    for each in mapping.fidelity(image, kept):
        top = each.attribute.partition("[")[0].partition(".")[0]
        if each.fate is Fate.KEPT and top not in _NOT_ASKED:
            assert each.attribute in said
    own = {leaf.path: leaf.value for leaf in leaves(image)}
    assert {path for path in said if path in own and said[path] != own[path]} <= {
        each.attribute for each in mapping.fidelity(image, kept) if each.fate is not Fate.KEPT
    }


def test_the_root_device_of_a_request_is_that_of_a_mapped_snapshot() -> None:
    ebs = amistore.EbsBlockDevice(snapshot_id=SNAPSHOT)
    image = amistore.Image(
        image_id=IDS["ImageId"],
        name="odd",
        root_device_name="/dev/sda1",
        block_device_mappings=(
            amistore.BlockDeviceMapping(device_name="/dev/sda", ebs=ebs),
            amistore.BlockDeviceMapping(device_name="/dev/sdb", virtual_name="ephemeral0"),
        ),
    )
    kept = mapping.registered(image, now=NOW)
    assert mapping.register_request(kept)["RootDeviceName"] == "/dev/sda"
    (told,) = (each for each in mapping.fidelity(image, kept) if each.attribute == "root_device_name")
    assert (told.fate, told.value) == (Fate.REMAPPED, "'/dev/sda1'")
    for name in (None, "/dev/sdb"):
        other = attrs.evolve(image, root_device_name=name)
        with pytest.raises(amistore.InvalidRequestError, match="no snapshot is mapped as the root device"):
            mapping.register_request(mapping.registered(other, now=NOW))


# Set at StartSnapshot, by calls after RegisterImage, or by EC2 itself.
_NOT_ASKED = {
    "snapshots",
    "deprecation_time",
    "deregistration_protection",
    "image_type",
    "root_device_type",
    "hypervisor",
}


@settings(max_examples=50)
@given(images())
def test_every_attribute_is_reported_once_with_a_reason_unless_kept(image: amistore.Image) -> None:
    reports = mapping.fidelity(image, mapping.registered(image, name="another", now=NOW))
    assert [each.attribute for each in reports] == [leaf.path for leaf in leaves(image)]
    assert all(bool(each.reason) == (each.fate is not Fate.KEPT) for each in reports)


def test_every_rule_is_about_an_attribute_that_there_is() -> None:
    members = botocore.session.get_session().get_service_model("ec2").shape_for("Snapshot").members
    assert set(mapping.FATES) <= names(amistore.Image) | {f"snapshots.extra.{name}" for name in members}


def names(kind: type[Any], prefix: str = "") -> set[str]:
    found = set()
    for field in attrs.fields(kind):
        inner = field.metadata.get("many") or field.metadata.get("one")
        found |= names(inner, f"{prefix}{field.name}.") if inner else {prefix + field.name}
    return found


def ebs_image(tags: tuple[amistore.Tag, ...] = (), **members: Any) -> amistore.Image:
    ebs = amistore.EbsBlockDevice(**{"snapshot_id": SNAPSHOT, **members})
    device = amistore.BlockDeviceMapping(device_name="/dev/xvda", ebs=ebs)
    return amistore.Image(
        image_id=IDS["ImageId"],
        name="web",
        root_device_name="/dev/xvda",
        block_device_mappings=[device],
        tags=tags,
    )


def ebs_request(**members: Any) -> dict[str, Any]:
    request = mapping.register_request(mapping.registered(ebs_image(**members), now=NOW))
    found: dict[str, Any] = request["BlockDeviceMappings"][0]["Ebs"]
    return found


@pytest.mark.parametrize("encrypted", [True, False])
def test_encryption_is_never_said_beside_a_snapshot(encrypted: bool) -> None:
    assert ebs_request(encrypted=encrypted, kms_key_id="key") == {"SnapshotId": SNAPSHOT}


def test_an_empty_volumes_encryption_is_kept() -> None:
    empty = amistore.EbsBlockDevice(volume_size=8, encrypted=True)
    image = ebs_image()
    image = attrs.evolve(
        image,
        block_device_mappings=[
            *image.block_device_mappings,
            amistore.BlockDeviceMapping(device_name="/dev/xvdb", ebs=empty),
        ],
    )
    request = mapping.register_request(mapping.registered(image, now=NOW))
    assert request["BlockDeviceMappings"][1]["Ebs"] == {"VolumeSize": 8, "Encrypted": True}


@pytest.mark.parametrize(
    ("volume_type", "taken"),
    [("gp3", {"Iops", "Throughput"}), ("io1", {"Iops"}), ("io2", {"Iops"}), ("gp2", set()), ("st1", set())],
)
def test_performance_is_said_of_volume_types_that_take_it(volume_type: str, taken: set[str]) -> None:
    request = ebs_request(volume_type=volume_type, iops=300, throughput=125)
    assert set(request) - {"SnapshotId", "VolumeType"} == taken


def test_an_image_that_does_not_say_its_virtualization_is_registered_as_hvm() -> None:
    assert mapping.register_request(mapping.registered(ebs_image(), now=NOW))["VirtualizationType"] == "hvm"


def test_paravirtual_images_are_refused() -> None:
    image = attrs.evolve(ebs_image(), virtualization_type="paravirtual")
    with pytest.raises(amistore.InvalidRequestError) as caught:
        mapping.register_request(mapping.registered(image, now=NOW))
    assert caught.value.code == "UnsupportedOperation"


@pytest.mark.parametrize("key", ["aws:x", "AWS:x", "aws:"])
def test_reserved_tags_are_dropped_and_said_to_be(key: str) -> None:
    image = ebs_image(tags=(amistore.Tag(key=key, value="1"), amistore.Tag(key="Name", value="2")))
    kept = mapping.registered(image, now=NOW)
    assert [tag.key for tag in kept.tags] == ["Name"]
    fates = {each.attribute: each.fate for each in mapping.fidelity(image, kept)}
    assert fates[f"tags[{key}].value"] is Fate.DROPPED
    assert fates["tags[Name].value"] is Fate.KEPT


def test_tags_of_the_registry_go_over_the_images_own() -> None:
    image = ebs_image(tags=(amistore.Tag(key="Name", value="old"), amistore.Tag(key="Team", value="a")))
    kept = mapping.registered(image, image_tags=[amistore.Tag(key="Name", value="new")], now=NOW)
    assert {tag.key: tag.value for tag in kept.tags} == {"Name": "new", "Team": "a"}
    found = {each.attribute: each for each in mapping.fidelity(image, kept)}["tags[Name].value"]
    assert (found.fate, found.reason) == (Fate.REMAPPED, "a tag that is given for all images goes over it")


def test_a_snapshot_that_no_mapping_names_is_said_to_be_dropped() -> None:
    other = amistore.Snapshot(snapshot_id="snap-00000000000000000", volume_size=1)
    image = attrs.evolve(ebs_image(), snapshots=(other,))
    reports = mapping.fidelity(image, mapping.registered(image, now=NOW))
    assert [(each.fate, each.reason) for each in reports if each.attribute.startswith("snapshots")] == [
        (Fate.DROPPED, "no mapping names the snapshot")
    ] * 2


@pytest.mark.parametrize(
    ("text", "fate"),
    [
        ("2026-01-02T03:05:00.000Z", Fate.KEPT),
        ("2035-12-30T00:00:00.000Z", Fate.KEPT),
        ("2026-01-02T03:05:30.000Z", Fate.REMAPPED),
        ("2026-01-02T04:05:00+01:00", Fate.REMAPPED),
        ("2026-01-02T03:04:00.000Z", Fate.DROPPED),
        ("2036-01-03T00:00:00.000Z", Fate.DROPPED),
        ("0001-01-01T00:00:00+14:00", Fate.DROPPED),
        ("soon", Fate.DROPPED),
    ],
)
def test_deprecation_times_are_kept_in_minutes_from_now_on_for_ten_years(text: str, fate: Fate) -> None:
    image = attrs.evolve(ebs_image(), deprecation_time=text)
    reports = mapping.fidelity(image, mapping.registered(image, now=NOW))
    assert {each.attribute: each.fate for each in reports}["deprecation_time"] is fate
