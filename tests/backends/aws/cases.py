"""An account on the strict fake, and what a test needs of it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import attrs
import boto3
from backends.aws.accounts import QUICK

import amistore
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.aws.ec2 import AWSImageRegistry
from amistore.testing import block, store_snapshot
from amistore.testing.aws import Credential, FakeAWS

START = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)


def connect(aws: FakeAWS, credential: Credential | None = None) -> Connection:
    """A connection of amistore's to the fake."""
    options = aws.client_options(credential)
    url, region = options.pop("endpoint_url"), options["region_name"]
    return Connection(boto3.Session(**options), region, {"ec2": url, "ebs": url})


@attrs.frozen
class Account:
    """The fake, and amistore's view of it. Waiting lets the fake's time go on, and takes none."""

    aws: FakeAWS
    store: AWSBlockStore
    registry: AWSImageRegistry

    @classmethod
    def of(
        cls,
        aws: FakeAWS,
        credential: Credential | None = None,
        *,
        image_tags: Sequence[amistore.Tag] = (),
    ) -> Account:
        connection = connect(aws, credential)
        registry = AWSImageRegistry(
            connection, image_tags=tuple(image_tags), sleep=aws.clock.advance, clock=aws.clock.now
        )
        return cls(aws, AWSBlockStore(connection), registry)

    def image(self, **members: Any) -> amistore.Image:
        """An image of one restored snapshot, not registered."""
        ebs = amistore.EbsBlockDevice(snapshot_id=store_snapshot(self.store, 1, {0: block(1)}))
        device = amistore.BlockDeviceMapping(device_name="/dev/xvda", ebs=ebs)
        given = {
            "image_id": "ami-0123456789abcdef0",
            "name": "web",
            "architecture": "x86_64",
            "root_device_name": "/dev/xvda",
            "block_device_mappings": (device,),
        }
        return amistore.Image(**{**given, **members})


def add_web(aws: FakeAWS, blocks: dict[int, bytes]) -> str:
    """An AMI of one disk."""
    snapshot_id = aws.add_snapshot(volume_size=1, blocks=blocks)
    return aws.add_image(
        name="web", mappings=[{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id}}]
    )


def with_memory(aws: FakeAWS, session: boto3.Session | None = None) -> amistore.Backend:
    """AMIs of the fake, and objects in memory, in the bucket ``archive``."""
    options = aws.client_options()
    url = options.pop("endpoint_url")
    real = amistore.AWSBackend(
        session or boto3.Session(**options),
        region_name=aws.region,
        endpoint_urls={"ec2": url, "ebs": url},
        retries=QUICK,
    )
    store = amistore.MemoryBackend().s3
    store.create_bucket("archive")
    return amistore.Backend(ebs=real.ebs, s3=store, ec2=real.ec2)
