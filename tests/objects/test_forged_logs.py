"""A log that was altered is refused, or what it says is found to be wrong: nothing in it is believed.

Its CRCs are taken as made anew: what is altered here is what the entries say.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import attrs
import images
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objects import runs
from objects.runs import BUCKET, KEY, Calls, Log
from objects.test_unpack import DISKS, cloud, unpack

import amistore
from amistore.container.records import SegmentDescriptor
from amistore.objects.multipart import RUN_KEY
from amistore.objects.resumelog import write_entry

EXAMPLES = 2000 if os.environ.get("AMISTORE_LONG") else 30
OTHER = images.Volumes([(1, {i: images.noise(200 + i) for i in range(40)})])


def packing(given: amistore.MemoryBackend, log: Log) -> None:
    """Leave a run behind whose three first parts are there."""
    uploads, entries = packed_in_part()
    given.s3._uploads.update(copy.deepcopy(uploads))
    log._entries += entries


@functools.cache
def packed_in_part() -> tuple[dict[Any, Any], list[bytes]]:
    """The uploads and the log of such a run."""
    given, log = runs.cloud(), Log()
    Calls(given.s3).fail("upload_part", runs.PARTS, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        runs.store(runs.source(), given.s3, log=log, workers=1)
    return given.s3._uploads, log.entries()


def restoring(given: amistore.MemoryBackend, log: Log) -> None:
    """Leave a run behind that has put 24 blocks."""
    snapshots, entries = restored_in_part()
    given.ebs._snapshots.update(copy.deepcopy(snapshots))
    log._entries += entries


@functools.cache
def restored_in_part() -> tuple[dict[str, Any], list[bytes]]:
    """The snapshots and the log of such a run."""
    given, log = cloud(), Log()
    Calls(given.ebs).fail("put_snapshot_block", 25, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        unpack(given, log=log, workers=1)
    return given.ebs._snapshots, log.entries()


@functools.cache
def foreign_part() -> bytes:
    """The entry of a part of another archive."""
    given, log = runs.cloud(), Log()
    Calls(given.s3).fail("upload_part", 2, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        image = images.image(OTHER.volumes)
        amistore.store(
            image,
            OTHER,
            given.s3.at(BUCKET, KEY),
            log=log,
            workers=1,
            options=runs.PACKING,
        )
    return log.entries()[2]


def packed_with(given: amistore.MemoryBackend, entries: list[bytes]) -> None:
    """Go on with a log; the object is right, or an error is typed and no object there."""
    try:
        runs.store(runs.source(), given.s3, log=Log(entries))
    except amistore.AmistoreError:
        assert runs.stored(given.s3) is None
    else:
        assert runs.stored(given.s3) == runs.expected()


def altered_digest(entry: bytes, number: int) -> bytes:
    """The entry with another digest in its first descriptor, whose CRC is made anew."""
    facts, _, records = entry.partition(b"\n")
    size = int.from_bytes(records[4:8], "little") + 8
    descriptor = SegmentDescriptor.parse(records[:size])
    digests = list(descriptor.digests)
    digests[number] = bytes(32)
    return facts + b"\n" + attrs.evolve(descriptor, digests=tuple(digests)).encode() + records[size:]


def altered(entry: bytes, **facts: Any) -> bytes:
    said, _, records = entry.partition(b"\n")
    return json.dumps({**json.loads(said), **facts}).encode() + (b"\n" + records if records else b"")


FORGERIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "the upload's entry dropped": lambda e: [e[0], *e[2:]],
    "the first part dropped": lambda e: [*e[:2], *e[3:]],
    "the last part dropped": lambda e: e[:-1],
    "parts swapped": lambda e: [*e[:2], e[3], e[2], e[4]],
    "a part twice": lambda e: [*e[:3], e[2], *e[3:]],
    "the last part twice": lambda e: [*e, e[4]],
    "a part of another archive": lambda e: [*e[:2], foreign_part(), *e[3:]],
    "another etag": lambda e: [*e[:2], altered(e[2], etag="0" * 32), *e[3:]],
    "another size": lambda e: [*e[:3], altered(e[3], size=1), e[4]],
    "another number": lambda e: [*e[:4], altered(e[4], part=4)],
    "no records": lambda e: [*e[:4], e[4].partition(b"\n")[0]],
    "records cut": lambda e: [*e[:4], e[4][:-1]],
    "the records of the part before": lambda e: [
        *e[:3],
        e[3].partition(b"\n")[0] + b"\n" + e[2].partition(b"\n")[2],
        e[4],
    ],
    "one part's records moved to the one before": lambda e: [
        *e[:2],
        e[2] + e[3].partition(b"\n")[2],
        altered(e[3].partition(b"\n")[0]) + b"\n" + e[4].partition(b"\n")[2],
    ],
    "a digest altered": lambda e: [*e[:3], altered_digest(e[3], 0), e[4]],
    "the last digest altered": lambda e: [*e[:4], altered_digest(e[4], -1)],
    "an unknown upload": lambda e: [e[0], altered(e[1], upload="upload-0"), *e[2:]],
    "an upload that is no text": lambda e: [e[0], altered(e[1], upload=5), *e[2:]],
    "a task that is no text": lambda e: [altered(e[0], task=None), *e[1:]],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_log_of_packing_gives_no_other_object(forgery: str) -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    packed_with(given, FORGERIES[forgery](log.entries()))


@pytest.mark.parametrize("forgery", ["a digest altered", "the last digest altered"])
def test_a_forged_digest_is_found_and_the_object_deleted(forgery: str) -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    forged = Log(FORGERIES[forgery](log.entries()))
    with pytest.raises(amistore.CorruptArchiveError, match="was deleted"):
        runs.store(runs.source(), given.s3, log=forged)
    assert runs.stored(given.s3) is None
    assert forged.entries() == []
    runs.store(runs.source(), given.s3, log=forged)
    assert runs.stored(given.s3) == runs.expected()


def test_an_object_that_takes_the_place_of_a_wrong_one_is_not_deleted_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    delete = given.s3.delete_object

    def replaced_first(bucket: str, key: str, **options: Any) -> None:
        given.s3.put_object(bucket, key, [b"another's archive"])
        delete(bucket, key, **options)

    monkeypatch.setattr(given.s3, "delete_object", replaced_first)
    forged = Log(FORGERIES["a digest altered"](log.entries()))
    with pytest.raises(amistore.SourceChangedError, match="replaced"):
        runs.store(runs.source(), given.s3, log=forged)
    assert runs.stored(given.s3) == b"another's archive"


def test_a_wrong_object_that_the_store_does_not_delete_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    delete = given.s3.delete_object
    monkeypatch.setattr(given.s3, "delete_object", lambda *place, **_: delete(*place, if_match="other"))
    forged = Log(FORGERIES["a digest altered"](log.entries()))
    with pytest.raises(amistore.CorruptArchiveError, match="was not deleted, delete it"):
        runs.store(runs.source(), given.s3, log=forged)


def test_an_object_that_an_earlier_run_made_is_refused_and_left_to_be_looked_at() -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    forged = Log(FORGERIES["a digest altered"](log.entries()))
    Calls(given.s3).fail("delete_object", 1, RuntimeError("fault"))
    with pytest.raises(amistore.BackendError, match="fault"):
        runs.store(runs.source(), given.s3, log=forged)
    made = runs.stored(given.s3)
    with pytest.raises(amistore.CorruptArchiveError, match="verify it before you delete it"):
        runs.store(runs.source(), given.s3, log=forged)
    assert runs.stored(given.s3) == made
    assert forged.entries()


@pytest.mark.parametrize("forgery", ["a part of another archive", "the last record dropped"])
def test_a_log_that_does_not_fit_the_plan_or_its_parts_is_refused_before_anything_is_sent(
    forgery: str,
) -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    *entries, last = log.entries()
    size = len(last.partition(b"\n")[2]) // 5  # the last of the parts has five segments alike
    forged = Log(FORGERIES[forgery]([*entries, last]) if forgery in FORGERIES else [*entries, last[:-size]])
    if forgery in FORGERIES:  # under the etag and the size of our own part
        ours = json.loads(entries[2].partition(b"\n")[0])
        forged._entries[2] = altered(foreign_part(), **ours)
    calls = Calls(given.s3)
    with pytest.raises(
        amistore.InvalidRequestError, match="damaged" if forgery in FORGERIES else "another size"
    ):
        runs.store(runs.source(), given.s3, log=forged)
    assert calls.parts() == []
    assert calls.made["complete_multipart_upload"] == 0


@pytest.mark.parametrize(("part", "record"), [(1, b"HEAD"), (1, b"VOLD"), (2, b"VOLD"), (2, b"SEGD")])
def test_a_part_that_was_altered_with_its_etag_in_the_log_makes_no_object(part: int, record: bytes) -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    entries = log.entries()
    upload_id = json.loads(entries[1])["upload"]
    content = bytearray(given.s3._uploads[BUCKET, KEY, upload_id].parts[part])
    content[content.index(b"AMIS" + record) + 12] ^= 1
    sent = given.s3.upload_part(BUCKET, KEY, upload_id, part, content)
    entries[1 + part] = altered(entries[1 + part], etag=sent.etag)
    with pytest.raises(amistore.CorruptArchiveError, match="was deleted"):
        runs.store(runs.source(), given.s3, log=Log(entries))
    assert runs.stored(given.s3) is None


def test_an_upload_of_another_level_under_a_log_that_says_ours_gives_no_damaged_object() -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    entries = log.entries()
    forged = Log([altered(entries[0], level=9), *entries[1:]])
    try:
        runs.store(runs.source(), given.s3, log=forged, level=9)
    except amistore.AmistoreError:
        assert runs.stored(given.s3) is None
    else:
        with given.s3.open_object(BUCKET, KEY) as file, amistore.open(file) as archive:
            assert archive.verify().ok


def test_the_upload_of_another_archive_is_not_taken_for_ours() -> None:
    given, log, theirs = runs.cloud(), Log(), Log()
    packing(given, log)
    Calls(given.s3).fail("upload_part", 4, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        image = images.image(OTHER.volumes)
        amistore.store(
            image,
            OTHER,
            given.s3.at(BUCKET, KEY),
            log=theirs,
            workers=1,
            options=runs.PACKING,
        )
    entries, others = log.entries(), theirs.entries()
    packed_with(given, [entries[0], others[1], *entries[2:]])


def test_an_object_of_another_archive_whose_task_the_log_claims_is_left_alone() -> None:
    given, log = runs.cloud(), Log()
    packing(given, log)
    image = images.image(OTHER.volumes)
    amistore.store(image, OTHER, given.s3.at(BUCKET, KEY))
    info = given.s3.head_object(BUCKET, KEY)
    entries = log.entries()
    given.s3.abort_multipart_upload(BUCKET, KEY, json.loads(entries[1])["upload"])
    for count in (2, 5):
        forged = Log([altered(entries[0], task=info.metadata[RUN_KEY]), *entries[1:count]])
        with pytest.raises(amistore.InvalidRequestError, match="another object"):
            runs.store(runs.source(), given.s3, log=forged)
        assert given.s3.head_object(BUCKET, KEY) == info


def mutated(data: st.DataObject, entries: list[bytes]) -> list[bytes]:
    """A log with some of its entries moved, dropped, cut, or altered in what they say."""
    entries = list(entries)
    junk = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats() | st.just([])
    for _ in range(data.draw(st.integers(1, 3))):
        if not entries:
            break
        at = data.draw(st.integers(0, len(entries) - 1))
        entry = entries[at]
        kind = data.draw(st.sampled_from(["drop", "swap", "twice", "flip", "cut", "fact", "missing"]))
        if kind == "drop":
            del entries[at]
        elif kind == "swap":
            entries.insert(data.draw(st.integers(0, len(entries) - 1)), entries.pop(at))
        elif kind == "twice":
            entries.insert(data.draw(st.integers(0, len(entries))), entry)
        elif kind == "cut":
            entries[at] = entry[: data.draw(st.integers(0, len(entry)))]
        elif kind == "flip" and entry:
            place = data.draw(st.integers(0, len(entry) - 1))
            entries[at] = (
                entry[:place] + bytes([entry[place] ^ data.draw(st.integers(1, 255))]) + entry[place + 1 :]
            )
        else:
            said, line, records = entry.partition(b"\n")
            try:
                facts = json.loads(said)
                name = data.draw(st.sampled_from(sorted(facts)))
            except (ValueError, TypeError):
                continue
            value = facts.pop(name)
            if kind == "fact":
                near = st.just(value + 1) | st.just(value - 1) if isinstance(value, int) else junk
                facts[name] = data.draw(near | junk)
            entries[at] = json.dumps(facts).encode() + line + records
    return entries


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_no_mutation_of_a_log_of_packing_gives_another_object(data: st.DataObject) -> None:
    cloud, log = runs.cloud(), Log()
    packing(cloud, log)
    packed_with(cloud, mutated(data, log.entries()))


def restored_with(given: amistore.MemoryBackend, entries: list[bytes]) -> None:
    """Go on with a log; the disks are right, or an error is typed and no snapshot completed.

    Whatever happens, snapshots of others stay as they are.
    """
    done = images.snapshot(given.ebs, 1, {0: images.block(9)})
    pending = given.ebs.start_snapshot(1)
    forged = Log(
        [entry.replace(b"FOREIGN", done.encode()).replace(b"PENDING", pending.encode()) for entry in entries]
    )
    try:
        image = unpack(given, log=forged)
    except amistore.AmistoreError:
        for snapshot_id in set(images.leftovers(given)) - {done}:
            assert given.ebs.describe_snapshot(snapshot_id).state == "pending"
    else:
        assert runs.disks(given.ebs, image) == DISKS
        assert not {done, pending} & set(image.snapshot_ids)
    assert images.contents(given.ebs, done) == (1, {0: images.block(9)})
    assert given.ebs.describe_snapshot(pending).state == "pending"
    assert given.ebs._snapshots[pending].blocks == {}


def each(entries: list[bytes], name: str, **facts: Any) -> list[bytes]:
    """With these facts in each entry that has that one."""
    return [altered(entry, **facts) if name in json.loads(entry) else entry for entry in entries]


RESTORES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "more segments put than were": lambda e: each(e, "put", put=10**9),
    "one segment more put": lambda e: [*e, altered(e[-1], put=json.loads(e[-1])["put"] + 1)],
    "a negative number put": lambda e: each(e, "put", put=-1),
    "no number put": lambda e: each(e, "put", put=float("inf")),
    "a text put": lambda e: each(e, "put", put="3"),
    "a generation that is none": lambda e: each(e, "generation", generation=float("inf")),
    "a generation far on": lambda e: each(e, "generation", generation=10**6),
    "another volume": lambda e: each(e, "put", volume="snap-00000000000000002"),
    "a volume that is none": lambda e: each(e, "volume", volume=[]),
    "a foreign snapshot": lambda e: each(e, "snapshot", snapshot="FOREIGN"),
    "a foreign pending snapshot": lambda e: each(e, "snapshot", snapshot="PENDING"),
    "a snapshot that is none": lambda e: each(e, "snapshot", snapshot=None),
    "no snapshots": lambda e: [entry for entry in e if "snapshot" not in json.loads(entry)],
    "the header alone": lambda e: e[:1],
    "no header": lambda e: e[1:],
    "another task": lambda e: [altered(e[0], task="0" * 32), *e[1:]],
    "a task that is none": lambda e: [altered(e[0], task="x"), *e[1:]],
    "entries turned round": lambda e: [e[0], *reversed(e[1:])],
}


@pytest.mark.parametrize("forgery", RESTORES)
def test_a_forged_log_of_restoring_gives_no_other_disks_and_touches_no_other_snapshot(forgery: str) -> None:
    given, log = cloud(), Log()
    restoring(given, log)
    restored_with(given, RESTORES[forgery](log.entries()))


@pytest.mark.parametrize("forgery", ["a foreign snapshot", "a foreign pending snapshot", "another task"])
def test_a_snapshot_that_is_not_the_tasks_own_is_passed_over(forgery: str) -> None:
    given, log = cloud(), Log()
    restoring(given, log)
    foreign = (
        images.snapshot(given.ebs, 1, {}) if forgery == "a foreign snapshot" else given.ebs.start_snapshot(1)
    )
    entries = RESTORES[forgery](log.entries())
    named = [
        entry.replace(b"FOREIGN", foreign.encode()).replace(b"PENDING", foreign.encode()) for entry in entries
    ]
    image = unpack(given, log=Log(named))
    assert runs.disks(given.ebs, image) == DISKS
    assert foreign not in image.snapshot_ids


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_no_mutation_of_a_log_of_restoring_gives_other_disks(data: st.DataObject) -> None:
    backend, log = cloud(), Log()
    restoring(backend, log)
    restored_with(backend, mutated(data, log.entries()))


@pytest.mark.parametrize(
    "forged",
    [
        {"description": 5},
        {"description": "\ud800"},
        {"tags": 5},
        {"tags": [["a", "b", "c"]]},
        {"tags": [[1, 2]]},
        {"tags": [["a", "b"], ["a", "c"]]},
        {"volume": [1]},
        {"size": None},
    ],
)
def test_a_forged_beginning_of_a_snapshot_is_a_damaged_log(forged: dict[str, Any]) -> None:
    backend = amistore.MemoryBackend()
    log = runs.Log()
    log.append(write_entry(kind="unpack", task="0" * 32))
    begun = {"volume": "snap-0123456789abcdef0", "generation": 0, "size": amistore.GIB}
    log.append(write_entry(**{**begun, **forged}))
    with pytest.raises(amistore.InvalidRequestError, match="log is damaged"):
        amistore.abandon(log, backend)
    assert images.leftovers(backend) == []
