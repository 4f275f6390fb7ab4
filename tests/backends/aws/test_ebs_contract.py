"""The EBS direct APIs pass the suite that every block store passes, on the strict fake."""

import boto3
import pytest

from amistore import AWSBackend
from amistore.testing import BlockSourceContract, BlockStoreContract, SnapshotCase, block
from amistore.testing.aws import FakeAWS

pytestmark = pytest.mark.usefixtures("way")


def backend(aws, **options):
    session = boto3.Session(
        aws_access_key_id=aws.credential.access_key_id,
        aws_secret_access_key=aws.credential.secret_access_key,
        aws_session_token=aws.credential.session_token,
        region_name=aws.region,
    )
    urls = dict.fromkeys(("ec2", "ebs"), aws.endpoint_url)
    return AWSBackend(session, endpoint_urls=urls, **options)


@pytest.fixture
def aws():
    with FakeAWS() as fake:
        yield fake


class TestAWSBlockStore(BlockStoreContract):
    @pytest.fixture
    def store(self, aws):
        return backend(aws).ebs


class TestAWSBlockSource(BlockSourceContract):
    @pytest.fixture(params=[False, True], ids=["full pages", "short and empty pages"])
    def source(self, request, aws):
        aws.behaviour.short_pages = aws.behaviour.empty_pages = request.param
        blocks = {0: block(1), 1: block(0), 7: block(2), 2047: block(3)}
        snapshot_id = aws.add_snapshot(volume_size=1, blocks=blocks)
        return SnapshotCase(source=backend(aws).ebs, snapshot_id=snapshot_id, volume_size=1, blocks=blocks)
