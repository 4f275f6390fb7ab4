"""Extracts a volume to a disk of another format. qemu-img writes it, and reads the volume by NBD from us."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, cast

from amistore import forks
from amistore.archive.nbd import NBDServer
from amistore.archive.volumereader import VolumeReader
from amistore.backends import files
from amistore.errors import BackendError, InvalidRequestError, StorageFullError, machine_limits
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.workers import closing
from amistore.text import printable

__all__ = ["FORMATS", "check_format", "convert"]

FORMATS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "qcow2": ("-O", "qcow2"),
        "vmdk": ("-O", "vmdk", "-o", "subformat=streamOptimized"),  # as an OVF's disks are
        "vhd": ("-O", "vpc", "-o", "force_size=on"),  # else its size is rounded to cylinders
        "vhdx": ("-O", "vhdx"),
        "vdi": ("-O", "vdi"),
    }
)
"""qemu-img's options for each format but raw."""

_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")  # as qemu-img -p prints it
_MOST_TEXT: Final = 2000  # characters of qemu-img's last words


def check_format(kind: str, *, resume: bool, allow_lost: bool) -> None:
    """Refuse a format that is unknown or cannot be written here, and what only raw disks can have."""
    if kind == "raw":
        return
    if kind not in FORMATS:
        raise InvalidRequestError(f"format is raw, {', '.join(FORMATS)}, not {kind!r:.80}")
    if resume or allow_lost:
        option = "resume=True" if resume else "allow_lost=True"
        raise InvalidRequestError(
            f"{option} is for raw disks only: leave it out, or extract with format='raw'"
        )
    if shutil.which("qemu-img") is None:
        raise InvalidRequestError(
            f"format={kind!r} needs qemu-img, which is not installed: install the package qemu-utils "
            "(qemu-img on Fedora and its relatives)"
        )


def convert(
    volume: VolumeReader,
    path: Path,
    kind: str,
    *,
    overwrite: bool,
    workers: int | None,
    progress: ProgressCallback,
) -> None:
    """Write a volume to a new file in one of `FORMATS`, which gets its name once it is whole.

    Raises:
        CorruptArchiveError: the archive is damaged.
        BackendError: qemu-img or the archive failed.
    """
    with closing(volume.descriptors(workers)) as descriptors:  # they prove each block that is served
        for _ in descriptors:
            pass

    def report(part: float) -> None:
        total = volume.indexed.blocks
        progress(Progress(phase=Phase.EXTRACT, blocks=round(part * total), total_blocks=total))

    with files.temporary(path) as part:
        with files.open_descriptor(part, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
            with NBDServer({"": volume}, workers=workers) as server:
                command = ["qemu-img", "convert", "-p", "-f", "raw", *FORMATS[kind], server.uri()]
                failure = _run([*command, str(part.absolute())], report)  # else a colon ends a protocol
                for error in server.errors:
                    raise error
            if failure is not None:
                full = "No space left" in failure
                raise (StorageFullError if full else BackendError)(f"qemu-img cannot write {path}: {failure}")
            os.fsync(descriptor)
        files.publish(part, path, overwrite=overwrite)


def _run(command: list[str], report: Callable[[float], None]) -> str | None:
    """Run qemu-img to its end; its last words where it fails.

    Args:
        command: the program and its arguments.
        report: a function that is called with the part that is done, from 0 to 1.
    """
    with tempfile.TemporaryFile() as words, machine_limits():
        process = subprocess.Popen(  # noqa: S603 - no shell reads it
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            env={**os.environ, "LC_ALL": "C"},
        )

        def end(_: BaseException) -> None:
            process.kill()
            process.wait()

        with process, forks.undoing(end):
            for part in _parts(cast(IO[bytes], process.stdout)):
                report(part)
            if process.wait() == 0:
                return None
        words.seek(0)
        said = words.read().decode(errors="replace").strip()
        return printable(said)[-_MOST_TEXT:] or f"it ended with {process.returncode}"


def _parts(output: IO[bytes]) -> Iterator[float]:
    """The part that is done, whenever qemu-img prints it."""
    while content := os.read(output.fileno(), 4096):
        found = _PERCENT.findall(content)
        if found:
            yield min(1.0, float(found[-1]) / 100)
