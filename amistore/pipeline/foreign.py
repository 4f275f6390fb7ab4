"""Where a user's backend meets ours: its exceptions, and whether it can follow into a process."""

from __future__ import annotations

import pickle
from concurrent.futures import Executor, ProcessPoolExecutor

from amistore.errors import InvalidRequestError, foreign_errors

__all__ = ["check_picklable", "foreign_errors"]


def check_picklable(executor: Executor | None, backend: object, role: str) -> None:
    """Refuse a process pool for a backend that cannot follow it there."""
    if not isinstance(executor, ProcessPoolExecutor):
        return
    try:
        pickle.dumps(backend)
    except Exception as error:
        raise InvalidRequestError(
            f"the {role} {type(backend).__name__} cannot be sent to another process ({error}): "
            "use threads, or a backend that can be pickled"
        ) from error
