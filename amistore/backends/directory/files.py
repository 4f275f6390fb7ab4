"""Durable files: a name appears only when all its bytes are on the disk, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from amistore.errors import AlreadyExistsError, BackendError, StorageFullError

__all__ = [
    "locked",
    "new_file",
    "operation",
    "read_json",
    "sync_directory",
    "temporary",
    "write_at",
    "write_json",
]

# No room, quota, or a file larger than the filesystem or RLIMIT_FSIZE allows.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def operation(name: str, **facts: Any) -> Iterator[None]:
    """Turn an OSError inside into a BackendError that says what was being done."""
    try:
        yield
    except FileExistsError as error:
        raise AlreadyExistsError(
            f"{error.filename2 or error.filename} exists", operation=name, **facts
        ) from error
    except OSError as error:
        kind = StorageFullError if error.errno in _FULL else BackendError
        raise kind(
            f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), operation=name, **facts
        ) from error


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A new name beside `path`, removed again if it still exists at the end."""
    name = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[int]:
    """A descriptor to fill; the file gets its name when that is done, and never over another.

    Raises:
        FileExistsError: the name is taken.
    """
    with temporary(path) as name:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(name, path)
    sync_directory(path.parent)


def write_at(descriptor: int, content: Buffer, offset: int) -> None:
    """Write all of `content` at an offset."""
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory alone among all threads and processes."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: Any) -> None:
    """Replace a file by a JSON document, whole or not at all."""
    with temporary(path) as name:
        with name.open("w", encoding="utf-8") as file:
            json.dump(document, file, ensure_ascii=False, indent=2, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        name.replace(path)
    sync_directory(path.parent)


def read_json(path: Path) -> Any:
    """A JSON document; None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BackendError(f"{path} is damaged: {error}") from None
