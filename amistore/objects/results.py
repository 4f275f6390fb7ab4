"""The results of the jobs: `StoredArchive`, `RestoredImage`."""

from __future__ import annotations

from pathlib import Path

import attrs

from amistore.backends import ObjectLocation
from amistore.model import Image

__all__ = ["RestoredImage", "StoredArchive"]


@attrs.frozen(kw_only=True)
class StoredArchive:
    """An archive that was stored as an object or a file.

    Attributes:
        location: the object's location, or the file's path.
        size: the archive's size in bytes.
        etag: the object's ETag, from its completion; None for a file.
        content_id: the archive's content id, 64 hexadecimal digits, computed while the archive was made,
            never read back. Keep it out of reach of those who can write the archive: `expected_content_id`
            proves later that the archive is the same.
    """

    location: ObjectLocation | Path
    size: int
    etag: str | None = None
    content_id: str


@attrs.frozen(kw_only=True)
class RestoredImage:
    """An AMI that was made of an archive, or of another backend's AMI.

    Attributes:
        image: the new AMI, on its new snapshots.
        content_id: the content id of the archive that the AMI was made of, 64 hexadecimal digits, also where
            `transfer` kept no archive. Every block of the new snapshots is one that it stands for.
        kept: the archive that `transfer` kept; None where it kept none.
    """

    image: Image
    content_id: str
    kept: StoredArchive | None = None

    @property
    def image_id(self) -> str:
        """The new AMI's id."""
        return self.image.image_id
