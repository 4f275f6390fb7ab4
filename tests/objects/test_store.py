"""`store` stores what `pack` gives, in parts, and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objects import runs
from objects.runs import BUCKET, IMAGE, KEY, Calls, Log

import amistore
from amistore.backends import StoreTraits
from amistore.objects import parts
from amistore.objects.multipart import RUN_KEY
from amistore.testing import strategies


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with runs.nothing_left():
        yield


def uploads(cloud: amistore.Backend) -> list[amistore.backends.MultipartUpload]:
    return cloud.s3.list_multipart_uploads(BUCKET)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("log", [None, Log])
def test_the_object_has_the_bytes_that_pack_gives(workers: int, log: Callable[[], Log] | None) -> None:
    cloud = runs.cloud()
    told = runs.store(runs.source(), cloud.s3, workers=workers, log=log() if log else None)
    assert runs.stored(cloud.s3) == runs.expected()
    assert runs.is_there(told)
    assert uploads(cloud) == []


@pytest.mark.parametrize("size", [5 * amistore.MIB, 7 * amistore.MIB + 1])
def test_all_parts_but_the_last_have_the_size_that_was_asked_for(size: int) -> None:
    cloud = runs.cloud()
    calls = Calls(cloud.s3)
    runs.store(runs.source(), cloud.s3, options=attrs.evolve(runs.PACKING, part_size=size))
    sizes = {arguments[3]: len(arguments[4]) for verb, arguments in calls.seen if verb == "upload_part"}
    assert sorted(sizes) == list(range(1, len(sizes) + 1))
    *most, last = (sizes[number] for number in sorted(sizes))
    assert set(most) == {size} and 0 < last <= size
    assert sum(sizes.values()) == len(runs.expected())
    assert calls.made["create_multipart_upload"] == 1
    assert runs.stored(cloud.s3) == runs.expected()


def test_what_has_less_than_16_mib_is_one_part_where_nothing_else_is_asked_for() -> None:
    cloud = runs.cloud()
    calls = Calls(cloud.s3)
    only, options = sorted(runs.source().volumes)[:1], amistore.PackOptions(layout=runs.LAYOUT)
    runs.store(runs.source(), cloud.s3, snapshots=only, options=options)
    assert calls.parts() == [1]
    packed = amistore.pack(IMAGE, runs.source(), snapshots=only, options=options)
    assert runs.stored(cloud.s3) == b"".join(packed)


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 20),
)
def test_parts_are_the_pieces_bytes_and_have_the_records_of_what_begins_in_them(
    made: list[tuple[bytes, bool]], size: int
) -> None:
    whole = b"".join(content for content, _ in made)
    pieces: list[parts.Piece] = []
    begins, offset = {}, 0
    for number, (content, has_record) in enumerate(made):
        record = b"%d" % number if has_record else None
        pieces.append((content, record))
        if record is not None:
            begins[record] = offset
        offset += len(content)
    begun: deque[parts.Part] = deque()
    found = list(parts.cut_parts(iter(pieces), size, 3, 10_000, begun))
    assert [part.number for part in found] == list(range(3, 3 + max(1, -(-len(whole) // size))))
    assert b"".join(bytes(part._content[: part.size]) for part in found) == whole
    assert {part.size for part in found[:-1]} <= {size} and found[-1].size <= size
    assert [part.last for part in found] == [False] * (len(found) - 1) + [True]
    for part in found:
        start = (part.number - 3) * size
        assert part.records == [record for record, at in begins.items() if start <= at < start + size]
    assert list(begun) == found


def test_more_parts_than_the_store_takes_are_refused() -> None:
    with pytest.raises(amistore.InvalidRequestError, match="more than the 10000 parts"):
        list(parts.cut_parts(iter([(bytes(11), None)]), 5, 9_999, 10_000, deque()))


@pytest.mark.parametrize(
    ("most_bytes", "traits", "expected"),
    [
        (1, {}, 5 * amistore.MIB),
        (5 * amistore.MIB + 1, {}, 6 * amistore.MIB),
        (16 * amistore.MIB + 1, {}, 16 * amistore.MIB),
        (10_000 * 16 * amistore.MIB, {}, 16 * amistore.MIB),
        (10_000 * 16 * amistore.MIB + 1, {}, 17 * amistore.MIB),
        (2**60, {}, 5 * amistore.GIB),
        (1000 * amistore.GIB, {"most_parts": 1000}, amistore.GIB),
        (amistore.GIB, {"largest_part": 8 * amistore.MIB}, 8 * amistore.MIB),
        (1, {"least_part": 64 * amistore.MIB}, 64 * amistore.MIB),
    ],
)
def test_a_parts_size_is_the_least_with_which_the_store_takes_the_object(
    most_bytes: int, traits: dict[str, int], expected: int
) -> None:
    assert parts.part_size_for(most_bytes, StoreTraits(**traits)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [5 * amistore.MIB - 1, 5 * amistore.GIB + 1, 6e6, True])
def test_a_size_of_parts_that_the_store_does_not_take_is_refused_before_anything_is_sent(size: Any) -> None:
    cloud = runs.cloud()
    calls = Calls(cloud.s3)
    with pytest.raises(amistore.InvalidRequestError, match="part_size must be a whole number from 5242880"):
        runs.store(runs.source(), cloud.s3, options=attrs.evolve(runs.PACKING, part_size=size))
    assert calls.made["create_multipart_upload"] == 0


def test_progress_level_snapshots_and_an_executor_are_those_of_pack() -> None:
    cloud = runs.cloud()
    seen: list[amistore.Progress] = []
    only = sorted(runs.source().volumes)[:1]
    runs.store(runs.source(), cloud.s3, level=1, snapshots=only, progress=seen.append)
    assert runs.stored(cloud.s3) == b"".join(
        amistore.pack(IMAGE, runs.source(), level=1, snapshots=only, options=runs.PACKING)
    )
    assert (seen[-1].blocks, seen[-1].total_blocks) == (20, 20)


def test_parts_above_the_limit_lie_in_a_file_until_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SPOOL", 3 * amistore.MIB)
    cloud = runs.cloud()
    from_file: list[int] = []
    send = cloud.s3.upload_part_file

    def upload_part_file(*arguments: Any) -> amistore.backends.UploadedPart:
        from_file.append(arguments[3])
        return send(*arguments)

    cloud.s3.upload_part_file = upload_part_file  # type: ignore[method-assign]
    runs.store(runs.source(), cloud.s3)
    assert sorted(from_file) == [1, 2, 3, 4]
    assert runs.stored(cloud.s3) == runs.expected()


@pytest.mark.parametrize("part", [1, 2, 4])
def test_parts_in_files_are_closed_when_sending_fails_while_the_error_is_held(
    monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(parts, "SPOOL", 1 * amistore.MIB)
    cloud = runs.cloud()
    Calls(cloud.s3).fail("upload_part", part, amistore.BackendError("no"))
    with runs.nothing_left(), pytest.raises(amistore.BackendError) as caught:
        runs.store(runs.source(), cloud.s3)
    assert caught.value.__traceback__ is not None
    assert uploads(cloud) == []


@pytest.mark.parametrize("room", [0, 3 << 20], ids=["no folder can be written", "no room for a part"])
def test_a_full_disk_under_a_part_is_a_typed_error(room: int, tmp_path: Path) -> None:
    code = """
import os, resource, signal, sys, amistore
from objects import runs
from amistore.objects import parts
parts.SPOOL = 1 << 20
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
cloud = runs.cloud()
with runs.nothing_left():
    try:
        runs.store(runs.source(), cloud.s3)
    except amistore.StorageFullError as error:
        assert os.environ["TMPDIR"] in str(error) and "set TMPDIR" in str(error), error
        print(error.operation, cloud.s3.list_multipart_uploads(runs.BUCKET))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", code, str(room)]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert ended.stdout == "spool []\n", ended.stderr


def test_metadata_is_stored_with_the_key_of_the_run() -> None:
    tasks = set()
    for key in ("a", "b"):
        cloud = runs.cloud()
        amistore.store(IMAGE, runs.source(), cloud.s3.at(BUCKET, key), metadata={"a": "b"})
        metadata = cloud.s3.head_object(BUCKET, key).metadata
        assert {"a": "b", "ami-name": IMAGE.name}.items() <= metadata.items()
        tasks.add(metadata[RUN_KEY])
    assert len(tasks) == 2


def test_an_object_that_exists_is_refused_before_any_block_is_read() -> None:
    cloud = runs.cloud()
    cloud.s3.put_object(BUCKET, KEY, [b"mine"])
    given = runs.source()
    calls = Calls(given, cloud.s3)
    for log in (None, Log()):
        with pytest.raises(amistore.AlreadyExistsError) as caught:
            runs.store(given, cloud.s3, log=log)
        assert caught.value.key == KEY
    assert calls.made["get_snapshot_block"] == calls.made["create_multipart_upload"] == 0
    assert runs.stored(cloud.s3) == b"mine"
    runs.store(given, cloud.s3, overwrite=True)
    assert runs.stored(cloud.s3) == runs.expected()


@pytest.mark.parametrize("kind", [None, Log])
def test_an_object_that_appears_meanwhile_is_left_and_nothing_else(kind: type[Log] | None) -> None:
    cloud, log = runs.cloud(), kind and kind()
    put = cloud.s3.put_object
    calls = Calls(cloud.s3)
    calls.fail("upload_part", 3, lambda: put(BUCKET, KEY, [b"theirs"]) and None)
    with pytest.raises(amistore.AlreadyExistsError):
        runs.store(runs.source(), cloud.s3, log=log)
    assert runs.stored(cloud.s3) == b"theirs"
    assert uploads(cloud) == []
    assert log is None or log.entries() == []


@pytest.mark.parametrize("kind", [None, Log])
@pytest.mark.parametrize("error", [amistore.BackendError("reset"), OSError("reset")])
def test_an_answer_to_completing_that_is_lost_does_not_matter(
    kind: type[Log] | None, error: Exception
) -> None:
    cloud, log = runs.cloud(), kind and kind()
    Calls(cloud.s3).fail("complete_multipart_upload", 1, error, late=True)
    told = runs.store(runs.source(), cloud.s3, log=log)
    assert runs.is_there(told)
    assert runs.stored(cloud.s3) == runs.expected()
    assert log is None or log.entries() == []


def test_an_abort_that_fails_is_logged_with_its_id_and_the_first_error_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cloud = runs.cloud()
    cloud.s3.abort_multipart_upload = lambda *place: 1 / 0  # type: ignore[method-assign,assign]
    calls = Calls(cloud.s3)
    calls.fail("upload_part", 2, amistore.BackendError("first"))
    with pytest.raises(amistore.BackendError, match="first"):
        runs.store(runs.source(), cloud.s3)
    (left,) = uploads(cloud)
    assert left.upload_id in caplog.text


VERBS = [
    "list_snapshot_blocks",
    "get_snapshot_block",
    "head_object",
    "create_multipart_upload",
    "upload_part",
    "complete_multipart_upload",
]


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_log_an_error_at_any_call_leaves_nothing(verb: str) -> None:
    errors = itertools.cycle([amistore.BackendError("fault"), RuntimeError("fault"), KeyboardInterrupt()])
    number = 0
    while True:
        number += 1
        cloud, given = runs.cloud(), runs.source()
        calls = Calls(cloud.s3, given)
        error = next(errors)
        calls.fail(verb, number, error)
        if number > 2 and verb == "get_snapshot_block":
            number += 3  # each is like the one before it
        try:
            with runs.nothing_left():
                runs.store(given, cloud.s3)
        except (amistore.BackendError, KeyboardInterrupt) as caught:
            assert "fault" in str(caught) or caught is error
        if not calls.failed:
            break
        if runs.stored(cloud.s3) is not None:  # made, whatever was asked after it
            assert runs.stored(cloud.s3) == runs.expected()
        assert uploads(cloud) == []
    assert number > 1


@settings(max_examples=15)
@given(st.data())
def test_any_image_is_packed_as_pack_does(data: st.DataObject) -> None:
    volumes = data.draw(st.lists(strategies.volumes(most_blocks=6), max_size=3))
    given = images.Volumes([(each.volume_size, each.blocks) for each in volumes])
    image = data.draw(strategies.images(snapshot_ids=list(given.volumes)))
    cloud = runs.cloud()
    amistore.store(
        image,
        given,
        cloud.s3.at(BUCKET, KEY),
        workers=2,
        options=amistore.PackOptions(layout=images.SMALL, part_size=5 * amistore.MIB),
    )
    assert runs.stored(cloud.s3) == b"".join(
        amistore.pack(
            image, given, options=amistore.PackOptions(layout=images.SMALL, part_size=5 * amistore.MIB)
        )
    )
    with cloud.s3.open_object(BUCKET, KEY) as file, amistore.open(file) as archive:
        assert archive.image == image
    back = amistore.unpack(cloud.s3.at(BUCKET, KEY), cloud.ebs, workers=2)
    assert sorted(runs.disks(cloud.ebs, back), key=repr) == sorted(
        (
            (volume.volume_size, dict(sorted(volume.blocks.items())))
            for snapshot_id in (m.ebs.snapshot_id for m in image.block_device_mappings if m.ebs)
            if snapshot_id is not None
            for volume in [volumes[int(snapshot_id[5:], 16)]]
        ),
        key=repr,
    )


def test_a_result_is_an_archive_wherever_one_is_named(tmp_path: Path) -> None:
    cloud = runs.cloud()
    stored = runs.store(runs.source(), cloud.s3)
    in_file = amistore.store(runs.IMAGE, runs.source(), tmp_path / "web.bin")
    (found,) = amistore.find_archives(cloud.s3, BUCKET)
    for result in (stored, in_file, found):
        with amistore.open(result) as archive:
            assert archive.content_id == result.content_id
            assert archive.compare(stored).equal
        image = amistore.unpack(result, cloud.ebs, expected_content_id=result.content_id)
        assert len(image.snapshot_ids) == len(runs.VOLUMES)
    restored = amistore.restore(stored, cloud, name="web-2")
    assert restored.content_id == stored.content_id
    report = amistore.recover(in_file, tmp_path / "new.bin")
    assert report.complete and report.content_id == stored.content_id
