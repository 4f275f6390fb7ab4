"""`copy` resumes where it ended: the same bytes, nothing sent twice, and nothing of a damaged archive."""

from __future__ import annotations

from pathlib import Path

import images
import pytest
from objects import runs
from objects.runs import BUCKET, Calls, Log

import amistore
from amistore.objects import RUN_KEY

PART = 3 * 512 * 1024


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules["amistore.objects.copy"]
    monkeypatch.setattr(module, "part_size_for", lambda size, traits: PART)
    monkeypatch.setattr(module, "_RANGE", PART // 2)


@pytest.fixture
def cloud() -> amistore.MemoryBackend:
    """With an archive of six parts."""
    made = runs.cloud()
    source = images.Volumes([(1, {n: images.noise(n, 512 * 1024) for n in range(17)})])
    made.s3.put_object(
        BUCKET, "from", amistore.pack(images.image(source.volumes), source), metadata={"a": "b"}
    )
    return made


def copied(
    cloud: amistore.MemoryBackend, log: Log | Path | None = None, **options: object
) -> amistore.StoredArchive:
    s3 = cloud.s3
    return amistore.copy(s3.at(BUCKET, "from"), s3.at(BUCKET, "to"), log=log, **options)  # type: ignore[arg-type]


def uploads(cloud: amistore.MemoryBackend) -> list[object]:
    return list(cloud.s3.list_multipart_uploads(BUCKET))


def test_a_copy_is_what_was_copied_and_tells_its_content_id(cloud: amistore.MemoryBackend) -> None:
    calls, seen = Calls(cloud.s3), []
    told = copied(cloud, progress=seen.append)
    assert runs.stored(cloud.s3, "to") == runs.stored(cloud.s3, "from")
    assert runs.is_there(told)
    assert calls.parts() == [1, 2, 3, 4, 5, 6]
    assert cloud.s3.head_object(BUCKET, "to").metadata["a"] == "b"
    assert (seen[-1].blocks, seen[-1].total_blocks) == (17, 17)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("create_multipart_upload", 1),
        ("upload_part", 1),
        ("upload_part", 4),
        ("upload_part", 6),
        ("complete_multipart_upload", 1),
        ("get_object_range", 8),
    ],
)
def test_a_copy_that_ended_is_resumed_and_sends_no_part_twice(
    cloud: amistore.MemoryBackend, verb: str, number: int, late: bool
) -> None:
    calls, log = Calls(cloud.s3), Log()
    calls.fail(verb, number, KeyboardInterrupt(), late=late)
    with pytest.raises(KeyboardInterrupt):
        copied(cloud, log)
    entries = [entry for entry in log.entries() if b'{"part"' in entry]
    calls.fail("none", 1, KeyboardInterrupt())
    told = copied(cloud, log)
    assert runs.stored(cloud.s3, "to") == runs.stored(cloud.s3, "from")
    assert runs.is_there(told)
    completed = verb == "complete_multipart_upload" and late
    assert calls.parts() == ([] if completed else list(range(len(entries) + 1, 7)))
    assert log.entries() == []
    if verb != "create_multipart_upload":  # of whose upload nobody got to know the id
        assert uploads(cloud) == []


def test_without_a_log_nothing_is_left_of_a_copy_that_failed(cloud: amistore.MemoryBackend) -> None:
    Calls(cloud.s3).fail("upload_part", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        copied(cloud)
    assert uploads(cloud) == []


def test_an_archive_that_is_damaged_is_not_copied_and_ends_the_run(cloud: amistore.MemoryBackend) -> None:
    content = bytearray(runs.stored(cloud.s3, "from") or b"")
    content[len(content) * 2 // 3] ^= 1
    cloud.s3.put_object(BUCKET, "from", [content])
    log = Log()
    with pytest.raises(amistore.CorruptArchiveError):
        copied(cloud, log)
    assert (uploads(cloud), log.entries()) == ([], [])
    assert runs.stored(cloud.s3, "to") is None


def test_an_archive_that_was_replaced_between_the_runs_is_refused(cloud: amistore.MemoryBackend) -> None:
    calls, log = Calls(cloud.s3), Log()
    calls.fail("upload_part", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        copied(cloud, log)
    cloud.s3.put_object(BUCKET, "from", [runs.expected()])
    with pytest.raises(amistore.SourceChangedError, match=r"replaced since.*abandon"):
        copied(cloud, log)
    assert len(uploads(cloud)) == 1
    amistore.abandon(log, cloud)
    assert (uploads(cloud), log.entries()) == ([], [])


def test_another_content_id_is_refused_before_the_work_and_costs_no_part(
    cloud: amistore.MemoryBackend,
) -> None:
    calls, log = Calls(cloud.s3), Log()
    calls.fail("upload_part", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        copied(cloud, log)
    entries = log.entries()
    calls.fail("none", 1, KeyboardInterrupt())
    with pytest.raises(amistore.CorruptArchiveError, match="not the expected"):
        copied(cloud, log, expected_content_id="0" * 64)
    assert calls.made["get_object_range"] == 1
    assert log.entries() == entries
    with amistore.open(cloud.s3.at(BUCKET, "from")) as archive:
        copied(cloud, log, expected_content_id=archive.content_id)
    assert 1 not in calls.parts()


def test_parts_that_are_forged_in_the_log_make_no_copy(cloud: amistore.MemoryBackend) -> None:
    calls, log = Calls(cloud.s3), Log()
    calls.fail("upload_part", 4, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        copied(cloud, log)
    (upload,) = cloud.s3.list_multipart_uploads(BUCKET)
    forged = cloud.s3.upload_part(BUCKET, "to", upload.upload_id, 2, images.noise(99, PART))
    entries = log.entries()
    number = next(at for at, entry in enumerate(entries) if b'{"part":2' in entry)
    entries[number] = b'{"part":2,"size":%d,"etag":"%s"}\nverified' % (forged.size, forged.etag.encode())
    with pytest.raises(amistore.CorruptArchiveError, match=f"a part of an earlier run .*offset {PART}"):
        copied(cloud, Log(entries))
    assert runs.stored(cloud.s3, "to") is None


def test_a_copy_of_the_same_name_is_refused_before_anything_is_read(cloud: amistore.MemoryBackend) -> None:
    cloud.s3.put_object(BUCKET, "to", [b"there"])
    calls = Calls(cloud.s3)
    with pytest.raises(amistore.AlreadyExistsError):
        copied(cloud)
    assert not calls.made["get_object_range"]


def test_the_run_that_a_copy_is_of_is_its_own(cloud: amistore.MemoryBackend) -> None:
    cloud.s3.put_object(BUCKET, "from", [runs.stored(cloud.s3, "from") or b""], metadata={RUN_KEY: "other"})
    copied(cloud)
    assert cloud.s3.head_object(BUCKET, "to").metadata[RUN_KEY] != "other"


def test_paths_urls_open_files_and_results_are_copied_to_objects_and_files(
    cloud: amistore.MemoryBackend, tmp_path: Path
) -> None:
    whole = runs.stored(cloud.s3, "from")
    first = amistore.copy(cloud.s3.at(BUCKET, "from"), tmp_path / "1.bin", workers=1)
    assert first.location == tmp_path / "1.bin" and first.etag is None
    with (tmp_path / "1.bin").open("rb") as opened:
        sources = [str(tmp_path / "1.bin"), (tmp_path / "1.bin").as_uri(), opened, first]
        for number, source in enumerate(sources):
            told = amistore.copy(source, cloud.s3.at(BUCKET, f"to-{number}"), workers=1)
            assert runs.stored(cloud.s3, f"to-{number}") == whole
            second = amistore.copy(told, tmp_path / f"{number}.raw", expected_content_id=first.content_id)
            assert (tmp_path / f"{number}.raw").read_bytes() == whole
            assert second == amistore.StoredArchive(
                location=tmp_path / f"{number}.raw", size=len(whole), content_id=first.content_id
            )


def test_a_copy_to_a_file_is_whole_or_not_there(cloud: amistore.MemoryBackend, tmp_path: Path) -> None:
    damaged = bytearray(runs.stored(cloud.s3, "from") or b"")
    damaged[len(damaged) // 2] ^= 1
    cloud.s3.put_object(BUCKET, "damaged", [bytes(damaged)])
    with pytest.raises(amistore.CorruptArchiveError, match=r"amistore\.recover"):
        amistore.copy(cloud.s3.at(BUCKET, "damaged"), tmp_path / "copy.bin")
    (tmp_path / "there.bin").write_bytes(b"mine")
    with pytest.raises(amistore.AlreadyExistsError):
        amistore.copy(cloud.s3.at(BUCKET, "from"), tmp_path / "there.bin")
    for wrong in ("http://example.org/x.bin", 5):
        with pytest.raises(amistore.InvalidRequestError, match="target must be a path, or a location"):
            amistore.copy(cloud.s3.at(BUCKET, "from"), wrong)  # type: ignore[arg-type]
    with pytest.raises(amistore.InvalidRequestError, match="log= goes with an object"):
        amistore.copy(cloud.s3.at(BUCKET, "from"), tmp_path / "copy.bin", log=Log())
    assert [path.name for path in tmp_path.iterdir()] == ["there.bin"]


def test_a_copy_of_a_file_resumes_and_one_of_another_file_does_not(
    cloud: amistore.MemoryBackend, tmp_path: Path
) -> None:
    for name in ("1.bin", "2.bin"):
        amistore.copy(cloud.s3.at(BUCKET, "from"), tmp_path / name)
    log, calls, to = Log(), Calls(cloud.s3), cloud.s3.at(BUCKET, "to")
    calls.fail("upload_part", 4, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.copy(tmp_path / "1.bin", to, log=log, workers=1)
    calls.fail("", 0, RuntimeError())
    with pytest.raises(amistore.InvalidRequestError, match=r"1\.bin"):
        amistore.copy(tmp_path / "2.bin", to, log=log)
    before = len(calls.parts())
    amistore.copy(tmp_path / "1.bin", to, log=log)
    assert calls.parts()[before:] == [4, 5, 6]
    assert runs.stored(cloud.s3, "to") == runs.stored(cloud.s3, "from")
