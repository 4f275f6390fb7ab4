"""`ResumeLog`: what a run has done, so that the next run resumes it.

A log is a list of entries that outlives its writer. It holds no secret, and nothing in it is believed: the
next run checks all of it against the source, the store and the plan.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import json
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from amistore import forks
from amistore.backends import files
from amistore.backends.checks import check_kind, check_path
from amistore.backends.locking import FileLock
from amistore.errors import AmistoreError, InvalidRequestError
from amistore.units import MIB

__all__ = [
    "FileResumeLog",
    "LogPhase",
    "NoLog",
    "ResumeLog",
    "read_entry",
    "read_task",
    "using_log",
    "write_entry",
]

_MAGIC = b"amistore resume log 1\n"
_LENGTH = struct.Struct("<I")  # of the content, in bytes
_ENTRY = struct.Struct("<II")  # length; CRC-32 (zlib's) of the length and the content
_START = b'{"'  # of each entry of ours; see write_entry
# Bounds, in bytes. A log has the descriptors of an archive: 34 bytes a block, 3.5 GB for the largest object.
_LONGEST_LOG = 4 << 30
_LONGEST_TORN = 128 << 20  # that is dropped without a word
_MOST_TRIED = 256 << 20  # how much behind a torn entry is tried as an entry; each try counts 4 KiB more
_A_TRY = 4 << 10


def write_entry(**facts: Any) -> bytes:
    """A log entry with this JSON; bytes may follow it after a line feed."""
    return json.dumps(facts, separators=(",", ":")).encode()


def read_entry(entry: bytes) -> dict[str, Any]:
    """The JSON of a log entry.

    Raises:
        InvalidRequestError: the entry is damaged.
    """
    try:
        facts = json.loads(entry.partition(b"\n")[0])
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise InvalidRequestError("the resume log is damaged")
    return facts


_KINDS = {"pack": "storing", "unpack": "restoring", "copy": "copying", "import": "importing"}


def read_task(
    entry: bytes, kind: str, identity: Mapping[str, Any], changed: Mapping[str, AmistoreError]
) -> str:
    """The id of the run whose first entry this is, if the run belongs to this job.

    Args:
        entry: the entry with the run's kind, id and identity.
        kind: the kind of job.
        identity: the facts that the run must share.
        changed: the errors to raise where some facts differ; for others the error names the fact.

    Raises:
        InvalidRequestError: the entry belongs to another job.
    """
    header = read_entry(entry)
    task = header.get("task")
    if header.get("kind") != kind or not isinstance(task, str) or not re.fullmatch("[0-9a-f]{32}", task):
        raise InvalidRequestError(
            f"this log belongs to another job, not to {_KINDS[kind]}: give another log; amistore.abandon "
            "ends its run"
        )
    for name, value in identity.items():
        if header.get(name) != value:
            raise changed.get(name) or InvalidRequestError(
                f"this log belongs to a run whose {name} is {header.get(name)!r}, not {value!r}: "
                "give another log; amistore.abandon ends that run"
            )
    return task


class ResumeLog(abc.ABC):
    """A list of entries of bytes that outlives its run. One run uses it at a time."""

    @abc.abstractmethod
    def entries(self) -> list[bytes]:
        """All entries, oldest first; a new log has none."""

    @abc.abstractmethod
    def append(self, entry: bytes) -> None:
        """Add an entry, which survives a crash once this returns."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Remove all entries: nothing is left to resume."""

    def end(self) -> None:
        """End the log, since its run succeeded. Override it to keep the entries."""
        self.clear()


@contextlib.contextmanager
def using_log(given: ResumeLog | str | os.PathLike[str] | None) -> Iterator[ResumeLog | None]:
    """The caller's log; one that was given by its path is closed at the end."""
    if isinstance(given, (str, os.PathLike)):
        with FileResumeLog(given) as log:
            yield log
        return
    if given is not None:
        check_kind(given, ResumeLog, "log", "give its path, or an amistore.ResumeLog")
    yield given


class NoLog(ResumeLog):
    """A log of a run that nobody resumes: it keeps nothing, which for a large image would be gigabytes."""

    def entries(self) -> list[bytes]:
        return []

    def append(self, entry: bytes) -> None:
        pass

    def clear(self) -> None:
        pass


class LogPhase(ResumeLog):
    """The part of a log that belongs to one of its jobs: a transfer stores, and then restores.

    Its entries begin with the job's header. They are kept when the job ends, since the next job follows; the
    log's owner ends the whole.

    Args:
        log: the whole log.
        kind: the kind of this job, as in its header.
        first: the kind of the first job in the log; None where that is this job.
    """

    def __init__(self, log: ResumeLog, kind: str, first: str | None = None) -> None:
        self._log = log
        self._kind = kind
        self._first = first or kind

    def entries(self) -> list[bytes]:
        whole = self._log.entries()
        if whole and read_entry(whole[0]).get("kind") != self._first:
            return whole  # another job's, which `read_task` refuses
        found: list[bytes] = []
        current = ""
        for entry in whole:
            said = read_entry(entry)
            if "kind" in said:
                current = said["kind"]
                if self._kind in (current, said.get("cleared")):
                    found.clear()
            if current == self._kind:
                found.append(entry)
        return found

    def append(self, entry: bytes) -> None:
        self._log.append(entry)

    def clear(self) -> None:
        if len(self.entries()) == len(self._log.entries()):
            self._log.clear()
        else:
            self._log.append(write_entry(kind="", cleared=self._kind))

    def end(self) -> None:
        """Keep the entries: the next job follows."""


class FileResumeLog(ResumeLog):
    """A log in a file, which the first entry makes and `clear` removes.

    An entry that a crash left half written at the end is dropped. Damage before that is an
    `InvalidRequestError` that says what to do; so is a symbolic link, anything but a regular file, and a file
    that others can write. Two runs cannot use it at once, and a forked child not while its parent does. A
    context manager that closes the file.

    Args:
        path: the file's path; the file is readable by its owner only.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path(path, "log")
        self._lock: FileLock | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)  # another process opens the file by itself

    def __enter__(self) -> FileResumeLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the entries stay."""
        if self._lock is not None:
            self._lock.release()

    def entries(self) -> list[bytes]:
        with files.operation("resume", path=self.path):
            if not self._held and not self.path.exists():
                return []
            return self._read(self._open())[0]

    def append(self, entry: bytes) -> None:
        with files.operation("resume", path=self.path):
            descriptor = self._open()
            end = os.fstat(descriptor).st_size

            def cut(_: BaseException) -> None:
                with contextlib.suppress(OSError):  # half an entry must not stand before whole ones
                    os.ftruncate(descriptor, end)

            with forks.undoing(cut):
                files.write_at(descriptor, _ENTRY.pack(len(entry), _crc32(entry)) + entry, end)
                os.fsync(descriptor)

    def clear(self) -> None:
        with files.operation("resume", path=self.path):
            if self._held or self.path.exists():
                if self._named(self._open()):  # else it was removed by hand, and may be another run's now
                    self.path.unlink()
                    files.sync_directory(self.path.parent)
                self.close()

    @property
    def _held(self) -> bool:
        return self._lock is not None and self._lock.held

    def _open(self) -> int:
        """Open the file, for this process alone, and drop a torn entry at its end."""
        while self._lock is None or not self._lock.held:
            lock = self._hold()
            try:
                if self._prepare(lock.descriptor):
                    self._lock = lock
            finally:
                if self._lock is not lock:
                    lock.release()
        return self._lock.descriptor

    def _hold(self) -> FileLock:
        """Open or make the file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            return FileLock(self.path, flags, wait=False)
        except BlockingIOError:
            raise InvalidRequestError(f"{self.path} is in use by another run") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InvalidRequestError(f"{self.path} is a symbolic link: name the file itself") from None
            raise

    def _prepare(self, descriptor: int) -> bool:
        """Refuse a file that is no log, and drop a torn entry; return whether the file still has its name."""
        self._check_mode(descriptor)
        if not self._named(descriptor):  # cleared by another run meanwhile
            return False
        content = os.pread(descriptor, len(_MAGIC), 0)
        if content != _MAGIC and _MAGIC.startswith(content):  # new, or a crash while it was made
            files.write_at(descriptor, _MAGIC, 0)
            os.fsync(descriptor)
            files.sync_directory(self.path.parent)
        elif content != _MAGIC:
            raise InvalidRequestError(
                f"{self.path} is no resume log of amistore, or its head is damaged: give another "
                "path (list_multipart_uploads, and pending snapshots, tell what its run has left)"
            )
        end = self._read(descriptor)[1]
        if end < os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, end)
        return True

    def _check_mode(self, descriptor: int) -> None:
        """Refuse anything but a regular file that only its owner can write."""
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise InvalidRequestError(f"{self.path} is no regular file")
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InvalidRequestError(
                f"others can write {self.path}: if what it says is yours, chmod 600 it, else remove it"
            )
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            os.fchmod(descriptor, 0o600)

    def _read(self, descriptor: int) -> tuple[list[bytes], int]:
        """All whole entries, and the offset behind the last."""
        size = os.fstat(descriptor).st_size
        found: list[bytes] = []
        end = len(_MAGIC)
        while end < _LONGEST_LOG and (entry := _entry_at(descriptor, end, size)) is not None:
            found.append(entry)
            end += _ENTRY.size + len(entry)
        # Each entry is on the disk before the next one is written: a crash leaves none behind a torn one.
        if size - end > _LONGEST_TORN or _more_than_torn(files.read_at(descriptor, size - end, end)):
            raise InvalidRequestError(
                f"the resume log {self.path} is damaged at byte {end}, with more than a torn entry there: "
                f"`truncate -s {end}` lets the run go on from those before it (what came later is done "
                "again), and amistore.abandon removes what they name"
            )
        return found, end

    def _named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.lstat())
        except FileNotFoundError:
            return False


def _entry_at(descriptor: int, offset: int, size: int) -> bytes | None:
    """The entry at an offset of a file of this size; None if it is not whole."""
    header = files.read_at(descriptor, _ENTRY.size, offset)
    if len(header) < _ENTRY.size:
        return None
    length, crc32 = _ENTRY.unpack(header)
    begin = offset + _ENTRY.size
    end = begin + length
    if end > size:
        return None
    found = zlib.crc32(header[: _LENGTH.size])
    for at in range(begin, end, MIB):  # proved before it is kept: any length may be claimed
        found = zlib.crc32(files.read_at(descriptor, min(MIB, end - at), at), found)
    return files.read_at(descriptor, length, begin) if found == crc32 else None


def _more_than_torn(content: bytes) -> bool:
    """Whether a whole entry follows the first byte, or so many beginnings do that it is no accident.

    The search is for the bytes that each entry begins with, so 128 MiB of zeros are skipped at once. A forged
    log may hold a beginning everywhere, and checking them all would take hours.
    """
    tried = 0
    at = content.find(_START, 1 + _ENTRY.size)
    while at >= 0:
        length, crc32 = _ENTRY.unpack_from(content, at - _ENTRY.size)
        tried += _A_TRY
        if length <= len(content) - at:
            tried += length
            if tried > _MOST_TRIED or _crc32(content[at : at + length]) == crc32:
                return True
        if tried > _MOST_TRIED:
            return True
        at = content.find(_START, at + 1)
    return False


def _crc32(entry: bytes) -> int:
    """CRC-32 of length and content: zeros that a power cut leaves at the end must not be empty entries."""
    return zlib.crc32(entry, zlib.crc32(_LENGTH.pack(len(entry))))
