"""`Backend`: the three services together. Their interfaces: `blocks.py`, `objects.py`, `images.py`."""

from __future__ import annotations

from typing import Generic

from typing_extensions import TypeVar

from amistore.backends.blocks import BlockStore
from amistore.backends.images import ImageRegistry
from amistore.backends.objects import ObjectStore

__all__ = ["Backend"]

EBS = TypeVar("EBS", bound=BlockStore, default=BlockStore, covariant=True)
S3 = TypeVar("S3", bound=ObjectStore, default=ObjectStore, covariant=True)
EC2 = TypeVar("EC2", bound=ImageRegistry, default=ImageRegistry, covariant=True)


class Backend(Generic[EBS, S3, EC2]):
    """The three services together; replace any one of them.

    Attributes:
        ebs: snapshots.
        s3: objects.
        ec2: images.
    """

    ebs: EBS
    s3: S3
    ec2: EC2

    def __init__(self, *, ebs: EBS, s3: S3, ec2: EC2) -> None:
        self.ebs = ebs
        self.s3 = s3
        self.ec2 = ec2
