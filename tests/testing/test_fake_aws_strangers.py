"""Requests that no SDK sends: the services' errors, never a traceback."""

from __future__ import annotations

import json
import socket
import urllib.parse
import xml.etree.ElementTree as ElementTree
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from testing.models import sent

from amistore.testing.aws import FakeAWS

FIXTURE = hypothesis.HealthCheck.function_scoped_fixture


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("POST", "/snapshots", b"{", 400, "SerializationException"),
        ("POST", "/snapshots", b"[]", 400, "SerializationException"),
        ("POST", "/snapshots", b'{"VolumeSize": "1"}', 400, "SerializationException"),
        ("POST", "/snapshots", b'{"VolumeSize": true}', 400, "SerializationException"),
        ("POST", "/snapshots", b'{"VolumeSize": 1, "Colour": 2}', 400, "ValidationException"),
        ("POST", "/snapshots", b'{"VolumeSize": 0}', 400, "ValidationException"),
        ("POST", "/snapshots", b'{"VolumeSize": 1, "Tags": [1]}', 400, "SerializationException"),
        ("GET", "/snapshots/SNAP/blocks?maxResults=99", b"", 400, "ValidationException"),
        ("GET", "/snapshots/SNAP/blocks?maxResults=x", b"", 400, "ValidationException"),
        ("GET", "/snapshots/SNAP/blocks?colour=red", b"", 400, "ValidationException"),
        ("GET", "/snapshots/SNAP/blocks?pageToken=%C3%A9", b"", 400, "ValidationException"),
        ("GET", "/snapshots/SNAP/blocks/-1?blockToken=AAAA", b"", 400, "ValidationException"),
        ("GET", "/snapshots/SNAP/blocks/0", b"", 400, "ValidationException"),
        ("PUT", "/snapshots/SNAP/blocks/0", b"", 400, "ValidationException"),
        ("POST", "/snapshots/completion/SNAP", b"", 400, "ValidationException"),
        ("DELETE", "/snapshots/SNAP", b"", 404, "UnknownOperationException"),
    ],
)
def test_what_no_sdk_sends_is_refused(
    aws: FakeAWS, method: str, target: str, body: bytes, status: int, code: str
) -> None:
    """EBS direct APIs reference: the operations' parameters; "Common errors"."""
    snapshot_id = aws.add_snapshot(volume_size=1)
    assert sent(aws, method, target.replace("SNAP", snapshot_id), body)[:2] == (status, code)


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ("Action=DescribeColours&Version=2016-11-15", "InvalidAction"),
        ("Version=2016-11-15", "MissingAction"),
        ("Action=DescribeImages&Version=2001-01-01", "NoSuchVersion"),
        ("Action=DescribeImages&Version=2016-11-15&Colour=red", "UnknownParameter"),
        ("Action=DescribeImages&Version=2016-11-15&ImageId=ami-1", "UnknownParameter"),
        ("Action=DescribeImages&Version=2016-11-15&ImageId.x=ami-1", "InvalidParameterValue"),
        ("Action=DescribeImages&Version=2016-11-15&ImageId.1.Name=x", "UnknownParameter"),
        ("Action=DescribeImages&Version=2016-11-15&Owner=x&Owner.1=y", "MalformedQueryString"),
        ("Action=DescribeImages&Version=2016-11-15&MaxResults=many", "InvalidParameterValue"),
        ("Action=DescribeImages&Version=2016-11-15&DryRun=maybe", "InvalidParameterValue"),
        ("Action=DescribeImages&Version=2016-11-15&Filter.1.Name=name", "InvalidParameterValue"),
        ("Action=DescribeImages&Version=2016-11-15&Owner.1=%01", "InvalidParameterValue"),
        ("Action=DeleteSnapshot&Version=2016-11-15", "MissingParameter"),
        ("Action=EnableImageDeprecation&Version=2016-11-15&DeprecateAt=soon", "InvalidParameterValue"),
        ("%ff%fe", "MissingAction"),
    ],
)
def test_a_form_that_no_sdk_sends_is_refused(aws: FakeAWS, form: str, code: str) -> None:
    """EC2 API reference: "Error codes", "Common client errors"."""
    status, _, body = sent(aws, "POST", "/", form.encode(), service="ec2")
    assert status == 400
    assert f"<Code>{code}</Code>".encode() in body


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"PUT /snapshots/x/blocks/0 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT /snapshots/x/blocks/0 HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"PUT /snapshots/x/blocks/0 HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(aws: FakeAWS, request_bytes: bytes) -> None:
    place = urllib.parse.urlsplit(aws.endpoint_url)
    with socket.create_connection((place.hostname, place.port), 30) as connection:
        connection.sendall(request_bytes)
        with connection.makefile("rb") as answer:
            assert answer.readline().split()[1] == b"400"


def test_a_body_is_asked_for_where_the_client_waits_for_that(aws: FakeAWS) -> None:
    """RFC 9110, 10.1.1: Expect."""
    place = urllib.parse.urlsplit(aws.endpoint_url)
    with socket.create_connection((place.hostname, place.port), 30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        with connection.makefile("rb") as answer:
            assert answer.readline().split()[1] == b"100"
            connection.sendall(b"a=")
            assert answer.readline() == b"\r\n"
            assert answer.readline().split()[1] == b"403"


OPERATIONS = [
    "DescribeImages",
    "DescribeImageAttribute",
    "RegisterImage",
    "DeregisterImage",
    "EnableImageDeprecation",
    "DescribeSnapshots",
    "DescribeSnapshotAttribute",
    "DeleteSnapshot",
    "CreateTags",
    "DeleteTags",
    "DescribeTags",
    "DescribeRegions",
]
NAMES = [
    *("ImageId", "ImageId.1", "SnapshotId", "SnapshotId.1", "ResourceId.1", "Owner.1", "Name", "Description"),
    *(
        "Architecture",
        "RootDeviceName",
        "VirtualizationType",
        "BootMode",
        "TpmSupport",
        "UefiData",
        "KernelId",
    ),
    *("EnaSupport", "Attribute", "BlockDeviceMapping.1.DeviceName", "BlockDeviceMapping.1.Ebs.SnapshotId"),
    *(
        "BlockDeviceMapping.1.Ebs.VolumeSize",
        "BlockDeviceMapping.1.Ebs.VolumeType",
        "MaxResults",
        "NextToken",
    ),
    *("BlockDeviceMapping.1.Ebs.Iops", "BlockDeviceMapping.1.VirtualName", "BlockDeviceMapping.2.NoDevice"),
    *(
        "TagSpecification.1.ResourceType",
        "TagSpecification.1.Tag.1.Key",
        "Tag.1.Key",
        "Tag.1.Value",
        "Tag.2.Key",
    ),
    *(
        "Filter.1.Name",
        "Filter.1.Value.1",
        "Filter.1.Value",
        "Filter",
        "DryRun",
        "DeprecateAt",
        "RegionName.1",
    ),
    *("ExecutableBy.1", "RestorableBy.1", "DeleteAssociatedSnapshots"),
]
VALUES = [
    *(
        "",
        "x",
        "0",
        "5",
        "-1",
        "1e9",
        "true",
        "self",
        "*",
        "\\",
        "[",
        "\0",
        "é",
        "name",
        "tag:a",
        "status",
        "hvm",
    ),
    *("/dev/xvda", "gp3", "uefi", "v2.0", "image", "2999-01-01", "uefiData", "ephemeral0", "AAAA"),
]


@hypothesis.settings(max_examples=300, suppress_health_check=[FIXTURE], deadline=None)
@hypothesis.given(data=strategies.data())
def test_whatever_a_form_holds_is_answered(aws: FakeAWS, data: strategies.DataObject) -> None:
    snapshot_id = next(iter(aws.snapshots), None) or aws.add_snapshot(volume_size=1)
    image_id = next(iter(aws.images), None) or aws.add_image(name="web", mappings=[])
    values = strategies.sampled_from([*VALUES, snapshot_id, image_id])
    form = data.draw(strategies.dictionaries(strategies.sampled_from(NAMES), values, max_size=8))
    form |= {"Action": data.draw(strategies.sampled_from(OPERATIONS)), "Version": "2016-11-15"}
    status, _, body = sent(aws, "POST", "/", urllib.parse.urlencode(form).encode(), service="ec2")
    assert status in (200, 400, 403, 412)
    ElementTree.fromstring(body)


MEMBERS = [
    *("VolumeSize", "ParentSnapshotId", "Tags", "Description"),
    *("ClientToken", "Encrypted", "KmsKeyArn", "Timeout"),
]
SCALARS = (
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text()
)
KEYS = strategies.sampled_from(["Key", "Value"])
JSON = strategies.recursive(
    SCALARS,
    lambda inner: strategies.lists(inner) | strategies.dictionaries(KEYS, inner),
    max_leaves=5,
)
REQUESTS = strategies.dictionaries(strategies.sampled_from(MEMBERS), JSON)


@hypothesis.settings(max_examples=100, suppress_health_check=[FIXTURE], deadline=None)
@hypothesis.given(members=REQUESTS, size=strategies.booleans())
def test_whatever_a_start_holds_is_answered(aws: FakeAWS, members: dict[str, Any], size: bool) -> None:
    if size:
        members["VolumeSize"] = 1
    status, _, body = sent(aws, "POST", "/snapshots", json.dumps(members).encode())
    assert status in (201, 400, 404, 402, 409)
    json.loads(body)
