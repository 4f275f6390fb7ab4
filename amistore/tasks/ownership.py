"""`Ownership`: a process's sign of life, which no crash can leave behind.

Each engine holds a lock on a file of its own beside the journal. The kernel releases it when the process
ends, however that happens, so a killed process's tasks are free at once, even if a forked child lives on. A
process that was only stopped keeps the lock, and loses its tasks when their leases end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from amistore.backends.locking import FileLock
from amistore.errors import JournalError

__all__ = ["Ownership"]


class Ownership:
    """One engine as an owner of tasks.

    Args:
        folder: the folder of the owners' files, made where it is missing; None for a journal that no other
            process can see.

    Attributes:
        owner: the owner's name, new in each engine.

    Raises:
        JournalError: the file cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.owner = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._folder = folder
        self._lock: FileLock | None = None
        self.hold()

    def hold(self) -> None:
        """Give the sign of life; a second call restores a file that was removed by hand.

        Raises:
            JournalError: the file cannot be made.
        """
        if self._folder is None:
            return
        path = self._folder / self.owner
        if self._lock is not None and path.exists():
            return
        self._let_go()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}", operation="journal") from error

    def alive(self, owner: str) -> bool:
        """Whether an owner's process still runs; the file of an ended one is removed."""
        if owner == self.owner:
            return True
        if self._folder is None or "/" in owner:
            return False
        path = self._folder / owner
        try:
            with FileLock(path, os.O_RDWR | os.O_NOFOLLOW, wait=False):
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        except OSError:  # it is held; or too many open files, for one: that proves nothing
            return True
        return False

    def close(self) -> None:
        """End the sign of life: this owner counts as ended."""
        if self._lock is not None and self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / self.owner).unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
