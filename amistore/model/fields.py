"""Field rules shared by the model's values, and their one mapping to AWS's spelling.

A value's attribute `volume_size` is the wire's `VolumeSize`. Members that this version
does not know are kept in `extra` and written back, so nothing a newer EC2 or a newer
minor version of the manifest says is lost. Imports `errors` only.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import attrs

from amistore.errors import InvalidValueError

__all__ = [
    "IMAGE_ID",
    "SNAPSHOT_ID",
    "boolean",
    "extra",
    "from_wire",
    "identifier",
    "integer",
    "many",
    "one",
    "rule",
    "state",
    "text",
    "to_wire",
    "wire_name",
]

V = TypeVar("V", bound=attrs.AttrsInstance)

# EC2 resource ids: a prefix and 8 or, since 2018, 17 hexadecimal digits ("Resource IDs").
_ID = r"-(?:[0-9a-f]{17}|[0-9a-f]{8})"
IMAGE_ID = "ami" + _ID
SNAPSHOT_ID = "snap" + _ID

# Deep enough for any EC2 answer, and far from the interpreter's own limit, which depends on
# who calls.
_MOST_LEVELS = 50

# Python reads no more than 4,300 digits (sys.int_info).
_MOST_BITS = 14_000


def _refuse(instance: Any, attribute: attrs.Attribute[Any], value: object, rule: str) -> None:
    field = f"{type(instance).__name__}.{attribute.name}"
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, deep nesting
        shown = f"such a {type(value).__name__}"
    if len(shown) > 80:
        shown = shown[:77] + "..."
    raise InvalidValueError(f"{field} must be {rule}, not {shown}", field=field, value=value)


def _field(kind: type, broken: Callable[[Any], str | None], *, required: bool = False, **options: Any) -> Any:
    """A field whose value, unless it is None and not required, `broken` finds no broken rule for."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
        rule = broken(value) if required or value is not None else None
        if rule is not None:
            _refuse(instance, attribute, value, rule)

    given = {"default": attrs.NOTHING if required else None, "metadata": {"type": kind}, **options}
    return attrs.field(validator=check, **given)


def rule(told: str, holds: Callable[[Any], bool]) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """A validator: a value must be as `told`."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not holds(value):
            _refuse(instance, attribute, value, told)

    return check


def text(*, required: bool = False, default: str | None = None) -> Any:
    """A string of Unicode scalar values (no lone surrogates, which UTF-8 cannot carry)."""

    def broken(value: Any) -> str | None:
        if not isinstance(value, str) or (required and not value):
            return "a non-empty string" if required else "a string"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "a string without lone surrogates"
        return None

    return _field(str, broken, required=required, **({} if default is None else {"default": default}))


def identifier(prefix: str, *, required: bool = False) -> Any:
    """An EC2 resource id such as ``ami-0123456789abcdef0``."""
    pattern = re.compile(prefix + _ID)

    def broken(value: Any) -> str | None:
        right = isinstance(value, str) and pattern.fullmatch(value)
        return None if right else f"{prefix}- and 8 or 17 hexadecimal digits"

    return _field(str, broken, required=required)


def integer(
    *, least: int = 0, most: int = 2**63 - 1, required: bool = False, default: int | None = None
) -> Any:
    """A whole number from `least` to `most`; None, too, where it is neither required nor has a default."""

    def broken(value: Any) -> str | None:
        right = type(value) is int and least <= value <= most
        return None if right else f"a whole number from {least} to {most}"

    options = {} if default is None else {"default": default}
    return _field(int, broken, required=required or default is not None, **options)


def boolean() -> Any:
    """True, False or, where EC2 did not say, None."""
    return _field(bool, lambda value: None if type(value) is bool else "True, False or None")


def state(default: str) -> Any:
    """A state, a string that takes no part in comparisons and is not written."""
    told = {"default": default, "eq": False, "metadata": {"type": str, "volatile": True}}
    return _field(str, lambda value: None if isinstance(value, str) else "a string", required=True, **told)


def one(kind: type[V]) -> Any:
    """A nested value, or None."""

    def broken(value: Any) -> str | None:
        return None if isinstance(value, kind) else f"of type {kind.__name__}"

    return _field(kind, broken, metadata={"one": kind})


def many(kind: type[V], *, key: str) -> Any:
    """Nested values without duplicates of `key`, kept in its order.

    EC2 gives them in no stated order; sorting at birth makes equal AMIs equal values and
    equal archives.
    """

    def convert(value: Any) -> Any:
        try:
            return tuple(sorted(value, key=lambda item: getattr(item, key)))
        except (AttributeError, TypeError):
            return value

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
            _refuse(instance, attribute, value, f"{kind.__name__} values")
        keys = [getattr(item, key) for item in value]
        for before, after in pairwise(keys):
            if before == after:
                _refuse(instance, attribute, after, f"without two of the same {key}")

    return attrs.field(default=(), converter=convert, validator=check, metadata={"many": kind, "key": key})


def _plain(value: object, levels: int = _MOST_LEVELS) -> Any:
    """Copy a JSON value; raise ValueError for anything that JSON cannot say again."""
    if isinstance(value, str):
        value.encode()
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _MOST_BITS:
            raise ValueError(f"a number of {value.bit_length()} bits")
        return value
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if levels and isinstance(value, (list, tuple)):
        return [_plain(item, levels - 1) for item in value]
    if levels and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_plain(key): _plain(item, levels - 1) for key, item in value.items()}
    raise ValueError(type(value).__name__)


@attrs.frozen
class _NotJson:
    value: object


def extra() -> Any:
    """Members this version does not know, in the wire's spelling and JSON's types."""

    def convert(value: Any) -> Any:
        try:
            return _plain(value)
        except ValueError:
            return _NotJson(value)

    def check(instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, _NotJson) or not isinstance(value, dict):
            given = value.value if isinstance(value, _NotJson) else value
            _refuse(instance, attribute, given, f"a mapping of JSON values, {_MOST_LEVELS} levels at most")
            return
        known = {wire_name(field.name) for field in attrs.fields(type(instance))}
        for name in value:
            if name in known:
                _refuse(instance, attribute, name, "free of members that have a field of their own")

    return attrs.field(factory=dict, converter=convert, validator=check, hash=False, repr=False)


@functools.cache  # as many as there are fields
def wire_name(name: str) -> str:
    """`volume_size` → `VolumeSize`."""
    return "".join(word.capitalize() for word in name.split("_"))


def to_wire(value: Any) -> dict[str, Any]:
    """A model value as the members EC2's Describe calls answer with; None is left out."""
    members: dict[str, Any] = {}
    for field in attrs.fields(type(value)):
        if field.name == "extra" or field.metadata.get("volatile"):
            continue
        item = getattr(value, field.name)
        if item is None or item == ():
            continue
        if "many" in field.metadata:
            item = [to_wire(each) for each in item]
        elif "one" in field.metadata:
            item = to_wire(item)
        members[wire_name(field.name)] = item
    return {**_plain(value.extra), **members}


def from_wire(kind: type[V], members: Any) -> V:
    """The reverse of `to_wire`.

    Raises:
        InvalidValueError: a member breaks a rule of its field.
    """
    if not isinstance(members, Mapping):
        raise InvalidValueError(f"{kind.__name__} must be an object", field=kind.__name__, value=members)
    left = dict(members)
    known: dict[str, Any] = {"extra": left}
    for field in attrs.fields(kind):
        if field.name == "extra":
            continue
        if wire_name(field.name) not in left:
            if field.default is attrs.NOTHING:
                name = f"{kind.__name__}.{field.name}"
                raise InvalidValueError(f"{name} is missing", field=name)
            continue
        item = left.pop(wire_name(field.name))
        if "many" in field.metadata and isinstance(item, (list, tuple)):
            item = tuple(from_wire(field.metadata["many"], each) for each in item)
        elif "one" in field.metadata and item is not None:
            item = from_wire(field.metadata["one"], item)
        known[field.name] = item
    return kind(**known)
