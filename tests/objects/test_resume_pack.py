"""A `store` that ended early is resumed: the same bytes, and little sent twice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import images
import pytest
from objects import runs
from objects.runs import BUCKET, IMAGE, KEY, Calls, Log
from objects.test_unpack import LONG

import amistore


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with runs.nothing_left():
        yield


def uploads(cloud: amistore.Backend) -> list[amistore.backends.MultipartUpload]:
    return cloud.s3.list_multipart_uploads(BUCKET)


def begun(cloud: amistore.MemoryBackend, log: Log, part: int = 4, **options: Any) -> None:
    """A run that ends when this part is sent; those before it are in the log."""
    calls = Calls(cloud.s3)
    calls.fail("upload_part", part, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        runs.store(runs.source(), cloud.s3, log=log, workers=1, **options)
    assert len(log.entries()) == 2 + part - 1


VERBS = [
    ("list_snapshot_blocks", 1),
    ("get_snapshot_block", 3),  # each is like the one before it
    ("head_object", 1),
    ("create_multipart_upload", 1),
    ("upload_part", 1),
    ("complete_multipart_upload", 1),
    ("get_object_range", 1),
    ("entries", 1),
    ("append", 1),
    ("clear", 1),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("verb", "step"), VERBS)
def test_after_an_error_at_any_call_the_next_run_goes_on(verb: str, step: int, late: bool) -> None:
    number, workers, worst = 1, 2, 0
    while True:
        cloud, given, log = runs.cloud(), runs.source(), Log()
        calls = Calls(cloud.s3, given, log)
        calls.fail(verb, number, RuntimeError("fault"), late=late)
        try:
            with runs.nothing_left():
                runs.store(given, cloud.s3, log=log, workers=workers)
            done = True
        except (amistore.BackendError, RuntimeError) as error:
            assert "fault" in str(error)
            done = verb == "clear" and late
        if not calls.failed:
            break
        first = [part for part in calls.parts() if not (verb == "upload_part" and part == number)]
        calls.fail("", 0, RuntimeError())
        if not done:
            runs.store(given, cloud.s3, log=log, workers=workers)
        again = set(first) & set(calls.parts())
        assert len(again) <= workers
        worst = max(worst, len(again))
        assert runs.stored(cloud.s3) == runs.expected()
        # The id of an upload whose creation was not answered is known to nobody.
        assert len(uploads(cloud)) == (verb == "create_multipart_upload" and late)
        assert log.entries() == []
        number += step
    assert number > 1
    print(f"{verb}: {number - 1} calls, parts sent again at worst: {worst}")


@pytest.mark.parametrize("verb", ["list_parts", "upload_part", "head_object", "complete_multipart_upload"])
def test_runs_that_go_on_may_end_early_too(verb: str) -> None:
    number = 1
    while True:
        cloud, log = runs.cloud(), Log()
        begun(cloud, log, 3)
        calls = Calls(cloud.s3)
        calls.fail(verb, number, RuntimeError("fault"))
        try:
            runs.store(runs.source(), cloud.s3, log=log)
        except (amistore.BackendError, RuntimeError) as error:
            assert "fault" in str(error)
        if not calls.failed:
            break
        runs.store(runs.source(), cloud.s3, log=log)
        assert not {1, 2} & set(calls.parts())
        assert runs.stored(cloud.s3) == runs.expected()
        assert uploads(cloud) == log.entries() == []
        number += 1
    assert number > 1


def test_blocks_of_parts_that_were_sent_are_not_read_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cloud, log, given = runs.cloud(), Log(), runs.source()
    begun(cloud, log)
    calls = Calls(given)
    runs.store(given, cloud.s3, log=log)
    read = [arguments[1] for verb, arguments in calls.seen if verb == "get_snapshot_block"]
    assert sorted(read) == [
        4010,
        4011,
        4012,
    ]  # of the segment that ends in the last part, and the one behind it
    assert [each for each in caplog.messages if each.startswith("resuming ") and each.endswith("uploaded")]
    assert runs.stored(cloud.s3) == runs.expected()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupt_in_progress_ends_a_run_which_can_be_gone_on_with(workers: int) -> None:
    for number in range(1, 22) if LONG else (*range(1, 6), 8, 11, 14, 17, 20, 21):
        cloud, log = runs.cloud(), Log()
        countdown = [number]

        def progress(_: amistore.Progress, countdown: list[int] = countdown) -> None:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise KeyboardInterrupt

        given = log if number % 2 else None
        if number > 20:  # there are 3 pages and 17 segments
            runs.store(runs.source(), cloud.s3, log=given, workers=workers, progress=progress)
            continue
        with runs.nothing_left(), pytest.raises(KeyboardInterrupt):
            runs.store(runs.source(), cloud.s3, log=given, workers=workers, progress=progress)
        assert runs.stored(cloud.s3) is None
        if given is None:
            assert uploads(cloud) == []
            continue
        runs.store(runs.source(), cloud.s3, log=log, workers=workers)
        assert runs.stored(cloud.s3) == runs.expected()
        assert uploads(cloud) == log.entries() == []


def test_a_log_of_one_snapshot_does_not_go_on_with_another_that_is_alike() -> None:
    cloud, log = runs.cloud(), Log()
    given = images.Volumes([runs.VOLUMES[0]] * 2)
    first, second = given.volumes
    image = images.image(given.volumes)
    calls = Calls(cloud.s3)
    calls.fail("upload_part", 2, OSError("gone"))
    pack = functools.partial(
        amistore.store,
        image,
        given,
        cloud.s3.at(BUCKET, KEY),
        log=log,
        workers=1,
        options=runs.PACKING,
    )
    with pytest.raises(amistore.BackendError, match="gone"):
        pack(snapshots=[first])
    entries = log.entries()
    assert len(entries) > 2
    with pytest.raises(amistore.SourceChangedError, match="abandon"):
        pack(snapshots=[second])
    assert log.entries() == entries
    pack(snapshots=[first])
    assert calls.parts() == [1, 2, 2]
    assert runs.stored(cloud.s3) == b"".join(
        amistore.pack(image, given, snapshots=[first], options=runs.PACKING)
    )


def test_a_source_that_changed_between_runs_is_refused_and_the_log_kept() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log)
    entries = log.entries()
    changed = images.Volumes([(1, {**runs.VOLUMES[0][1], 7: images.noise(7)}), *runs.VOLUMES[1:]])
    for given, image in [(changed, IMAGE), (runs.source(), attrs.evolve(IMAGE, description="other"))]:
        with pytest.raises(amistore.SourceChangedError, match="abandon"):
            amistore.store(
                image,
                given,
                cloud.s3.at(BUCKET, KEY),
                log=log,
                options=runs.PACKING,
            )
    with pytest.raises(amistore.SourceChangedError):
        runs.store(runs.source(), cloud.s3, log=log, options=amistore.PackOptions(layout=images.SMALL))
    assert log.entries() == entries
    assert len(uploads(cloud)) == 1
    runs.store(runs.source(), cloud.s3, log=log)
    assert runs.stored(cloud.s3) == runs.expected()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"level": 4}, "level"),
        ({"bucket": "other"}, "bucket"),
        ({"key": "b"}, "key"),
        ({"image": 1}, "image"),
    ],
)
def test_a_log_of_another_request_is_refused_and_kept(options: dict[str, Any], what: str) -> None:
    cloud, log = runs.cloud(), Log()
    cloud.s3.create_bucket("other")
    begun(cloud, log)
    entries = log.entries()
    image = attrs.evolve(IMAGE, image_id="ami-0000000a") if options.pop("image", None) else IMAGE
    level = options.pop("level", 3)
    place = {"bucket": BUCKET, "key": KEY, **options}
    with pytest.raises(amistore.InvalidRequestError, match=f"whose {what} is"):
        amistore.store(
            image,
            runs.source(),
            cloud.s3.at(**place),
            log=log,
            options=runs.PACKING,
            level=level,
        )
    assert log.entries() == entries
    assert len(uploads(cloud)) == 1


def test_a_log_of_restoring_is_refused() -> None:
    cloud = runs.cloud()
    cloud.s3.put_object(BUCKET, KEY, [runs.expected()])
    log = Log()
    Calls(cloud.ebs).fail("complete_snapshot", 1, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.unpack(cloud.s3.at(BUCKET, KEY), cloud.ebs, log=log)
    with pytest.raises(amistore.InvalidRequestError, match="not to storing"):
        runs.store(runs.source(), cloud.s3, log=log, overwrite=True)
    assert log.entries()


def test_an_upload_that_is_gone_is_started_over() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log)
    cloud.s3.abort_multipart_upload(BUCKET, KEY, uploads(cloud)[0].upload_id)
    runs.store(runs.source(), cloud.s3, log=log)
    assert runs.stored(cloud.s3) == runs.expected()
    assert uploads(cloud) == log.entries() == []


def test_an_upload_that_is_gone_where_another_object_stands_is_refused() -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log)
    cloud.s3.abort_multipart_upload(BUCKET, KEY, uploads(cloud)[0].upload_id)
    cloud.s3.put_object(BUCKET, KEY, [b"theirs"])
    with pytest.raises(amistore.AlreadyExistsError):
        runs.store(runs.source(), cloud.s3, log=log)
    assert runs.stored(cloud.s3) == b"theirs"


def lost(cloud: amistore.MemoryBackend, upload_id: str, part: int) -> None:
    cloud.s3._uploads[BUCKET, KEY, upload_id].parts.pop(part)


def replaced(cloud: amistore.MemoryBackend, upload_id: str, part: int) -> None:
    cloud.s3.upload_part(BUCKET, KEY, upload_id, part, b"something else")


@pytest.mark.parametrize("part", [1, 2, 3])
@pytest.mark.parametrize("happened", [lost, replaced])
def test_a_part_that_is_not_there_any_more_is_sent_again_in_any_number_of_runs(
    happened: Callable[[amistore.MemoryBackend, str, int], None], part: int
) -> None:
    cloud, log = runs.cloud(), Log()
    begun(cloud, log)
    for _ in range(3):
        happened(cloud, uploads(cloud)[0].upload_id, part)
        calls = Calls(cloud.s3)
        calls.fail("upload_part", 4 - part + 1, amistore.BackendError("cut"))  # the last one
        with pytest.raises(amistore.BackendError, match="cut"):
            runs.store(runs.source(), cloud.s3, log=log, workers=1)
        assert calls.parts() == list(range(part, 5))
    calls = Calls(cloud.s3)
    runs.store(runs.source(), cloud.s3, log=log)
    assert calls.parts() == [4]
    assert runs.stored(cloud.s3) == runs.expected()


def test_an_object_completed_before_the_crash_is_given_once_it_is_proved() -> None:
    cloud, log = runs.cloud(), Log()
    Calls(log).fail("clear", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runs.store(runs.source(), cloud.s3, log=log)
    calls = Calls(cloud.s3)
    assert runs.is_there(runs.store(runs.source(), cloud.s3, log=log))
    assert calls.parts() == []
    assert log.entries() == []


def test_what_a_store_that_died_left_of_a_completed_upload_is_removed() -> None:
    for verb, what in [("clear", KeyboardInterrupt()), ("complete_multipart_upload", RuntimeError("cut"))]:
        cloud, log = runs.cloud(), Log()
        calls = Calls(cloud.s3, log)
        complete = cloud.s3.complete_multipart_upload

        def leaving(*arguments: Any, cloud: Any = cloud, complete: Any = complete, **options: Any) -> Any:
            left = dict(cloud.s3._uploads)
            try:
                return complete(*arguments, **options)
            finally:
                cloud.s3._uploads.update(left)

        cloud.s3.complete_multipart_upload = leaving  # type: ignore[method-assign]
        calls.fail(verb, 1, what, late=True) if verb != "clear" else calls.fail(verb, 1, what)
        with contextlib.suppress(KeyboardInterrupt):
            runs.store(runs.source(), cloud.s3, log=log)
        if verb == "clear":
            assert uploads(cloud)
            runs.store(runs.source(), cloud.s3, log=log)
            assert sorted(calls.parts()) == [1, 2, 3, 4]
        assert runs.stored(cloud.s3) == runs.expected()
        assert uploads(cloud) == log.entries() == []


def test_a_callers_log_that_is_a_list_is_used() -> None:
    class Listed(list[bytes], amistore.ResumeLog):
        def entries(self) -> list[bytes]:
            return list(self)

    cloud, log = runs.cloud(), Listed()
    Calls(cloud.s3).fail("upload_part", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        runs.store(runs.source(), cloud.s3, log=log, workers=1)
    assert len(log) == 4
    runs.store(runs.source(), cloud.s3, log=log)
    assert runs.stored(cloud.s3) == runs.expected()
    assert log == []
