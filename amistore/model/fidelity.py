"""`AttributeReport`: the fate of an image's attributes when the image is registered again.

`leaves` walks an image, `report` asks a rule for the fate of each leaf. The backends have the rules:
`ImageRegistry.fidelity`. Imports the values only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from amistore.model.image import Image
from amistore.text import printable

__all__ = ["AttributeReport", "Fate", "Leaf", "leaves", "report"]

_MOST_SHOWN = 80  # characters of a value; UEFI data has tens of thousands


class Fate(enum.Enum):
    """The fate of an attribute."""

    KEPT = "kept"
    DROPPED = "dropped"
    REMAPPED = "remapped"


@attrs.frozen(kw_only=True)
class AttributeReport:
    """The fate of one attribute of an image.

    Attributes:
        attribute: the attribute's path, such as ``block_device_mappings[/dev/sda1].ebs.iops``; text in
            brackets is escaped as in Python strings.
        fate: the fate: kept, dropped, or remapped to another value.
        value: the value as Python writes it, 80 characters at most, without control characters.
        reason: the reason why the attribute is not kept; empty if it is kept.
    """

    attribute: str = attrs.field(validator=attrs.validators.instance_of(str))
    fate: Fate = attrs.field(validator=attrs.validators.instance_of(Fate))
    value: str = attrs.field(validator=attrs.validators.instance_of(str))
    reason: str = attrs.field(default="", validator=attrs.validators.instance_of(str))

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return printable(f"{self.attribute} = {self.value} {self.fate.value}{reason}")


@attrs.frozen
class Leaf:
    """An attribute that holds a plain value.

    Attributes:
        path: unique in its image, such as ``tags[Name].value``.
        name: the same of all items of a list: ``tags.value``.
        value: a string, number, boolean, or, of a member in `extra`, any JSON value.
    """

    path: str
    name: str
    value: Any


def leaves(value: Any) -> Iterator[Leaf]:
    """Every attribute of an image, or of a value in it, once; states are left out."""
    return _leaves(value, "", "")


def _leaves(value: Any, path: str, name: str) -> Iterator[Leaf]:
    for field in attrs.fields(type(value)):
        item = getattr(value, field.name)
        below, common = path + field.name, name + field.name
        if field.name == "extra":
            for member, content in item.items():
                if content is not None:
                    yield Leaf(f"{below}[{_escaped(member)}]", f"{common}.{member}", content)
        elif item is None or field.metadata.get("volatile"):
            continue
        elif "many" in field.metadata:
            for each in item:
                key = getattr(each, field.metadata["key"])
                yield from _leaves(each, f"{below}[{_escaped(str(key))}].", f"{common}.")
        elif "one" in field.metadata:
            yield from _leaves(item, f"{below}.", f"{common}.")
        else:
            yield Leaf(below, common, item)


def _escaped(key: str) -> str:
    # With the bracket escaped too, no two attributes have the same path.
    return repr(key)[1:-1].replace("]", "\\]")


def report(image: Image, fate: Callable[[Leaf], tuple[Fate, str]]) -> tuple[AttributeReport, ...]:
    """The fate of every attribute that `image` has.

    Args:
        image: the image to register.
        fate: a function that returns the fate of a leaf, and the reason unless it is kept.
    """
    reports = []
    for leaf in leaves(image):
        found, reason = fate(leaf)
        reports.append(
            AttributeReport(attribute=leaf.path, fate=found, value=_shown(leaf.value), reason=reason)
        )
    return tuple(reports)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MOST_SHOWN else shown[: _MOST_SHOWN - 3] + "..."
