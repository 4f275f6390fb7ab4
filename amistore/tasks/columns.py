"""What the columns of a journal's row may hold: attrs validators for `record.py` and its kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from amistore.errors import InvalidValueError
from amistore.model import Image
from amistore.model.fields import from_wire

__all__ = ["TEXT", "check_image", "check_tags", "json_list", "like", "rule", "tuple_of", "whole"]

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def rule(told: str, holds: Callable[[Any], bool]) -> Validator:
    """A value must be what is told."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not holds(value):
            field = f"{type(instance).__name__}.{attribute.name}"
            raise InvalidValueError(f"{field} must be {told}, not {value!r:.80}", field=field, value=value)

    return check


def _is_text(value: Any) -> bool:
    """SQLite hands over bytes that are no UTF-8 as lone surrogates, which no string of ours has."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


TEXT: Final = rule("a string of Unicode", _is_text)


def whole(*, most: int) -> Validator:
    """A whole number from 0 on."""
    return rule(f"a whole number from 0 to {most}", lambda value: type(value) is int and 0 <= value <= most)


def like(pattern: str, told: str) -> Validator:
    """A string of this form."""
    form = re.compile(pattern)
    return rule(told, lambda value: isinstance(value, str) and form.fullmatch(value) is not None)


def tuple_of(kind: type) -> Validator:
    """A tuple of such values; strings must be text."""
    return rule(
        f"a tuple of {kind.__name__}",
        lambda value: (
            isinstance(value, tuple)
            and all(isinstance(each, kind) and (kind is not str or _is_text(each)) for each in value)
        ),
    )


def json_list(column: str) -> list[Any]:
    """A column's list, in JSON."""
    found = json.loads(column)
    if not isinstance(found, list):
        raise TypeError(f"{column:.80} is no list")
    return found


def check_tags(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """A mapping of texts to texts, or None; no key is empty."""
    if not isinstance(value, Mapping) or not all(
        key and _is_text(key) and (each is None or _is_text(each)) for key, each in value.items()
    ):
        raise InvalidValueError(f"{attribute.name} must be tags", field=attribute.name, value=value)


def check_image(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """The wire form of an image; the error of one that is none tells why."""
    from_wire(Image, value)
