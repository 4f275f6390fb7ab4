"""`StoreTraits`: where a store of objects differs from Amazon's S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

import attrs

from amistore.errors import InvalidRequestError, InvalidValueError
from amistore.units import GIB, MIB

__all__ = ["AMAZON", "MOST_PARTS", "Addressing", "Checksum", "StoreTraits"]

Checksum = Literal["crc32", "md5"]
Addressing = Literal["path", "virtual"]

MOST_PARTS: Final = 10_000  # S3 user guide, "Amazon S3 multipart upload limits"


def _check_flag(instance: StoreTraits, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not bool:
        raise _invalid(attribute, value, "True or False")


def _check_number(instance: StoreTraits, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        raise _invalid(attribute, value, "a whole number from 1 on")


def _check_parts(instance: StoreTraits, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or not 1 <= value <= MOST_PARTS:
        raise _invalid(attribute, value, f"a whole number from 1 to {MOST_PARTS}")


def _check_one_of(kind: Any) -> Any:
    words = get_args(kind)

    def check(instance: StoreTraits, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None and value not in words:
            raise _invalid(attribute, value, f"{' or '.join(map(repr, words))}, or None")

    return check


def _invalid(attribute: attrs.Attribute[Any], value: object, rule: str) -> InvalidValueError:
    field = f"StoreTraits.{attribute.name}"
    return InvalidValueError(f"{field} must be {rule}, not {value!r}", field=field, value=value)


@attrs.frozen(kw_only=True)
class StoreTraits:
    """What a store of objects can do; without arguments, what Amazon's S3 can.

    Attributes:
        equal_parts: whether it demands that all parts of an upload but the last have one size, and that the
            last is no larger. Archives are always uploaded so; `put_object` then needs the object's size.
        most_parts: the most parts of an upload.
        least_part: the least bytes of a part before the last.
        largest_part: the most bytes of a part.
        largest_object: the most bytes of an object.
        part_listing: whether it lists the parts of an upload. Where it does not, a run that goes on believes
            its log, and begins anew where the store refuses the parts at the end.
        checksum: what is sent with a part for the store to compare: ``"crc32"`` (``x-amz-checksum-crc32``),
            ``"md5"`` (``Content-MD5``), or None. An answer that tells a checksum, or an MD5 as the part's
            ETag, is compared in any case.
        conditional_completion: whether it makes an object on the condition that there is none
            (``If-None-Match``). Where it does not, the key is looked at before the completion, and the object
            after it: of two runs that end at one time, the later one may replace the object of the other.
        tags: whether objects have tags.
        replaceable_parts: whether it takes a part again that it has. Where it does not, a part that it
            refuses as sent before is looked for in the list of parts, or named at the completion by its MD5.
        part_gaps: whether the numbers of an upload's parts may have gaps, as with `store(executor=)`. Where
            they may not, its workers make the segments, and one uploader the parts.
        addressing: where it wants the bucket's name: ``"path"``, behind the host, or ``"virtual"``, in front
            of it; None for what the client chooses.

    Raises:
        InvalidValueError: a value has the wrong type, or the parts' sizes contradict each other.
    """

    equal_parts: bool = attrs.field(default=False, validator=_check_flag)
    # Of the same page.
    most_parts: int = attrs.field(default=MOST_PARTS, validator=_check_parts)
    least_part: int = attrs.field(default=5 * MIB, validator=_check_number)
    largest_part: int = attrs.field(default=5 * GIB, validator=_check_number)
    largest_object: int = attrs.field(default=MOST_PARTS * 5 * GIB, validator=_check_number)
    part_listing: bool = attrs.field(default=True, validator=_check_flag)
    checksum: Checksum | None = attrs.field(default="crc32", validator=_check_one_of(Checksum))
    conditional_completion: bool = attrs.field(default=True, validator=_check_flag)
    tags: bool = attrs.field(default=True, validator=_check_flag)
    replaceable_parts: bool = attrs.field(default=True, validator=_check_flag)
    part_gaps: bool = attrs.field(default=True, validator=_check_flag)
    addressing: Addressing | None = attrs.field(default=None, validator=_check_one_of(Addressing))

    def __attrs_post_init__(self) -> None:
        if self.least_part > self.largest_part:
            attribute = attrs.fields(StoreTraits).least_part
            raise _invalid(attribute, self.least_part, f"at most largest_part ({self.largest_part})")

    @property
    def most_bytes(self) -> int:
        """The most bytes that an object can have by all these limits."""
        return min(self.largest_object, self.most_parts * self.largest_part)

    def check_tags(self, tags: Mapping[str, str] | None) -> None:
        """Refuse tags that the store would not keep.

        Raises:
            InvalidRequestError: there are tags, and the store's objects have none.
        """
        if tags and not self.tags:
            raise InvalidRequestError(
                "the store's objects have no tags (StoreTraits.tags is False): leave out tags"
            )


AMAZON: Final = StoreTraits()
