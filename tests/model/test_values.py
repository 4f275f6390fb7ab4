"""Values are valid from birth, and derive what they promise."""

from __future__ import annotations

import pickle

import attrs
import pytest
from hypothesis import given, settings

import amistore
from amistore.testing.strategies import images

AMI = "ami-0123456789abcdef0"
SNAP = "snap-0123456789abcdef0"


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


REFUSED = [
    (amistore.Image, {"image_id": "ami-1"}, "Image.image_id"),
    (amistore.Image, {"image_id": AMI + "0"}, "Image.image_id"),
    (amistore.Image, {"image_id": AMI.upper()}, "Image.image_id"),
    (amistore.Image, {"image_id": AMI + "\n"}, "Image.image_id"),
    (amistore.Image, {"image_id": SNAP}, "Image.image_id"),
    (amistore.Image, {"image_id": None}, "Image.image_id"),
    (amistore.Image, {"image_id": AMI, "name": b"bytes"}, "Image.name"),
    (amistore.Image, {"image_id": AMI, "name": "\ud800"}, "Image.name"),
    (amistore.Image, {"image_id": AMI, "name": nested(5000)}, "Image.name"),
    (amistore.Image, {"image_id": AMI, "ena_support": "yes"}, "Image.ena_support"),
    (amistore.Image, {"image_id": AMI, "ena_support": 1}, "Image.ena_support"),
    (amistore.Image, {"image_id": AMI, "state": None}, "Image.state"),
    (amistore.Image, {"image_id": AMI, "tags": None}, "Image.tags"),
    (amistore.Image, {"image_id": AMI, "tags": "tags"}, "Image.tags"),
    (amistore.Image, {"image_id": AMI, "tags": [{"Key": "a"}]}, "Image.tags"),
    (amistore.Image, {"image_id": AMI, "tags": [amistore.Tag(key="a"), amistore.Tag(key="a")]}, "Image.tags"),
    (amistore.Image, {"image_id": AMI, "extra": None}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": ["list"]}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"ImageId": AMI}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {1: "a"}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"New": b"bytes"}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"New": float("nan")}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"New": float("inf")}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"New": "\ud800"}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"\ud800": "New"}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"New": 10**5000}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"New": nested(60)}}, "Image.extra"),
    (amistore.Image, {"image_id": AMI, "extra": {"New": nested(100_000)}}, "Image.extra"),
    (amistore.Snapshot, {"snapshot_id": SNAP, "volume_size": 0}, "Snapshot.volume_size"),
    (amistore.Snapshot, {"snapshot_id": SNAP, "volume_size": True}, "Snapshot.volume_size"),
    (amistore.Snapshot, {"snapshot_id": SNAP, "volume_size": 1.0}, "Snapshot.volume_size"),
    (amistore.Snapshot, {"snapshot_id": SNAP, "volume_size": 2**63}, "Snapshot.volume_size"),
    (amistore.Snapshot, {"snapshot_id": SNAP, "volume_size": 10**5000}, "Snapshot.volume_size"),
    (amistore.EbsBlockDevice, {"iops": -1}, "EbsBlockDevice.iops"),
    (amistore.EbsBlockDevice, {"snapshot_id": "vol-12345678"}, "EbsBlockDevice.snapshot_id"),
    (amistore.BlockDeviceMapping, {"device_name": ""}, "BlockDeviceMapping.device_name"),
    (amistore.BlockDeviceMapping, {"device_name": "a", "ebs": {}}, "BlockDeviceMapping.ebs"),
    (amistore.Tag, {"key": ""}, "Tag.key"),
    (amistore.model.ProductCode, {"product_code_id": 5}, "ProductCode.product_code_id"),
]


@pytest.mark.parametrize(("kind", "members", "field"), REFUSED, ids=[field for _, _, field in REFUSED])
def test_a_value_that_breaks_a_rule_is_refused_with_its_field(kind, members, field):
    with pytest.raises(amistore.InvalidValueError) as caught:
        kind(**members)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_error_holds_and_shows_the_value():
    with pytest.raises(amistore.InvalidValueError, match="'no id'") as caught:
        amistore.Image(image_id="no id")
    assert caught.value.value == "no id"


@pytest.mark.parametrize("image_id", ["ami-01234567", AMI])
def test_ids_of_both_lengths_are_taken(image_id):
    assert amistore.Image(image_id=image_id).image_id == image_id


def test_values_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        amistore.Tag(key="a").key = "b"


def test_extra_is_a_copy():
    given_ = {"New": ["a"]}
    tag = amistore.Tag(key="a", extra=given_)
    given_["New"].append("b")
    assert tag.extra == {"New": ["a"]}


def test_the_order_of_tags_and_mappings_does_not_matter():
    tags = [amistore.Tag(key=key) for key in "bca"]
    mappings = [amistore.BlockDeviceMapping(device_name=name) for name in ("/dev/sdb", "/dev/sda")]
    one = amistore.Image(image_id=AMI, tags=tags, block_device_mappings=mappings)
    other = amistore.Image(image_id=AMI, tags=tags[::-1], block_device_mappings=mappings[::-1])
    assert one == other
    assert hash(one) == hash(other)
    assert [tag.key for tag in one.tags] == ["a", "b", "c"]


def test_the_state_takes_no_part_in_comparisons():
    assert amistore.Image(image_id=AMI, state="pending") == amistore.Image(image_id=AMI)


@settings(max_examples=30)
@given(images())
def test_values_survive_pickling(image):
    assert pickle.loads(pickle.dumps(image)) == image


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("2026-01-02T03:04:05.000Z", 1767323045),
        ("2026-01-02T03:04:05.999Z", 1767323045),
        ("2026-01-02T03:04:05Z", 1767323045),
        ("2026-01-02T05:04:05.123456+02:00", 1767323045),
        ("9999-12-31T23:59:59-23:59", 8**11 - 1),
        ("0001-01-01T00:00:00+23:59", 0),
        ("1969-12-31T23:59:59.000Z", 0),
        # Forms that only some versions of Python take as dates.
        ("20260102T030405Z", 0),
        ("2026-01-02", 0),
        ("2026-01-02T24:00:00Z", 0),
        ("2026-W01-5T03:04:05Z", 0),
        ("2026-01-02 03:04:05Z", 0),
        ("2026-13-02T03:04:05Z", 0),
        ("2026-01-02T03:04:05+24:00", 0),
        ("٢٠٢٦-01-02T03:04:05Z", 0),
        ("2026-01-02T03:04:05Z\n", 0),
        ("yesterday", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_creation_time_is_the_creation_date_in_seconds(date, seconds):
    assert amistore.Image(image_id=AMI, creation_date=date).creation_time == seconds


def image_of(*snapshot_ids: str | None) -> amistore.Image:
    mappings = [
        amistore.BlockDeviceMapping(
            device_name=f"/dev/sd{number}", ebs=amistore.EbsBlockDevice(snapshot_id=snapshot_id, iops=number)
        )
        for number, snapshot_id in enumerate(snapshot_ids)
    ]
    named = sorted({snapshot_id for snapshot_id in snapshot_ids if snapshot_id})
    return amistore.Image(
        image_id=AMI,
        name="web",
        block_device_mappings=(*mappings, amistore.BlockDeviceMapping(device_name="x", virtual_name="y")),
        snapshots=[amistore.Snapshot(snapshot_id=each, description=each) for each in named],
    )


A, B, C, D = (f"snap-{letter * 17}" for letter in "abcd")


def test_snapshot_ids_are_distinct_and_ascending():
    assert image_of(B, None, A, B).snapshot_ids == (A, B)


def test_with_snapshots_puts_new_ids_for_old_ones_everywhere():
    image = image_of(B, A, B).with_snapshots({A: C, B: D})
    assert image == attrs.evolve(
        image_of(D, C, D),
        snapshots=(
            amistore.Snapshot(snapshot_id=C, description=A),
            amistore.Snapshot(snapshot_id=D, description=B),
        ),
    )


def test_with_snapshots_may_swap_ids():
    image = image_of(A, B).with_snapshots({A: B, B: A})
    assert [mapping.ebs.snapshot_id for mapping in image.block_device_mappings[:2]] == [B, A]


def test_with_snapshots_leaves_out_mappings_of_other_snapshots_only():
    image = image_of(A, None, B).with_snapshots({B: C})
    assert [mapping.device_name for mapping in image.block_device_mappings] == ["/dev/sd1", "/dev/sd2", "x"]
    assert [snapshot.snapshot_id for snapshot in image.snapshots] == [C]


def test_an_undescribed_snapshot_is_known_by_its_id():
    assert image_of(A).snapshot(B) == amistore.Snapshot(snapshot_id=B)
    assert image_of(A).snapshot(A).description == A


@pytest.mark.parametrize("volume_size", [1, 5, 65_536, None])
def test_a_mapping_may_have_another_size_than_its_snapshot(volume_size):
    ebs = amistore.EbsBlockDevice(snapshot_id=A, volume_size=volume_size)
    image = amistore.Image(
        image_id=AMI,
        block_device_mappings=(amistore.BlockDeviceMapping(device_name="/dev/sda", ebs=ebs),),
        snapshots=(amistore.Snapshot(snapshot_id=A, volume_size=4),),
    )
    assert image.snapshot(A).volume_size == 4
    assert image.block_device_mappings[0].ebs.volume_size == volume_size


def mapped(root: str | None, *devices: str) -> amistore.Image:
    ebs = [amistore.EbsBlockDevice(snapshot_id=f"snap-{number:017x}") for number in range(len(devices))]
    return amistore.Image(
        image_id="ami-0123456789abcdef0",
        root_device_name=root,
        block_device_mappings=[
            *(
                amistore.BlockDeviceMapping(device_name=name, ebs=each)
                for name, each in zip(devices, ebs, strict=True)
            ),
            amistore.BlockDeviceMapping(device_name="/dev/sdz", virtual_name="ephemeral0"),
        ],
    )


@pytest.mark.parametrize(
    ("root", "devices", "found"),
    [
        ("/dev/sda1", ["/dev/sda", "/dev/sda1", "/dev/sdb"], "/dev/sda1"),
        ("/dev/sda1", ["/dev/sda", "/dev/sdb"], "/dev/sda"),
        ("/dev/sda", ["/dev/sda1", "/dev/sdb"], "/dev/sda1"),
        ("/dev/xvda", ["xvda", "xvdb"], "xvda"),
        ("sda1", ["/dev/sda"], "/dev/sda"),
        ("/dev/sdz", ["/dev/sda"], "/dev/sdz"),
    ],
)
def test_the_root_device_is_the_mapping_of_that_name_or_of_that_disk(
    root: str, devices: list[str], found: str
) -> None:
    mapping = mapped(root, *devices).root_mapping
    assert mapping is not None
    assert mapping.device_name == found


@pytest.mark.parametrize(
    ("root", "devices"),
    [
        (None, ["/dev/sda"]),
        ("/dev/sda1", ["/dev/xvda"]),  # EC2 attaches these as two volumes
        ("/dev/sda1", ["/dev/sda2"]),  # two partitions of a paravirtual image are two volumes
        ("/dev/sda1", ["/dev/sda", "sda"]),
        ("/dev/sdz1", ["/dev/sda"]),  # that is an ephemeral disk
    ],
)
def test_a_root_device_that_is_not_known_is_not_guessed(root: str | None, devices: list[str]) -> None:
    assert mapped(root, *devices).root_mapping is None
