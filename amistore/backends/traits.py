"""`StoreTraits`: where a store of objects differs from Amazon's S3."""

from __future__ import annotations

from typing import Any, Final

import attrs

from amistore.errors import InvalidValueError
from amistore.units import GIB, MIB

__all__ = ["AMAZON", "StoreTraits"]


def _check_flag(instance: StoreTraits, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not bool:
        raise _invalid(attribute, value, "True or False")


def _check_number(instance: StoreTraits, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        raise _invalid(attribute, value, "a whole number from 1 on")


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

    Raises:
        InvalidValueError: a value has the wrong type, or the parts' sizes contradict each other.
    """

    equal_parts: bool = attrs.field(default=False, validator=_check_flag)
    # S3 user guide, "Amazon S3 multipart upload limits".
    most_parts: int = attrs.field(default=10_000, validator=_check_number)
    least_part: int = attrs.field(default=5 * MIB, validator=_check_number)
    largest_part: int = attrs.field(default=5 * GIB, validator=_check_number)
    largest_object: int = attrs.field(default=10_000 * 5 * GIB, validator=_check_number)
    part_listing: bool = attrs.field(default=True, validator=_check_flag)

    def __attrs_post_init__(self) -> None:
        if self.least_part > self.largest_part:
            attribute = attrs.fields(StoreTraits).least_part
            raise _invalid(attribute, self.least_part, f"at most largest_part ({self.largest_part})")

    @property
    def most_bytes(self) -> int:
        """The most bytes that an object can have by all these limits."""
        return min(self.largest_object, self.most_parts * self.largest_part)


AMAZON: Final = StoreTraits()
