"""`AWSBackend`: EBS, S3 and EC2 of one Region, with retries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import RATE, AWSBlockStore
from amistore.backends.aws.ec2 import AWSImageRegistry
from amistore.backends.aws.preflight import preflight
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.aws.settings import ObjectSettings, SnapshotSettings
from amistore.backends.base import Backend
from amistore.backends.quotas import Quotas
from amistore.backends.retries import Retrier, RetryPolicy
from amistore.backends.retrying import RetryingBackend
from amistore.backends.stores import STORES
from amistore.backends.traits import StoreTraits
from amistore.errors import InvalidValueError
from amistore.model import Image, Tag

__all__ = ["AWSBackend"]


class AWSBackend(RetryingBackend):
    """AWS, in one Region, with one set of credentials.

    Args:
        session: the `boto3.Session` to use; None for boto3's default chain of credentials.
        region_name: the Region's name, such as ``"us-gov-east-1"``; None for the session's or environment's.
        endpoint_urls: the URL of each service (``ec2``, ``ebs``, ``s3``) that has another one than AWS's: a
            VPC endpoint, or a server that speaks S3. Plain http is for loopback only.
        profile_name: the profile to use, instead of a session: the backend can then be sent to other
            processes, which find the profile's credentials again.
        requester_pays: whether you pay for the requests to buckets whose owner wants that ("Requester
            Pays"), and for what they transfer; without it, such buckets refuse.
        objects: the settings for written objects: encryption, storage class, tags, the bucket's owner.
        snapshots: the settings for restored snapshots: encryption, KMS key, tags.
        image_tags: the tags to set on every restored image, over its own.
        retries: the limits of retries; None for what AWS advises.
        traits: where the store of objects differs from Amazon's S3, such as in the size of parts; None for
            what is known of the endpoint's host.
        block_rate: the most gets, and as many puts, a second of all workers of an executor together: the
            account's quota in the Region. One snapshot gets 1,000 of them at most, whatever the quota. None
            for any number. Without an executor it has no effect.

    Raises:
        InvalidRequestError: no Region is known, there is no such profile, or an endpoint is not https.
        InvalidValueError: an argument has the wrong type.

    `preflight` reads the first block of each snapshot, so that a missing permission for the EBS direct
    APIs, EC2 or the KMS key is found before anything starts.
    """

    def __init__(
        self,
        session: Any = None,
        *,
        region_name: str | None = None,
        endpoint_urls: Mapping[str, str] | None = None,
        profile_name: str | None = None,
        requester_pays: bool = False,
        objects: ObjectSettings | None = None,
        snapshots: SnapshotSettings | None = None,
        image_tags: Iterable[Tag] = (),
        retries: RetryPolicy | Retrier | None = None,
        traits: StoreTraits | None = None,
        block_rate: float | None = RATE,
    ) -> None:
        given = {"objects": objects, "snapshots": snapshots, "retries": retries, "traits": traits}
        for name, value in given.items():
            if value is not None and not isinstance(value, _KINDS[name]):
                raise _invalid(name, value)
        try:
            tags = tuple(image_tags)
        except TypeError:
            raise _invalid("image_tags", image_tags) from None
        for tag in tags:
            if not isinstance(tag, Tag):
                raise _invalid("image_tags", tag)
        self.connection = Connection(session, region_name, endpoint_urls, profile_name, requester_pays)
        services = _Services(
            ebs=AWSBlockStore(self.connection, snapshots or SnapshotSettings(), rate=block_rate),
            s3=AWSObjectStore(self.connection, objects, traits),
            ec2=AWSImageRegistry(self.connection, image_tags=tags),
        )
        super().__init__(services, retries)
        self._services = services

    def __repr__(self) -> str:
        return f"AWSBackend(region_name={self.connection.region_name!r})"

    def restore_object(
        self,
        bucket: str,
        key: str,
        *,
        days: int | None,
        tier: str = "Standard",
        version: str | None = None,
    ) -> None:
        """Restore an object from an archived storage class; it can be read hours later.

        Args:
            bucket: the bucket that holds the object.
            key: the object's key.
            days: the number of days that the object stays readable; None for Intelligent-Tiering, where it
                stays.
            tier: the retrieval tier: ``Expedited``, ``Standard`` or ``Bulk``.
            version: the id of one of the object's versions; None for the latest.

        Raises:
            InvalidRequestError: the object is not archived, and can be read as it is.
        """
        call = self._services.s3.restore_object
        self._retrier.call("s3", call, bucket, key, days=days, tier=tier, version=version)

    def probe(self, bucket: str) -> StoreTraits:
        """Find out what a store of your own does, by trying it: give the traits to the next backend.

        Some 10 MiB are sent. Objects and uploads are removed again, but their versions stay: give an empty
        bucket that keeps none. What cannot be removed is logged.

        Args:
            bucket: the bucket to try it in.

        Returns:
            The traits; `least_part`, `largest_part`, `largest_object` and `addressing` are not tried: they
            are this backend's.

        Raises:
            InvalidRequestError: the bucket has Object Lock, and might keep what is made.
            NotFoundError: no such bucket.
            AccessDeniedError: a permission to make or read objects, or for Object Lock's configuration, is
                missing.
        """
        return self._retrier.call("s3", self._services.s3.probe, bucket)

    def encryption_by_default(self) -> str | None:
        """The KMS key of EBS encryption by default; None where that is off."""
        return self._retrier.call("ec2", self._services.ebs.encryption_by_default)


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "objects": (ObjectSettings,),
    "snapshots": (SnapshotSettings,),
    "retries": (RetryPolicy, Retrier),
    "image_tags": (Tag,),
    "traits": (StoreTraits,),
}


def _invalid(name: str, value: object) -> InvalidValueError:
    field = f"AWSBackend.{name}"
    kinds = " or ".join(kind.__name__ for kind in _KINDS[name])
    named = name == "traits" and isinstance(value, str) and value in STORES
    remedy = f": give amistore.backends.STORES[{value!r}]" if named else ""
    return InvalidValueError(f"{field} takes {kinds}, not {value!r:.80}{remedy}", field=field, value=value)


class _Services(Backend[AWSBlockStore, AWSObjectStore, AWSImageRegistry]):
    """The services without retries."""

    quotas = Quotas.aws()

    def preflight(self, image: Image) -> None:
        preflight(image, registry=self.ec2, blocks=self.ebs)
