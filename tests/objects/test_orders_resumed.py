"""A `store` by orders that ended early is gone on with: the same bytes, and no part of its log sent again."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
from deaths import Processes
from hypothesis import given, settings
from hypothesis import strategies as st
from objects import ordered, runs
from objects.ordered import RESUMED as CASE
from objects.runs import BUCKET, KEY, Calls, Log
from objects.test_forged_logs import altered, altered_digest

import amistore
from amistore.backends import StoreTraits
from amistore.objects.partlog import ByOrders
from amistore.objects.resumelog import read_entry

# Python 3.12 warns of threads at a fork, which a pool of processes may be.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

LONG = bool(os.environ.get("AMISTORE_LONG"))


@pytest.fixture(autouse=True)
def _parts_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    ordered.short_parts(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with runs.nothing_left():
        yield


@functools.cache
def expected() -> bytes:
    return CASE.expected()


def uploads(cloud: amistore.Backend) -> list[amistore.backends.MultipartUpload]:
    return cloud.s3.list_multipart_uploads(BUCKET)


def parts_by_entry(log: amistore.ResumeLog) -> list[set[int]]:
    """The parts of each entry that counts."""
    entries = ByOrders().latest(log.entries()[2:])
    return [{part["part"] for part in read_entry(entry)["parts"]} for entry in entries]


def logged(log: amistore.ResumeLog) -> set[int]:
    """The parts that a log has."""
    return {part for parts in parts_by_entry(log) for part in parts}


VERBS = [
    ("list_snapshot_blocks", 1),
    ("get_snapshot_block", 1),
    ("head_object", 1),
    ("create_multipart_upload", 1),
    ("upload_part", 1),
    ("list_parts", 1),
    ("complete_multipart_upload", 1),
    ("get_object_range", 1),
    ("entries", 1),
    ("append", 1),
    ("clear", 1),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("verb", "step"), VERBS)
def test_after_an_error_at_any_call_the_next_run_goes_on(verb: str, step: int, late: bool) -> None:
    number = 1
    while True:
        cloud, source, log = runs.cloud(), CASE.source(), Log()
        calls = Calls(cloud.s3, source, log)
        calls.fail(verb, number, RuntimeError("fault"), late=late)
        try:
            ordered.store(CASE, source, cloud.s3, ordered.Inline(), log=log)
            done = True
        except (amistore.BackendError, RuntimeError) as error:
            assert "fault" in str(error)
            done = verb == "clear" and late
        if not calls.failed:
            break
        calls.fail("", 0, RuntimeError())
        there = logged(log)
        if not done:
            ordered.store(CASE, source, cloud.s3, ordered.Inline(), log=log)
        assert not there & set(calls.parts())
        assert runs.stored(cloud.s3) == expected()
        # The id of an upload whose creation was not answered is known to nobody.
        assert len(uploads(cloud)) == (verb == "create_multipart_upload" and late)
        assert log.entries() == []
        number += step
    assert number > 1


@pytest.mark.parametrize("verb", ["list_parts", "upload_part", "append", "complete_multipart_upload"])
def test_runs_that_go_on_may_end_early_too(verb: str) -> None:
    number = 1
    while True:
        cloud, log = runs.cloud(), Log()
        begun(cloud, log, 8)
        there = logged(log)
        calls = Calls(cloud.s3, log)
        calls.fail(verb, number, RuntimeError("fault"))
        try:
            CASE.store(cloud.s3, ordered.Inline(), log=log)
        except (amistore.BackendError, RuntimeError) as error:
            assert "fault" in str(error)
        if not calls.failed:
            break
        CASE.store(cloud.s3, ordered.Inline(), log=log)
        assert not there & set(calls.parts())
        assert runs.stored(cloud.s3) == expected()
        assert uploads(cloud) == log.entries() == []
        number += 1
    assert number > 1


def begun(cloud: amistore.MemoryBackend, log: Log, part: int) -> None:
    """A run that ends when so many parts are to be sent."""
    Calls(cloud.s3).fail("upload_part", part, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        CASE.store(cloud.s3, ordered.Inline(), log=log)
    assert logged(log)


def test_what_other_orders_made_is_in_the_log_after_an_error_or_an_interrupt() -> None:
    case = ordered.Case((ordered.noise(1), ordered.noise(1, 5), ordered.noise(1, 9)), CASE.layout, 100_000)
    for error in (amistore.BackendError("cut"), KeyboardInterrupt()):
        cloud, log, source = runs.cloud(), Log(), case.source()
        calls = Calls(source)
        calls.fail("get_snapshot_block", 1, error)
        with ThreadPoolExecutor(1) as executor, pytest.raises(type(error)):
            ordered.store(case, source, cloud.s3, executor, log=log, workers=3)
        there = logged(log)
        assert len(there) == 12
        calls, read = Calls(cloud.s3), Calls(source)
        ordered.store(case, source, cloud.s3, ordered.Inline(), log=log)
        assert not there & set(calls.parts())
        assert read.made["get_snapshot_block"] == 1
        assert runs.stored(cloud.s3) == case.expected()


def test_blocks_of_orders_that_are_there_are_not_read_again_and_progress_counts_them() -> None:
    cloud, log, source = runs.cloud(), Log(), CASE.source()
    Calls(cloud.s3).fail("complete_multipart_upload", 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        CASE.store(cloud.s3, ordered.Inline(), log=log)
    calls, seen = Calls(source), []
    ordered.store(CASE, source, cloud.s3, ordered.Inline(), log=log, progress=seen.append)
    # Of the last order, which is too small for a part: it went with the tail.
    assert calls.made["get_snapshot_block"] == len(CASE.volumes[-1])
    blocks = sum(map(len, CASE.volumes))
    assert [each.blocks for each in seen if each.total_blocks][-1] == blocks
    assert runs.stored(cloud.s3) == expected()


@pytest.mark.parametrize("part", [1, 2, 6, 7, 12, 13])
def test_a_part_that_is_not_there_any_more_is_sent_again(part: int) -> None:
    cloud, log = runs.cloud(), Log()
    Calls(cloud.s3).fail("complete_multipart_upload", 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        CASE.store(cloud.s3, ordered.Inline(), log=log)
    [upload] = uploads(cloud)
    kept = cloud.s3._uploads[BUCKET, KEY, upload.upload_id].parts
    lost = sorted(logged(log))[part - 1]
    del kept[lost]
    others = logged(log) - {each for of_entry in parts_by_entry(log) if lost in of_entry for each in of_entry}
    calls = Calls(cloud.s3)
    CASE.store(cloud.s3, ordered.Inline(), log=log)
    assert lost in calls.parts() and not others & set(calls.parts())
    assert runs.stored(cloud.s3) == expected()
    assert uploads(cloud) == log.entries() == []


def test_an_object_completed_before_the_crash_is_given_once_it_is_proved() -> None:
    cloud, log = runs.cloud(), Log()
    Calls(log).fail("clear", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        CASE.store(cloud.s3, ordered.Inline(), log=log)
    calls, executor = Calls(cloud.s3), ordered.Inline()
    seen: list[amistore.Progress] = []
    assert runs.is_there(CASE.store(cloud.s3, executor, log=log, progress=seen.append))
    assert seen[-1].blocks == seen[-1].total_blocks == sum(map(len, CASE.volumes))
    assert calls.parts() == executor.orders == log.entries() == []


@pytest.mark.parametrize("by_orders", [True, False])
def test_a_log_goes_on_as_it_began_with_and_without_an_executor(by_orders: bool) -> None:
    cloud, log = runs.cloud(), Log()
    calls = Calls(cloud.s3)
    calls.fail("complete_multipart_upload", 1, amistore.BackendError("cut"))
    first, second = (ordered.Inline(), None) if by_orders else (None, ordered.Inline())
    with pytest.raises(amistore.BackendError, match="cut"):
        CASE.store(cloud.s3, first, log=log)
    calls.fail("", 0, ValueError())
    CASE.store(cloud.s3, second, log=log)
    assert len(calls.parts()) == 1  # that of the tail
    assert runs.stored(cloud.s3) == expected()
    assert uploads(cloud) == []


def test_a_run_goes_on_with_the_size_of_parts_of_its_log_where_no_other_is_asked_for() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log, 8)
    calls = Calls(cloud.s3)
    CASE.store(cloud.s3, ordered.Inline(), log=log, options=attrs.evolve(CASE.options, part_size=None))
    sizes = {arguments[3]: len(arguments[4]) for verb, arguments in calls.seen if verb == "upload_part"}
    assert list(sizes.values()).count(100_000) > 1
    assert runs.stored(cloud.s3) == expected()


def test_a_store_that_takes_other_parts_now_is_refused() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log, 8)
    cloud.s3.traits = StoreTraits(least_part=1, most_parts=1000)
    with pytest.raises(amistore.InvalidRequestError, match="which the store does not take now"):
        CASE.store(cloud.s3, ordered.Inline(), log=log)


def test_an_upload_that_is_gone_is_started_over() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log, 8)
    cloud.s3.abort_multipart_upload(BUCKET, KEY, uploads(cloud)[0].upload_id)
    CASE.store(cloud.s3, ordered.Inline(), log=log)
    assert runs.stored(cloud.s3) == expected()
    assert uploads(cloud) == log.entries() == []


def test_a_run_that_was_begun_is_abandoned() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log, 8)
    amistore.abandon(log, cloud)
    assert uploads(cloud) == log.entries() == []


# Forged logs.


@functools.cache
def made_but_for_completion() -> tuple[dict[Any, Any], list[bytes]]:
    """The upload and the log of a run whose completion failed."""
    cloud, log = runs.cloud(), Log()
    Calls(cloud.s3).fail("complete_multipart_upload", 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        CASE.store(cloud.s3, ordered.Inline(), log=log, workers=1)  # the first order's entry is the first
    return cloud.s3._uploads, log.entries()


def gone_on_with(entries: list[bytes]) -> amistore.AmistoreError | None:
    """Go on with a log: the object is right, or an error is typed and no object there."""
    cloud = runs.cloud()
    cloud.s3._uploads.update(copy.deepcopy(made_but_for_completion()[0]))
    try:
        CASE.store(cloud.s3, ordered.Inline(), log=Log(entries))
    except amistore.AmistoreError as error:
        assert runs.stored(cloud.s3) is None
        return error
    assert runs.stored(cloud.s3) == expected()
    return None


def parts_of(entry: bytes, **facts: Any) -> list[dict[str, Any]]:
    """An entry's parts, with some facts of the first one altered."""
    first, *others = read_entry(entry)["parts"]
    return [{**first, **facts}, *others]


def records(entry: bytes) -> bytes:
    return entry.partition(b"\n")[2]


def facts(entry: bytes) -> bytes:
    return entry.partition(b"\n")[0]


Entries = list[bytes]
FORGERIES: dict[str, Callable[[Entries], Entries]] = {
    "the upload's entry dropped": lambda e: [e[0], *e[2:]],
    "an order dropped": lambda e: [*e[:2], *e[3:]],
    "the last dropped": lambda e: e[:-1],
    "orders swapped": lambda e: [*e[:2], *reversed(e[2:])],
    "all orders twice": lambda e: [*e, *e[2:]],
    "orders beyond the plan": lambda e: [*e, altered(e[2], orders=[500, 501])],
    "an order that is none": lambda e: [*e[:2], altered(e[2], orders=[-1, -1]), *e[3:]],
    "more orders than parts": lambda e: [*e[:2], altered(e[2], orders=[0, 10**9]), *e[3:]],
    "orders that end before they begin": lambda e: [*e, altered(e[2], orders=[1, 0])],
    "orders that are no numbers": lambda e: [*e, altered(e[2], orders=["0", True])],
    "one order": lambda e: [*e, altered(e[2], orders=[0])],
    "no orders": lambda e: [*e[:2], facts(e[0]), *e[3:]],
    "another order's number": lambda e: [*e[:2], altered(e[2], orders=[1, 1]), *e[3:]],
    "the records of another order": lambda e: [*e[:2], facts(e[2]) + b"\n" + records(e[-1]), *e[3:]],
    "no records": lambda e: [*e[:2], facts(e[2]), *e[3:]],
    "records cut": lambda e: [*e[:2], e[2][:-1], *e[3:]],
    "a digest altered": lambda e: [*e[:2], altered_digest(e[2], 0), *e[3:]],
    "no parts": lambda e: [*e[:2], altered(e[2], parts=[]), *e[3:]],
    "parts that are no list": lambda e: [*e[:2], altered(e[2], parts={"part": 1}), *e[3:]],
    "parts that are no parts": lambda e: [*e[:2], altered(e[2], parts=[1, "x"]), *e[3:]],
    "another etag": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[2], etag="0" * 32)), *e[3:]],
    "another size": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[2], size=1)), *e[3:]],
    "a size that is none": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[2], size=None)), *e[3:]],
    "another number": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[2], part=2)), *e[3:]],
    "a number of no part": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[2], part=-5)), *e[3:]],
    "the parts of another order": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[-2])), *e[3:]],
    "a part left out": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[2])[1:]), *e[3:]],
    "a part twice": lambda e: [*e[:2], altered(e[2], parts=parts_of(e[2]) * 2), *e[3:]],
    "tiny parts": lambda e: [altered(e[0], part_size=1), *e[1:]],
    "huge parts": lambda e: [altered(e[0], part_size=5 * amistore.GIB), *e[1:]],
    "other orders": lambda e: [altered(e[0], orders=[5, 5]), *e[1:]],
    "an unknown upload": lambda e: [e[0], altered(e[1], upload="upload-0"), *e[2:]],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_log_gives_no_other_object(forgery: str) -> None:
    entries = made_but_for_completion()[1]
    forged = FORGERIES[forgery](entries)
    assert forged != entries
    gone_on_with(forged)


@pytest.mark.parametrize("size", [1, 3999, 5 * amistore.GIB])
def test_a_forged_size_of_parts_is_refused_where_no_other_is_asked_for(size: int) -> None:
    header, *others = made_but_for_completion()[1]
    cloud, log = runs.cloud(), Log([altered(header, part_size=size), *others])
    cloud.s3._uploads.update(copy.deepcopy(made_but_for_completion()[0]))
    executor = ordered.Inline()
    with pytest.raises(amistore.InvalidRequestError, match="parts cannot have its size"):
        CASE.store(cloud.s3, executor, log=log, options=attrs.evolve(CASE.options, part_size=None))
    assert executor.orders == []


def test_a_forged_digest_is_found() -> None:
    entries = made_but_for_completion()[1]
    counts = ByOrders().latest(entries[2:])[0]  # not replaced by that of joined orders
    at = entries.index(counts)
    error = gone_on_with([*entries[:at], altered_digest(counts, 0), *entries[at + 1 :]])
    assert isinstance(error, amistore.CorruptArchiveError)


numbers = st.integers(-1, 20) | st.sampled_from([10**9, 9_999, 10_000, True, None, "1", 1.5])
junk = st.recursive(
    numbers | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
)


@settings(max_examples=300 if LONG else 25)
@given(st.data())
def test_an_entry_of_any_facts_gives_no_other_object(data: st.DataObject) -> None:
    entries = list(made_but_for_completion()[1])
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(2, len(entries) - 1))
        said = read_entry(entries[at])
        name = data.draw(st.sampled_from(["orders", "parts", "part"]))
        if name == "part" and isinstance(said["parts"], list) and said["parts"]:
            part = data.draw(st.integers(0, len(said["parts"]) - 1))
            fact = data.draw(st.sampled_from(["part", "size", "etag", "checksum"]))
            if isinstance(said["parts"][part], dict):
                said["parts"][part][fact] = data.draw(numbers)
        elif name == "orders":
            said["orders"] = data.draw(st.lists(numbers, min_size=2, max_size=2) | junk)
        else:
            said["parts"] = data.draw(junk)
        entries[at] = json.dumps(said).encode() + b"\n" + records(entries[at])
    gone_on_with(entries)


# Processes that die.


def test_a_run_whose_pool_lost_a_process_is_gone_on_with_by_another_pool(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path / "cloud")
    cloud.s3.create_bucket(BUCKET)
    with amistore.FileResumeLog(tmp_path / "log") as log:
        dying = ordered.Dying(CASE.volumes, 3, tmp_path / "killed")
        lost = pytest.raises(amistore.ResourcesExhaustedError, match="a run with a log goes on with another")
        with ProcessPoolExecutor(1, initializer=ordered.short_parts) as pool, lost:
            ordered.store(CASE, dying, cloud.s3, pool, log=log)
        there = logged(log)
        assert there
        calls = Calls(cloud.s3)
        with ThreadPoolExecutor(2) as threads:
            ordered.store(CASE, dying, cloud.s3, threads, log=log)
    assert not there & set(calls.parts())
    assert runs.stored(cloud.s3) == expected()
    assert uploads(cloud) == []


PLACES = [
    ("create_multipart_upload", 1),
    ("complete_multipart_upload", 1),
    ("clear", 1),
    *(("upload_part", number) for number in (range(1, 20) if LONG else (8,))),
    *(("append", number) for number in (range(1, 8) if LONG else (3, 5))),
]


def test_a_run_that_dies_around_any_step_is_gone_on_with(tmp_path: Path) -> None:
    with Processes("objects.killable") as processes:
        for number, (verb, count) in enumerate(PLACES):
            for when in ("before", "after"):
                root = tmp_path / f"{number} {when}"
                cloud = amistore.DirectoryBackend(root)
                cloud.s3.create_bucket(BUCKET)
                code, _ = processes.run("orders", str(root), die=[when, verb, count])
                assert code == 9, (when, verb, count)
                there = set()
                if (root / "run.log").exists():
                    with amistore.FileResumeLog(root / "run.log") as log:
                        there = logged(log)
                if (when, verb) != ("after", "clear"):
                    code, lines = processes.run("orders", str(root))
                    assert code == 0, lines[-1]
                    sent = {int(line[2]) for line in lines if line[:2] == ["begin", "upload_part"]}
                    assert not there & sent, (when, verb, count)
                assert runs.stored(cloud.s3) == expected()
                for upload in uploads(cloud):  # whose id nobody knows
                    assert cloud.s3.list_parts(BUCKET, KEY, upload.upload_id) == []
                assert not (root / "run.log").exists()
