"""`PageRequest`: a page of tasks, newest first, and the tokens that lead from one to the next.

Source of the rules: EC2 API reference, DescribeStoreImageTasks. The codes are those of
`requests.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import attrs

from amistore.errors import InvalidRequestError
from amistore.tasks.journal import Journal
from amistore.tasks.record import Kind
from amistore.tasks.requests import check_image_id, invalid_token, listed
from amistore.tasks.task import TaskPage

__all__ = ["PageRequest"]

_MOST_IMAGE_IDS: Final = 20
_MOST_RESULTS: Final = 200
_STATES: Final = ("InProgress", "Completed", "Failed")


@attrs.frozen(kw_only=True)
class PageRequest:
    """A checked request for a page of tasks.

    Attributes:
        kind: the kind of the tasks.
        image_ids: the images whose tasks are wanted; () for all.
        buckets: the buckets whose tasks are wanted; () for all.
        states: the states whose tasks are wanted; () for all.
        limit: the number of tasks in a page.
        before: the sequence number below which the page begins; None to begin with the newest.
        since: the earliest start in milliseconds since 1970, the same for all pages of a list; None for the
            first page.
    """

    kind: Kind
    image_ids: tuple[str, ...]
    buckets: tuple[str, ...]
    states: tuple[str, ...]
    limit: int
    before: int | None = None
    since: int | None = None

    @classmethod
    def of(
        cls,
        kind: Kind,
        image_ids: Sequence[str] | None,
        filters: Mapping[str, Sequence[str]] | None,
        max_results: int | None,
        next_token: str | None,
    ) -> PageRequest:
        """Check a request's parameters."""
        if image_ids is not None and max_results is not None:
            raise InvalidRequestError(
                "image ids and a number of results cannot be given together",
                code="InvalidParameterCombination",
            )
        chosen = tuple(map(check_image_id, listed(image_ids or (), "image ids")))
        if len(chosen) > _MOST_IMAGE_IDS:
            raise InvalidRequestError(
                f"{len(chosen)} image ids are given, {_MOST_IMAGE_IDS} at most are possible",
                code="InvalidParameterValue",
            )
        if max_results is not None and (
            type(max_results) is not int or not 1 <= max_results <= _MOST_RESULTS
        ):
            raise InvalidRequestError(
                f"a page has 1 to {_MOST_RESULTS} results, not {max_results!r}", code="InvalidMaxResults"
            )
        values = _filters(filters or {})
        request = cls(
            kind=kind,
            image_ids=chosen,
            # "If you specify image IDs, the filters are ignored" (DescribeStoreImageTasks).
            buckets=() if chosen else values.get("bucket", ()),
            states=() if chosen else values.get("task-state", ()),
            limit=max_results or _MOST_RESULTS,
        )
        return request if next_token is None else request._continued(next_token)

    def read(self, journal: Journal, place: str, *, oldest: int) -> TaskPage[Any]:
        """The requested page.

        Args:
            journal: the journal with the tasks.
            place: the name of the tasks' backend.
            oldest: the earliest start, in milliseconds since 1970.
        """
        since = oldest if self.since is None else self.since
        found = journal.page(
            place,
            self.kind,
            since=since,
            limit=self.limit + 1,
            before=self.before,
            image_ids=self.image_ids,
            buckets=self.buckets,
            states=self.states,
        )
        shown = found[: self.limit]
        token = self._token(shown[-1].sequence, since) if len(found) > self.limit else None
        return TaskPage(tuple(record.task() for record in shown), token)

    def _token(self, before: int, since: int) -> str:
        said = json.dumps([before, since, self._identity()]).encode()
        return base64.urlsafe_b64encode(said).decode()

    def _continued(self, token: str) -> PageRequest:
        try:
            before, since, identity = json.loads(base64.urlsafe_b64decode(token))
            valid = type(before) is int and type(since) is int and 0 < before < 2**63 and abs(since) < 2**63
        except (ValueError, TypeError, RecursionError):
            valid, identity, before, since = False, None, 0, 0
        if not valid or identity != self._identity():
            raise invalid_token()
        return attrs.evolve(self, before=before, since=since)

    def _identity(self) -> str:
        asked: list[Any] = [self.kind, self.image_ids, self.buckets, self.states]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _filters(filters: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    if not isinstance(filters, Mapping):
        raise InvalidRequestError(
            f"filters are names with lists of values, not {filters!r}", code="InvalidFilter"
        )
    found = {}
    for name, values in filters.items():
        if name not in ("bucket", "task-state"):
            raise InvalidRequestError(
                f"there is no filter {name!r}: give bucket or task-state", code="InvalidFilter"
            )
        # A string is a collection of strings, too.
        if (
            isinstance(values, str)
            or not (isinstance(values, Collection) and values)
            or not all(isinstance(each, str) for each in values)
        ):
            raise InvalidRequestError(f"the filter {name} needs a list of values", code="InvalidFilter")
        unknown = set(values) - set(_STATES) if name == "task-state" else set()
        if unknown:
            raise InvalidRequestError(
                f"{min(unknown)!r} is no state of a task: {', '.join(_STATES)} are", code="InvalidFilter"
            )
        found[name] = tuple(values)
    return found
