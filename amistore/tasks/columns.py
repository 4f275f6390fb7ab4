"""What the columns of a journal's row may hold: attrs validators for `record.py`, which has the columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from amistore.errors import InvalidValueError
from amistore.model import Image
from amistore.model.fields import from_wire

__all__ = ["TEXT", "check_request", "json_list", "like", "rule", "tuple_of", "whole"]

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


def check_request(record: Any, attribute: attrs.Attribute[Any], request: Any) -> None:
    """What was asked for has all that a task of its kind takes from it."""
    for name, holds in _REQUESTS[record.kind].items():
        if not isinstance(request, Mapping) or name not in request or not holds(request[name]):
            field = f"{type(record).__name__}.{attribute.name}"
            raise InvalidValueError(f"{field} must have a valid {name}", field=field, value=request)


def _are_tags(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        key and _is_text(key) and (each is None or _is_text(each)) for key, each in value.items()
    )


_REQUESTS: Final[Mapping[str, Mapping[str, Callable[[Any], bool]]]] = {
    "store": {"object_tags": _are_tags},
    "restore": {
        "image_tags": _are_tags,
        "snapshot_tags": _are_tags,
        "fill_holes": lambda value: isinstance(value, bool),
        "allow_lost": lambda value: isinstance(value, bool),
        "region": lambda value: value is None or _is_text(value),
        "image": lambda value: isinstance(from_wire(Image, value), Image),  # or its error, which tells more
    },
}
