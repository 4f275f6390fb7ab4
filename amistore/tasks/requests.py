"""EC2's rules for requests, and the error code for breaking each.

Which code EC2 gives in which case is documented nowhere; docs/tasks-boto3.md lists ours.
Sources: EC2 API reference, CreateStoreImageTask, CreateRestoreImageTask, "Error codes"; EC2 user
guide, "Tag your Amazon EC2 resources", restrictions. Next: `pages.py` has the rules of pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeVar, cast, get_args

from amistore.backends.checks import is_image_id, is_snapshot_id
from amistore.errors import InvalidRequestError
from amistore.model import Tag
from amistore.tasks.task import TagSpecification

__all__ = [
    "IfExists",
    "OnQuota",
    "check_choice",
    "check_image_id",
    "check_snapshot_id",
    "dry_run_succeeded",
    "invalid_token",
    "listed",
    "needed",
    "object_place",
    "object_tags",
    "split_tags",
]

OnQuota = Literal["wait", "refuse"]
IfExists = Literal["refuse", "skip"]

T = TypeVar("T")

MOST_OBJECT_TAGS: Final = 10  # S3 user guide, "Categorizing your storage using tags"
MOST_TAGS: Final = 50
_LONGEST_KEY: Final = 1024  # S3 user guide, "Naming Amazon S3 objects"


def check_choice(given: object, role: str, choices: Any) -> None:
    """Refuse anything but a value of a `Literal`."""
    if given not in get_args(choices):
        raise InvalidRequestError(f"{role} is {' or '.join(map(repr, get_args(choices)))}, not {given!r:.80}")


def check_image_id(image_id: object) -> str:
    """Refuse anything but ``ami-`` and 8 or 17 hexadecimal digits."""
    if not is_image_id(image_id):
        raise InvalidRequestError(f"{image_id!r:.80} is no AMI's id", code="InvalidAMIID.Malformed")
    return str(image_id)


def check_snapshot_id(snapshot_id: object) -> str:
    """Refuse anything but ``snap-`` and 8 or 17 hexadecimal digits."""
    if not is_snapshot_id(snapshot_id):
        raise InvalidRequestError(
            f"{snapshot_id!r:.80} is no snapshot's id", code="InvalidSnapshotID.Malformed"
        )
    return str(snapshot_id)


def needed(given: object, role: str) -> str:
    """Refuse anything but a string that is not empty."""
    if given is not None and not isinstance(given, str):
        raise InvalidRequestError(f"{role} must be a string, not {given!r:.80}", code="InvalidParameterValue")
    if not given:
        raise InvalidRequestError(f"{role} is needed", code="MissingParameter")
    return given


def object_place(bucket: object, image_id: str) -> tuple[str, str]:
    """The bucket and key of an AMI's object: ``<image id>.bin``, after the prefix in ``bucket/prefix``."""
    name, _, prefix = needed(bucket, "a bucket's name").partition("/")
    prefix = prefix.strip("/")
    key = f"{prefix}/{image_id}.bin" if prefix else f"{image_id}.bin"
    if len(key.encode(errors="surrogatepass")) > _LONGEST_KEY:
        raise InvalidRequestError(
            f"an object's key has {_LONGEST_KEY} bytes at most: give a shorter prefix",
            code="InvalidParameterValue",
        )
    return name, key


def object_tags(tags: Iterable[Tag] | Mapping[str, str]) -> dict[str, str]:
    """An object's tags: ten at most, keys of 1 to 128 and values of up to 256 characters, no ``aws:``."""
    if isinstance(tags, Mapping):
        given = [Tag(key=key, value=value) for key, value in cast("Mapping[str, str]", tags).items()]
    else:
        given = listed(tags, "tags")
    return {tag.key: tag.value or "" for tag in _tags(given, MOST_OBJECT_TAGS)}


def split_tags(specifications: Iterable[TagSpecification]) -> tuple[tuple[Tag, ...], tuple[Tag, ...]]:
    """The tags of the image, and those of its snapshots."""
    found: dict[str, tuple[Tag, ...]] = {}
    for specification in listed(specifications, "tag specifications"):
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


def listed(given: Iterable[T], role: str) -> list[T]:
    """The given list; a string is refused, though Python takes it for a sequence."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidRequestError(f"{role} are a list, not {given!r}", code="InvalidParameterValue")
    return list(given)


def _tags(tags: Iterable[Tag], most: int) -> tuple[Tag, ...]:
    given = tuple(tags)
    if len(given) > most:
        raise InvalidRequestError(
            f"{len(given)} tags are given, {most} at most are possible", code="TagLimitExceeded"
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
    """The error that ends a successful dry run, as in EC2."""
    return InvalidRequestError(
        "the request would have succeeded, but it was a dry run", code="DryRunOperation"
    )


def invalid_token() -> InvalidRequestError:
    """The error for a page's token that cannot be used."""
    return InvalidRequestError(
        "the token belongs to another request, or is damaged: begin with the first page",
        code="InvalidNextToken",
    )
