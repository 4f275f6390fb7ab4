"""A restore that ended early is gone on with in its own snapshots, or begun anew; `abandon` ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from objects import runs
from objects.runs import BUCKET, KEY, Calls, Log
from objects.test_unpack import BLOCKS, DISKS, cloud, unpack

import amistore
from amistore.objects.abandonment import abandon


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with runs.nothing_left():
        yield


def begun(given: amistore.Backend, log: Log, block: int = 25) -> None:
    """A run that ends when this block is put, of 33."""
    calls = Calls(given.ebs)
    calls.fail("put_snapshot_block", block, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        unpack(given, log=log, workers=1)
    calls.fail("", 0, RuntimeError())


def facts(log: Log) -> list[dict[str, Any]]:
    return [json.loads(entry) for entry in log.entries()]


def test_segments_that_were_put_are_neither_read_nor_put_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    given, log = cloud(), Log()
    begun(given, log)
    calls = Calls(given.ebs, given.s3)
    read: list[int] = []
    get = given.s3.get_object_range

    def get_object_range(*arguments: Any, **options: Any) -> bytes:
        content = get(*arguments, **options)
        read.append(len(content))
        return content

    given.s3.get_object_range = get_object_range  # type: ignore[method-assign]
    assert runs.disks(given.ebs, unpack(given, log=log, workers=1)) == DISKS
    assert len(calls.blocks()) == BLOCKS - 24
    assert [each for each in caplog.messages if each.startswith("resuming snapshot")]
    assert sum(read) < (BLOCKS - 24 + 2) * amistore.BLOCK_SIZE + amistore.MIB
    assert len(images.leftovers(given)) == len(DISKS)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_snapshot_deleted_between_the_runs_is_started_anew(which: int) -> None:
    given, log = cloud(), Log()
    begun(given, log)
    there = [fact["snapshot"] for fact in facts(log) if "snapshot" in fact]
    given.ebs.delete_snapshot(there[which])
    calls = Calls(given.ebs)  # and this run ends before it has put a block
    calls.fail("put_snapshot_block", 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        unpack(given, log=log, workers=1)
    image = unpack(given, log=log, workers=1)
    assert runs.disks(given.ebs, image) == DISKS
    assert set(there) - set(images.leftovers(given)) == {there[which]}
    assert len(images.leftovers(given)) == len(DISKS)


def test_a_snapshot_deleted_between_the_runs_is_started_anew_in_a_directory_too(tmp_path: Path) -> None:
    """There the token of one that was deleted gives a new one of the same id."""
    store, target = cloud(), amistore.DirectoryBackend(tmp_path)
    log = Log()
    place = store.s3.at(BUCKET, KEY), target.ebs
    calls = Calls(store.s3)
    for _ in range(3):
        calls.fail("get_object_range", 10, amistore.BackendError("cut"))
        with pytest.raises(amistore.BackendError, match="cut"):
            amistore.unpack(*place, log=log, workers=1)
        first = [fact["snapshot"] for fact in facts(log) if "snapshot" in fact][-1]
        assert any("put" in fact for fact in facts(log))
        target.ebs.delete_snapshot(first)
    image = amistore.unpack(*place, log=log, workers=1)
    assert runs.disks(target.ebs, image) == DISKS
    assert len(list((tmp_path / "ebs").iterdir())) == len(DISKS)


def test_a_snapshot_that_failed_is_replaced_by_another() -> None:
    given, log = cloud(), Log()
    begun(given, log)
    (first, *_) = (fact["snapshot"] for fact in facts(log) if "snapshot" in fact)
    failed = given.ebs._snapshots[first]
    failed.description = attrs.evolve(failed.description, state="error")
    image = unpack(given, log=log, workers=1)
    assert runs.disks(given.ebs, image) == DISKS
    assert first not in image.snapshot_ids


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("number", range(1, len(DISKS) + 1))
def test_a_crash_among_completing_does_not_matter(number: int, late: bool) -> None:
    given, log = cloud(), Log()
    Calls(given.ebs).fail("complete_snapshot", number, KeyboardInterrupt(), late=late)
    with pytest.raises(KeyboardInterrupt):
        unpack(given, log=log)
    check_only_the_end_is_left(given, log)


def test_a_crash_before_the_log_is_cleared_does_not_matter() -> None:
    given, log = cloud(), Log()
    Calls(log).fail("clear", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        unpack(given, log=log)
    assert {given.ebs.describe_snapshot(each).state for each in images.leftovers(given)} == {"completed"}
    check_only_the_end_is_left(given, log)


def check_only_the_end_is_left(given: amistore.MemoryBackend, log: Log) -> None:
    """The next run ends it in the snapshots that are there, and puts no block."""
    before = images.leftovers(given)
    calls = Calls(given.ebs)
    assert runs.disks(given.ebs, unpack(given, log=log)) == DISKS
    assert images.leftovers(given) == before
    assert calls.blocks() == []
    assert log.entries() == []


def test_an_object_replaced_between_the_runs_is_refused_and_the_log_kept() -> None:
    given, log = cloud(), Log()
    begun(given, log)
    entries, there = log.entries(), images.leftovers(given)
    given.s3.put_object(BUCKET, KEY, [runs.expected(level=1)])
    with pytest.raises(amistore.SourceChangedError, match="abandon"):
        unpack(given, log=log)
    assert (log.entries(), images.leftovers(given)) == (entries, there)
    given.s3.put_object(BUCKET, KEY, [runs.expected()])
    assert runs.disks(given.ebs, unpack(given, log=log)) == DISKS


def test_a_log_of_another_request_is_refused_and_kept() -> None:
    given, log = cloud(), Log()
    given.s3.put_object(BUCKET, "other", [runs.expected()])
    begun(given, log)
    entries = log.entries()
    with pytest.raises(amistore.InvalidRequestError, match="whose key is"):
        amistore.unpack(given.s3.at(BUCKET, "other"), given.ebs, log=log)
    with pytest.raises(amistore.InvalidRequestError, match="whose snapshots is"):
        unpack(given, log=log, snapshots=list(runs.source().volumes))
    packing = Log()
    Calls(given.s3).fail("upload_part", 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.store(runs.IMAGE, runs.source(), given.s3.at(BUCKET, "new"), log=packing)
    with pytest.raises(amistore.InvalidRequestError, match="not to restoring"):
        unpack(given, log=packing)
    assert log.entries() == entries


def test_a_resumed_restore_with_other_snapshot_tags_is_refused_and_the_same_go_on() -> None:
    given, log = cloud(), Log()
    tags = [amistore.Tag(key="Team", value="web"), amistore.Tag(key="Cost")]
    place = given.s3.at(BUCKET, KEY)
    Calls(given.ebs).fail("put_snapshot_block", 25, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.restore(place, given, name="web-2", snapshot_tags=tags, log=log, workers=1)
    entries = log.entries()
    for others in ([], tags[:1], [amistore.Tag(key="Team", value="db"), tags[1]]):
        with pytest.raises(amistore.InvalidRequestError, match=r"a run whose tags is .*'Team': 'web'"):
            amistore.restore(place, given, name="web-2", snapshot_tags=others, log=log)
        assert log.entries() == entries
    restored = amistore.restore(place, given, name="web-2", snapshot_tags=tags[::-1], log=log)
    assert len(images.leftovers(given)) == len(restored.image.snapshot_ids)
    for snapshot_id in restored.image.snapshot_ids:
        assert set(tags) <= set(given.ebs.describe_snapshot(snapshot_id).tags)


def test_blocks_that_a_sink_has_lost_end_the_run_which_begins_anew() -> None:
    """As a power cut does to blocks that were not on the disk yet."""
    given, log = cloud(), Log()
    begun(given, log)
    (first, *_) = (fact["snapshot"] for fact in facts(log) if "snapshot" in fact)
    for kept in (given.ebs._snapshots[first].blocks, given.ebs._snapshots[first].digests):
        kept.pop(0)
    with pytest.raises(amistore.ChecksumMismatchError):
        unpack(given, log=log)
    assert images.leftovers(given) == log.entries() == []
    assert runs.disks(given.ebs, unpack(given, log=log)) == DISKS


def test_a_directorys_blocks_that_a_power_cut_took_end_the_run_though_their_digests_are_there(
    tmp_path: Path,
) -> None:
    store, log = cloud(), Log()
    calls = Calls(store.s3)
    calls.fail("get_object_range", 10, amistore.BackendError("cut"))
    place = store.s3.at(BUCKET, KEY)
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.unpack(place, amistore.DirectoryBackend(tmp_path).ebs, log=log, workers=1)
    first = next(fact["snapshot"] for fact in facts(log) if "snapshot" in fact)
    with (tmp_path / "ebs" / first / "disk.raw").open("r+b") as disk:  # the last of what was written
        index = min(DISKS[0][1])
        disk.seek(index * amistore.BLOCK_SIZE)
        disk.write(bytes(4096))
    after = amistore.DirectoryBackend(tmp_path)  # as another process has it
    with pytest.raises(amistore.ChecksumMismatchError, match="power cut") as caught:
        amistore.unpack(place, after.ebs, log=log, workers=1)
    assert caught.value.retryable
    assert list((tmp_path / "ebs").iterdir()) == log.entries() == []
    image = amistore.unpack(place, after.ebs, log=log, workers=1)
    assert runs.disks(after.ebs, image) == DISKS


def test_a_directory_that_was_moved_is_gone_on_with(tmp_path: Path) -> None:
    store, log = cloud(), Log()
    calls = Calls(store.s3)
    calls.fail("get_object_range", 10, amistore.BackendError("cut"))
    place = store.s3.at(BUCKET, KEY)
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.unpack(place, amistore.DirectoryBackend(tmp_path / "old").ebs, log=log, workers=1)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    moved = amistore.DirectoryBackend(tmp_path / "link")
    image = amistore.unpack(place, moved.ebs, log=log, workers=1)
    assert runs.disks(moved.ebs, image) == DISKS
    assert len(list((tmp_path / "new" / "ebs").iterdir())) == len(DISKS)


def test_abandoning_a_restore_deletes_its_snapshots_and_clears_the_log() -> None:
    given, log = cloud(), Log()
    other = images.snapshot(given.ebs, 1, {})
    begun(given, log)
    gone = facts(log)[2]["snapshot"]
    given.ebs.delete_snapshot(gone)
    abandon(log, given)
    assert images.leftovers(given) == [other]
    assert log.entries() == []
    abandon(log, given)
    assert runs.disks(given.ebs, unpack(given, log=log)) == DISKS


def test_abandoning_a_packing_aborts_its_upload_and_clears_the_log() -> None:
    for gone in (False, True):
        given, log = runs.cloud(), Log()
        other = given.s3.create_multipart_upload(BUCKET, KEY)
        Calls(given.s3).fail("upload_part", 3, amistore.BackendError("cut"))
        with pytest.raises(amistore.BackendError, match="cut"):
            runs.store(runs.source(), given.s3, log=log)
        if gone:
            upload_id = json.loads(log.entries()[1])["upload"]
            given.s3.abort_multipart_upload(BUCKET, KEY, upload_id)
        abandon(log, given)
        assert [upload.upload_id for upload in given.s3.list_multipart_uploads(BUCKET)] == [other]
        assert log.entries() == []
        runs.store(runs.source(), given.s3, log=log)


@pytest.mark.parametrize(
    ("kind", "verb"), [("pack", "abort_multipart_upload"), ("unpack", "delete_snapshot")]
)
def test_abandoning_that_fails_keeps_the_log_to_try_again(kind: str, verb: str) -> None:
    given, log = cloud(), Log()
    if kind == "unpack":
        begun(given, log)
    else:
        given.s3.delete_object(BUCKET, KEY)
        Calls(given.s3).fail("upload_part", 3, amistore.BackendError("cut"))
        with pytest.raises(amistore.BackendError, match="cut"):
            runs.store(runs.source(), given.s3, log=log)
    entries = log.entries()
    calls = Calls(given.ebs, given.s3)
    calls.fail(verb, 1, RuntimeError("fault"))
    with pytest.raises(amistore.BackendError, match="fault"):
        abandon(log, given)
    assert log.entries() == entries
    abandon(log, given)
    assert images.leftovers(given) == given.s3.list_multipart_uploads(BUCKET) == log.entries() == []


def test_abandoning_leaves_a_snapshot_that_is_not_what_the_log_says() -> None:
    given, log = cloud(), Log()
    begun(given, log)
    foreign = images.snapshot(given.ebs, 7, {})
    forged = [{**fact, "snapshot": foreign} if "snapshot" in fact else fact for fact in facts(log)]
    log = Log([json.dumps(fact).encode() for fact in forged])
    with pytest.raises(amistore.InvalidRequestError, match=foreign):
        abandon(log, given)
    assert foreign in images.leftovers(given)
    assert log.entries()


def test_a_forged_entry_deletes_no_pending_snapshot_of_another_run(tmp_path: Path) -> None:
    for given in (cloud(), amistore.DirectoryBackend(tmp_path / "cloud")):
        if isinstance(given, amistore.DirectoryBackend):
            given.s3.create_bucket(BUCKET)
            given.s3.put_object(BUCKET, KEY, [cloud().s3.get_object_range(BUCKET, KEY, 0, 1 << 30)])
        log = Log()
        begun(given, log)
        first = facts(log)[2]
        foreign = given.ebs.start_snapshot(first["size"] // amistore.GIB, client_token="another run's")
        entries = [{**fact, "snapshot": foreign} if fact == first else fact for fact in facts(log)]
        log = Log([json.dumps(fact).encode() for fact in entries])
        with pytest.raises(amistore.InvalidRequestError, match=f"{foreign} is not the snapshot that the run"):
            abandon(log, given)
        assert given.ebs.describe_snapshot(foreign).state == "pending"
        assert log.entries()


@pytest.mark.parametrize(
    "entries",
    [
        [b"{}"],
        [b"[]"],
        [b'{"kind":"other"}', b'{"snapshot":"snap-1"}'],
        [b'{"kind":"pack"}', b'{"upload":"upload-1"}'],
        [b'{"kind":"unpack"}', b"x"],
    ],
)
def test_abandoning_refuses_a_damaged_log(entries: list[bytes]) -> None:
    log = Log(entries)
    with pytest.raises(amistore.InvalidRequestError, match="damaged"):
        abandon(log, cloud())
    assert log.entries() == entries


def test_abandoning_by_a_log_whose_second_header_is_damaged_is_refused() -> None:
    log = Log([b'{"kind":"pack","task":"x"}', b'{"kind":[]}'])
    with pytest.raises(amistore.InvalidRequestError, match="damaged"):
        abandon(log, cloud())
    assert log.entries()


def test_abandoning_a_restore_whose_entry_lacks_the_size_deletes_nothing() -> None:
    given = cloud()
    there = images.snapshot(given.ebs, 1, {})
    log = Log([b'{"kind":"unpack"}', json.dumps({"snapshot": there}).encode()])
    with pytest.raises(amistore.InvalidRequestError, match="damaged"):
        abandon(log, given)
    assert images.leftovers(given) == [there]
