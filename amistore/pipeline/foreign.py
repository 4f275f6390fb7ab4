"""Where a user's backend meets ours: its exceptions, and whether it can follow into a process."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

from amistore.errors import AmistoreError, BackendError, InvalidRequestError

__all__ = ["check_picklable", "foreign_errors"]


@contextlib.contextmanager
def foreign_errors(operation: str, **facts: Any) -> Iterator[None]:
    """Wrap what a backend raises beyond our error tree in a `BackendError`, and say on what it was called."""
    try:
        yield
    except BackendError as error:
        error.locate(operation=operation, **facts)
        raise
    except (AmistoreError, MemoryError):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise BackendError(message, operation=operation, **facts) from error


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
