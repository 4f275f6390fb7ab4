"""What a job has made: `StoredArchive`, `RestoredImage`."""

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
        location: the object's, or the file's path.
        size: in bytes.
        etag: the object's, as its completion gave it; None for a file.
        content_id: computed while the archive was made, never read back: 64 hexadecimal digits. Keep it
            where nobody who can write the archive can: `expected_content_id` proves later that it is this.
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
        content_id: of the archive that it was made of, also where that was on the way only: 64 hexadecimal
            digits. Every block of the new snapshots is one that it stands for.
        kept: the archive that `transfer` was to keep.
    """

    image: Image
    content_id: str
    kept: StoredArchive | None = None

    @property
    def image_id(self) -> str:
        """The new AMI's id."""
        return self.image.image_id
