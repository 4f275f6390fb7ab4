"""`is_final`: whether a run ended for a reason that the next run would meet again.

Only then does a durable run (a task, or a one-shot call with a log) end, and is its output removed.
For any other reason both stay: their owner resumes the run, or gives it up. docs/tasks.md has the table.
"""

from __future__ import annotations

from typing import Final

from amistore.errors import (
    AlreadyExistsError,
    ArchiveError,
    BackendError,
    ChecksumMismatchError,
    NotFoundError,
    SourceChangedError,
)

__all__ = ["FINAL", "is_final"]

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
    """Whether the next run would meet the error again; False where it may pass by itself."""
    return isinstance(error, FINAL) and not (isinstance(error, BackendError) and error.retryable)
