"""Versions of objects: whether an answer is about the version that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amistore.errors import BackendError, NotFoundError

__all__ = ["check_version", "refuse_delete_marker"]

# Of objects that were stored while the bucket kept no versions (S3 user guide, "Using versioning"). The
# answer of a bucket that never kept any does not name it.
_NULL = "null"


def check_version(wanted: str | None, answer: Mapping[str, Any]) -> None:
    """Refuse another version than the wanted one: servers that keep none take no notice of the id."""
    found = answer.get("VersionId", _NULL)
    if wanted is not None and found != wanted:
        raise BackendError(
            f"asked for version {wanted!r:.80}, the server gave {found!r:.80}: does the bucket keep versions?"
        )


def refuse_delete_marker(refusal: Mapping[str, Any]) -> None:
    """Tell a version that is a delete marker, which S3 answers by 405 (API reference, GetObject).

    Args:
        refusal: botocore's answer of an error.
    """
    about = refusal.get("ResponseMetadata", {})
    is_marker = about.get("HTTPHeaders", {}).get("x-amz-delete-marker") == "true"
    if is_marker and about.get("HTTPStatusCode") == 405:
        raise NotFoundError("this version says that the object was deleted: give the one before it")
