"""The one error tree. Imports `text` only.

The class tells whose fault it is: the bytes (`ArchiveError`), the other side
(`BackendError`) or the caller (`InvalidRequestError`). The facts are attributes, and
`str()` appends the known ones to the message. Every error survives pickling, so
it crosses a process pool whole.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any, Final

from typing_extensions import Self

from amistore.text import printable

__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "AmistoreError",
    "ArchiveError",
    "ArchivedObjectError",
    "BackendError",
    "ChecksumMismatchError",
    "CorruptArchiveError",
    "CredentialsExpiredError",
    "InvalidRequestError",
    "InvalidValueError",
    "JournalError",
    "LostBlocksError",
    "NotFoundError",
    "ResourcesExhaustedError",
    "SourceChangedError",
    "StorageFullError",
    "TaskFailedError",
    "ThrottledError",
    "TruncatedArchiveError",
    "UnsupportedArchiveError",
]


class AmistoreError(Exception):
    """Base of every error this library raises on purpose."""

    _facts: tuple[str, ...] = ()

    def __init__(self, message: str) -> None:
        # `args` holds the message alone: BaseException.__reduce__ then rebuilds the error
        # from it and restores the facts from __dict__.
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        known = [
            f"{name.replace('_', ' ')} {printable(_cut(value))}"
            for name in self._facts
            if (value := getattr(self, name, None)) is not None
        ]
        message = printable(self.message, lines=True)
        return f"{message} ({', '.join(known)})" if known else message

    def locate(self, **facts: Any) -> Self:
        """Fill in facts that a deeper layer could not know, by their names; known ones stay."""
        for name, value in facts.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        return self


def _cut(fact: object) -> str:
    """Cut what is no string and long, such as an image given for its id. Keys are never cut."""
    text = str(fact)
    return text if isinstance(fact, str) or len(text) <= 100 else f"{text[:100]}..."


class ArchiveError(AmistoreError):
    """The container's bytes cannot be used.

    Attributes:
        offset: file offset in bytes where the trouble was seen.
        record: the record or part of the file, such as ``"SEGD"`` or ``"manifest"``.
        segment: sequence number of the segment.
        snapshot_id: the volume, by the snapshot it was stored from.
        block_index: index of the block in its volume.
    """

    _facts = ("record", "offset", "segment", "snapshot_id", "block_index")

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        record: str | None = None,
        segment: int | None = None,
        snapshot_id: str | None = None,
        block_index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.offset = offset
        self.record = record
        self.segment = segment
        self.snapshot_id = snapshot_id
        self.block_index = block_index


class CorruptArchiveError(ArchiveError):
    """The bytes are not what a writer of this format writes: damage, or an attack."""


@contextlib.contextmanager
def locating(**facts: Any) -> Iterator[None]:
    """Tell errors about an archive's bytes where these are; facts that are known stay."""
    try:
        yield
    except ArchiveError as error:
        raise error.locate(**facts) from error.__cause__


REMEDY: Final = "take another copy, or amistore.recover saves what is left"


@contextlib.contextmanager
def advising() -> Iterator[None]:
    """Add the remedy to an error about a damaged archive."""
    try:
        yield
    except CorruptArchiveError as error:
        if is_unadvised(error):
            error.message += f": {REMEDY}"
        raise


def is_unadvised(error: ArchiveError) -> bool:
    """Whether an error's text leaves open what to do: some have a remedy of their own."""
    return "amistore.recover" not in error.message


class TruncatedArchiveError(CorruptArchiveError):
    """The bytes end before the container does: fetch or copy the object again."""


class UnsupportedArchiveError(ArchiveError):
    """A newer format that this version cannot read: install a newer amistore."""


class LostBlocksError(ArchiveError):
    """The archive was recovered from a damaged one, and blocks that the call needs were lost."""


class BackendError(AmistoreError):
    """A backend failed: storage, network or service.

    Attributes:
        retryable: whether the same call may succeed later.
        attempts: the number of attempts; None where nothing retries.
        operation: the verb that failed, such as ``"get_snapshot_block"``.
        snapshot_id, block_index, image_id, bucket, key: the call's arguments, where known.
    """

    _facts = ("operation", "snapshot_id", "block_index", "image_id", "bucket", "key", "attempts")

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        operation: str | None = None,
        snapshot_id: str | None = None,
        block_index: int | None = None,
        image_id: str | None = None,
        bucket: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.attempts: int | None = None
        self.operation = operation
        self.snapshot_id = snapshot_id
        self.block_index = block_index
        self.image_id = image_id
        self.bucket = bucket
        self.key = key


@contextlib.contextmanager
def foreign_errors(operation: str, **facts: Any) -> Iterator[None]:
    """Wrap an exception of a user's object from outside this tree in a `BackendError` that names the call."""
    try:
        yield
    except BackendError as error:
        error.locate(operation=operation, **facts)
        raise
    except (AmistoreError, MemoryError):
        raise
    except Exception as error:
        kind, text = type(error).__name__, ""
        with contextlib.suppress(Exception):  # of a class that cannot tell itself
            text = f": {error}"
        raise BackendError(
            f"{kind}{text}",
            retryable=isinstance(error, (ConnectionError, TimeoutError)),
            operation=operation,
            **facts,
        ) from error


class NotFoundError(BackendError):
    """The snapshot, image, bucket, object or upload does not exist."""


class AccessDeniedError(BackendError):
    """The other side knows who asks, and refuses: credentials or permissions are missing."""


class CredentialsExpiredError(AccessDeniedError):
    """The credentials expired or could not be renewed, or this machine's clock is wrong.

    A log or a task is resumed with fresh credentials, or once the clock is set.
    """


class AlreadyExistsError(BackendError):
    """The call was to create an object or name that exists."""


class ThrottledError(BackendError):
    """The other side asks for fewer calls a second; `retryable`.

    Attributes:
        retry_after: the seconds that it asks to wait for; None where it does not say.
    """

    retry_after: float | None = None


class ChecksumMismatchError(BackendError):
    """Data and the checksum that came with it differ."""


class SourceChangedError(BackendError):
    """The source is not what it was when it was listed or opened."""


class InvalidTokenError(BackendError):
    """A block's or a page's token was refused: it is too old, or its snapshot was listed again.

    Another attempt gets another token, but someone else may list the snapshot again and again.
    """


class ArchivedObjectError(BackendError):
    """The object's storage class cannot be read until the object is restored from it."""


class StorageFullError(BackendError):
    """The storage has no room, a quota is used up, or it cannot hold a file or body of this size."""


class JournalError(BackendError):
    """The journal of tasks cannot be read or written; its content is unchanged."""


class ResourcesExhaustedError(AmistoreError):
    """The machine or the process has run out of memory, threads or descriptors; fewer workers need less."""


@contextlib.contextmanager
def machine_limits() -> Iterator[None]:
    """Raise a typed error where Python runs out of memory, threads or file descriptors."""
    try:
        yield
    except MemoryError as error:
        raise ResourcesExhaustedError(
            "out of memory: use fewer workers (`workers=`), or give the process more memory"
        ) from error
    except RuntimeError as error:
        if "can't start new thread" not in str(error):  # CPython's words, from 3.10 to 3.14
            raise
        raise ResourcesExhaustedError(
            "the system starts no more threads: use fewer workers (`workers=`), or raise the limit of "
            "processes or memory (`ulimit -u`, the container's pids.max)"
        ) from error
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise ResourcesExhaustedError(
            "too many files and connections are open: close some, or raise their limit (`ulimit -n`)"
        ) from error


class InvalidRequestError(AmistoreError):
    """The request cannot be carried out as it is.

    Attributes:
        code: the EC2 error code that names this case, where there is one.
    """

    _facts = ("code",)

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class TaskFailedError(AmistoreError):
    """A task that was waited for has failed.

    Attributes:
        task_ids: the ids of all failed tasks.
    """

    def __init__(self, message: str, *, task_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.task_ids = task_ids


class InvalidValueError(InvalidRequestError):
    """A value breaks a rule of its field.

    Attributes:
        field: ``Class.field`` of the value.
        value: the refused value.
    """

    def __init__(
        self, message: str, *, field: str | None = None, value: object = None, code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.field = field
        self.value = value


FINAL: Final = (
    AlreadyExistsError,
    ArchiveError,
    ChecksumMismatchError,
    NotFoundError,
    SourceChangedError,
)
"""What is there already, is not there, is not what it was, or is damaged: no waiting changes that.

Not final is what depends on who calls, from where and when: permissions, credentials, clocks, quotas,
room, networks, certificates, an environment's settings, states, and what nobody has foreseen.
"""


def is_final(error: BaseException) -> bool:
    """Whether the next run would meet the error again; False where it may pass by itself.

    Only such an error ends a durable run (a task, or a one-shot call with a log) and removes its output.
    After any other both stay: their owner resumes the run, or gives it up. docs/tasks.md has the table.
    """
    return isinstance(error, FINAL) and not (isinstance(error, BackendError) and error.retryable)
