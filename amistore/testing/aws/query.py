"""Parameters of the Query APIs: dotted names made into values, checked against what is known."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from amistore.testing.aws.errors import ServiceError

__all__ = ["parse", "required", "wrong"]

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse(parameters: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Make values of a form's parameters.

    Args:
        parameters: by dotted names, such as ``Filter.1.Value.2``.
        known: names to ``str``, ``int``, ``bool``, ``datetime.datetime``, a list with the type of
            its items, or a mapping like this one.

    Raises:
        ServiceError: a parameter is unknown, or no value of its type.
    """
    tree: dict[str, Any] = {}
    for name, value in parameters.items():
        if NOT_XML.search(name) or NOT_XML.search(value):
            raise wrong("A parameter holds a character that XML does not allow.")
        branch = tree
        *above, last = name.split(".")
        for part in above:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise wrong(f"The parameter {name} conflicts with another.", "MalformedQueryString")
        if last in branch:
            raise wrong(f"The parameter {name} conflicts with another.", "MalformedQueryString")
        branch[last] = value
    values: dict[str, Any] = structure("", tree, known)
    return values


def structure(path: str, tree: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for name, value in tree.items():
        if name not in known:
            raise wrong(f"The parameter {path}{name} is not recognized", "UnknownParameter")
        values[name] = converted(path + name, value, known[name])
    return values


def converted(path: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, list | Mapping):
        if not isinstance(value, dict):
            raise wrong(f"The parameter {path} is not recognized", "UnknownParameter")
        if isinstance(kind, Mapping):
            return structure(f"{path}.", value, kind)
        if not all(re.fullmatch("[1-9][0-9]{0,5}", number) for number in value):
            raise wrong(f"The parameter {path} is not numbered from 1.")
        return [converted(f"{path}.{n}", value[n], kind[0]) for n in sorted(value, key=int)]
    if isinstance(value, dict):
        raise wrong(f"The parameter {path}.{next(iter(value))} is not recognized", "UnknownParameter")
    return scalar(path, value, kind)


def scalar(path: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            if re.fullmatch("-?[0-9]{1,18}", text) is None:
                raise ValueError(text)
            return int(text)
        if kind is datetime.datetime:
            time = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
            return time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)
    except (KeyError, ValueError):
        raise wrong(f"Value ({text}) for parameter {path} is invalid.") from None
    return text


def required(values: Mapping[str, Any], name: str) -> Any:
    """A value that has to be there.

    Raises:
        ServiceError: it is not, or empty.
    """
    value = values.get(name)
    if value in (None, "", [], {}):
        raise wrong(f"The request must contain the parameter {name}", "MissingParameter")
    return value


def wrong(message: str, code: str = "InvalidParameterValue", status: int = 400) -> ServiceError:
    """An error of EC2 ("EC2 API reference: Error codes")."""
    return ServiceError(code, message, status=status)
