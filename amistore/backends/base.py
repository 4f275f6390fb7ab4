"""`Backend`: the three services together. Their interfaces: `blocks.py`, `objects.py`, `images.py`."""

from __future__ import annotations

from typing import Generic

from typing_extensions import TypeVar

from amistore.backends import checks
from amistore.backends.blocks import BlockStore
from amistore.backends.images import ImageRegistry
from amistore.backends.interface import Interface
from amistore.backends.objects import ObjectStore
from amistore.backends.quotas import Quotas
from amistore.model import Image

__all__ = ["Backend", "check_backend"]

EBS = TypeVar("EBS", bound=BlockStore, default=BlockStore, covariant=True)
S3 = TypeVar("S3", bound=ObjectStore, default=ObjectStore, covariant=True)
EC2 = TypeVar("EC2", bound=ImageRegistry, default=ImageRegistry, covariant=True)


class Backend(Interface, Generic[EBS, S3, EC2]):
    """The three services together; each can be replaced.

    Attributes:
        ebs: the store of snapshots.
        s3: the store of objects.
        ec2: the registry of images.
        journal: the path of the task engine's journal; None for the user's state folder, ``":memory:"`` where
            nothing outlives the process.
        quotas: the quotas of a task engine that was given none.

    Raises:
        InvalidRequestError: a service does not implement its interface.
    """

    journal: str | None = None
    quotas: Quotas = Quotas()

    ebs: EBS
    s3: S3
    ec2: EC2

    def __init__(self, *, ebs: EBS, s3: S3, ec2: EC2) -> None:
        checks.check_kind(ebs, BlockStore, "ebs")
        checks.check_kind(s3, ObjectStore, "s3")
        checks.check_kind(ec2, ImageRegistry, "ec2")
        self.ebs = ebs
        self.s3 = s3
        self.ec2 = ec2

    def __repr__(self) -> str:
        return f"{type(self).__name__}(ebs={self.ebs!r}, s3={self.s3!r}, ec2={self.ec2!r})"

    def preflight(self, image: Image) -> None:
        """Check, before anything is read or written, whether an image can be stored from here.

        Override it where more can be checked.

        Raises:
            InvalidRequestError: the image is not EBS-backed, or paravirtual; code ``UnsupportedOperation``.
        """
        checks.check_storable(image)

    def sweep(self) -> tuple[str, ...]:
        """Remove nameless leftovers of crashes, and return their names.

        Override it where crashes can leave something.
        """
        return ()


def check_backend(given: object, role: str) -> None:
    """Refuse anything but a backend, such as one of its services."""
    checks.check_kind(given, Backend, role, "give the whole, such as a DirectoryBackend, not its .ebs or .s3")
