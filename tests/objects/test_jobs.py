"""Each job gives the same, whoever drives it: a call, a task, or a transfer."""

from __future__ import annotations

import io
import re
from pathlib import Path

import attrs
import images
import pytest
from objects import runs
from objects.runs import BUCKET, Calls, Log

import amistore
from amistore import MemoryBackend, Tag, TaskEngine
from amistore.backends import Backend
from amistore.objects.multipart import RUN_KEY

DISKS = [(1, {0: images.block(1), 9: images.block(2)}), (2, {3: images.block(3)})]
NEW = {"image_id", "name", "creation_date", "block_device_mappings", "snapshots"}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Backend:
    cloud = runs.cloud()
    monkeypatch.setattr(type(cloud.ec2), "region_name", "eu-west-1")
    return cloud


def registered(cloud: Backend) -> str:
    ids = [images.snapshot(cloud.ebs, size, blocks) for size, blocks in DISKS]
    tags = [Tag(key="team", value="web")]
    return cloud.ec2.register_image(images.image(ids, name="web", description="a web server", tags=tags))


def facts(image: amistore.Image) -> dict[str, object]:
    """An image's fields, but for those that every new AMI has of its own."""
    return {name: value for name, value in attrs.asdict(image, recurse=False).items() if name not in NEW}


def devices(image: amistore.Image) -> list[object]:
    """The mappings, but for the snapshots' ids, with what is told of each snapshot."""
    told = []
    for mapping in image.block_device_mappings:
        assert mapping.ebs is not None
        snapshot = image.snapshot(str(mapping.ebs.snapshot_id))
        told.append(
            (
                attrs.evolve(mapping, ebs=attrs.evolve(mapping.ebs, snapshot_id=None)),
                attrs.evolve(snapshot, snapshot_id="snap-00000000"),
            )
        )
    return told


def test_one_archive_becomes_the_same_ami_by_task_by_restore_and_by_both_forms_of_transfer(
    source: Backend,
) -> None:
    image_id = registered(source)
    location = source.s3.at(BUCKET, f"{image_id}.bin")
    with TaskEngine(source) as engine:
        engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
        task = engine.create_restore_image_task(bucket=BUCKET, object_key=location.key, name="by task")
        made = {"task": str(engine.wait(task).image_id)}
    made["restore"] = amistore.restore(location, source, name="by restore").image_id
    for name, keep in (("transfer", None), ("kept", source.s3.at(BUCKET, "kept.bin"))):
        moved = amistore.transfer(image_id, source=source, destination=source, name=name, keep=keep)
        made[name] = moved.image_id
    described = {how: source.ec2.describe_image(new_id) for how, new_id in made.items()}
    first = described["task"]
    assert (first.source_image_id, first.source_image_region) == (image_id, "eu-west-1")
    for image in described.values():
        assert facts(image) == facts(first)
        assert devices(image) == devices(first)


def test_what_restore_and_transfer_tell_is_the_ami_that_is_registered(source: Backend) -> None:
    image_id = registered(source)
    stored = amistore.store(image_id, source, source.s3.at(BUCKET, "web.bin"))
    restored = amistore.restore(source.s3.at(BUCKET, "web.bin"), source, name="web-2")
    moved = amistore.transfer(image_id, source=source, destination=source, name="web-3")
    assert stored.content_id == restored.content_id == moved.content_id
    for told in (restored, moved):
        found = source.ec2.describe_image(told.image_id)
        assert facts(told.image) | {"state": 0} == facts(found) | {"state": 0}
        assert told.image.snapshot_ids == found.snapshot_ids


def test_an_object_tells_of_its_ami_the_same_whoever_stored_it(source: Backend) -> None:
    image_id = registered(source)
    with TaskEngine(source) as engine:
        engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET))
    amistore.store(image_id, source, source.s3.at(BUCKET, "store.bin"))
    kept = source.s3.at(BUCKET, "kept.bin")
    amistore.transfer(image_id, source=source, destination=source, name="moved", keep=kept)
    own = {RUN_KEY, "amistore-task", "ami-store-timestamp"}
    told = []
    for key in (f"{image_id}.bin", "store.bin", "kept.bin"):
        metadata = source.s3.head_object(BUCKET, key).metadata
        assert {RUN_KEY, "ami-store-timestamp"} <= set(metadata)
        told.append({name: value for name, value in metadata.items() if name not in own})
    assert told[0] == told[1] == told[2]
    assert told[0]["ami-region"] == "eu-west-1"


def test_tags_that_are_given_stand_over_those_that_were_stored(source: Backend) -> None:
    image_id = registered(source)
    location = source.s3.at(BUCKET, "web.bin")
    amistore.store(image_id, source, location)
    given = {
        "image_tags": [Tag(key="team", value="ops")],
        "snapshot_tags": [Tag(key="stage", value="test")],
    }
    image = amistore.restore(location, source, name="tagged", **given).image
    assert image.tags == (Tag(key="team", value="ops"),)
    assert all(Tag(key="stage", value="test") in each.tags for each in image.snapshots)
    made = amistore.unpack(location, source.ebs, tags=given["snapshot_tags"])
    streamed = amistore.unpack(
        source.s3.open_object(BUCKET, "web.bin"), source.ebs, tags=given["snapshot_tags"]
    )
    for each in (*made.snapshots, *streamed.snapshots):
        assert Tag(key="stage", value="test") in source.ebs.describe_snapshot(each.snapshot_id).tags


# Files, paths and locations.


def test_an_ami_becomes_a_file_whose_bytes_are_those_of_its_object(source: Backend, tmp_path: Path) -> None:
    image_id = registered(source)
    target = tmp_path / "web.bin"
    stored = amistore.store(image_id, source, target)
    told = amistore.store(image_id, source, source.s3.at(BUCKET, "web.bin"))
    assert target.read_bytes() == runs.stored(source.s3, "web.bin")
    assert stored == amistore.StoredArchive(
        location=target, size=target.stat().st_size, content_id=told.content_id
    )
    with pytest.raises(amistore.AlreadyExistsError, match=r"web\.bin exists"):
        amistore.store(image_id, source, target)
    assert amistore.store(image_id, source, str(target), overwrite=True).size == stored.size


@pytest.mark.parametrize("job", ["store", "transfer"])
def test_what_keeps_an_object_from_being_made_is_told_before_a_snapshot_is_listed(
    source: Backend, job: str
) -> None:
    image_id = registered(source)
    source.s3.put_object(BUCKET, "there.bin", [b"there"])
    calls = Calls(source.ebs)
    for location, error in (
        (source.s3.at(BUCKET, "there.bin"), amistore.AlreadyExistsError),
        (source.s3.at("nobody-has-it", "web.bin"), amistore.NotFoundError),
    ):
        with pytest.raises(error):
            if job == "store":
                amistore.store(image_id, source, location)
            else:
                amistore.transfer(image_id, source=source, destination=source, name="moved", keep=location)
    assert not calls.made["list_snapshot_blocks"]
    assert runs.stored(source.s3, "there.bin") == b"there"


def test_a_file_that_could_not_be_filled_is_not_there(source: Backend, tmp_path: Path) -> None:
    image_id = registered(source)
    Calls(source.ebs).fail("get_snapshot_block", 2, amistore.BackendError("gone"))
    with pytest.raises(amistore.BackendError, match="gone"):
        amistore.store(image_id, source, tmp_path / "web.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_made_is_told_before_anything_is_asked(source: Backend, tmp_path: Path) -> None:
    calls = Calls(source.ebs, source.ec2)
    with pytest.raises(amistore.NotFoundError, match="no such folder"):
        amistore.store("ami-00000000", source, tmp_path / "none" / "web.bin")
    for overwrite in (False, True):
        with pytest.raises(amistore.BackendError, match="name too long"):
            amistore.store("ami-00000000", source, tmp_path / ("n" * 300), overwrite=overwrite)
    assert not calls.made


@pytest.mark.parametrize("kind", ["path", "text", "url", "location"])
def test_whatever_open_takes_is_restored_and_unpacked(source: Backend, tmp_path: Path, kind: str) -> None:
    image_id = registered(source)
    target = tmp_path / "web.bin"
    amistore.store(image_id, source, target)
    source.s3.put_object(BUCKET, "web.bin", [target.read_bytes()])
    given = {
        "path": target,
        "text": str(target),
        "url": target.as_uri(),
        "location": source.s3.at(BUCKET, "web.bin"),
    }[kind]
    with amistore.open(given) as archive:
        assert archive.image.image_id == image_id
    assert runs.disks(source.ebs, amistore.unpack(given, source.ebs)) == DISKS
    assert runs.disks(source.ebs, amistore.restore(given, source, name="again").image) == DISKS


def test_a_restore_of_a_file_is_resumed_by_the_path_of_a_log(source: Backend, tmp_path: Path) -> None:
    target, log = tmp_path / "web.bin", tmp_path / "restore.log"
    amistore.store(registered(source), source, target)
    Calls(source.ebs).fail("put_snapshot_block", 3, amistore.BackendError("cut"))
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.restore(target, source, name="again", log=log, workers=1)
    assert log.exists()
    restored = amistore.restore(target, source, name="again", log=str(log), workers=1)
    assert runs.disks(source.ebs, restored.image) == DISKS
    assert not log.exists()
    assert len(images.leftovers(source)) == 2 * len(DISKS)


def test_a_log_that_names_no_snapshot_where_one_should_be_is_damaged(source: Backend) -> None:
    location = source.s3.at(BUCKET, "web.bin")
    amistore.store(registered(source), source, location)
    Calls(source.ebs).fail("complete_snapshot", 1, amistore.BackendError("cut"))
    log = Log()
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.restore(location, source, name="again", log=log, workers=1)
    forged = Log([re.sub(b'"snapshot":"[^"]*"', b'"snapshot":[1]', entry) for entry in log.entries()])
    assert forged.entries() != log.entries()
    with pytest.raises(amistore.InvalidRequestError, match="the resume log is damaged"):
        amistore.restore(location, source, name="again", log=forged, workers=1)


def test_a_log_of_one_file_does_not_resume_another(source: Backend, tmp_path: Path) -> None:
    image_id = registered(source)
    for name in ("a.bin", "b.bin"):
        amistore.store(image_id, source, tmp_path / name)
    Calls(source.ebs).fail("put_snapshot_block", 1, amistore.BackendError("cut"))
    log = Log()
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.unpack(tmp_path / "a.bin", source.ebs, log=log)
    with pytest.raises(amistore.InvalidRequestError, match=r"belongs to a run whose file is .*a\.bin"):
        amistore.unpack(tmp_path / "b.bin", source.ebs, log=log)


@pytest.mark.parametrize("extra", [{"log": "x.log"}, {"options": {"A": "b"}}])
def test_what_goes_with_a_location_only_is_refused_for_an_open_file(extra: dict[str, object]) -> None:
    with pytest.raises(amistore.InvalidRequestError, match="do not go with an open file"):
        amistore.unpack(io.BytesIO(), MemoryBackend().ebs, **extra)  # type: ignore[arg-type]


def test_a_location_reads_as_its_object_is_named() -> None:
    memory = runs.cloud()
    assert str(memory.s3.at("archive", "a/b.bin")) == "archive/a/b.bin"
    assert memory.s3.at("archive", "a") == memory.s3.at("archive", "a") != memory.s3.at("archive", "b")
    aws = amistore.AWSBackend(region_name="us-east-2")
    assert str(aws.s3.at("archive", "a/b.bin")) == "s3://archive/a/b.bin"
    assert str(amistore.RetryingBackend(aws).s3.at("archive", "b")) == "s3://archive/b"


# One log for a transfer.


def cut(
    cloud: Backend, verb: str, number: int, error: type = amistore.BackendError, late: bool = False
) -> None:
    service = cloud.s3 if verb.endswith(("part", "upload")) else cloud.ebs
    service = cloud.ec2 if verb == "register_image" else service
    Calls(service).fail(verb, number, error("cut"), late=late)


@pytest.mark.parametrize(
    ("verb", "number", "error", "late"),
    [
        ("upload_part", 1, amistore.BackendError, False),
        ("complete_multipart_upload", 1, amistore.BackendError, False),
        ("start_snapshot", 2, amistore.BackendError, True),
        ("put_snapshot_block", 2, amistore.BackendError, False),
        ("complete_snapshot", 1, amistore.BackendError, False),
        ("complete_snapshot", 1, amistore.ChecksumMismatchError, False),  # final: restoring begins anew
        ("register_image", 1, amistore.BackendError, False),
        ("register_image", 1, amistore.BackendError, True),
    ],
)
def test_a_transfer_is_resumed_wherever_it_ended_and_does_nothing_twice(
    source: Backend, tmp_path: Path, verb: str, number: int, error: type, late: bool
) -> None:
    image_id = registered(source)
    other = runs.cloud()
    log, keep = tmp_path / "move.log", other.s3.at(BUCKET, "web.bin")

    def move() -> amistore.RestoredImage:
        return amistore.transfer(
            image_id, source=source, destination=other, name="moved", keep=keep, log=log, workers=1
        )

    parts = Calls(other.s3) if not verb.endswith(("part", "upload")) else None
    cut(other, verb, number, error, late)
    with pytest.raises(amistore.BackendError, match="cut"):
        move()
    sent = parts.made["upload_part"] if parts else 0
    moved = move()
    assert runs.disks(other.ebs, moved.image) == DISKS
    assert moved.kept is not None and runs.is_there(moved.kept)
    assert not log.exists()
    if parts:
        assert parts.made["upload_part"] == sent
    assert len(images.leftovers(other)) == len(DISKS)


def test_a_log_of_another_job_does_not_resume_a_transfer(source: Backend) -> None:
    image_id = registered(source)
    location, log = source.s3.at(BUCKET, "web.bin"), Log()
    amistore.store(image_id, source, location)
    cut(source, "put_snapshot_block", 1)
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.restore(location, source, name="again", log=log)
    entries = log.entries()
    with pytest.raises(amistore.InvalidRequestError, match="not to storing"):
        amistore.transfer(
            image_id,
            source=source,
            destination=source,
            name="moved",
            keep=source.s3.at(BUCKET, "kept.bin"),
            log=log,
        )
    assert log.entries() == entries


def test_abandoning_a_transfer_deletes_its_snapshots_and_keeps_its_archive(source: Backend) -> None:
    image_id = registered(source)
    there = images.leftovers(source)
    keep, log = source.s3.at(BUCKET, "kept.bin"), Log()
    cut(source, "put_snapshot_block", 2)
    with pytest.raises(amistore.BackendError, match="cut"):
        amistore.transfer(
            image_id, source=source, destination=source, name="moved", keep=keep, log=log, workers=1
        )
    assert len(images.leftovers(source)) > len(there)
    amistore.abandon(log, source)
    assert images.leftovers(source) == there
    assert log.entries() == []
    with amistore.open(keep) as archive:
        assert archive.verify().ok
