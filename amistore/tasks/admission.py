"""How a task gets into the journal: checked, and admitted by its kind's quota, now or when there is room."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

from amistore.backends import ObjectLocation
from amistore.backends.quotas import Quotas
from amistore.errors import AlreadyExistsError, InvalidRequestError
from amistore.objects import RUN_KEY
from amistore.tasks.record import TaskRecord
from amistore.tasks.requests import dry_run_succeeded
from amistore.tasks.runner import TaskRunner

__all__ = ["IfExists", "OnQuota", "admit", "check_choice", "check_stored"]

OnQuota = Literal["wait", "refuse"]
IfExists = Literal["refuse", "skip"]

R = TypeVar("R", bound=TaskRecord)

_logger = logging.getLogger("amistore")


def check_choice(given: object, role: str, choices: Any) -> None:
    """Refuse what is none of a `Literal`."""
    if given not in get_args(choices):
        raise InvalidRequestError(f"{role} is {' or '.join(map(repr, get_args(choices)))}, not {given!r:.80}")


def admit(
    check: Callable[[], R], runner: TaskRunner, quotas: Quotas, *, on_quota: OnQuota, dry_run: bool
) -> R:
    """Make a task durable, and have it worked on.

    Args:
        check: gives the task, checked as things are now: again where it had to wait, as that may take hours.
        runner: works on it.
        quotas: of the engine.
        on_quota: what is done where its kind's quota is used up.
        dry_run: find out whether it would be admitted, only.

    Raises:
        InvalidRequestError: the quota is used up; or nobody works on the tasks that use it up; or this was a
            dry run, and nothing is wrong.
        others: as in `Journal.add`.
    """
    check_choice(on_quota, "on_quota", OnQuota)
    while True:
        record = check()
        limit = quotas.in_progress(record.kind)
        if dry_run:
            runner.create(record, limit if on_quota == "refuse" else None, dry_run=True)
            raise dry_run_succeeded()
        try:
            runner.create(record, limit)
            return record
        except InvalidRequestError as error:
            if on_quota == "refuse" or limit is None or error.code != "ResourceLimitExceeded":
                raise
            _logger.info("%s waits: %s", record.task().purpose, error.message)
        runner.wait_for_room(record, limit)


def check_stored(location: ObjectLocation, error: AlreadyExistsError) -> None:
    """Raise the error of a store whose object exists, unless that is one that amistore has stored.

    Told by the metadata alone, which an object of an archived storage class gives, too.
    """
    if RUN_KEY not in location.head().metadata:
        error.message += "; it is none that amistore has stored, so it is not skipped"
        raise error
