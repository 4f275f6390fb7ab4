"""What is of the wrong kind is refused at the door, in words that say what to give."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
import pytest

import amistore

IMAGE = images.image(["snap-0123456789abcdef0"])
Call = Callable[[amistore.DirectoryBackend, Any], object]


@pytest.fixture
def cloud(tmp_path: Path) -> amistore.DirectoryBackend:
    made = amistore.DirectoryBackend(tmp_path / "cloud")
    made.s3.create_bucket("bucket")
    return made


def mixed(cloud: amistore.Backend, **parts: Any) -> amistore.Backend:
    return amistore.Backend(**{"ebs": cloud.ebs, "s3": cloud.s3, "ec2": cloud.ec2} | parts)


WRONG: dict[str, tuple[Call, str]] = {
    "put_object of text": (lambda c, _: c.s3.put_object("bucket", "key", "abc"), "bytes or pieces"),
    "put_object of a path": (lambda c, _: c.s3.put_object("bucket", "key", Path("x")), "open(path, 'rb')"),
    "put_object of nothing": (lambda c, _: c.s3.put_object("bucket", "key", None), "not NoneType"),
    "pack from a backend": (lambda c, _: amistore.pack(IMAGE, c), "the source must be a BlockSource"),
    "a level": (lambda c, _: amistore.pack(IMAGE, c.ebs, level="x"), "zstd levels are"),
    "a store": (
        lambda c, _: amistore.ObjectLocation(c, "bucket", "key"),
        "the store must be an ObjectStore, not DirectoryBackend: give its .s3",
    ),
    "a key": (lambda c, _: c.s3.at("bucket", ""), "an object's key must be a string, not ''"),
    "what is stored": (
        lambda c, _: amistore.store(IMAGE, c, c.s3.at("bucket", "key")),
        "an AMI's id goes with a whole backend, not its .ebs or .s3",
    ),
    "a log of a file": (
        lambda c, p: amistore.store(IMAGE, c.ebs, p / "ami.bin", log=p / "log"),
        "go with an object, not with a file",
    ),
    "a log": (
        lambda c, _: amistore.store(IMAGE, c.ebs, c.s3.at("bucket", "key"), log=5),
        "give its path, or an amistore.ResumeLog",
    ),
    "a log of a restore": (
        lambda c, _: amistore.restore(c.s3.at("bucket", "key"), c, log=5),
        "give its path, or an amistore.ResumeLog",
    ),
    "a log of what is not kept": (
        lambda c, p: amistore.transfer("x", source=c, destination=c, log=p / "log"),
        "log= goes with keep=",
    ),
    "what is kept": (
        lambda c, _: amistore.transfer("x", source=c, destination=c, keep=("bucket", "key")),
        "keep= is a location",
    ),
    "a source": (
        lambda c, _: amistore.transfer("x", source=c.ebs, destination=c),
        "the source must be a Backend, not DirectoryEBS: give the whole",
    ),
    "a destination": (
        lambda c, _: amistore.restore(c.s3.at("bucket", "key"), c.ebs),
        "the backend must be a Backend",
    ),
    "what is abandoned": (lambda c, _: amistore.abandon(5, c), "give its path, or an amistore.ResumeLog"),
    "where it is abandoned": (
        lambda c, p: amistore.abandon(amistore.FileResumeLog(p / "log"), c.s3),
        "must be a Backend",
    ),
    "retries of nothing": (lambda c, _: amistore.RetryingBackend(None), "the backend must be a Backend"),
    "a backend's ebs": (lambda c, _: mixed(c, ebs=None), "the ebs must be a BlockStore, not NoneType"),
    "a backend's s3": (lambda c, _: mixed(c, s3=c.ebs), "the s3 must be an ObjectStore"),
    "a backend's ec2": (
        lambda c, _: mixed(c, ec2=c),
        "the ec2 must be an ImageRegistry",
    ),
    "an image": (lambda c, _: c.ec2.register_image("ami-0123456789abcdef0"), "the image must be an Image"),
    "a backend's folder": (lambda c, _: amistore.DirectoryBackend(None), "must be a path, not None"),
    "an empty folder": (lambda c, _: amistore.DirectoryBackend(""), "must be a path, not ''"),
    "a log's path": (lambda c, _: amistore.FileResumeLog(None), "the log must be a path"),
    "a disk": (lambda c, _: amistore.import_disks(None, c, name="web").image_id, "the disk must be a path"),
    "what is opened": (lambda c, _: amistore.open(c), "give backend.s3.at(bucket, key)"),
    "a content id": (lambda *_: opened().verify(expected_content_id=5), "64 hexadecimal digits, not 5"),
    "where it is extracted": (lambda *_: opened().extract(None), "the folder must be a path"),
    "tags of snapshots": (
        lambda c, _: IMAGE.with_tags(snapshot_tags={"team": "x"}),
        "tags are a list of amistore.Tag",
    ),
    "what is compared": (
        lambda c, _: images.difference(opened(), c.ebs, snapshots="snap-0123456789abcdef0"),
        "snapshots= is an Image, or maps",
    ),
    "whose tasks": (
        lambda c, _: amistore.TaskEngine(c.ebs),
        "the backend must be a Backend, not DirectoryEBS",
    ),
    "what a task stores": (lambda c, _: store(c, IMAGE), "Image(image_id='ami-"),
    "whether holes are filled": (lambda c, _: unpack(c, fill_holes="no"), "fill_holes must be True or False"),
    "whether blocks may be lost": (lambda c, _: unpack(c, allow_lost=0), "allow_lost must be True or False"),
    "whether an object is replaced": (
        lambda c, _: amistore.store(IMAGE, c.ebs, c.s3.at("bucket", "key"), overwrite="no"),
        "overwrite must be True or False, not 'no'",
    ),
    "whether a disk is replaced": (lambda *_: opened().extract("disks", overwrite="no"), "overwrite must be"),
    "whether a volume is resumed": (
        lambda *_: opened().volumes[0].extract("disk.raw", resume="no"),
        "resume must be True or False",
    ),
    "whether a check is quick": (lambda *_: opened().verify(quick="no"), "quick must be True or False"),
    "whether completed snapshots are deleted": (
        lambda c, p: amistore.abandon(amistore.FileResumeLog(p / "log"), c, completed="no"),
        "completed must be True or False",
    ),
    "a URL to store to": (
        lambda c, _: amistore.store(IMAGE, c.ebs, "s3://bucket/key"),
        "the target must be a path, or a location such as backend.s3.at(bucket, key)",
    ),
    "a bucket and key to store to": (
        lambda c, _: amistore.store(IMAGE, c.ebs, ("bucket", "key")),
        "or a location such as backend.s3.at(bucket, key)",
    ),
    "a file opened as text": (
        lambda c, _: amistore.open(io.StringIO("x")),
        'open it with open(path, "rb")',
    ),
    "a stream of text": (
        lambda c, _: amistore.unpack(io.StringIO("x"), c.ebs),
        'open it with open(path, "rb")',
    ),
    "a task's bucket": (
        lambda c, _: amistore.TaskEngine(c).create_store_image_task(
            image_id=IMAGE.image_id, bucket=("a", "b")
        ),
        "a bucket's name must be a string, not ('a', 'b')",
    ),
    "whether a task fills holes": (
        lambda c, _: restore(c, fill_holes="no"),
        "fill_holes must be True or False",
    ),
    "whether a task's may be lost": (
        lambda c, _: restore(c, allow_lost=0),
        "allow_lost must be True or False",
    ),
}


def unpack(cloud: amistore.DirectoryBackend, **flags: Any) -> object:
    return amistore.unpack(io.BytesIO(images.packed([(1, {})])), cloud.ebs, **flags)


def store(cloud: amistore.DirectoryBackend, image_id: Any, bucket: Any = "bucket") -> object:
    return amistore.TaskEngine(cloud).create_store_image_task(image_id=image_id, bucket=bucket)


def restore(cloud: amistore.DirectoryBackend, **flags: Any) -> object:
    engine = amistore.TaskEngine(cloud)
    return engine.create_restore_image_task(bucket="bucket", object_key="key", **flags)


def opened() -> amistore.Archive:
    return amistore.open(io.BytesIO(images.packed([(1, {})])))


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_of_the_wrong_kind_is_refused_with_what_to_give(
    cloud: amistore.DirectoryBackend, tmp_path: Path, call: Call, message: str
) -> None:
    with pytest.raises(amistore.InvalidRequestError, match=re.escape(message)) as caught:
        call(cloud, tmp_path)
    assert len(str(caught.value)) < 250
    assert cloud.s3.list_multipart_uploads("bucket") == []


@pytest.mark.parametrize("content", [b"abc", bytearray(b"abc"), memoryview(b"abc"), [b"a", b"bc"]])
def test_an_object_is_put_from_bytes_as_from_pieces_of_them(
    cloud: amistore.DirectoryBackend, content: Any
) -> None:
    cloud.s3.put_object("bucket", "key", content)
    assert cloud.s3.open_object("bucket", "key").read() == b"abc"


@pytest.mark.parametrize("index", ["1", -1, 1.0])
def test_a_block_that_has_no_index_is_refused_when_it_is_listed(index: Any) -> None:
    class Source(images.Volumes):
        def list_snapshot_blocks(self, snapshot_id: str, **_: Any) -> amistore.backends.BlockPage:
            return amistore.backends.BlockPage(volume_size=1, blocks=[amistore.backends.Block(index)])

    source = Source([(1, {})])
    with pytest.raises(amistore.BackendError, match=re.escape(f"{index!r} was listed first")):
        amistore.pack(images.image(source.volumes), source)


@pytest.mark.parametrize("make", [amistore.MemoryBackend, amistore.DirectoryBackend])
def test_an_image_or_bucket_that_is_not_there_is_told_shortly_with_the_remedy(
    make: Callable[..., amistore.Backend], tmp_path: Path
) -> None:
    cloud = make() if make is amistore.MemoryBackend else make(tmp_path)
    unknown = "ami-0123456789abcdef0"
    for call in (cloud.ec2.describe_image, cloud.ec2.deregister_image):
        with pytest.raises(amistore.NotFoundError, match=f"^no such image .operation .*{unknown}") as caught:
            call(unknown)
        for given in ("web", None, IMAGE):
            with pytest.raises(amistore.NotFoundError, match="an id is ami- and 8 or 17 hex") as caught:
                call(given)  # type: ignore[arg-type]
            assert len(str(caught.value)) < 250
    with pytest.raises(amistore.NotFoundError, match="no such bucket: make it with create_bucket"):
        cloud.s3.head_object("bucket", "key")
