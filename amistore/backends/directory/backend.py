"""`DirectoryBackend`: folders stand in for EC2, EBS and S3, crash-safe, with nothing to install.

Its files are ``<path>/ec2/<image id>.json``, ``<path>/ebs/<snapshot id>/disk.raw`` and
``<path>/s3/<bucket>/<key>``; a task engine's journal is ``<path>/tasks.db``. ``<path>/id`` identifies the
folder also after it is moved, so that logs and tasks can be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

from amistore.backends import checks, files
from amistore.backends.base import Backend
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.ec2 import DirectoryEC2
from amistore.backends.directory.s3 import DirectoryS3
from amistore.errors import BackendError

__all__ = ["DirectoryBackend"]


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
