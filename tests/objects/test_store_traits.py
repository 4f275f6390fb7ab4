"""Stores that differ from Amazon's: what they refuse is not sent, and what they lack is not asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import images
import pytest
from objects import runs
from objects.runs import BUCKET, KEY, Calls, Log
from objects.test_forged_logs import altered, altered_digest

import amistore
from amistore.backends import Forwarding, ObjectInfo, ObjectStore, StoreTraits, UploadedPart
from amistore.container import layout


class EqualParts(Forwarding[ObjectStore], ObjectStore):
    """Cloudflare R2's rule ("Upload objects": all parts except the last must have the same size)."""

    traits = StoreTraits(equal_parts=True)

    def complete_multipart_upload(
        self, bucket: str, key: str, upload_id: str, parts: Sequence[UploadedPart], **options: Any
    ) -> ObjectInfo:
        sizes = [part.size for part in parts]
        if len({*sizes[:-1]}) > 1 or sizes[-1] > sizes[0]:
            raise amistore.BackendError("InvalidPart: all non-trailing parts must have the same length")
        return self.inner.complete_multipart_upload(bucket, key, upload_id, parts, **options)


class NoList(Forwarding[ObjectStore], ObjectStore):
    """A store that does not list parts, and completes an upload only with those that it has."""

    traits = StoreTraits(part_listing=False)

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        raise amistore.BackendError("MethodNotAllowed: not here")


class KeepsReplaced(Forwarding[ObjectStore], ObjectStore):
    """SeaweedFS's way: each upload of a part is kept and listed, and the completion takes the one named."""

    def __init__(self, inner: ObjectStore) -> None:
        self.kept: dict[tuple[str, UploadedPart], bytes] = {}
        self.step = 1  # of its list
        super().__init__(inner)

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Any
    ) -> UploadedPart:
        part = self.inner.upload_part(bucket, key, upload_id, part_number, content)
        self.kept[upload_id, part] = bytes(content)
        return part

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        self.inner.list_parts(bucket, key, upload_id)
        return [part for upload, part in self.kept if upload == upload_id][:: self.step]

    def complete_multipart_upload(
        self, bucket: str, key: str, upload_id: str, parts: Sequence[UploadedPart], **options: Any
    ) -> ObjectInfo:
        for part in parts:
            content = self.kept[upload_id, part]
            self.inner.upload_part(bucket, key, upload_id, part.part_number, content)
        return self.inner.complete_multipart_upload(bucket, key, upload_id, parts, **options)


STORES: dict[str, Callable[[ObjectStore], ObjectStore]] = {
    "equal parts": EqualParts.around,
    "no list of parts": NoList.around,
}


def begun(cloud: amistore.MemoryBackend, place: ObjectStore, log: Log, part: int) -> None:
    """A run that ends when this part is sent; those before it are in the log."""
    Calls(cloud.s3).fail("upload_part", part, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        runs.store(runs.source(), place, log=log, workers=1)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("part", range(1, runs.PARTS + 1))
def test_a_run_that_ended_at_any_part_is_gone_on_with_and_sends_none_again(store: str, part: int) -> None:
    cloud, log = runs.cloud(), Log()
    place = STORES[store](cloud.s3)
    calls = Calls(cloud.s3)
    calls.fail("upload_part", part, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        runs.store(runs.source(), place, log=log, workers=1)
    calls.fail("none", 1, RuntimeError())
    runs.store(runs.source(), place, log=log)
    assert sorted(calls.parts()) == list(range(part, runs.PARTS + 1))
    assert runs.stored(cloud.s3) == runs.expected()
    assert log.entries() == cloud.s3.list_multipart_uploads(BUCKET) == []


@pytest.mark.parametrize("store", STORES)
def test_archives_are_copied_and_put_there(store: str) -> None:
    cloud = runs.cloud()
    place = STORES[store](cloud.s3)
    packed = amistore.pack(runs.IMAGE, runs.source(), options=runs.PACKING)
    place.put_object(BUCKET, "put", packed, part_size=runs.PART)
    amistore.copy(place.at(BUCKET, "put"), place.at(BUCKET, "copied"))
    place.put_object(BUCKET, "sized", iter([runs.expected()]), size=2 * len(runs.expected()))
    for key in ("put", "copied", "sized"):
        assert runs.stored(cloud.s3, key) == runs.expected()


def test_an_object_that_the_store_cannot_hold_is_not_copied_to_it() -> None:
    cloud = runs.cloud()
    cloud.s3.put_object(BUCKET, KEY, [runs.expected()])
    cloud.s3.traits = StoreTraits(largest_object=amistore.MIB)
    calls = Calls(cloud.s3)
    with pytest.raises(
        amistore.InvalidRequestError, match=r"16\.0 MiB, and the objects of the store 1\.0 MiB at most"
    ):
        amistore.copy(cloud.s3.at(BUCKET, KEY), cloud.s3.at(BUCKET, "copied"))
    assert calls.made["create_multipart_upload"] == 0


def test_what_grows_beyond_the_stores_largest_object_is_not_sent_whole() -> None:
    cloud = runs.cloud()
    cloud.s3.traits = StoreTraits(largest_object=6 * amistore.MIB)
    calls = Calls(cloud.s3)
    with pytest.raises(amistore.InvalidRequestError, match="more than the 2 parts of 5"):
        runs.store(runs.source(), cloud.s3)
    assert set(calls.parts()) <= {1, 2}
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


def test_a_part_that_grows_stays_within_the_largest_that_the_store_takes() -> None:
    cloud = runs.cloud()
    cloud.s3.traits = StoreTraits(most_parts=200, least_part=1, largest_part=25)
    calls = Calls(cloud.s3)
    cloud.s3.put_object(BUCKET, KEY, iter([images.noise(1, 3000)]), part_size=10)
    sizes = [len(arguments[4]) for verb, arguments in calls.seen if verb == "upload_part"]
    assert max(sizes) == 25 and sum(sizes) == 3000


def test_put_object_grows_its_parts_with_what_the_store_takes_and_says_where_that_is_not_enough() -> None:
    cloud = runs.cloud()
    cloud.s3.traits = StoreTraits(most_parts=20, least_part=1)
    content = images.noise(1, 1000)
    info = cloud.s3.put_object(BUCKET, KEY, iter([content]), part_size=10)  # twice 10, twice 20, and so on
    assert info.size == 1000 and runs.stored(cloud.s3) == content
    for options in ({"size": 100}, {"size": 0}):
        with pytest.raises(amistore.InvalidRequestError, match="more than the 20 parts"):
            cloud.s3.put_object(BUCKET, "long", iter([content]), part_size=1, **options)
    for part_size in (0, -1, 1.5, True):
        with pytest.raises(amistore.InvalidRequestError, match="part_size must be a whole number from 1 on"):
            cloud.s3.put_object(BUCKET, "long", [content], part_size=part_size)  # type: ignore[arg-type]
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


def test_what_has_no_size_is_not_sent_to_a_store_of_equal_parts() -> None:
    cloud = runs.cloud()
    calls = Calls(cloud.s3)
    with pytest.raises(amistore.InvalidRequestError, match="give put_object a size="):
        EqualParts.around(cloud.s3).put_object(BUCKET, KEY, iter([b"piece"]))
    assert calls.made["create_multipart_upload"] == 0
    cloud.s3.put_object(BUCKET, KEY, iter([b"piece"]))
    assert runs.stored(cloud.s3) == b"piece"


def test_a_run_that_is_not_interrupted_asks_for_no_list() -> None:
    class Unlisted(NoList):
        traits = StoreTraits()

    cloud = runs.cloud()
    place = Unlisted.around(cloud.s3)
    runs.store(runs.source(), place)
    amistore.copy(place.at(BUCKET, KEY), place.at(BUCKET, "copied"))
    assert runs.stored(cloud.s3, "copied") == runs.expected()


def test_where_the_upload_is_gone_the_next_run_begins_anew() -> None:
    cloud, log = runs.cloud(), Log()
    place = NoList.around(cloud.s3)
    begun(cloud, place, log, 3)
    [upload] = cloud.s3.list_multipart_uploads(BUCKET)
    cloud.s3.abort_multipart_upload(BUCKET, KEY, upload.upload_id)
    with pytest.raises(amistore.NotFoundError) as gone:
        runs.store(runs.source(), place, log=log)
    assert gone.value.retryable
    runs.store(runs.source(), place, log=log)
    assert runs.stored(cloud.s3) == runs.expected()


def test_an_object_that_is_seen_late_after_its_completion_keeps_its_log() -> None:
    cloud, log = runs.cloud(), Log()
    place = NoList.around(cloud.s3)
    begun(cloud, place, log, 3)
    late = amistore.NotFoundError("not yet", retryable=True)
    calls = Calls(cloud.s3)
    calls.fail("complete_multipart_upload", 1, late, late=True)
    hidden = cloud.s3.head_object

    def head_object(bucket: str, key: str) -> ObjectInfo:
        if calls.failed:
            raise late
        return hidden(bucket, key)

    cloud.s3.head_object = head_object  # type: ignore[method-assign]
    with pytest.raises(amistore.NotFoundError, match="not yet"):
        runs.store(runs.source(), place, log=log)
    cloud.s3.head_object = hidden  # type: ignore[method-assign]
    assert log.entries()
    runs.store(runs.source(), place, log=log)
    assert runs.stored(cloud.s3) == runs.expected()
    assert log.entries() == []


@pytest.mark.parametrize("what", ["lost", "replaced"])
def test_where_parts_that_were_believed_are_not_there_the_next_run_begins_anew(what: str) -> None:
    cloud, log = runs.cloud(), Log()
    place = NoList.around(cloud.s3)
    begun(cloud, place, log, 3)
    [upload] = cloud.s3.list_multipart_uploads(BUCKET)
    if what == "lost":
        cloud.s3._uploads[BUCKET, KEY, upload.upload_id].parts.pop(2)
    else:
        cloud.s3.upload_part(BUCKET, KEY, upload.upload_id, 2, b"another's")
    with pytest.raises(amistore.BackendError, match="part 2 was not uploaded, or was replaced") as refused:
        runs.store(runs.source(), place, log=log)
    assert refused.value.retryable
    assert log.entries() == cloud.s3.list_multipart_uploads(BUCKET) == []
    runs.store(runs.source(), place, log=log)
    assert runs.stored(cloud.s3) == runs.expected()


@pytest.mark.parametrize("step", [1, -1])
def test_a_part_that_is_listed_beside_another_of_its_number_is_not_sent_again(step: int) -> None:
    cloud, log = runs.cloud(), Log()
    place = KeepsReplaced.around(cloud.s3)
    place.step = step
    calls = Calls(place)
    calls.fail("upload_part", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        runs.store(runs.source(), place, log=log, workers=1)
    [upload] = cloud.s3.list_multipart_uploads(BUCKET)
    place.upload_part(BUCKET, KEY, upload.upload_id, 2, b"another's")
    calls.fail("upload_part", 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut") as raised:
        runs.store(runs.source(), place, log=log, workers=1)
    assert not raised.value.retryable  # its parts are all there
    calls.fail("none", 1, RuntimeError())
    runs.store(runs.source(), place, log=log)
    assert sorted(calls.parts()) == [3, 4]
    assert runs.stored(cloud.s3) == runs.expected()


def test_a_store_with_few_parts_gets_larger_ones_and_one_that_cannot_hold_the_object_refuses_it() -> None:
    cloud = runs.cloud()
    cloud.s3.traits = StoreTraits(most_parts=5, least_part=1, largest_part=8 * amistore.MIB)
    calls = Calls(cloud.s3)
    runs.store(runs.source(), cloud.s3, options=amistore.PackOptions(layout=runs.LAYOUT))
    sizes = [len(arguments[4]) for verb, arguments in calls.seen if verb == "upload_part"]
    assert max(sizes) == 8 * amistore.MIB and len(sizes) == 3
    assert runs.stored(cloud.s3) == runs.expected()
    cloud.s3.traits = StoreTraits(most_parts=2, least_part=1, largest_part=amistore.MIB)
    small = amistore.PackOptions(layout=runs.LAYOUT)
    with pytest.raises(amistore.InvalidRequestError, match=r"more than the 2 parts of 1\.0 MiB"):
        runs.store(runs.source(), cloud.s3, options=small, overwrite=True)
    assert cloud.s3.list_multipart_uploads(BUCKET) == []


def test_a_segment_that_was_sent_in_part_and_is_another_one_now_is_not_gone_on_with() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, cloud.s3, log, 3)
    *entries, last = log.entries()
    facts, _, records = last.partition(b"\n")
    end = records.rindex(b"AMISSEGD") - 8
    other = altered_digest(facts + b"\n" + records[end:], -1).partition(b"\n")[2]
    calls = Calls(cloud.s3)
    for forged in (other, records[end:] * 2, b"", records[end:] + following()):
        given = Log([*entries, facts + b"\n" + records[:end] + forged])
        with pytest.raises(amistore.InvalidRequestError, match="the resume log"):
            runs.store(runs.source(), cloud.s3, log=given)
    assert calls.parts() == []
    runs.store(runs.source(), cloud.s3, log=log)
    assert runs.stored(cloud.s3) == runs.expected()


def following() -> bytes:
    """The records of the segments that begin in the third part."""
    cloud, log = runs.cloud(), Log()
    begun(cloud, cloud.s3, log, 4)
    return log.entries()[-1].partition(b"\n")[2]


def test_a_part_of_another_size_is_not_believed_where_parts_are_not_listed() -> None:
    cloud, log = runs.cloud(), Log()
    place = NoList.around(cloud.s3)
    begun(cloud, place, log, 3)
    entries = log.entries()
    entries[2] = altered(entries[2], size=runs.PART - 1)
    calls = Calls(cloud.s3)
    with pytest.raises(amistore.InvalidRequestError, match="parts have another size than it says"):
        runs.store(runs.source(), place, log=Log(entries))
    assert calls.parts() == []


@pytest.mark.parametrize("replaced", ["front", "end"])
def test_a_part_without_segments_that_was_replaced_makes_no_object(replaced: str) -> None:
    """Its ETag is that of the log; the front has no segment yet, and the tar's end none any more."""
    cloud, log = runs.cloud(), Log()
    cloud.s3.traits = StoreTraits(least_part=1)
    options = amistore.PackOptions(layout=runs.LAYOUT, part_size=2048)
    given = images.Volumes([(1, {3: images.block(3)})])
    image = images.image(given.volumes)
    whole = b"".join(amistore.pack(image, given, options=options))
    place = cloud.s3.at(BUCKET, KEY)
    at = {"front": 1, "end": whole.rindex(layout.END_FRAME) // 2048 + 1}[replaced]
    Calls(cloud.s3).fail("upload_part", at + 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.store(image, given, place, log=log, workers=1, options=options)
    [upload] = cloud.s3.list_multipart_uploads(BUCKET)
    content = bytearray(whole[(at - 1) * 2048 : at * 2048])
    content[100 if replaced == "front" else whole.rindex(layout.END_FRAME) % 2048 + 8] ^= 1
    sent = cloud.s3.upload_part(BUCKET, KEY, upload.upload_id, at, content)
    entries = log.entries()
    entries[1 + at] = altered(entries[1 + at], etag=sent.etag)
    with pytest.raises(amistore.CorruptArchiveError, match="was deleted"):
        amistore.store(image, given, place, log=Log(entries), options=options)
    assert runs.stored(cloud.s3) is None


def test_a_run_goes_on_with_the_size_of_parts_that_its_log_says() -> None:
    cloud, log = runs.cloud(), Log()
    calls = Calls(cloud.s3)
    calls.fail("upload_part", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        runs.store(runs.source(), cloud.s3, log=log, workers=1)
    other = attrs.evolve(runs.PACKING, part_size=6 * amistore.MIB)
    with pytest.raises(amistore.InvalidRequestError, match="whose part_size is 5242880, not 6291456"):
        runs.store(runs.source(), cloud.s3, log=log, options=other)
    calls.fail("none", 1, RuntimeError())
    runs.store(runs.source(), cloud.s3, log=log, options=attrs.evolve(runs.PACKING, part_size=None))
    assert sorted(calls.parts()) == [3, 4]
    assert runs.stored(cloud.s3) == runs.expected()


def test_tags_that_the_store_would_not_keep_are_refused_before_any_call() -> None:
    cloud = runs.cloud()
    cloud.s3.traits = StoreTraits(tags=False)
    calls = Calls(cloud.s3)
    with pytest.raises(amistore.InvalidRequestError, match="the store's objects have no tags"):
        runs.store(runs.source(), cloud.s3, tags={"team": "images"})
    assert set(calls.made) <= {"at"}
    runs.store(runs.source(), cloud.s3, tags={})
    assert runs.stored(cloud.s3) == runs.expected()


@pytest.mark.parametrize("limits", [{"most_parts": 1}, {"largest_object": runs.PART}])
def test_a_run_that_goes_on_keeps_to_the_limits_of_its_store_too(limits: dict[str, int]) -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, cloud.s3, log, 3)
    cloud.s3.traits = StoreTraits(**limits)  # type: ignore[arg-type]
    calls = Calls(cloud.s3)
    with pytest.raises(
        amistore.InvalidRequestError, match=r"more than the 1 parts .* amistore\.abandon ends"
    ):
        runs.store(runs.source(), cloud.s3, log=log, options=amistore.PackOptions(layout=runs.LAYOUT))
    assert calls.parts() == []


def test_a_part_that_was_lost_before_its_completion_makes_the_next_run_begin_anew() -> None:
    cloud, log = runs.cloud(), Log()
    place = NoList.around(cloud.s3)
    calls = Calls(cloud.s3)
    lost = amistore.BackendError("InvalidPart: one of them is not there")
    calls.fail("complete_multipart_upload", 1, lost)
    with pytest.raises(amistore.BackendError, match="InvalidPart") as raised:
        runs.store(runs.source(), place, log=log)
    assert raised.value.retryable
    assert log.entries() == cloud.s3.list_multipart_uploads(BUCKET) == []
    calls.fail("none", 1, RuntimeError())
    runs.store(runs.source(), place, log=log)
    assert sorted(calls.parts()) == list(range(1, runs.PARTS + 1))


def test_a_tail_of_many_parts_is_gone_on_with_in_its_midst() -> None:
    """An index in parts of 640 bytes, as one of millions of segments in parts of 16 MiB."""
    cloud, log = runs.cloud(), Log()
    cloud.s3.traits = StoreTraits(least_part=1)
    form = amistore.Layout(blocks_per_frame=1, blocks_per_segment=1)
    given = images.Volumes([(1, {i: images.block(i + 1)}) for i in range(9)])
    image = images.image(given.volumes)
    options = amistore.PackOptions(layout=form, part_size=640)
    whole = b"".join(amistore.pack(image, given, options=options))
    calls = Calls(cloud.s3)
    place = cloud.s3.at(BUCKET, KEY)
    parts = -(-len(whole) // 640)
    calls.fail("upload_part", parts - 2, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.store(image, given, place, log=log, workers=1, options=options)
    assert b"SEGD" not in log.entries()[-1]
    calls.fail("none", 1, RuntimeError())
    amistore.store(image, given, place, log=log, options=options)
    assert min(calls.parts()) >= parts - 2
    assert runs.stored(cloud.s3) == whole


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"most_parts": 0}, "StoreTraits.most_parts must be a whole number from 1 to 10000, not 0"),
        ({"most_parts": 10_001}, "from 1 to 10000, not 10001"),
        ({"checksum": "sha1"}, "StoreTraits.checksum must be 'crc32' or 'md5', or None, not 'sha1'"),
        ({"least_part": True}, "least_part must be a whole number"),
        ({"part_listing": 1}, "part_listing must be True or False, not 1"),
        ({"least_part": 10, "largest_part": 9}, r"least_part must be at most largest_part \(9\), not 10"),
    ],
)
def test_traits_that_cannot_be_are_refused(members: dict[str, Any], words: str) -> None:
    with pytest.raises(amistore.InvalidValueError, match=words):
        StoreTraits(**members)
