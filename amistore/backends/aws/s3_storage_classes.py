"""Storage classes: which objects can be read at once, and which must be restored first.

Source: S3 API reference, HeadObject, Response Elements: StorageClass, ArchiveStatus, Restore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amistore.errors import ArchivedObjectError

__all__ = ["archived", "readable_class"]


def archived(found: Mapping[str, Any]) -> ArchivedObjectError:
    """The error for an object that cannot be read, with the remedy.

    Args:
        found: the answer to HEAD.
    """
    where = found.get("ArchiveStatus") or found.get("StorageClass") or "an archive"
    if 'ongoing-request="true"' in found.get("Restore", ""):
        return ArchivedObjectError(f"the object is being restored from {where}: try again in some hours")
    return ArchivedObjectError(f"the object lies in {where}: call restore_object, and read it hours later")


def readable_class(found: Mapping[str, Any]) -> str | None:
    """The storage class, if its objects can be read at once; else None.

    Args:
        found: the answer to HEAD.
    """
    storage_class = str(found.get("StorageClass") or "STANDARD")
    is_archived = storage_class in ("GLACIER", "DEEP_ARCHIVE") or found.get("ArchiveStatus")
    return None if is_archived else storage_class
