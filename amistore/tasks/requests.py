"""What a request may hold, by EC2's rules, and the error code that EC2 has for what it may not.

Which code EC2 gives in which case is documented nowhere; docs/tasks.md lists ours.
Sources: EC2 API reference, CreateStoreImageTask, DescribeStoreImageTasks, CreateRestoreImageTask,
"Error codes"; EC2 user guide, "Tag your Amazon EC2 resources", restrictions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import attrs

from amistore.errors import InvalidRequestError
from amistore.model import Tag
from amistore.tasks.journal import Journal
from amistore.tasks.record import Kind
from amistore.tasks.task import TagSpecification, TaskPage

__all__ = [
    "PageRequest",
    "check_image_id",
    "check_snapshot_id",
    "dry_run_succeeded",
    "object_place",
    "object_tags",
    "split_tags",
]

T = TypeVar("T")

MOST_IMAGE_IDS: Final = 20
MOST_RESULTS: Final = 200
MOST_OBJECT_TAGS: Final = 10  # S3 user guide, "Categorizing your storage using tags"
MOST_TAGS: Final = 50
_LONGEST_KEY: Final = 1024  # S3 user guide, "Naming Amazon S3 objects"
_STATES: Final = ("InProgress", "Completed", "Failed")


def check_image_id(image_id: object) -> str:
    """``ami-`` and 8 or 17 hexadecimal digits."""
    if not isinstance(image_id, str) or not re.fullmatch("ami-(?:[0-9a-f]{17}|[0-9a-f]{8})", image_id):
        raise InvalidRequestError(f"{image_id!r} is no AMI's id", code="InvalidAMIID.Malformed")
    return image_id


def check_snapshot_id(snapshot_id: object) -> str:
    """``snap-`` and 8 or 17 hexadecimal digits."""
    if not isinstance(snapshot_id, str) or not re.fullmatch("snap-(?:[0-9a-f]{17}|[0-9a-f]{8})", snapshot_id):
        raise InvalidRequestError(f"{snapshot_id!r} is no snapshot's id", code="InvalidSnapshotID.Malformed")
    return snapshot_id


def object_place(bucket: object, image_id: str) -> tuple[str, str]:
    """Bucket and key of an AMI's object: ``<image id>.bin``, behind the prefix of ``bucket/prefix``."""
    if not isinstance(bucket, str) or not bucket:
        raise InvalidRequestError("a bucket's name is needed", code="MissingParameter")
    name, _, prefix = bucket.partition("/")
    prefix = prefix.strip("/")
    key = f"{prefix}/{image_id}.bin" if prefix else f"{image_id}.bin"
    if len(key.encode(errors="surrogatepass")) > _LONGEST_KEY:
        raise InvalidRequestError(
            f"an object's key has {_LONGEST_KEY} bytes at most: give a shorter prefix",
            code="InvalidParameterValue",
        )
    return name, key


def object_tags(tags: Iterable[Tag] | Mapping[str, str]) -> dict[str, str]:
    """Tags of an object: ten at most, keys of 1 to 128 and values of up to 256 characters, no ``aws:``."""
    if isinstance(tags, Mapping):
        given = [Tag(key=key, value=value) for key, value in cast("Mapping[str, str]", tags).items()]
    else:
        given = _listed(tags, "tags")
    return {tag.key: tag.value or "" for tag in _tags(given, MOST_OBJECT_TAGS)}


def split_tags(specifications: Iterable[TagSpecification]) -> tuple[tuple[Tag, ...], tuple[Tag, ...]]:
    """Tags of the image, and of its snapshots."""
    found: dict[str, tuple[Tag, ...]] = {}
    for specification in _listed(specifications, "tag specifications"):
        if not isinstance(specification, TagSpecification):
            raise InvalidRequestError(
                f"tag specifications are TagSpecification, not {type(specification).__name__}",
                code="InvalidParameterValue",
            )
        kind = specification.resource_type
        if kind not in ("image", "snapshot"):
            raise InvalidRequestError(
                f"a restore makes an image and snapshots, and no {kind!r} to tag",
                code="InvalidParameterValue",
            )
        if kind in found:
            raise InvalidRequestError(f"tags for {kind} are given twice", code="InvalidParameterValue")
        found[kind] = _tags(specification.tags, MOST_TAGS)
    return found.get("image", ()), found.get("snapshot", ())


def _listed(given: Iterable[T], role: str) -> list[T]:
    if not isinstance(given, Iterable):
        raise InvalidRequestError(
            f"{role} are a list, not {type(given).__name__}", code="InvalidParameterValue"
        )
    return list(given)


def _tags(tags: Iterable[Tag], most: int) -> tuple[Tag, ...]:
    given = tuple(tags)
    if len(given) > most:
        raise InvalidRequestError(
            f"{len(given)} tags are given, {most} are possible", code="TagLimitExceeded"
        )
    keys = set()
    for tag in given:
        if not isinstance(tag, Tag):
            raise InvalidRequestError(
                f"tags are amistore.Tag, not {type(tag).__name__}", code="InvalidParameterValue"
            )
        if len(tag.key) > 128 or tag.key.lower().startswith("aws:"):
            raise InvalidRequestError(
                f"{tag.key!r} is no tag's key: 1 to 128 characters, and aws: is AWS's own",
                code="InvalidTagKey.Malformed",
            )
        if len(tag.value or "") > 256:
            raise InvalidRequestError(
                f"the value of tag {tag.key!r} has more than 256 characters", code="InvalidParameterValue"
            )
        if tag.key in keys:
            raise InvalidRequestError(f"the tag {tag.key!r} is given twice", code="InvalidParameterValue")
        keys.add(tag.key)
    return given


def dry_run_succeeded() -> InvalidRequestError:
    """What a dry run ends with: EC2 answers it with an error, too."""
    return InvalidRequestError(
        "the request would have succeeded, but it was a dry run", code="DryRunOperation"
    )


@attrs.frozen(kw_only=True)
class PageRequest:
    """A checked request for a page of tasks.

    Attributes:
        image_ids: of these images only; () for all.
        buckets: in these buckets only; () for all.
        states: of these states only; () for all.
        limit: tasks in a page.
        before: tasks that were created before the one of this sequence; None from the newest.
        since: milliseconds since 1970; the same in all pages of a list. None in the first.
    """

    image_ids: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    limit: int = MOST_RESULTS
    before: int | None = None
    since: int | None = None

    @classmethod
    def of(
        cls,
        image_ids: Sequence[str] | None,
        filters: Mapping[str, Sequence[str]] | None,
        max_results: int | None,
        next_token: str | None,
    ) -> PageRequest:
        """Check a request's parameters, as they were given."""
        if image_ids is not None and max_results is not None:
            raise InvalidRequestError(
                "image ids and a number of results cannot be given together",
                code="InvalidParameterCombination",
            )
        chosen = tuple(image_ids or ())
        if len(chosen) > MOST_IMAGE_IDS:
            raise InvalidRequestError(
                f"{len(chosen)} image ids are given, {MOST_IMAGE_IDS} are possible",
                code="InvalidParameterValue",
            )
        for image_id in chosen:
            check_image_id(image_id)
        if max_results is not None and (type(max_results) is not int or not 1 <= max_results <= MOST_RESULTS):
            raise InvalidRequestError(
                f"a page has 1 to {MOST_RESULTS} results, not {max_results!r}", code="InvalidMaxResults"
            )
        values = _filters(filters or {})
        request = cls(
            image_ids=chosen,
            # "If you specify image IDs, the filters are ignored" (DescribeStoreImageTasks).
            buckets=() if chosen else values.get("bucket", ()),
            states=() if chosen else values.get("task-state", ()),
            limit=max_results or MOST_RESULTS,
        )
        return request if next_token is None else request._continued(next_token)

    def read(self, journal: Journal, place: str, kind: Kind, *, oldest: int) -> TaskPage[Any]:
        """The page that was asked for.

        Args:
            journal: that has the tasks.
            place: of the tasks.
            kind: of the tasks.
            oldest: when they must have been started at least; milliseconds since 1970.
        """
        since = oldest if self.since is None else self.since
        found = journal.page(
            place,
            kind,
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
            raise InvalidRequestError(
                "the token is of another request, or damaged: begin with the first page",
                code="InvalidNextToken",
            )
        return attrs.evolve(self, before=before, since=since)

    def _identity(self) -> str:
        asked: list[Any] = [self.image_ids, self.buckets, self.states]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _filters(filters: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, values in filters.items():
        if name not in ("bucket", "task-state"):
            raise InvalidRequestError(
                f"there is no filter {name!r}: bucket and task-state are", code="InvalidFilter"
            )
        if isinstance(values, str) or not values or not all(isinstance(each, str) for each in values):
            raise InvalidRequestError(f"the filter {name} needs a list of values", code="InvalidFilter")
        unknown = set(values) - set(_STATES) if name == "task-state" else set()
        if unknown:
            raise InvalidRequestError(
                f"{min(unknown)!r} is no state of a task: {', '.join(_STATES)} are", code="InvalidFilter"
            )
        found[name] = tuple(values)
    return found
