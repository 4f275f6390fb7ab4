"""`DirectoryBackend`: folders stand in for EC2, EBS and S3, crash-safe, with nothing to install.

``<path>/ec2/<image id>.json``, ``<path>/ebs/<snapshot id>/disk.raw``, ``<path>/s3/<bucket>/<key>``;
a task engine's journal is ``<path>/tasks.db``. ``<path>/id`` tells the folder from others, wherever it
is moved, so that resume logs and tasks go on.
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
from typing import Any

import attrs

from amistore import forks
from amistore.backends import checks, files
from amistore.backends.base import Backend
from amistore.backends.directory import disk
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.ec2 import DirectoryEC2
from amistore.backends.directory.s3 import DirectoryS3
from amistore.errors import BackendError
from amistore.model import BlockDeviceMapping, EbsBlockDevice, Image
from amistore.units import GIB

__all__ = ["DirectoryBackend"]

_logger = logging.getLogger("amistore")


class DirectoryBackend(Backend[DirectoryEBS, DirectoryS3, DirectoryEC2]):
    """EC2, EBS and S3 in a folder, made where it is missing."""

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
        """Remove what crashes have left in the folder an hour ago or earlier; gives the files' names."""
        with files.operation("sweep"):
            found = [*files.remove_hidden(self.path / "ec2"), *files.remove_hidden(self.path / "ebs")]
            return tuple(str(path.relative_to(self.path)) for path in (*found, *self.s3.sweep()))

    def import_disk(self, path: str | os.PathLike[str], *, name: str, **attributes: Any) -> str:
        """Make an AMI of a raw disk.

        The volume has the disk's size rounded up to whole GiB and reads as zeros behind the
        disk's end, as EBS does. Holes of the file stay unlisted blocks.

        Args:
            path: a raw disk image or a block device.
            name: the image's name, unique in this backend.
            **attributes: further fields of `Image`, such as ``architecture="arm64"``; mappings
                are added to that of the disk.

        Returns:
            The new image's id.

        Raises:
            InvalidValueError: the name or an attribute breaks a rule.
            InvalidRequestError: an empty disk, or one that no volume can hold.
            AlreadyExistsError: the name is taken.
            BackendError: the disk cannot be read or the folder not written; nothing is left behind.
        """
        disk_path = checks.check_path(path, "disk")
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
        snapshot_id = self._import_snapshot(disk_path)
        with forks.undoing(lambda _: self._discard(snapshot_id)):
            root = attrs.evolve(root, ebs=attrs.evolve(ebs, snapshot_id=snapshot_id))
            return self.ec2.register_image(attrs.evolve(image, block_device_mappings=(*others, root)))

    def _import_snapshot(self, path: Path) -> str:
        waiting_for_none = os.O_RDONLY | os.O_NONBLOCK  # as the opening of a FIFO would
        with (
            files.operation("import_disk", path=path),
            files.open_descriptor(path, waiting_for_none) as descriptor,
        ):
            # A file's name may hold bytes that are no UTF-8.
            name = os.fsencode(path.name).decode(errors="replace")
            size = disk.disk_size(path, descriptor)
            snapshot_id = self.ebs.start_snapshot(-(-size // GIB), description=f"Imported from {name}")
            with forks.undoing(lambda _: self._discard(snapshot_id)):
                linear = hashlib.sha256()
                count = 0
                for index in disk.data_blocks(descriptor, size):
                    content = disk.read_block(descriptor, index)
                    digest = hashlib.sha256(content).digest()
                    self.ebs.put_snapshot_block(snapshot_id, index, content, digest)
                    linear.update(digest)
                    count += 1
                self.ebs.complete_snapshot(snapshot_id, count, linear.digest())
        return snapshot_id

    def _discard(self, snapshot_id: str) -> None:
        try:
            self.ebs.delete_snapshot(snapshot_id)
        except Exception as error:  # the first error is the one to tell
            _logger.error("snapshot %s is left behind, delete it: %s", snapshot_id, error)


def _identity(root: Path) -> str:
    """What is in the folder's file ``id``, made where it is missing; the path where it cannot be."""
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
