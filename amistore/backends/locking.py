"""`FileLock`: a lock on a file or folder among threads and processes, which no forked child inherits."""

from __future__ import annotations

import fcntl
import os

from typing_extensions import Self

from amistore import forks

__all__ = ["FileLock"]


class FileLock:
    """An open file or folder, locked with flock(2). A context manager.

    The lock belongs to the open file, which a forked child shares, so it would last until the child ends,
    too. The child therefore closes its copy as it is forked, and the holder releases the lock explicitly.

    Args:
        path: the path of the file or folder.
        flags: the flags of open(2).
        shared: whether to share the lock with other sharers.
        wait: whether to wait until the lock is free.

    Raises:
        BlockingIOError: the lock is held by another, without `wait`.
        OSError: the file cannot be opened.
    """

    def __init__(
        self, path: str | os.PathLike[str], flags: int = 0, *, shared: bool = False, wait: bool = True
    ) -> None:
        self._descriptor: int | None = None
        forks.register(self, FileLock._close)  # before there is anything to let go of
        # Without O_NONBLOCK the opening of a FIFO in its place would wait; nothing can be done with one.
        self._descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with forks.undoing(lambda _: self._close()):
            fcntl.flock(self._descriptor, kind if wait else kind | fcntl.LOCK_NB)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._descriptor is not None

    @property
    def descriptor(self) -> int:
        """The file's descriptor."""
        if self._descriptor is None:
            raise ValueError("the lock is not held")
        return self._descriptor

    def release(self) -> None:
        """Release the lock; a forked child, which does not hold it, does nothing."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        # First forgotten, then closed: between the two, or after them, the number may be another file's.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
