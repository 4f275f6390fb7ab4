"""`Quotas`: limits on tasks in progress, like EC2's."""

from __future__ import annotations

from typing import Any, Final

import attrs

from amistore.errors import InvalidRequestError, InvalidValueError

__all__ = ["REMEDY", "Quotas"]

REMEDY: Final = "give the engine other quotas, such as quotas=amistore.Quotas.aws(), EC2's of today"


def _check(instance: Quotas, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (type(value) is not int or value < 1):
        field = f"Quotas.{attribute.name}"
        raise InvalidValueError(
            f"{field} is GiB, 1 or more, or None, not {value!r}", field=field, value=value
        )


@attrs.frozen(kw_only=True)
class Quotas:
    """Limits in GiB of snapshots' volume sizes, each snapshot counted once; None is no limit.

    The defaults are those of the EC2 user guide when the three calls appeared ("Store and restore
    an AMI using S3", Limitations): 1 TB an AMI, 600 GB of storing and 300 GB of restoring in
    progress. EC2's GB are taken for GiB.

    Attributes:
        image_size: the most GiB of one AMI.
        store_in_progress: the GiB of store tasks in progress from which on a new one is refused.
        restore_in_progress: the GiB of restore tasks in progress from which on a new one is refused.
    """

    image_size: int | None = attrs.field(default=1024, validator=_check)
    store_in_progress: int | None = attrs.field(default=600, validator=_check)
    restore_in_progress: int | None = attrs.field(default=300, validator=_check)

    @classmethod
    def aws(cls) -> Quotas:
        """EC2's limits as documented today: 5,000 GB an AMI, 1,200 and 600 GB in progress."""
        return cls(image_size=5_000, store_in_progress=1_200, restore_in_progress=600)

    @classmethod
    def unlimited(cls) -> Quotas:
        """No limits."""
        return cls(image_size=None, store_in_progress=None, restore_in_progress=None)

    def check_image(self, image_id: str, size: int) -> None:
        """Refuse an AMI of more than `image_size` GiB."""
        if self.image_size is not None and size > self.image_size:
            raise InvalidRequestError(
                f"{image_id} has {size} GiB of snapshots, and the quota is {self.image_size} GiB for an AMI: "
                f"{REMEDY}",
                code="ResourceLimitExceeded",
            )

    def in_progress(self, kind: str) -> int | None:
        """The limit of tasks of a kind, ``store`` or ``restore``, together."""
        limit: int | None = getattr(self, f"{kind}_in_progress")
        return limit
