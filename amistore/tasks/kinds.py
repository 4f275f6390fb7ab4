"""The kinds of tasks: which class a row of the journal is a record of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from amistore.errors import InvalidValueError
from amistore.tasks.record import TaskRecord
from amistore.tasks.restore import RestoreRecord
from amistore.tasks.store import StoreRecord

__all__ = ["record_of"]

_KINDS: Final[Mapping[str, type[TaskRecord]]] = {kind.kind: kind for kind in (StoreRecord, RestoreRecord)}


def record_of(row: dict[str, Any]) -> TaskRecord:
    """The record of a row's columns.

    Raises:
        InvalidValueError: it is damaged.
    """
    kind = _KINDS.get(row["kind"])
    if kind is None:
        raise InvalidValueError(f"{row['kind']!r:.80} is no kind of task", field="kind", value=row["kind"])
    return kind.of_row(row)
