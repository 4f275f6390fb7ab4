"""A store of another Region than the AMIs' is refused with the way to combine both, which works."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import boto3
import pytest
from backends.aws.accounts import QUICK, disks
from backends.aws.cases import add_web
from backends.aws.proxy import Answer, error_answer, fault_proxy

import amistore
from amistore import AWSBackend, InvalidRequestError
from amistore.backends.aws.connection import Connection
from amistore.testing import block
from amistore.testing.aws import FakeAWS

COMBINED = r"amistore\.Backend\(ebs=cloud\.ebs, s3=store\.s3, ec2=cloud\.ec2\) into a TaskEngine"


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS(region="us-east-2") as fake:
        yield fake


@pytest.fixture
def bucket(moto: Connection) -> str:
    """In Ireland."""
    name = f"b{secrets.token_hex(8)}"
    ireland = boto3.client("s3", region_name="eu-west-1", endpoint_url=moto.endpoint_urls["s3"], **keys(moto))
    ireland.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return name


def keys(moto: Connection) -> dict[str, str]:
    found = moto.session.get_credentials()
    return {"aws_access_key_id": found.access_key, "aws_secret_access_key": found.secret_key}


def cloud_of(aws: FakeAWS, moto: Connection) -> AWSBackend:
    own = aws.credential
    session = boto3.Session(own.access_key_id, own.secret_access_key, region_name=aws.region)
    urls = {"ec2": aws.endpoint_url, "ebs": aws.endpoint_url, **moto.endpoint_urls}
    return AWSBackend(session, endpoint_urls=urls, retries=QUICK)


def test_what_the_refusal_of_another_region_says_works_in_calls_and_in_tasks(
    aws: FakeAWS, moto: Connection, bucket: str
) -> None:
    image_id = add_web(aws, {3: block(1)})
    cloud = cloud_of(aws, moto)
    with pytest.raises(InvalidRequestError, match=f"region_name='eu-west-1'; .*{COMBINED}") as caught:
        amistore.store(image_id, cloud, cloud.s3.at(bucket, "web.bin"))
    assert caught.value.code == "InaccessibleStorageLocation"

    session = boto3.Session(**keys(moto))
    store = AWSBackend(session, region_name="eu-west-1", endpoint_urls=moto.endpoint_urls, retries=QUICK)
    stored = amistore.store(image_id, cloud, store.s3.at(bucket, "web.bin"))
    restored = amistore.restore(stored, cloud, name="again")
    wanted = disks(aws, cloud.ec2.describe_image(image_id))
    assert disks(aws, cloud.ec2.describe_image(restored.image_id)) == wanted

    combined = amistore.Backend(ebs=cloud.ebs, s3=store.s3, ec2=cloud.ec2)
    with amistore.TaskEngine(combined, journal=":memory:") as engine:
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=bucket))
        ended = engine.wait(
            engine.create_restore_image_task(bucket=bucket, object_key=task.object_key, name="third")
        )
    assert disks(aws, cloud.ec2.describe_image(str(ended.image_id))) == wanted


def test_a_store_that_wants_another_region_in_signatures_is_told_with_the_way(moto: Connection) -> None:
    with fault_proxy(None) as server:
        cloud = AWSBackend(moto.session, endpoint_urls={"s3": server.url}, retries=QUICK)
        told = "the region 'us-east-1' is wrong; expecting 'eu-central-1'"
        server.fail("list_parts", error_answer(400, "AuthorizationHeaderMalformed", told))
        with pytest.raises(InvalidRequestError, match=f"expecting 'eu-central-1'; give .*{COMBINED}"):
            cloud.s3.list_parts("bucket", "key", "upload")


def test_a_redirect_to_another_region_is_told_with_the_way(moto: Connection) -> None:
    with fault_proxy(None) as server:
        cloud = AWSBackend(moto.session, endpoint_urls={"s3": server.url}, retries=QUICK)
        server.fail("list_parts", Answer(status=301, headers={"x-amz-bucket-region": "eu-west-1"}))
        with pytest.raises(InvalidRequestError, match=f"give region_name='eu-west-1'; .*{COMBINED}"):
            cloud.s3.list_parts("bucket", "key", "upload")
