"""What an archive is opened from: paths, URLs, files and objects, as containers or as plain bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Union, cast

from amistore.archive.framecache import FrameCache
from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, ObjectLocation, ObjectStore
from amistore.backends.locations import ObjectRanges
from amistore.backends.ranges import FileRanges, RangeReader, StreamRanges
from amistore.backends.remote import is_url, open_url
from amistore.errors import InvalidRequestError, NotFoundError, machine_limits

__all__ = ["Located", "Openable", "open_container", "open_ranges"]


class Located(Protocol):
    """What tells where an archive is: a result of `store`, `copy` or `find_archives`."""

    @property
    def location(self) -> ObjectLocation | Path: ...


Openable = Union[str, "os.PathLike[str]", BinaryIO, ObjectLocation, Located]
"""What `open` takes."""


def open_container(
    what: Openable, options: Mapping[str, Any] | None = None, cache: FrameCache | None = None
) -> ContainerFile:
    """The container in what `open_archive` takes."""
    ranges = open_ranges(what, options)
    try:
        with machine_limits():
            return ContainerFile(ranges, cache)
    except BaseException:
        ranges.close()
        raise


def open_ranges(what: Openable, options: Mapping[str, Any] | None = None) -> RangeReader:
    """The bytes of what `open_archive` takes."""
    what = getattr(what, "location", what)
    if what == "":
        raise InvalidRequestError("an empty string is no path: give the archive's")
    url = isinstance(what, str) and is_url(what)
    if options is not None and not (url and isinstance(options, Mapping)):
        raise InvalidRequestError("options= is a mapping, and for URLs only")
    if isinstance(what, ObjectLocation):
        return ObjectRanges(what)
    if isinstance(what, str) and url:
        return open_url(what, options)
    if isinstance(what, (str, os.PathLike)):
        try:
            return FileRanges(what)
        except NotFoundError:
            raise NotFoundError(f"no such file: {os.fspath(what)}", operation="open") from None
    if isinstance(what, (Backend, ObjectStore)):
        raise InvalidRequestError("a bucket and a key name an object: give backend.s3.at(bucket, key)")
    if isinstance(what, io.TextIOBase):
        raise InvalidRequestError('the file is open as text: open it with open(path, "rb")')
    if not (hasattr(what, "read") and hasattr(what, "seek")):
        raise InvalidRequestError(
            "an archive is given as a path, a URL, a seekable binary file, a location such as "
            f"backend.s3.at(bucket, key), or a result that has one, not as {type(what).__name__}"
        )
    return StreamRanges(cast(BinaryIO, what))
