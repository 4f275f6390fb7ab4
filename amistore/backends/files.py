"""Durable files: a name appears only when all its bytes are on the disk, or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    BackendError,
    InvalidRequestError,
    InvalidValueError,
    NotFoundError,
    StorageFullError,
)
from amistore.model.fields import from_wire
from amistore.units import MIB

__all__ = [
    "check_target",
    "is_forgotten",
    "new_file",
    "open_descriptor",
    "open_file",
    "open_regular",
    "operation",
    "publish",
    "read_at",
    "read_json",
    "read_value",
    "remove",
    "remove_hidden",
    "rename_to_new",
    "sync_directory",
    "temporary",
    "write_at",
    "write_json",
]

V = TypeVar("V", bound=attrs.AttrsInstance)

_FORGOTTEN = 3600  # seconds

# Bytes of a JSON file. An image's is as long as its manifest, which has 4 MiB at most; Python's objects
# for JSON take up to 25 times its size.
_MOST_JSON = 8 * MIB

# No room, quota, or a file larger than the filesystem or RLIMIT_FSIZE allows.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def operation(
    name: str,
    *,
    path: str | os.PathLike[str] = "",
    room: str = "make room there, or allow larger files",
    **facts: Any,
) -> Iterator[None]:
    """Name the verb in every error from inside; an OSError becomes a BackendError.

    A missing file becomes a NotFoundError.

    Args:
        name: the verb.
        path: the path that is written to, which the errors of a descriptor do not name.
        room: the remedy where the storage is full.
        facts: the verb's arguments, as attributes of the error.
    """
    try:
        yield
    except BackendError as error:
        error.locate(operation=name, **facts)
        raise
    except FileExistsError as error:
        raise AlreadyExistsError(
            f"{error.filename2 or error.filename} exists", operation=name, **facts
        ) from error
    except OSError as error:
        kind: type[BackendError] = BackendError
        message = f"{error.strerror or error}: {error.filename or os.fspath(path)}".rstrip(": ")
        if error.errno in _FULL:
            kind = StorageFullError
            message += f": {room}"
        elif error.errno == errno.ENOENT:
            kind = NotFoundError
        elif error.errno in (errno.EACCES, errno.EPERM):
            kind = AccessDeniedError
        raise kind(message, operation=name, **facts) from error
    except ValueError as error:
        # A NUL or a lone surrogate, which no file name or file holds; others are not ours.
        if not isinstance(error, UnicodeError) and "null" not in str(error):
            raise
        raise InvalidRequestError(f"{name}: {error}") from error


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A new name beside `path`; a file of that name is removed at the end, but not by a forked child."""
    process = os.getpid()
    # 50 characters are at most 200 of the 255 bytes that filesystems allow a name.
    name = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        yield name
    finally:
        if os.getpid() == process:
            name.unlink(missing_ok=True)


def remove_hidden(folder: Path) -> Iterator[Path]:
    """Remove what crashes left in a folder: names from `temporary`, and deleted ones.

    It spares what was written to within an hour: a process may be making it.
    """
    for path in folder.glob(".*"):
        if path.suffix in (".tmp", ".deleted") and is_forgotten(path):
            with contextlib.suppress(FileNotFoundError):  # another process does the same
                remove(path)
                yield path


def remove(path: Path) -> None:
    """Remove a file, a link (not its target), or a folder with all its content.

    `shutil.rmtree` would wait for a writer if a FIFO stood in the folder's place.
    """
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def is_forgotten(path: Path) -> bool:
    """Whether a file, folder or link was not written to for an hour; a link's target does not count."""
    try:
        return time.time() - path.lstat().st_mtime > _FORGOTTEN
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def open_descriptor(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file and give its descriptor, without the buffers of `open`."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a regular file; a FIFO would block for ever, and a device would act.

    Raises:
        BackendError: the path leads to anything but a regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno != errno.ENXIO:  # a socket, or a FIFO to write to that nobody reads
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise BackendError(f"{os.fspath(path)} is no regular file: move it away")


@contextlib.contextmanager
def open_file(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a regular file, as `open_regular` does, and close it at the end."""
    descriptor = open_regular(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse, before the work, a file that cannot be made.

    Raises:
        AlreadyExistsError: the name is taken, without `overwrite`.
        NotFoundError: the folder does not exist.
        InvalidRequestError: the name is that of a folder, a link, a FIFO or a device.
        OSError: the folder cannot be written to, or the name is too long.
    """
    if not path.parent.is_dir():
        raise NotFoundError(f"no such folder: {path.parent}")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InvalidRequestError(f"{path} is no file that can be replaced: give another name")
        if not overwrite:
            raise AlreadyExistsError(f"{path} exists: give another name, or remove it first")
    with temporary(path) as name:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[int]:
    """A descriptor of a new file, which gets its name once it is written.

    Raises:
        FileExistsError: the name is taken, without `overwrite`.
    """
    with temporary(path) as name:
        with open_descriptor(name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
            yield descriptor
            os.fsync(descriptor)
        publish(name, path, overwrite=overwrite)


def publish(finished: Path, path: Path, *, overwrite: bool) -> None:
    """Put a file on the disk, and then give it its name.

    Raises:
        FileExistsError: the name is taken, without `overwrite`.
    """
    if overwrite:
        finished.replace(path)
    else:
        rename_to_new(finished, path)
    sync_directory(path.parent)


def rename_to_new(finished: Path, path: Path) -> None:
    """Rename a file without replacing another.

    Without hard links (FAT, exFAT, many FUSE filesystems) an empty file takes the name first: a crash between
    the two calls leaves it there.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(finished, path)
    except FileExistsError:
        raise
    except OSError:  # each filesystem has an errno of its own for it; what else is wrong is met again
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

        def undo(_: BaseException) -> None:
            if finished.exists():  # else an interrupt came behind the renaming
                path.unlink()

        with forks.undoing(undo):
            finished.replace(path)
    else:
        finished.unlink()


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Read `length` bytes from an offset, fewer only at the file's end."""
    content = b""
    while len(content) < length:
        piece = os.pread(descriptor, length - len(content), offset + len(content))
        if not piece:
            break
        content = content + piece if content else piece
    return content


def write_at(descriptor: int, content: Buffer, offset: int) -> None:
    """Write all of `content` at an offset."""
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    with open_descriptor(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def write_json(path: Path, document: Any) -> None:
    """Replace a file by a JSON document, atomically.

    Raises:
        InvalidRequestError: the document is larger than `read_json` reads.
    """
    content = json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True).encode()
    if len(content) > _MOST_JSON:
        raise InvalidRequestError(
            f"{path.name} would have {len(content)} bytes, and {_MOST_JSON} are the most"
        )
    with temporary(path) as name:
        with name.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name.replace(path)
    sync_directory(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; None where there is no such file.

    Raises:
        BackendError: the file is damaged.
    """
    try:
        with open_file(path) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > _MOST_JSON:
                raise BackendError(f"{path} is damaged: it has more than {_MOST_JSON} bytes")
            content = read_at(descriptor, size, 0)
        document = json.loads(content)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{path} is damaged: {error}") from None
    if not isinstance(document, dict):
        raise BackendError(f"{path} is damaged: it holds no JSON object")
    return document


def read_value(path: Path, kind: type[V]) -> V | None:
    """Read a model value from its JSON file; None where there is no such file.

    Raises:
        BackendError: the file is damaged.
    """
    members = read_json(path)
    if members is None:
        return None
    try:
        return from_wire(kind, members)
    except InvalidValueError as error:
        raise BackendError(f"{path} is damaged: {error}") from None
