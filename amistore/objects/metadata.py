"""What a stored object says of its AMI, beside its bytes: S3's user metadata."""

from __future__ import annotations

import datetime
import urllib.parse
from typing import Final

from amistore.model import Image

__all__ = ["REGION_KEY", "object_metadata"]

REGION_KEY: Final = "ami-region"
"""Of the object's metadata: where the AMI was."""

# S3 keeps 2 KB of names and values together; Swift 256 characters of a value. All of the
# image's metadata stands in the archive, so nothing is lost where this is cut.
_MOST: Final = 256


def object_metadata(image: Image, now: datetime.datetime | None, region: str | None) -> dict[str, str]:
    """Name, description, registration date, owner and Region of an AMI, and when it was stored.

    A value is cut where it would be longer than 256 characters as HTTP headers carry it; what
    is not known is left out.

    Args:
        image: the AMI.
        now: when it is stored; None for the time of the call.
        region: where it is.
    """
    now = now or datetime.datetime.now(datetime.timezone.utc)
    moment = now.astimezone(datetime.timezone.utc).replace(tzinfo=None).isoformat(timespec="milliseconds")
    values = {
        "ami-name": image.name,
        "ami-description": image.description,
        "ami-registration-date": image.creation_date,
        "ami-owner-account": image.owner_id,
        REGION_KEY: region,
        "ami-store-timestamp": f"{moment}Z",
    }
    return {key: _cut(value) for key, value in values.items() if value}


def _cut(value: str) -> str:
    while len(urllib.parse.quote(value, safe="")) + len("UTF-8''") > _MOST:
        value = value[: min(len(value) - 1, _MOST)]
    return value
