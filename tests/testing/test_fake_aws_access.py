"""Signatures, credentials, permissions and limits; and requests that no SDK sends."""

from __future__ import annotations

import contextlib
from typing import Any

import attrs
import boto3
import pytest
from testing.models import block, client, refusal, sent, sha256

from amistore.testing.aws import Credential, FakeAWS
from amistore.units import BLOCK_SIZE

SNAPSHOT = "snap-0123456789abcdef0"


def calls(aws: FakeAWS, credential: Credential | None = None) -> dict[str, tuple[int, str]]:
    """What each service says to a credential."""
    found = {}
    for service, operation, arguments in (
        ("ebs", "list_snapshot_blocks", {"SnapshotId": SNAPSHOT}),
        ("ec2", "describe_images", {}),
        ("sts", "get_caller_identity", {}),
    ):
        made = client(aws, service, credential)
        found[service] = refusal(getattr(made, operation), **arguments)[:2]
        made.close()
    return found


def test_a_wrong_secret_is_refused(aws: FakeAWS) -> None:
    """Each API reference's "Common errors"."""
    assert calls(aws, attrs.evolve(aws.credential, secret_access_key="wrong")) == {
        "ebs": (403, "InvalidSignatureException"),
        "ec2": (401, "AuthFailure"),
        "sts": (403, "SignatureDoesNotMatch"),
    }


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [("list_buckets", {}), ("put_object", {"Bucket": "bucket", "Key": "snapshots", "Body": b"x"})],
)
def test_who_asks_for_s3_is_told_that_there_is_none(
    aws: FakeAWS, operation: str, arguments: dict[str, Any]
) -> None:
    with (
        contextlib.closing(boto3.client("s3", **aws.client_options())) as s3,
        pytest.raises(s3.exceptions.ClientError, match=r"NotImplemented.*: FakeAWS is no S3: "),
    ):
        getattr(s3, operation)(**arguments)


@pytest.mark.parametrize("changed", [{"access_key_id": "AKIAUNKNOWN"}, {"session_token": "not mine"}])
def test_an_unknown_key_or_token_is_refused(aws: FakeAWS, changed: dict[str, str]) -> None:
    """Each API reference's "Common errors"."""
    assert calls(aws, attrs.evolve(aws.credential, **changed)) == {  # type: ignore[arg-type]
        "ebs": (403, "UnrecognizedClientException"),
        "ec2": (401, "AuthFailure"),
        "sts": (403, "InvalidClientTokenId"),
    }


def test_the_credentials_of_another_fake_are_refused(aws: FakeAWS) -> None:
    """As those of another account are ("Common errors")."""
    with FakeAWS() as other:
        assert calls(aws, other.credential)["ebs"] == (403, "UnrecognizedClientException")


def test_a_credential_never_takes_the_place_of_another(aws: FakeAWS) -> None:
    first, second = aws.add_credential(user="first"), aws.add_credential(user="second")
    aws.remove_credential(first)
    third = aws.add_credential(user="third")
    arns = [client(aws, "sts", each).get_caller_identity()["Arn"] for each in (second, third)]
    assert [arn.rpartition("/")[2] for arn in arns] == ["second", "third"]


def test_a_session_expires_on_the_clock(aws: FakeAWS) -> None:
    """IAM user guide: "Temporary security credentials"; EC2: RequestExpired."""
    session = aws.add_credential(session_token="token", expires_in=3600)
    sts = client(aws, "sts", session)
    assert ":assumed-role/" in sts.get_caller_identity()["Arn"]
    aws.clock.advance(3600)
    assert calls(aws, session) == {
        "ebs": (403, "ExpiredTokenException"),
        "ec2": (400, "RequestExpired"),
        "sts": (403, "ExpiredToken"),
    }
    sts.close()


def test_a_signature_is_for_one_region(aws: FakeAWS, ebs: Any) -> None:
    """IAM user guide: "Create a signed AWS API request", credential scope."""
    aws.region = "eu-west-1"
    elsewhere = client(aws, "ebs")
    assert refusal(elsewhere.list_snapshot_blocks, SnapshotId=SNAPSHOT)[1] == "InvalidSignatureException"
    elsewhere.close()


def test_a_removed_credential_is_unknown(aws: FakeAWS) -> None:
    """EBS direct APIs reference: "Common errors"."""
    credential = aws.add_credential()
    aws.remove_credential(credential)
    assert calls(aws, credential)["ebs"] == (403, "UnrecognizedClientException")


def test_a_denied_action_names_who_and_what(aws: FakeAWS) -> None:
    """IAM user guide: "Troubleshoot access denied error messages"."""
    credential = aws.add_credential(denied=["ebs:ListSnapshotBlocks", "ec2:DescribeImages"], user="bob")
    for service, operation, arguments, code, reason in (
        (
            "ebs",
            "list_snapshot_blocks",
            {"SnapshotId": SNAPSHOT},
            "AccessDeniedException",
            "UNAUTHORIZED_ACCOUNT",
        ),
        ("ec2", "describe_images", {}, "UnauthorizedOperation", None),
    ):
        made = client(aws, service, credential)
        call = getattr(made, operation)
        assert refusal(call, **arguments) == (403, code, reason)
        with pytest.raises(made.exceptions.ClientError, match=r"user/bob is not authorized to perform: e"):
            call(**arguments)
        made.close()


def test_a_rate_is_that_of_the_clock(aws: FakeAWS, ebs: Any, ec2: Any) -> None:
    """EBS direct APIs reference: RequestThrottledException; EC2: "Request throttling"."""
    snapshot_id = aws.add_snapshot(volume_size=1)
    limit = aws.throttle("ListSnapshotBlocks", per_second=2, reason="RESOURCE_LEVEL_THROTTLE")
    for _ in range(2):
        ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    found = refusal(ebs.list_snapshot_blocks, SnapshotId=snapshot_id)
    assert found == (400, "RequestThrottledException", "RESOURCE_LEVEL_THROTTLE")
    aws.clock.advance(0.5)
    ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    assert limit.refused == 1
    aws.throttle("DescribeImages", every=2)
    ec2.describe_images()
    assert refusal(ec2.describe_images)[:2] == (503, "RequestLimitExceeded")
    ec2.describe_images()


def test_data_is_not_part_of_the_signature_but_its_checksum_is(aws: FakeAWS, ebs: Any) -> None:
    """EBS direct APIs reference: PutSnapshotBlock, BlockData."""
    target = f"/snapshots/{ebs.start_snapshot(VolumeSize=1)['SnapshotId']}/blocks/0"
    headers = {
        "x_amz_Data_Length": str(BLOCK_SIZE),
        "x_amz_Checksum": sha256(block(1)),
        "x_amz_Checksum_Algorithm": "SHA256",
        "x_amz_content_sha256": "UNSIGNED-PAYLOAD",
    }
    assert sent(aws, "PUT", target, block(1), **headers)[0] == 201
    assert sent(aws, "PUT", target, block(2), **headers)[1] == "ValidationException"
    forged = {"x-amz-Checksum": sha256(block(2))}
    assert sent(aws, "PUT", target, block(2), changed=forged, **headers)[1] == "InvalidSignatureException"
    del headers["x_amz_Checksum"]
    found = sent(aws, "PUT", target, block(1), changed={"x-amz-Checksum": sha256(block(1))}, **headers)
    assert found[1] == "InvalidSignatureException"


def test_other_bodies_and_queries_are_part_of_the_signature(aws: FakeAWS) -> None:
    """IAM user guide: "Create a signed AWS API request"."""
    unsigned = {"x_amz_content_sha256": "UNSIGNED-PAYLOAD"}
    found = sent(aws, "POST", "/snapshots", b'{"VolumeSize": 1}', **unsigned)
    assert found[:2] == (403, "InvalidSignatureException")
    assert not aws.snapshots


def test_a_request_without_signature_or_with_half_of_one_is_refused(aws: FakeAWS) -> None:
    """EBS direct APIs reference: "Common errors"."""
    assert sent(aws, "GET", "/snapshots/x/blocks", sign=False)[1] == "MissingAuthenticationTokenException"
    found = sent(
        aws, "GET", "/snapshots/x/blocks", changed={"Authorization": "AWS4-HMAC-SHA256 Credential=x"}
    )
    assert found[1] == "IncompleteSignatureException"


def test_a_signature_of_long_ago_is_refused(aws: FakeAWS) -> None:
    """IAM user guide: requests are valid for a limited time."""
    aws.behaviour.maximum_clock_skew = -1
    assert sent(aws, "GET", "/snapshots/x/blocks")[1] == "InvalidSignatureException"
