"""Where a journal lies, where nobody says it."""

from __future__ import annotations

import os
from pathlib import Path

from amistore.errors import InvalidRequestError

__all__ = ["journal_path"]


def journal_path(given: str | os.PathLike[str] | None, own: str | None) -> Path | None:
    """Where a journal lies: where it was said, or in the backend's own place, or in the user's state folder.

    Args:
        given: to the engine.
        own: the backend's.

    Returns:
        None for one in memory.

    Raises:
        InvalidRequestError: it is no path, or the user has no folder.
    """
    chosen = own if given is None else given
    if chosen is not None:
        if not isinstance(chosen, (str, os.PathLike)):
            raise InvalidRequestError(f"a journal is a path, not {type(chosen).__name__}")
        # Its real name: engines that know it by several ones must see each other.
        return None if chosen == ":memory:" else Path(os.path.realpath(chosen))
    folder = os.environ.get("AMISTORE_STATE_DIR") or Path(_state_folder(), "amistore")
    return Path(os.path.realpath(Path(folder, "tasks.db")))


def _state_folder() -> str | Path:
    """As the XDG Base Directory Specification has it."""
    try:
        return os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        raise InvalidRequestError(
            "the user has no home for the journal: give TaskEngine(journal=...), or set AMISTORE_STATE_DIR"
        ) from None
