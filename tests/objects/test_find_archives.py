"""`find_archives` tells the archives of a bucket from their ends, and passes all else by."""

from __future__ import annotations

import logging

import images
import pytest
from objects import runs
from objects.runs import BUCKET, IMAGE, Calls

import amistore
from amistore.backends import ObjectInfo, ObjectStore
from amistore.testing import FaultyBackend


def archived(cloud: amistore.Backend, *keys: str) -> bytes:
    container = runs.expected()
    for key in keys:
        cloud.s3.put_object(BUCKET, key, [container])
    return container


def test_archives_are_told_by_key_and_what_is_none_is_passed_by(caplog: pytest.LogCaptureFixture) -> None:
    cloud = runs.cloud()
    container = archived(cloud, "b/web.bin", "a.bin", "c.bin")
    noise = images.noise(1, 100_000)
    for key, content in (("a.txt", b"text"), ("empty", b""), ("short", container[:5]), ("noise", noise)):
        cloud.s3.put_object(BUCKET, key, [content])
    found = list(amistore.find_archives(cloud.s3, BUCKET))
    assert [each.location for each in found] == [
        cloud.s3.at(BUCKET, key) for key in ("a.bin", "b/web.bin", "c.bin")
    ]
    first = found[0]
    assert (first.image_id, first.name, first.date) == (IMAGE.image_id, IMAGE.name, IMAGE.creation_date)
    assert first.size == len(container)
    with amistore.open(first.location) as archive:
        assert archive.content_id == first.content_id
    assert [each.location.key for each in amistore.find_archives(cloud.s3, BUCKET, "b/")] == ["b/web.bin"]
    assert not caplog.messages


def test_what_is_no_archive_is_not_taken_for_a_damaged_one(caplog: pytest.LogCaptureFixture) -> None:
    """Whose end is read again, up to five times, with a warning."""
    cloud = runs.cloud()
    cloud.s3.put_object(BUCKET, "noise", images.noise(1, 100_000))
    calls = Calls(cloud.s3)
    assert list(amistore.find_archives(amistore.RetryingBackend(cloud).s3, BUCKET)) == []
    assert calls.made["get_object_range"] == 4  # its end once, and thrice the first bytes
    assert not caplog.messages


@pytest.mark.parametrize("damage", ["cut", "flipped index"])
def test_a_damaged_archive_is_named_in_the_log_and_hides_no_other(
    damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = runs.cloud()
    container = bytearray(archived(cloud, "b.bin"))
    if damage == "cut":
        del container[-1000:]
    else:
        container[-200] ^= 1
    cloud.s3.put_object(BUCKET, "a.bin", [container])
    with caplog.at_level(logging.WARNING, "amistore"):
        found = list(amistore.find_archives(cloud.s3, BUCKET, workers=1))
    assert [each.location.key for each in found] == ["b.bin"]
    (told,) = caplog.messages
    assert told.startswith("skipping archive/a.bin, an archive that cannot be opened")


@pytest.mark.parametrize(
    "error", [amistore.ArchivedObjectError("in GLACIER"), amistore.SourceChangedError("it was replaced")]
)
def test_an_object_that_cannot_be_read_now_is_named_in_the_log_and_hides_no_other(
    error: amistore.BackendError, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = runs.cloud()
    archived(cloud, "a.bin", "b.bin", "c.bin")
    runs.Calls(cloud.s3).fail("get_object_range", 2, error)
    found = list(amistore.find_archives(cloud.s3, BUCKET, workers=1))
    assert [each.location.key for each in found] == ["a.bin", "c.bin"]
    (told,) = caplog.messages
    assert told.startswith(f"skipping archive/b.bin, which may be an archive: {error.message}")


def test_their_ends_alone_are_read() -> None:
    cloud = FaultyBackend(runs.cloud())
    archived(cloud, "a.bin", "b.bin")
    cloud.calls.clear()
    assert len(list(amistore.find_archives(cloud.s3, BUCKET))) == 2
    read = [call[3:] for call in cloud.calls if call[0] == "get_object_range"]
    size = len(runs.expected())
    assert read == [(max(0, size - 65_536), min(size, 65_536))] * 2


def test_an_object_that_is_deleted_while_they_are_listed_is_passed_by() -> None:
    cloud = runs.cloud()
    archived(cloud, "a.bin", "b.bin")
    found = amistore.find_archives(cloud.s3, BUCKET, workers=1)
    first = next(found)
    cloud.s3.delete_object(BUCKET, "b.bin")
    assert [first.location.key, *(each.location.key for each in found)] in (["a.bin"], ["a.bin", "b.bin"])


def test_a_bucket_that_is_not_there_and_a_store_that_cannot_list_are_told() -> None:
    cloud = runs.cloud()
    with pytest.raises(amistore.NotFoundError):
        next(iter(amistore.find_archives(cloud.s3, "nobody-has-it")))

    class Plain(ObjectStore):
        def head_object(self, bucket: str, key: str) -> ObjectInfo:
            raise amistore.NotFoundError("no such object")

    for verb in ObjectStore.__abstractmethods__ - {"head_object"}:
        setattr(Plain, verb, images.noise)
    Plain.__abstractmethods__ = frozenset()
    with pytest.raises(amistore.InvalidRequestError, match="Plain cannot list objects"):
        next(iter(amistore.find_archives(Plain(), BUCKET)))  # type: ignore[abstract]
