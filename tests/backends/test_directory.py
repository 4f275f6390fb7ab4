"""`DirectoryBackend` beyond the contracts."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import amistore
from amistore.backends.directory import s3
from amistore.testing import block, read_snapshot, store_snapshot
from amistore.testing.snapshots import linear, sha256


@pytest.fixture
def cloud(tmp_path: Path) -> amistore.DirectoryBackend:
    return amistore.DirectoryBackend(tmp_path / "cloud")


def files_in(path: Path) -> list[str]:
    """All but the folder's identity."""
    found = [each for each in path.rglob("*") if each.is_file() and each != path / "id"]
    return sorted(str(each.relative_to(path)) for each in found)


def disk_of(path: Path, size: int, written: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in written.items():
            file.seek(offset)
            file.write(content)
    return path


class TestImportDisk:
    def read(self, cloud: amistore.DirectoryBackend, image_id: str) -> tuple[int, dict[int, bytes]]:
        return read_snapshot(cloud.ebs, cloud.ec2.describe_image(image_id).snapshot_ids[0])

    def test_a_size_is_rounded_up_to_whole_gib_and_filled_with_zeros(self, cloud, tmp_path):
        disk = disk_of(
            tmp_path / "disk.raw", 5 * amistore.BLOCK_SIZE + 7, {5 * amistore.BLOCK_SIZE: b"tail..."}
        )
        size, blocks = self.read(cloud, amistore.import_disks(disk, cloud, name="web").image_id)
        assert size == 1
        assert blocks == {5: b"tail...".ljust(amistore.BLOCK_SIZE, b"\0")}

    def test_one_byte_over_a_gib_makes_two(self, cloud, tmp_path):
        disk = disk_of(tmp_path / "disk.raw", amistore.GIB + 1, {amistore.GIB: b"x"})
        size, blocks = self.read(cloud, amistore.import_disks(disk, cloud, name="web").image_id)
        assert (size, sorted(blocks)) == (2, [2048])
        assert blocks[2048] == b"x".ljust(amistore.BLOCK_SIZE, b"\0")

    def test_holes_stay_unlisted_and_written_zeros_listed(self, cloud, tmp_path):
        size = amistore.BLOCK_SIZE
        disk = disk_of(tmp_path / "disk.raw", amistore.GIB, {3 * size: bytes(size), 9 * size + 9: b"x"})
        _, blocks = self.read(cloud, amistore.import_disks(disk, cloud, name="web").image_id)
        assert blocks == {3: bytes(size), 9: (bytes(9) + b"x").ljust(size, b"\0")}

    def test_the_image_is_described(self, cloud, tmp_path):
        disk = disk_of(tmp_path / "disk.raw", 1, {0: b"x"})
        others = (amistore.BlockDeviceMapping(device_name="/dev/sdb", virtual_name="ephemeral0"),)
        image_id = amistore.import_disks(
            disk,
            cloud,
            name="web",
            architecture="arm64",
            root_device_name="/dev/sda1",
            block_device_mappings=others,
        ).image_id
        image = cloud.ec2.describe_image(image_id)
        assert (image.name, image.architecture, image.root_device_name) == ("web", "arm64", "/dev/sda1")
        assert [each.device_name for each in image.block_device_mappings] == ["/dev/sda1", "/dev/sdb"]
        assert image.snapshots[0].description == "Imported from disk.raw"

    def test_a_disk_whose_name_is_no_unicode_is_imported(self, cloud, tmp_path):
        disk = disk_of(tmp_path / os.fsdecode(b"disk-\xff.raw"), 1, {0: b"x"})
        image = amistore.import_disks(disk, cloud, name="web").image
        assert image.snapshots[0].description == r"Imported from disk-\udcff.raw"

    @pytest.mark.parametrize(
        ("attributes", "field"),
        [
            ({"name": "x"}, "Image.name"),
            ({"name": "web", "ena_support": "yes"}, "Image.ena_support"),
            ({"name": "web", "root_device_name": None}, "BlockDeviceMapping.device_name"),
        ],
    )
    def test_an_invalid_attribute_is_refused_before_the_disk_is_read(self, cloud, attributes, field):
        with pytest.raises(amistore.InvalidValueError) as caught:
            amistore.import_disks("/no/such/disk", cloud, **attributes)
        assert caught.value.field == field

    def test_a_second_mapping_of_the_root_device_is_refused_before_the_disk_is_read(self, cloud):
        mapping = amistore.BlockDeviceMapping(device_name="/dev/xvda", virtual_name="ephemeral0")
        with pytest.raises(amistore.InvalidValueError):
            amistore.import_disks("/no/such/disk", cloud, name="web", block_device_mappings=(mapping,))

    def test_a_name_that_is_taken_is_refused_before_the_disk_is_read(self, cloud, tmp_path):
        amistore.import_disks(disk_of(tmp_path / "disk.raw", 1, {0: b"x"}), cloud, name="web")
        before = files_in(cloud.path)
        with pytest.raises(amistore.AlreadyExistsError):
            amistore.import_disks("/no/such/disk", cloud, name="web")
        assert files_in(cloud.path) == before

    def test_an_interrupt_behind_the_registration_leaves_no_image_on_a_deleted_snapshot(
        self, cloud, tmp_path, monkeypatch
    ):
        register = type(cloud.ec2).register_image

        def interrupted(*arguments, **options):
            register(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(type(cloud.ec2), "register_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            amistore.import_disks(disk_of(tmp_path / "disk.raw", 1, {0: b"x"}), cloud, name="web")
        (image,) = cloud.ec2.find_images("web")
        assert list(self.read(cloud, image.image_id)[1]) == [0]

    @pytest.mark.parametrize("kind", ["missing", "empty", "folder", "fifo", "nul", "surrogate", "too large"])
    def test_a_disk_that_is_none_is_refused_and_leaves_nothing(self, cloud, tmp_path, kind):
        path: str | Path = tmp_path / kind
        if kind == "empty":
            Path(path).touch()
        elif kind == "folder":
            Path(path).mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "nul":
            path = "disk\0.raw"
        elif kind == "surrogate":
            path = "disk\ud800.raw"
        elif kind == "too large":
            try:
                disk_of(Path(path), 64 * amistore.units.TIB + 1, {})
            except OSError:
                pytest.skip("the filesystem holds no such file")
        expected = amistore.NotFoundError if kind == "missing" else amistore.InvalidRequestError
        with pytest.raises(expected):
            amistore.import_disks(path, cloud, name="web")
        assert files_in(cloud.path) == []


class TestDamage:
    def image(self, cloud: amistore.DirectoryBackend) -> amistore.Image:
        snapshot_id = store_snapshot(cloud.ebs, 1, {0: block(1), 3: block(2)})
        ebs = amistore.EbsBlockDevice(snapshot_id=snapshot_id)
        mapping = amistore.BlockDeviceMapping(device_name="/dev/xvda", ebs=ebs)
        image = amistore.Image(
            image_id="ami-01234567",
            name="web",
            root_device_name="/dev/xvda",
            block_device_mappings=(mapping,),
        )
        return cloud.ec2.describe_image(cloud.ec2.register_image(image))

    def test_bit_rot_in_a_disk_is_found_by_pack(self, cloud):
        image = self.image(cloud)
        disk = cloud.path / "ebs" / image.snapshot_ids[0] / "disk.raw"
        with disk.open("r+b") as file:
            file.seek(3 * amistore.BLOCK_SIZE + 77)
            file.write(b"\x01")
        with pytest.raises(amistore.ChecksumMismatchError) as caught:
            list(amistore.pack(image, cloud.ebs))
        assert caught.value.block_index == 3

    def test_a_disk_that_ends_too_soon_is_damaged(self, cloud):
        snapshot_id = self.image(cloud).snapshot_ids[0]
        os.truncate(cloud.path / "ebs" / snapshot_id / "disk.raw", 2 * amistore.BLOCK_SIZE)
        with pytest.raises(amistore.BackendError, match=r"disk\.raw is damaged"):
            cloud.ebs.get_snapshot_block(snapshot_id, 3, "")

    def test_a_lost_disk_is_a_typed_error(self, cloud):
        snapshot_id = self.image(cloud).snapshot_ids[0]
        (cloud.path / "ebs" / snapshot_id / "disk.raw").unlink()
        for read in (cloud.ebs.list_snapshot_blocks, lambda id_: cloud.ebs.get_snapshot_block(id_, 0, "")):
            with pytest.raises(amistore.BackendError) as caught:
                read(snapshot_id)
            assert caught.value.snapshot_id == snapshot_id

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff", b"[]", b"null", b"5", b"{}", b'{"ImageId": 5}', b"[" * 100_000,
         b'{"SnapshotId": "snap-01234567", "VolumeSize": "1"}', b'{"SnapshotId": "snap-1"}'],
    )  # fmt: skip
    def test_a_damaged_description_is_a_typed_error_that_names_the_file(self, cloud, content):
        image = self.image(cloud)
        (cloud.path / "ebs" / image.snapshot_ids[0] / "snapshot.json").write_bytes(content)
        with pytest.raises(amistore.BackendError, match=r"snapshot\.json is damaged"):
            cloud.ebs.describe_snapshot(image.snapshot_ids[0])
        with pytest.raises(amistore.BackendError, match=r"snapshot\.json is damaged"):
            cloud.ec2.register_image(image, name="other")
        (cloud.path / "ec2" / f"{image.image_id}.json").write_bytes(content)
        for call in (lambda: cloud.ec2.describe_image(image.image_id), cloud.ec2.describe_images):
            with pytest.raises(amistore.BackendError, match=r"\.json is damaged"):
                call()
        cloud.ec2.deregister_image(image.image_id)

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b"{}", b'{"key": "key"}', b'{"key": 5, "metadata": {}}', b'{"key": "key\\u0000"}',
         b'{"key": ["key"], "metadata": {}, "tags": {}}', b"[" * 100_000,
         b'{"key": "key", "metadata": {"a": 5}, "tags": {}}'],
    )  # fmt: skip
    def test_a_damaged_upload_is_a_typed_error_that_names_the_file(self, cloud, content):
        cloud.s3.create_bucket("archive")
        upload = cloud.s3.create_multipart_upload("archive", "key")
        (cloud.path / "s3/archive/.amistore/uploads" / upload / "upload.json").write_bytes(content)
        for call in (
            lambda: cloud.s3.upload_part("archive", "key", upload, 1, b"x"),
            lambda: cloud.s3.list_parts("archive", "key", upload),
            lambda: cloud.s3.list_multipart_uploads("archive"),
        ):
            with pytest.raises(amistore.BackendError, match=rf"{upload}/upload\.json is damaged"):
                call()

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"{}", b'{"metadata": 5, "tags": {}}', b'{"metadata": {"a": 5}, "tags": {}}']
    )
    def test_damaged_metadata_is_a_typed_error_that_names_the_file(self, cloud, content):
        cloud.s3.create_bucket("archive")
        cloud.s3.put_object("archive", "key", [b"x"])
        (sidecar,) = (cloud.path / "s3/archive/.amistore/objects").iterdir()
        sidecar.write_bytes(content)
        for call in (cloud.s3.head_object, cloud.s3.get_object_tagging):
            with pytest.raises(amistore.BackendError, match=rf"{sidecar} is damaged"):
                call("archive", "key")

    def test_metadata_that_is_no_string_is_refused_before_it_is_kept(self, cloud):
        cloud.s3.create_bucket("archive")
        with pytest.raises(amistore.InvalidRequestError, match="strings"):
            cloud.s3.create_multipart_upload("archive", "key", metadata={"a": 5})
        assert files_in(cloud.path / "s3") == []

    def test_a_stray_file_in_an_upload_is_no_part(self, cloud):
        cloud.s3.create_bucket("archive")
        upload = cloud.s3.create_multipart_upload("archive", "key")
        part = cloud.s3.upload_part("archive", "key", upload, 1, b"x")
        folder = cloud.path / "s3/archive/.amistore/uploads" / upload
        for name in ("1~", "1", "00002.bak", "000003"):
            (folder / name).write_bytes(b"stray")
        os.mkfifo(folder / "00004")
        assert cloud.s3.list_parts("archive", "key", upload) == [part]
        cloud.s3.complete_multipart_upload("archive", "key", upload, [part])
        assert cloud.s3.path("archive", "key").read_bytes() == b"x"

    def test_a_fifo_in_the_place_of_a_file_is_told_instead_of_waited_for(self, cloud):
        image = self.image(cloud)
        cloud.s3.create_bucket("archive")
        fifos = [
            cloud.s3.path("archive", "key"),
            cloud.path / "ec2" / f"{image.image_id}.json",
            cloud.path / "ebs" / image.snapshot_ids[0] / "snapshot.json",
        ]
        for path in fifos:
            path.unlink(missing_ok=True)
            os.mkfifo(path)
        program = """
import sys, amistore
cloud = amistore.DirectoryBackend(sys.argv[1])
for call in (
    lambda: cloud.s3.get_object_range("archive", "key", 0, 1),
    lambda: cloud.s3.head_object("archive", "key"),
    lambda: cloud.ec2.describe_image(sys.argv[2]),
    lambda: cloud.ebs.describe_snapshot(sys.argv[3]),
):
    try:
        call()
    except amistore.BackendError as error:
        print(error)
"""
        arguments = [sys.executable, "-c", program, cloud.path, image.image_id, image.snapshot_ids[0]]
        told = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
        for line, path in zip(told.splitlines(), [fifos[0], *fifos], strict=True):
            assert line.startswith(f"{path} is no regular file")

    def test_a_stray_file_among_the_images_is_no_image(self, cloud):
        image = self.image(cloud)
        folder = cloud.path / "ec2"
        shutil.copy(folder / f"{image.image_id}.json", folder / "ami-copy.json")
        (folder / "notes.txt").write_text("note")
        assert [each.image_id for each in cloud.ec2.describe_images()] == [image.image_id]

    def test_an_image_under_another_s_id_is_damaged(self, cloud):
        image = self.image(cloud)
        folder = cloud.path / "ec2"
        shutil.copy(folder / f"{image.image_id}.json", folder / "ami-01234567.json")
        with pytest.raises(amistore.BackendError, match=image.image_id):
            cloud.ec2.describe_image("ami-01234567")


class TestNames:
    @pytest.mark.parametrize(
        "bucket",
        ["..", "../s3", "/tmp", "a/b", "nul\0", "", "ab", "Upper", "a..b", "x" * 64, "größe", None, 5],
    )
    def test_a_bucket_cannot_escape(self, cloud, bucket):
        before = sorted(cloud.path.rglob("*"))
        for call in (
            lambda: cloud.s3.create_bucket(bucket),
            lambda: cloud.s3.put_object(bucket, "key", [b"x"]),
            lambda: cloud.s3.head_object(bucket, "key"),
            lambda: cloud.s3.delete_object(bucket, "key"),
        ):
            with pytest.raises(amistore.InvalidRequestError):
                call()
        assert sorted(cloud.path.rglob("*")) == before

    @pytest.mark.parametrize("key", ["../x", "/tmp/x", "..", "nul\0", ".amistore/uploads/x", "a/../../x"])
    def test_a_key_stays_in_its_bucket(self, cloud, key):
        cloud.s3.create_bucket("archive")
        cloud.s3.put_object("archive", key, [b"content"])
        path = cloud.s3.path("archive", key)
        assert path.parent == cloud.path / "s3" / "archive"
        assert path.read_bytes() == b"content"
        assert len([found for found in files_in(cloud.path) if ".amistore" not in found]) == 1

    @pytest.mark.parametrize("key", ["", "x" * 201, "ä" * 100, "\ud800", None, 5, b"\0\xff" * 90])
    def test_a_key_that_no_file_can_have_is_refused(self, cloud, key):
        cloud.s3.create_bucket("archive")
        with pytest.raises(amistore.InvalidRequestError):
            cloud.s3.put_object("archive", key, [b"x"])

    @pytest.mark.parametrize(
        "snapshot_id", ["..", "../ebs", "/", "snap-\0", "snap-1", None, 5, "snap-01234567/x"]
    )
    def test_a_bad_snapshot_id_is_not_found(self, cloud, snapshot_id):
        for call in (cloud.ebs.describe_snapshot, cloud.ebs.list_snapshot_blocks, cloud.ebs.delete_snapshot):
            with pytest.raises(amistore.NotFoundError):
                call(snapshot_id)
        assert (cloud.path / "ebs").is_dir()

    @pytest.mark.parametrize("token", ["x", "-1", "", "1.0", "٣", "9" * 50])
    def test_a_page_token_of_nobody_s_making_is_refused_or_harmless(self, cloud, token):
        snapshot_id = store_snapshot(cloud.ebs, 1, {0: block(1)})
        if token:
            with pytest.raises(amistore.BackendError, match="page token"):
                cloud.ebs.list_snapshot_blocks(snapshot_id, next_token=token)
        page = cloud.ebs.list_snapshot_blocks(snapshot_id, next_token="4294967295")
        assert list(page.blocks) == []

    @pytest.mark.parametrize("index", [-1, 2047, 2048, 2**40])
    def test_a_block_that_is_not_listed_is_not_found(self, cloud, index):
        snapshot_id = store_snapshot(cloud.ebs, 1, {0: block(1)})
        with pytest.raises(amistore.NotFoundError):
            cloud.ebs.get_snapshot_block(snapshot_id, index, "")


class TestObjects:
    def test_a_file_copied_by_hand_is_an_object(self, cloud, tmp_path):
        cloud.s3.create_bucket("archive")
        (tmp_path / "ami.bin").write_bytes(b"content")
        shutil.copy(tmp_path / "ami.bin", cloud.path / "s3" / "archive" / "ami.bin")
        assert cloud.s3.head_object("archive", "ami.bin").size == 7
        assert cloud.s3.head_object("archive", "ami.bin").metadata == {}
        assert cloud.s3.open_object("archive", "ami.bin").read() == b"content"

    def test_a_folder_made_by_hand_is_a_bucket(self, cloud):
        (cloud.path / "s3" / "by-hand").mkdir()
        cloud.s3.put_object("by-hand", "key", [b"x"], metadata={"a": "b"})
        assert cloud.s3.head_object("by-hand", "key").metadata == {"a": "b"}

    def test_a_file_replaced_by_hand_does_not_keep_the_metadata(self, cloud):
        cloud.s3.create_bucket("archive")
        cloud.s3.put_object("archive", "key", [b"first"], metadata={"a": "b"})
        cloud.s3.path("archive", "key").write_bytes(b"other")
        assert cloud.s3.head_object("archive", "key").metadata == {}

    def test_metadata_survives_in_another_process_and_a_copied_folder(self, cloud, tmp_path):
        cloud.s3.create_bucket("archive")
        info = cloud.s3.put_object("archive", "key", [b"x"], metadata={"größe": "ä\n"})
        assert amistore.DirectoryBackend(cloud.path).s3.head_object("archive", "key") == info
        shutil.copytree(cloud.path, tmp_path / "copy")
        assert amistore.DirectoryBackend(tmp_path / "copy").s3.head_object("archive", "key") == info

    def test_nothing_is_left_of_replaced_and_deleted_objects(self, cloud):
        cloud.s3.create_bucket("archive")
        for number in range(5):
            cloud.s3.put_object("archive", "key", [b"x"], metadata={"number": str(number)})
        with pytest.raises(amistore.AlreadyExistsError):
            cloud.s3.put_object("archive", "key", [b"x"], if_none_match=True)
        assert len(files_in(cloud.path)) == 2
        cloud.s3.delete_object("archive", "key")
        assert files_in(cloud.path) == []

    def test_a_failed_put_object_leaves_no_upload(self, cloud):
        cloud.s3.create_bucket("archive")
        with pytest.raises(ZeroDivisionError):
            cloud.s3.put_object("archive", "key", (b"x" * (1 // number) for number in (1, 0)), part_size=1)
        assert files_in(cloud.path) == []

    def test_an_object_completed_while_another_of_its_key_is_deleted_stays(self, cloud, monkeypatch):
        cloud.s3.create_bucket("archive")
        cloud.s3.put_object("archive", "key", [b"old"])
        before = cloud.s3.head_object("archive", "key").etag
        etag, lock = s3._etag, s3.FileLock
        come = threading.Event()  # the other object is there, or waits for the one that deletes

        def put() -> None:
            cloud.s3.put_object("archive", "key", [b"new"], metadata={"whose": "new"})
            come.set()

        putting = threading.Thread(target=put)

        def etag_and_pause(status):
            if threading.current_thread() is not putting and not come.is_set():
                putting.start()
                assert come.wait(60)
            return etag(status)

        def lock_and_tell(directory):
            if threading.current_thread() is putting:
                come.set()
            return lock(directory)

        monkeypatch.setattr(s3, "_etag", etag_and_pause)
        monkeypatch.setattr(s3, "FileLock", lock_and_tell)
        cloud.s3.delete_object("archive", "key", if_match=before)
        putting.join()
        assert cloud.s3.head_object("archive", "key").metadata == {"whose": "new"}
        assert cloud.s3.get_object_range("archive", "key", 0, 9) == b"new"


class TestPlaces:
    def test_a_file_in_the_directory_s_place_is_a_typed_error(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(amistore.BackendError, match="Not a directory"):
                amistore.DirectoryBackend(path)

    def test_a_path_with_a_nul_is_a_typed_error(self, tmp_path):
        with pytest.raises(amistore.InvalidRequestError):
            amistore.DirectoryBackend(f"{tmp_path}/a\0b")

    def test_a_directory_that_was_removed_is_a_typed_error(self, cloud):
        snapshot_id = store_snapshot(cloud.ebs, 1, {})
        shutil.rmtree(cloud.path)
        for call in (
            lambda: cloud.ebs.start_snapshot(1),
            lambda: cloud.ebs.list_snapshot_blocks(snapshot_id),
            lambda: cloud.s3.create_bucket("archive") or cloud.s3.head_object("archive", "key"),
            lambda: cloud.ec2.describe_image("ami-01234567"),
            lambda: amistore.import_disks(__file__, cloud, name="web").image_id,
        ):
            with pytest.raises(amistore.BackendError):
                call()

    def test_a_read_only_directory_is_a_typed_error(self):
        run(READ_ONLY)

    def test_the_disk_of_a_snapshot_is_sparse(self, cloud):
        snapshot_id = store_snapshot(cloud.ebs, 1000, {0: block(1), 1000 * 2048 - 1: block(2)})
        folder = cloud.path / "ebs" / snapshot_id
        assert (folder / "disk.raw").stat().st_size == 1000 * amistore.GIB
        assert sum(path.stat().st_blocks for path in folder.iterdir()) * 512 < 4 * amistore.MIB


READ_ONLY = """
import os, shutil, tempfile, amistore
from amistore.testing import block, store_snapshot
from amistore.testing.snapshots import linear, sha256

# Modes do not bind root: be somebody else.
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
path = tempfile.mkdtemp()  # pytest's own folders are closed to others
cloud = amistore.DirectoryBackend(path)
cloud.s3.create_bucket("archive")
cloud.s3.put_object("archive", "key", [b"x"])
done = store_snapshot(cloud.ebs, 1, {0: block(1)})
pending = cloud.ebs.start_snapshot(1)
found = [folder for folder, _, _ in os.walk(path)]
for folder in found:
    os.chmod(folder, 0o555)
os.chmod(f"{path}/ebs/{pending}/disk.raw", 0o444)
image = amistore.Image(image_id="ami-01234567", name="web")
for call in (
    lambda: amistore.DirectoryBackend(path + "/ec2/below"),
    lambda: amistore.import_disks("/etc/passwd", cloud, name="web").image_id,
    lambda: cloud.ebs.start_snapshot(1),
    lambda: cloud.ebs.put_snapshot_block(pending, 0, block(1), sha256(block(1))),
    lambda: cloud.ebs.complete_snapshot(pending, 0, linear({})),
    lambda: cloud.ebs.delete_snapshot(done),
    lambda: cloud.s3.create_bucket("another"),
    lambda: cloud.s3.put_object("archive", "other", [b"x"]),
    lambda: cloud.s3.delete_object("archive", "key"),
    lambda: cloud.ec2.register_image(image),
):
    try:
        call()
    except amistore.BackendError as error:
        assert "denied" in str(error), error
    else:
        raise AssertionError("not refused")
amistore.DirectoryBackend(path).ebs.list_snapshot_blocks(done)
for folder in found:
    os.chmod(folder, 0o755)
shutil.rmtree(path)
"""


def run(script: str, *arguments: object) -> None:
    """Run a script in a process of its own, which must end well."""
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


FULL = """
import os, sys, amistore
from amistore.testing import block, read_snapshot, store_snapshot
from amistore.testing.snapshots import linear, sha256

path, limited = sys.argv[1:]
if limited == "file size":
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def files():
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)

cloud = amistore.DirectoryBackend(path)
cloud.s3.create_bucket("archive")
cloud.s3.put_object("archive", "old", [b"old"])
kept = store_snapshot(cloud.ebs, 1, {0: block(1)})
pending = cloud.ebs.start_snapshot(1)
with open(path + "/disk", "wb") as disk:
    disk.write(block(1)[:4096])
    disk.truncate(1 << 30)
if limited == "file size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
before = files()

def refused(call):
    try:
        call()
    except amistore.StorageFullError as error:
        assert error.operation and path in str(error) and "make room" in str(error), error
    else:
        raise AssertionError("not refused")

refused(lambda: cloud.s3.put_object("archive", "new", [os.urandom(8 << 20)]))
refused(lambda: cloud.s3.put_object("archive", "old", [os.urandom(1 << 20)] * 8, part_size=1 << 20))
assert files() == before
if limited == "file size":
    refused(lambda: cloud.ebs.start_snapshot(1))
    refused(lambda: amistore.import_disks(path + "/disk", cloud, name="web").image_id)
    assert files() == before
refused(lambda: [cloud.ebs.put_snapshot_block(pending, i, block(i), sha256(block(i))) for i in range(2, 30)])
if limited == "space":  # not even an entry is left: what is small fails too
    refused(lambda: [cloud.s3.put_object("archive", f"small{n}", [bytes(4096)]) for n in range(999)])
    refused(lambda: cloud.ebs.start_snapshot(1) and amistore.import_disks(path + "/disk", cloud, name="web"))
assert read_snapshot(cloud.ebs, kept) == (1, {0: block(1)})
with cloud.s3.open_object("archive", "old") as file:
    assert file.read() == b"old"
cloud.ebs.delete_snapshot(pending)
assert not [name for name in files() if name.endswith(".tmp")]
assert not os.listdir(path + "/s3/archive/.amistore/uploads")
"""


def test_a_file_that_may_not_grow_is_a_full_storage(tmp_path):
    run(FULL, tmp_path, "file size")


def test_a_full_filesystem_is_a_full_storage(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        run(FULL, tmp_path, "space")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_volume_that_the_filesystem_cannot_hold_is_a_typed_error(cloud):
    try:
        snapshot_id = cloud.ebs.start_snapshot(65_536)
    except amistore.StorageFullError as error:
        assert error.operation == "start_snapshot"
        assert list((cloud.path / "ebs").iterdir()) == []
    else:  # this filesystem can
        cloud.ebs.put_snapshot_block(snapshot_id, 65_536 * 2048 - 1, block(1), sha256(block(1)))
        cloud.ebs.complete_snapshot(snapshot_id, 1, linear({0: block(1)}))
        assert [each.block_index for each in cloud.ebs.list_snapshot_blocks(snapshot_id).blocks] == [
            65_536 * 2048 - 1
        ]


def put(ebs: amistore.backends.BlockSink, snapshot_id: str, indexes: list[int]) -> None:
    for index in indexes:
        ebs.put_snapshot_block(snapshot_id, index, block(index), sha256(block(index)))


def register(ec2: amistore.backends.ImageRegistry, image: amistore.Image) -> bool:
    try:
        ec2.register_image(image)
    except amistore.AlreadyExistsError:
        return False
    return True


def test_processes_share_a_directory(cloud):
    """Puts into one snapshot, and registrations of one name."""
    assert files_in(pickle.loads(pickle.dumps(cloud)).path) == []
    snapshot_id = cloud.ebs.start_snapshot(1)
    image = amistore.Image(image_id="ami-01234567", name="web")
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        puts = [pool.submit(put, cloud.ebs, snapshot_id, list(range(part, 61, 6))) for part in range(1, 7)]
        registered = [pool.submit(register, cloud.ec2, image) for _ in range(12)]
        for each in puts:
            each.result()
        assert [each.result() for each in registered].count(True) == 1
    blocks = {index: block(index) for index in range(1, 61)}
    cloud.ebs.complete_snapshot(snapshot_id, len(blocks), linear(blocks))
    assert read_snapshot(cloud.ebs, snapshot_id) == (1, blocks)
    assert len(cloud.ec2.describe_images()) == 1


def test_a_snapshot_description_is_a_model_s_members(cloud):
    snapshot_id = cloud.ebs.start_snapshot(1, description="ä", tags=[amistore.Tag(key="a", value="b")])
    members = json.loads((cloud.path / "ebs" / snapshot_id / "snapshot.json").read_text())
    assert members == {
        "Description": "ä",
        "SnapshotId": snapshot_id,
        "Tags": [{"Key": "a", "Value": "b"}],
        "VolumeSize": 1,
    }
    assert cloud.ebs.describe_snapshot(snapshot_id).state == "pending"


def test_blocks_that_vanish_from_the_list_of_digests_are_missed(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    blocks = {0: block(1), 7: block(2)}
    snapshot_id = store_snapshot(cloud.ebs, 1, blocks)
    with (tmp_path / "ebs" / snapshot_id / "digests").open("r+b") as digests:
        digests.seek(7 * 32)
        digests.write(bytes(32))
    with pytest.raises(amistore.ChecksumMismatchError, match="digests is damaged"):
        cloud.ebs.list_snapshot_blocks(snapshot_id)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0123456789abcdef\n", None], ids=str)
def test_an_identity_that_is_damaged_is_told_with_its_file(tmp_path: Path, content: bytes | None):
    amistore.DirectoryBackend(tmp_path)
    (tmp_path / "id").unlink()
    if content is None:
        os.mkfifo(tmp_path / "id")
    else:
        (tmp_path / "id").write_bytes(content)
    with pytest.raises(amistore.BackendError, match=re.escape(f"{tmp_path / 'id'}")):
        amistore.DirectoryBackend(tmp_path)


def test_metadata_stays_where_the_filesystem_gives_two_objects_the_same_time(cloud, monkeypatch):
    cloud.s3.create_bucket("archive")
    monkeypatch.setattr("amistore.backends.directory.s3._etag", lambda status: f"{status.st_size}")
    for version in ("1", "2"):
        cloud.s3.put_object("archive", "key", b"same size", metadata={"version": version})
    assert cloud.s3.head_object("archive", "key").metadata == {"version": "2"}
