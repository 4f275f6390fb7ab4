"""A disk image's file as its header's checks see it: bounded reads, and refusals that say where."""

from __future__ import annotations

import shlex
import struct
from pathlib import Path
from typing import Any, Final

import attrs

from amistore.backends import files
from amistore.errors import InvalidRequestError
from amistore.text import printable
from amistore.units import TIB, sized

__all__ = ["LARGEST_DISK", "ImageFile"]

LARGEST_DISK: Final = 64 * TIB
"""Bytes of the largest virtual disk: that of an EBS volume (EBS user guide, "Volume types")."""


@attrs.frozen(kw_only=True)
class ImageFile:
    """An image's file, read before qemu sees it.

    Attributes:
        path: the image's path, for messages.
        descriptor: the open file.
        size: the file's size in bytes.
        driver: qemu's name of the format.
    """

    path: Path
    descriptor: int
    size: int
    driver: str

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Read `length` bytes at an offset; what lies behind the file's end is refused.

        Raises:
            InvalidRequestError: the file has no such bytes.
        """
        content = b""
        if 0 <= offset <= self.size - length:
            content = files.read_at(self.descriptor, length, offset)
        if len(content) < length:
            raise self.damaged(f"{what} would have {length} bytes, of a file of {self.size}", offset)
        return content

    def unpack(self, form: struct.Struct, offset: int, what: str) -> tuple[Any, ...]:
        """Read a struct at an offset; errors are those of `read`."""
        return form.unpack(self.read(offset, form.size, what))

    def check_disk_size(self, size: int, offset: int) -> None:
        """Refuse a virtual disk that is empty or larger than any volume.

        Args:
            size: the virtual disk's size in bytes.
            offset: where the header says so.

        Raises:
            InvalidRequestError: the size is out of bounds.
        """
        if not size:
            raise self.refused("its virtual disk is empty", offset, "there is nothing to import")
        if size > LARGEST_DISK:
            raise self.refused(
                f"its virtual disk has {size} bytes, of {LARGEST_DISK} at most",
                offset,
                f"no volume is larger than {sized(LARGEST_DISK)}",
            )

    def damaged(self, what: str, offset: int) -> InvalidRequestError:
        """An error for a header that is not what the format's writers write."""
        return self.refused(
            f"{what}, so it is damaged",
            offset,
            f"`qemu-img check -f {self.driver} {self._quoted()}` may tell more",
        )

    def convertible(self, what: str, offset: int, driver: str | None = None) -> InvalidRequestError:
        """An error for an image that qemu-img makes one of that is taken.

        Args:
            what: what is the matter with the image.
            offset: where the file says so.
            driver: qemu's name of the image's format, where it is not the one that was named.
        """
        command = (
            f"qemu-img convert -f {driver or self.driver} -O qcow2 {self._quoted()} {self._quoted('.qcow2')}"
        )
        return self.refused(what, offset, f"where you trust the image, `{command}` makes one file of it")

    def refused(self, what: str, offset: int, remedy: str) -> InvalidRequestError:
        """An error with what is the matter, where the file says so, and what to do."""
        return InvalidRequestError(f"{printable(str(self.path))}: {what} (offset {offset}): {remedy}")

    def _quoted(self, suffix: str = "") -> str:
        return shlex.quote(f"{self.path}{suffix}")
