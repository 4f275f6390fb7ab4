"""`find_archives`: the archives of a bucket, recognized by their ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import attrs

from amistore.archive.reader import ContainerFile
from amistore.backends import ObjectLocation, ObjectStore
from amistore.backends.checks import check_kind
from amistore.backends.locations import ObjectRanges
from amistore.container.members import PREAMBLE
from amistore.errors import ArchivedObjectError, ArchiveError, NotFoundError, SourceChangedError
from amistore.pipeline.requests import requests_of
from amistore.pipeline.workers import closing, worker_pool

__all__ = ["FoundArchive", "find_archives"]

_logger = logging.getLogger("amistore")


@attrs.frozen(kw_only=True)
class FoundArchive:
    """An archive of a bucket, as its index describes it.

    Attributes:
        location: the object's location; every call that takes an archive takes this.
        image_id: the stored AMI's id.
        name: the stored AMI's name.
        size: the object's size in bytes.
        content_id: the content id that the archive claims, 64 hexadecimal digits; `Archive.verify` proves it.
        date: the creation date of the stored AMI, in EC2's format.
    """

    location: ObjectLocation
    image_id: str
    name: str | None
    size: int
    content_id: str
    date: str | None


def find_archives(
    store: ObjectStore, bucket: str, prefix: str = "", *, workers: int | None = None
) -> Iterator[FoundArchive]:
    """Find the archives among a bucket's objects, by key.

    The last 64 KiB of each object are read, and the whole index where it is longer. Other objects are
    skipped. Skipped and logged (WARNING) are an archive whose end is damaged, an object in a storage class
    that cannot be read, such as Glacier's, and one that is replaced meanwhile.

    Args:
        store: the store that holds the bucket.
        bucket: the bucket's name.
        prefix: the prefix of the keys to look at.
        workers: the number of objects read at once; None for the number of CPUs.

    Raises:
        NotFoundError: no such bucket.
        InvalidRequestError: the store cannot list objects.
        BackendError: the store failed.
    """
    check_kind(store, ObjectStore, "store")
    locations = store.list_objects(bucket, prefix)
    with (
        worker_pool(workers, None, requests=requests_of(store)) as pool,
        closing(pool.map(_look, locations)) as found,
    ):
        for archive in found:
            if archive is not None:
                yield archive


def _look(location: ObjectLocation) -> FoundArchive | None:
    """Runs in a worker."""
    try:
        ranges = ObjectRanges(location)
        try:
            stored = ContainerFile(ranges)
        except ArchiveError as error:
            if ranges.read(0, len(PREAMBLE)) == PREAMBLE:
                _logger.warning("skipping %s, an archive that cannot be opened: %s", location, error)
            return None
    except NotFoundError:  # deleted since it was listed
        return None
    except (ArchivedObjectError, SourceChangedError) as error:
        _logger.warning("skipping %s, which may be an archive: %s", location, error)
        return None
    return FoundArchive(
        location=location,
        image_id=stored.image.image_id,
        name=stored.image.name,
        size=stored.size,
        content_id=stored.index.content_id.hex(),
        date=stored.image.creation_date,
    )
