"""Whole accounts to move AMIs between: EBS and EC2 from the strict fake, S3 from OpenStack Swift."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import boto3
from backends.aws.swift import ACCESS_KEY, SECRET_KEY

from amistore import AWSBackend, Backend, Image, RetryPolicy
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.retrying import RetryingBackend
from amistore.testing.aws import FakeAWS

# Pauses short, since nobody is to be spared; as many attempts as ever.
QUICK = RetryPolicy(base_delay=0.001, max_delay=0.01)


def account(aws: FakeAWS, s3_url: str, *, retries: RetryPolicy = QUICK, **options: Any) -> Backend:
    """AMIs of the fake, and objects of a server that has keys of its own."""
    given = aws.client_options(options.pop("credential", None))
    url, region = given.pop("endpoint_url"), given["region_name"]
    backend = AWSBackend(
        boto3.Session(**given),
        region_name=region,
        endpoint_urls={"ec2": url, "ebs": url},
        retries=retries,
        **options,
    )
    keys = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
    store = AWSObjectStore(Connection(keys, None, {"s3": s3_url}))
    backend.s3 = RetryingBackend(Backend(ebs=backend.ebs, s3=store, ec2=backend.ec2), retries).s3
    return backend


def new_bucket(s3_url: str) -> str:
    """A bucket of its own for each test."""
    keys = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
    bucket = f"b{secrets.token_hex(8)}"
    Connection(keys, None, {"s3": s3_url}).client("s3").create_bucket(Bucket=bucket)
    return bucket


def disks(aws: FakeAWS, image: Image) -> dict[str, dict[int, str]]:
    """SHA-256 of each block of each device of an image."""
    return {
        mapping.device_name: {
            index: hashlib.sha256(content).hexdigest()
            for index, content in aws.read_snapshot(mapping.ebs.snapshot_id).items()
        }
        for mapping in image.block_device_mappings
        if mapping.ebs is not None and mapping.ebs.snapshot_id is not None
    }
