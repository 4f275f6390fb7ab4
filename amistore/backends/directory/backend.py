"""`DirectoryBackend`: folders stand in for EC2, EBS and S3, crash-safe, with nothing to install.

Its files are ``<path>/ec2/<image id>.json``, ``<path>/ebs/<snapshot id>/disk.raw`` and
``<path>/s3/<bucket>/<key>``; a task engine's journal is ``<path>/tasks.db``. ``<path>/id`` identifies the
folder also after it is moved, so that logs and tasks can be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any, Literal

import attrs

from amistore import forks
from amistore.backends import checks, files
from amistore.backends.base import Backend
from amistore.backends.directory.disk import SourceDisk, open_disk
from amistore.backends.directory.diskformats import SECTOR, refuse_foreign
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.ec2 import DirectoryEC2
from amistore.backends.directory.s3 import DirectoryS3
from amistore.errors import BackendError, InvalidRequestError, NotFoundError
from amistore.model import BlockDeviceMapping, EbsBlockDevice, Image
from amistore.units import BLOCK_SIZE, GIB, ZERO_DIGEST, sized

__all__ = ["DirectoryBackend"]

_logger = logging.getLogger("amistore")


class DirectoryBackend(Backend[DirectoryEBS, DirectoryS3, DirectoryEC2]):
    """EC2, EBS and S3 in a folder, which is made where it is missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        root = checks.check_path(path, "backend's folder").absolute()
        with files.operation("open"):
            for service in ("ec2", "ebs", "s3"):
                try:
                    (root / service).mkdir(parents=True, exist_ok=True)
                except FileExistsError as error:
                    raise NotADirectoryError(errno.ENOTDIR, "Not a directory", error.filename) from None
            where = f"directory {_identity(root)}"
        ebs = DirectoryEBS(root / "ebs", where=where)
        super().__init__(ebs=ebs, s3=DirectoryS3(root / "s3", where), ec2=DirectoryEC2(root / "ec2", ebs))
        self.path = root
        self.journal = str(root / "tasks.db")

    def __repr__(self) -> str:
        return f"DirectoryBackend({str(self.path)!r})"

    def sweep(self) -> tuple[str, ...]:
        """Remove what crashes left in the folder at least an hour ago; return the files' names."""
        with files.operation("sweep"):
            found = [*files.remove_hidden(self.path / "ec2"), *files.remove_hidden(self.path / "ebs")]
            return tuple(str(path.relative_to(self.path)) for path in (*found, *self.s3.sweep()))

    def import_disk(
        self,
        path: str | os.PathLike[str],
        *,
        name: str,
        format: Literal["raw"] | None = None,
        zeros: Literal["listed", "unlisted"] = "listed",
        **attributes: Any,
    ) -> str:
        """Make an AMI of a raw disk that nobody writes to meanwhile.

        The volume has the disk's size rounded up to whole GiB and reads as zeros behind the disk's end, as in
        EBS. Holes of the file stay unlisted blocks. Parts that were allocated and never written
        (``fallocate``) are listed like written zeros, if the filesystem tells of them (FIEMAP: ext4, XFS,
        btrfs and others; not tmpfs, NFS); a block device has no holes.

        A write to the disk is noticed by its size and times of change. A write through mmap goes unnoticed on
        tmpfs, and one by another machine may on a network filesystem.

        Args:
            path: the path of a raw disk image, or of a block device that is not in use.
            name: the image's name, unique in this backend.
            format: the disk's format. ``"raw"`` takes the bytes as they are, also if the file looks like a
                qcow2, VMDK, VHD, VHDX or VDI image, a compressed file or an archive; None refuses these.
            zeros: the treatment of blocks that hold only zeros: ``"listed"`` keeps them, ``"unlisted"``
                leaves them out. On an encrypted EBS volume a block that is not listed reads as noise.
            **attributes: the further fields of `Image`, such as ``architecture="arm64"``; mappings are
                added to that of the disk.

        Returns:
            The new image's id.

        Raises:
            InvalidValueError: the name or an attribute breaks a rule.
            InvalidRequestError: the disk is empty, larger than any volume, in use, or no raw disk.
            SourceChangedError: the disk was written to; nothing is left behind.
            AlreadyExistsError: the name is taken.
            BackendError: the disk cannot be read or the folder not written; nothing is left behind.
        """
        disk_path = checks.check_path(path, "disk")
        if format not in (None, "raw"):
            raise InvalidRequestError(f'format is "raw" or None, not {format!r}')
        if zeros not in ("listed", "unlisted"):
            raise InvalidRequestError(f'zeros is "listed" or "unlisted", not {zeros!r}')
        members = {
            "architecture": "x86_64",
            "virtualization_type": "hvm",
            "root_device_name": "/dev/xvda",
            "root_device_type": "ebs",
            "ena_support": True,
            **attributes,
        }
        others = tuple(members.pop("block_device_mappings", ()))
        ebs = EbsBlockDevice(delete_on_termination=True)
        root = BlockDeviceMapping(device_name=members["root_device_name"], ebs=ebs)
        image = Image(
            image_id=checks.new_id("ami"), name=name, block_device_mappings=(*others, root), **members
        )
        self.ec2.prepare_image(image)  # refuse before the disk is read
        with files.operation("import_disk", path=disk_path), open_disk(disk_path) as disk:
            if format is None:
                refuse_foreign(disk_path, *disk.ends(SECTOR))
            snapshot_id = self._import_snapshot(disk, disk_path.name, zeros == "listed")
        with forks.undoing(lambda _: self._discard(snapshot_id, image.image_id)):
            root = attrs.evolve(root, ebs=attrs.evolve(ebs, snapshot_id=snapshot_id))
            imported = attrs.evolve(image, block_device_mappings=(*others, root))
            return self.ec2.register_image(imported, image_id=image.image_id)

    def _import_snapshot(self, disk: SourceDisk, name: str, listing_zeros: bool) -> str:
        # A file's name may hold bytes that are no UTF-8.
        description = f"Imported from {os.fsencode(name).decode(errors='replace')}"
        snapshot_id = self.ebs.start_snapshot(-(-disk.size // GIB), description=description)
        with forks.undoing(lambda _: self._discard(snapshot_id)):
            linear = hashlib.sha256()
            listed = zeros = 0
            for index in disk.blocks():
                content = disk.read(index)
                digest = hashlib.sha256(content).digest()
                zeros += digest == ZERO_DIGEST
                if digest == ZERO_DIGEST and not listing_zeros:
                    continue
                self.ebs.put_snapshot_block(snapshot_id, index, content, digest)
                linear.update(digest)
                listed += 1
            disk.check()
            self.ebs.complete_snapshot(snapshot_id, listed, linear.digest())
        if zeros:
            done = 'are listed; zeros="unlisted" leaves them out' if listing_zeros else "are left out"
            _logger.info("%s: %s of zeros %s", description, sized(zeros * BLOCK_SIZE), done)
        return snapshot_id

    def _discard(self, snapshot_id: str, image_id: str | None = None) -> None:
        try:
            if image_id is not None:  # an error may come behind its registration
                with contextlib.suppress(NotFoundError):
                    self.ec2.deregister_image(image_id)
            self.ebs.delete_snapshot(snapshot_id)
        except Exception as error:  # the first error is the one to tell
            _logger.error("snapshot %s is left behind, delete it: %s", snapshot_id, error)


def _identity(root: Path) -> str:
    """The content of the folder's file ``id``, made where it is missing; the path where it cannot be made."""
    path = root / "id"
    if not path.exists():
        try:
            with contextlib.suppress(FileExistsError), files.new_file(path) as descriptor:
                files.write_at(descriptor, secrets.token_hex(8).encode(), 0)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
            return os.path.realpath(root)
    with files.open_file(path) as descriptor:
        found = files.read_at(descriptor, 17, 0)
    if not re.fullmatch(b"[0-9a-f]{16}", found):
        raise BackendError(f"{path} is damaged: put a copy back, or remove it, and tasks begin anew")
    return found.decode()
