"""`FileLock`: a file or folder that is held among threads and processes, and by no forked child."""

from __future__ import annotations

import fcntl
import os

from typing_extensions import Self

from amistore import forks

__all__ = ["FileLock"]


class FileLock:
    """An open file or folder, locked with flock(2). A context manager.

    Such a lock belongs to the open file, which a forked child shares: it would be held until the child
    ends, too. So the child closes its copy as it is forked, and who holds the lock says when it is over.

    Args:
        path: of the file or folder.
        flags: of open(2).
        shared: hold it with other sharers.
        wait: until it is free.

    Raises:
        BlockingIOError: it is held, and not to be waited for.
        OSError: it cannot be opened.
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
        """Whether this process has it."""
        return self._descriptor is not None

    @property
    def descriptor(self) -> int:
        """Of the file."""
        if self._descriptor is None:
            raise ValueError("the lock is not held")
        return self._descriptor

    def release(self) -> None:
        """Let others have it; of a child, which does not hold it, nothing."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        # First forgotten, then closed: between the two, or after them, the number may be another file's.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
