"""EC2's rules for requests, and the error code for breaking each; `PageRequest`, and its tokens.

Which code EC2 gives in which case is documented nowhere; docs/tasks-boto3.md lists ours.
Sources: EC2 API reference, CreateStoreImageTask, CreateRestoreImageTask, DescribeStoreImageTasks, "Error
codes"; EC2 user guide, "Tag your Amazon EC2 resources", restrictions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar, get_args

import attrs

from amistore.backends.checks import is_image_id, is_snapshot_id
from amistore.errors import InvalidRequestError
from amistore.model import Tag
from amistore.tasks.record import Kind
from amistore.tasks.task import TagSpecification, TaskState, tags_of

__all__ = [
    "IfExists",
    "OnQuota",
    "PageRequest",
    "check_choice",
    "check_image_id",
    "check_snapshot_id",
    "dry_run_succeeded",
    "engine_closed",
    "listed",
    "needed",
    "object_place",
    "object_tags",
    "refused",
    "split_tags",
]

OnQuota = Literal["wait", "refuse"]
IfExists = Literal["refuse", "skip"]

T = TypeVar("T")

MOST_OBJECT_TAGS: Final = 10  # S3 user guide, "Categorizing your storage using tags"
MOST_TAGS: Final = 50
_LONGEST_KEY: Final = 1024  # S3 user guide, "Naming Amazon S3 objects"
# S3 user guide, "Access point ARNs": the bucket of a request may be one, which has slashes of its own.
_ACCESS_POINT: Final = re.compile("arn:[^/]+:(outpost/[^/]+/)?accesspoint/[^/]+")
_MOST_IMAGE_IDS: Final = 20
_MOST_RESULTS: Final = 200


def refused(message: str, code: str = "InvalidParameterValue") -> InvalidRequestError:
    """The error of a request that breaks a rule."""
    return InvalidRequestError(message, code=code)


def check_choice(given: object, role: str, choices: Any) -> None:
    """Refuse anything but a value of a `Literal`."""
    if given not in get_args(choices):
        raise InvalidRequestError(f"{role} is {' or '.join(map(repr, get_args(choices)))}, not {given!r:.80}")


def check_image_id(image_id: object) -> str:
    """Refuse anything but ``ami-`` and 8 or 17 hexadecimal digits."""
    if not is_image_id(image_id):
        raise refused(f"{image_id!r:.80} is no AMI's id", "InvalidAMIID.Malformed")
    return str(image_id)


def check_snapshot_id(snapshot_id: object) -> str:
    """Refuse anything but ``snap-`` and 8 or 17 hexadecimal digits."""
    if not is_snapshot_id(snapshot_id):
        raise refused(f"{snapshot_id!r:.80} is no snapshot's id", "InvalidSnapshotID.Malformed")
    return str(snapshot_id)


def needed(given: object, role: str) -> str:
    """Refuse anything but a string that is not empty."""
    if given is not None and not isinstance(given, str):
        raise refused(f"{role} must be a string, not {given!r:.80}")
    if not given:
        raise refused(f"{role} is needed", "MissingParameter")
    return given


def object_place(bucket: object, image_id: str) -> tuple[str, str]:
    """The bucket and key of an AMI's object: ``<image id>.bin``, after the prefix in ``bucket/prefix``."""
    given = needed(bucket, "a bucket's name")
    point = _ACCESS_POINT.match(given)
    name = point[0] if point else given.partition("/")[0]
    prefix = given[len(name) :].strip("/")
    key = f"{prefix}/{image_id}.bin" if prefix else f"{image_id}.bin"
    if len(key.encode(errors="surrogatepass")) > _LONGEST_KEY:
        raise refused(f"an object's key has {_LONGEST_KEY} bytes at most: give a shorter prefix")
    return name, key


def object_tags(tags: Iterable[Tag] | Mapping[str, str]) -> dict[str, str]:
    """An object's tags: ten at most, keys of 1 to 128 and values of up to 256 characters, no ``aws:``."""
    given = tags_of(tags) if isinstance(tags, Mapping) else listed(tags, "tags")
    return {tag.key: tag.value or "" for tag in _tags(given, MOST_OBJECT_TAGS)}


def split_tags(specifications: Iterable[TagSpecification]) -> tuple[tuple[Tag, ...], tuple[Tag, ...]]:
    """The tags of the image, and those of its snapshots."""
    found: dict[str, tuple[Tag, ...]] = {}
    for specification in listed(specifications, "tag specifications"):
        if not isinstance(specification, TagSpecification):
            raise refused(f"tag specifications are TagSpecification, not {type(specification).__name__}")
        kind = specification.resource_type
        if kind not in ("image", "snapshot"):
            raise refused(f"a restore makes an image and snapshots, and no {kind!r} to tag")
        if kind in found:
            raise refused(f"tags for {kind} are given twice")
        found[kind] = _tags(specification.tags, MOST_TAGS)
    return found.get("image", ()), found.get("snapshot", ())


def listed(given: Iterable[T], role: str) -> list[T]:
    """The given list; a string is refused, though Python takes it for a sequence."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise refused(f"{role} are a list, not {given!r}")
    return list(given)


def _tags(tags: Iterable[Any], most: int) -> tuple[Tag, ...]:
    found: dict[str, Tag] = {}
    given = tuple(tags)
    if len(given) > most:
        raise refused(f"{len(given)} tags are given, {most} at most are possible", "TagLimitExceeded")
    for tag in given:
        if not isinstance(tag, Tag):
            raise refused(f"tags are amistore.Tag, not {type(tag).__name__}")
        if len(tag.key) > 128 or tag.key.lower().startswith("aws:"):
            told = f"{tag.key!r} is no tag's key: 1 to 128 characters, and aws: is AWS's own"
            raise refused(told, "InvalidTagKey.Malformed")
        if len(tag.value or "") > 256:
            raise refused(f"the value of tag {tag.key!r} has more than 256 characters")
        if tag.key in found:
            raise refused(f"the tag {tag.key!r} is given twice")
        found[tag.key] = tag
    return given


def dry_run_succeeded() -> InvalidRequestError:
    """The error that ends a successful dry run, as in EC2."""
    return refused("the request would have succeeded, but it was a dry run", "DryRunOperation")


def engine_closed() -> InvalidRequestError:
    """The error of a request to an engine that was closed."""
    return InvalidRequestError("the engine is closed: make another, and resume its tasks")


@attrs.frozen(kw_only=True)
class PageRequest:
    """A checked request for tasks of a kind, newest first.

    Attributes:
        kind: the kind of the tasks.
        image_ids: the images whose tasks are wanted; () for all.
        buckets: the buckets whose tasks are wanted; () for all.
        states: the states whose tasks are wanted; () for all.
        limit: the number of tasks in a page; None for all.
        before: the sequence number below which the page begins; None to begin with the newest.
        since: the earliest start in milliseconds since 1970, the same for all pages of a list.
    """

    kind: Kind
    image_ids: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    limit: int | None = None
    before: int | None = None
    since: int

    @classmethod
    def of(
        cls,
        kind: Kind,
        image_ids: Sequence[str] | None,
        filters: Mapping[str, Sequence[str]] | None,
        max_results: int | None,
        next_token: str | None,
        oldest: int,
    ) -> PageRequest:
        """Check a request's parameters, of tasks that were not started before `oldest`."""
        if image_ids is not None and max_results is not None:
            told = "image ids and a number of results cannot be given together"
            raise refused(told, "InvalidParameterCombination")
        chosen = tuple(map(check_image_id, listed(image_ids or (), "image ids")))
        if len(chosen) > _MOST_IMAGE_IDS:
            raise refused(f"{len(chosen)} image ids are given, {_MOST_IMAGE_IDS} at most are possible")
        limit = _MOST_RESULTS if max_results is None else max_results
        if type(limit) is not int or not 1 <= limit <= _MOST_RESULTS:
            told = f"a page has 1 to {_MOST_RESULTS} results, not {max_results!r}"
            raise refused(told, "InvalidMaxResults")
        values = _filters(filters or {})
        request = cls(
            kind=kind,
            image_ids=chosen,
            # "If you specify image IDs, the filters are ignored" (DescribeStoreImageTasks).
            buckets=() if chosen else values.get("bucket", ()),
            states=() if chosen else values.get("task-state", ()),
            limit=limit,
            since=oldest,
        )
        return request if next_token is None else request._continued(next_token)

    def token(self, before: int) -> str:
        """The token of the next page, of tasks below a sequence number."""
        said = json.dumps([before, self.since, self._identity()]).encode()
        return base64.urlsafe_b64encode(said).decode()

    def _continued(self, token: str) -> PageRequest:
        try:
            before, since, identity = json.loads(base64.urlsafe_b64decode(token))
            valid = type(before) is int and type(since) is int and 0 < before < 2**63 and abs(since) < 2**63
        except (ValueError, TypeError, RecursionError):
            valid, identity, before, since = False, None, 0, 0
        if not valid or identity != self._identity():
            told = "the token belongs to another request, or is damaged: begin with the first page"
            raise refused(told, "InvalidNextToken")
        return attrs.evolve(self, before=before, since=since)

    def _identity(self) -> str:
        asked: list[Any] = [self.kind, self.image_ids, self.buckets, self.states]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _filters(filters: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    if not isinstance(filters, Mapping):
        raise refused(f"filters are names with lists of values, not {filters!r}", "InvalidFilter")
    found = {}
    for name, values in filters.items():
        if name not in ("bucket", "task-state"):
            raise refused(f"there is no filter {name!r}: give bucket or task-state", "InvalidFilter")
        # A string is a collection of strings, too.
        if (
            isinstance(values, str)
            or not (isinstance(values, Collection) and values)
            or not all(isinstance(each, str) for each in values)
        ):
            raise refused(f"the filter {name} needs a list of values", "InvalidFilter")
        states = get_args(TaskState)
        unknown = set(values).difference(states) if name == "task-state" else set()
        if unknown:
            told = f"{min(unknown)!r} is no state of a task: {', '.join(states)} are"
            raise refused(told, "InvalidFilter")
        found[name] = tuple(values)
    return found
