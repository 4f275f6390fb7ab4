"""What the bucket of a call can be named by. Imports no boto3, so that `policies.py` runs without it."""

from __future__ import annotations

import re

from amistore.errors import InvalidRequestError

__all__ = ["check_bucket_name", "is_access_point"]

# S3 user guide, "Bucket naming rules": names of old buckets in us-east-1 have up to 255 characters, also
# capitals and "_". Dots alone would be a step in the URL's path.
_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,255}")


def is_access_point(bucket: object) -> bool:
    """Whether a bucket is named by the ARN of an access point, which botocore checks."""
    return isinstance(bucket, str) and bucket.startswith("arn:")


def check_bucket_name(bucket: object) -> None:
    """Refuse what no bucket was ever named; of all else the server knows whether it is there."""
    if not (isinstance(bucket, str) and _NAME.fullmatch(bucket)):
        raise InvalidRequestError(
            f"{bucket!r:.80} is no bucket's name: letters, digits, '.', '-' and '_', up to 255",
            code="InaccessibleStorageLocation",
        )
