"""The Query protocol's requests: a form's dotted names made into boto3's members, if they are known."""

from __future__ import annotations

import datetime
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

import attrs

from amistore.wire.calls import Call
from amistore.wire.errors import wrong
from amistore.wire.members import Kind, Operation, query_name

__all__ = ["EC2_VERSION", "STS_VERSION", "checked_form", "parse", "required", "with_form"]

EC2_VERSION = "2016-11-15"
STS_VERSION = "2011-06-15"
_SERVICES = {EC2_VERSION: "ec2", STS_VERSION: "sts"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def with_form(call: Call) -> Call:
    """A call with the service, the operation and the parameters that its form names."""
    try:
        text = call.body.decode()
    except UnicodeDecodeError:
        text = ""
    form = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
    service = _SERVICES.get(form.get("Version", ""), call.service)
    return attrs.evolve(call, service=service, operation=form.get("Action", ""), parameters=form)


def checked_form(call: Call) -> dict[str, str]:
    """The parameters of a call beside those that name its operation.

    Raises:
        ServiceError: it names none, or no version that there is.
    """
    form = dict(call.parameters)
    version = form.pop("Version", None)
    form.pop("Action", None)
    if not call.operation:
        raise wrong("The request must contain the parameter Action", "MissingAction")
    if version not in _SERVICES:
        raise wrong(f"The requested version ({version}) is not valid", "NoSuchVersion")
    return form


def parse(parameters: Mapping[str, str], operation: Operation) -> dict[str, Any]:
    """Make an operation's members of a form's parameters.

    Args:
        parameters: by dotted names, such as ``Filter.1.Value.2``.
        operation: that is asked for.

    Returns:
        Members by boto3's names, such as ``{"Filters": [{"Values": [...]}]}``.

    Raises:
        ServiceError: a parameter is unknown, or no value of its type, or one that is required is missing.
    """
    tree: dict[str, Any] = {}
    for name, value in parameters.items():
        if _NOT_XML.search(name) or _NOT_XML.search(value):
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
    values = _structure("", tree, operation.request)
    for name in operation.required:
        required(values, name, query_name(name, operation.request[name]))
    return values


def _structure(path: str, tree: Mapping[str, Any], known: Mapping[str, Kind]) -> dict[str, Any]:
    spelled = {query_name(name, kind): name for name, kind in known.items()}
    values = {}
    for name, value in tree.items():
        if name not in spelled:
            raise wrong(f"The parameter {path}{name} is not recognized", "UnknownParameter")
        values[spelled[name]] = _converted(path + name, value, known[spelled[name]])
    return values


def _converted(path: str, value: Any, kind: Kind) -> Any:
    if isinstance(kind, list | Mapping):
        if not isinstance(value, dict):
            raise wrong(f"The parameter {path} is not recognized", "UnknownParameter")
        if isinstance(kind, Mapping):
            return _structure(f"{path}.", value, kind)
        if not all(re.fullmatch("[1-9][0-9]{0,5}", number) for number in value):
            raise wrong(f"The parameter {path} is not numbered from 1.")
        return [_converted(f"{path}.{n}", value[n], kind[0]) for n in sorted(value, key=int)]
    if isinstance(value, dict):
        raise wrong(f"The parameter {path}.{next(iter(value))} is not recognized", "UnknownParameter")
    return _scalar(path, value, kind)


def _scalar(path: str, text: str, kind: type) -> Any:
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


def required(values: Mapping[str, Any], name: str, told: str = "") -> Any:
    """A value that has to be there.

    Args:
        values: members of a request.
        name: of the one.
        told: its name in a form, where that is another.

    Raises:
        ServiceError: it is not, or empty.
    """
    value = values.get(name)
    if value in (None, "", [], {}):
        raise wrong(f"The request must contain the parameter {told or name}", "MissingParameter")
    return value
