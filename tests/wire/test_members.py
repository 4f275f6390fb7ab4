"""Requests and answers against botocore's service model."""

from __future__ import annotations

import datetime
from typing import Any

import botocore
import botocore.exceptions
import botocore.validate
import pytest
from ec2.checked import model, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.models import check_value

from amistore import Image, MemoryBackend, Snapshot, TaskEngine
from amistore.ec2 import EC2Client
from amistore.model.fields import to_wire
from amistore.testing import strategies
from amistore.wire.members import OPERATIONS, answered, faults

TYPES = {"string": str, "integer": int, "boolean": bool, "timestamp": datetime.datetime}


def compare(ours: Any, shape: Any, path: str) -> None:
    """Each member of ours is one of botocore's, of the same type."""
    if isinstance(ours, dict):
        for name, kind in ours.items():
            compare(kind, shape.members[name], f"{path}.{name}")
    elif isinstance(ours, list):
        compare(ours[0], shape.member, path)
    else:
        assert TYPES[shape.type_name] is ours, path


OF_THE_ENGINE = sorted(name for name in OPERATIONS if hasattr(EC2Client, botocore.xform_name(name)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_members_of_a_request_are_botocores_and_in_its_order(name: str) -> None:
    operation, shape = OPERATIONS[name], model(name).input_shape
    compare(operation.request, shape, name)
    # A newer botocore may know more, and is not to break a test of this table.
    assert [each for each in shape.members if each in operation.request] == list(operation.request)
    assert list(operation.required) == shape.required_members
    least = {each: item.metadata["min"] for each, item in shape.members.items() if item.metadata.get("min")}
    assert least == operation.least


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_members_of_an_answer_are_botocores(name: str) -> None:
    shape = model(name).output_shape
    if shape is None:
        assert OPERATIONS[name].answer == {}
    else:
        compare(OPERATIONS[name].answer, shape, name)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type, and others."""
    odd = st.sampled_from(
        [None, 0, 7, -1, "", "x", "ami-00000000", True, 1.5, [], {}, ["x"], {"Odd": 1}, b"x"]
    )
    if isinstance(kind, dict):
        known = {name: values(each) for name, each in kind.items()}
        return st.one_of(odd, st.fixed_dictionaries({}, optional={**known, "Odd": odd}))
    if isinstance(kind, list):
        return st.one_of(odd, st.lists(values(kind[0]), max_size=2))
    return odd


@given(st.sampled_from(OF_THE_ENGINE).flatmap(lambda name: st.tuples(st.just(name), requests(name))))
@settings(max_examples=200)
def test_what_is_wrong_with_a_request_is_told_in_botocores_words(case: tuple[str, dict[str, Any]]) -> None:
    name, request = case
    expected = botocore.validate.ParamValidator().validate(request, model(name).input_shape)
    assert "\n".join(faults(OPERATIONS[name], request)) == expected.generate_report()


def requests(name: str) -> st.SearchStrategy[dict[str, Any]]:
    known = {each: values(kind) for each, kind in OPERATIONS[name].request.items()}
    return st.fixed_dictionaries({}, optional={**known, "Odd": st.none()})


def test_a_request_with_faults_is_refused_with_botocores_exception() -> None:
    refused = pytest.raises(botocore.exceptions.ParamValidationError)
    with TaskEngine(MemoryBackend()) as engine, refused as caught:
        EC2Client(engine).create_restore_image_task(Bucket="archive", Name="ab", DryRun=1)
    assert caught.value.kwargs["report"].splitlines() == [
        'Missing required parameter in input: "ObjectKey"',
        "Invalid length for parameter Name, value: 2, valid min length: 3",
        "Invalid type for parameter DryRun, value: 1, type: <class 'int'>, valid types: <class 'bool'>",
    ]


ENUMS = {
    *("Hypervisor", "RootDeviceType", "VirtualizationType", "BootMode", "TpmSupport", "ImdsSupport"),
    *("Architecture", "ImageType", "Platform", "State", "VolumeType", "StorageTier", "ProductCodeType"),
}


def without_enums(value: Any) -> Any:
    """An archive may hold any text where EC2 has a list of words; botocore gives what it is sent, too."""
    if isinstance(value, dict):
        return {name: without_enums(each) for name, each in value.items() if name not in ENUMS}
    return [without_enums(each) for each in value] if isinstance(value, list) else value


@given(strategies.images())
@settings(max_examples=20)  # an image takes a tenth of a second to make
def test_whatever_an_archive_says_an_answer_has_only_members_and_types_of_botocores(image: Image) -> None:
    images = [{**to_wire(image), "State": image.state}]
    found = answered(OPERATIONS["DescribeImages"], {"Images": images})
    check_value("Images", model("DescribeImages").output_shape, without_enums(found))
    (told,) = found["Images"]
    assert told["ImageId"] == image.image_id
    assert len(told.get("BlockDeviceMappings", ())) == len(image.block_device_mappings)
    snapshots = [{**to_wire(each), "State": each.state} for each in image.snapshots]
    found = answered(OPERATIONS["DescribeSnapshots"], {"Snapshots": snapshots})
    check_value("Snapshots", model("DescribeSnapshots").output_shape, plain(without_enums(found)))
    assert len(found["Snapshots"]) == len(image.snapshots)


def test_what_is_of_another_type_than_botocores_is_left_out() -> None:
    images = [{"ImageId": "ami-1", "StateReason": {"Code": 5, "Message": "why"}, "Tags": 7}]
    found = answered(OPERATIONS["DescribeImages"], {"Images": [*images, {"StateReason": "why"}]})
    assert found == {"Images": [{"ImageId": "ami-1", "StateReason": {"Message": "why"}}, {}]}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05.000Z", datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)),
        ("2026-01-02T03:04:05", None),
        ("yesterday", None),
    ],
)
def test_a_snapshots_start_is_a_time_with_its_zone_or_left_out(
    text: str, moment: datetime.datetime | None
) -> None:
    snapshot = Snapshot(snapshot_id="snap-00000000", start_time=text)
    found = answered(OPERATIONS["DescribeSnapshots"], {"Snapshots": [to_wire(snapshot)]})
    assert found["Snapshots"][0].get("StartTime") == moment
