"""The header of a disk image, judged before qemu reads the image.

qemu opens what an image names: a backing file, a data file, an extent. Whoever makes an image would so have
another file of this machine imported. So an image that is not one whole file is refused here, from its plain
bytes; each format's rules are in its own module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from amistore.disks import qcow2, vdi, vhd, vhdx, vmdk
from amistore.disks.imagefile import ImageFile
from amistore.errors import InvalidRequestError

__all__ = ["FORMATS", "Format", "check_image", "find_format"]


@attrs.frozen(kw_only=True)
class Format:
    """A format of disk images.

    Attributes:
        driver: qemu's name of it.
        check: refuses an image that is not one whole file of this format.
        options: options of qemu's driver.
    """

    driver: str
    check: Callable[[ImageFile], None]
    options: dict[str, str] = attrs.field(factory=dict)


FORMATS: Final = {
    "qcow2": Format(driver="qcow2", check=qcow2.check),
    "vmdk": Format(driver="vmdk", check=vmdk.check),
    # By default qemu takes the size from the geometry for most creators (block/vpc.c), which
    # may be smaller: the end of such a disk would be missing.
    "vhd": Format(driver="vpc", check=vhd.check, options={"force_size_calc": "current_size"}),
    "vhdx": Format(driver="vhdx", check=vhdx.check),
    "vdi": Format(driver="vdi", check=vdi.check),
}
"""The formats by the names that callers use."""


def find_format(format: str) -> Format:
    """The format of a name.

    Raises:
        InvalidRequestError: the name is unknown.
    """
    if format not in FORMATS:
        raise InvalidRequestError(f"the format {format!r} is none of {', '.join(FORMATS)}")
    return FORMATS[format]


def check_image(path: Path, descriptor: int, format: str) -> ImageFile:
    """Refuse an image that is not one whole file of its format; return the file.

    Args:
        path: the image's path, for messages.
        descriptor: the open file; the one that qemu is given, too.
        format: the format's name, of `FORMATS`.

    Raises:
        InvalidRequestError: the file has another format, names other files, is encrypted, or its header is
            damaged; the text says where, and what to do.
    """
    found = find_format(format)
    size = os.fstat(descriptor).st_size
    image = ImageFile(path=path, descriptor=descriptor, size=size, driver=found.driver)
    found.check(image)
    return image
