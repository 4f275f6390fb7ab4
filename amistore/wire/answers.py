"""Answers and errors in the spelling of each protocol: REST-JSON and the Query protocol's XML."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from amistore.wire.calls import Answer, Call
from amistore.wire.errors import ServiceError
from amistore.wire.members import xml_name
from amistore.wire.query import EC2_VERSION, STS_VERSION

__all__ = ["error_answer", "json_answer", "moment", "xml_answer"]

_MESSAGE_LENGTH = 256
"""Most characters of an EBS error's message, in the service's model."""


def json_answer(
    call: Call, status: int, members: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Answer:
    """An answer of the EBS direct APIs."""
    named = {"Content-Type": "application/json", "x-amzn-RequestId": call.request_id, **(headers or {})}
    return Answer(status=status, body=json.dumps(members).encode(), headers=named)


def xml_answer(call: Call, members: Mapping[str, Any]) -> Answer:
    """An answer of a Query API; members by boto3's names or, of EC2, by those in the XML."""
    name = call.operation
    if call.service == "sts":
        body = (
            f'<{name}Response xmlns="https://sts.amazonaws.com/doc/{STS_VERSION}/">'
            f"<{name}Result>{_xml(members, '', _as_it_is)}</{name}Result>"
            f"<ResponseMetadata><RequestId>{call.request_id}</RequestId></ResponseMetadata></{name}Response>"
        )
    else:
        body = (
            f'<{name}Response xmlns="http://ec2.amazonaws.com/doc/{EC2_VERSION}/">'
            f"<requestId>{call.request_id}</requestId>{_xml(members, '', xml_name)}</{name}Response>"
        )
    return _document(200, body)


def error_answer(call: Call, error: ServiceError) -> Answer:
    """An error in the spelling of the call's service."""
    if call.service == "ebs":
        members = {"Message": error.message[:_MESSAGE_LENGTH]}
        if error.reason is not None:
            members["Reason"] = error.reason
        return json_answer(call, error.status, members, {"x-amzn-ErrorType": error.code})
    inner = f"<Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message>"
    if call.service == "s3":
        return _document(error.status, f"<Error>{inner}</Error>")
    if call.service == "sts":
        kind = "Sender" if error.status < 500 else "Receiver"
        text = (
            f'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/{STS_VERSION}/">'
            f"<Error><Type>{kind}</Type>{inner}</Error><RequestId>{call.request_id}</RequestId></ErrorResponse>"
        )
        return _document(error.status, text)
    listed = f"<Errors><Error>{inner}</Error></Errors>"
    return _document(error.status, f"<Response>{listed}<RequestID>{call.request_id}</RequestID></Response>")


def _document(status: int, text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return Answer(status=status, body=body, headers={"Content-Type": "text/xml;charset=UTF-8"})


def _as_it_is(name: str, above: str) -> str:
    return name


def _xml(members: Mapping[str, Any], above: str, spelled: Callable[[str, str], str]) -> str:
    return "".join(
        _element(spelled(name, above), value, name, spelled)
        for name, value in members.items()
        if value is not None
    )


def _element(tag: str, value: Any, name: str, spelled: Callable[[str, str], str]) -> str:
    """A value in its tag; `name` is that of the member that holds it, or is it."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, Mapping):
        text = _xml(value, name, spelled)
    elif isinstance(value, list):
        text = "".join(_element("item", item, name, spelled) for item in value)
    elif isinstance(value, datetime.datetime):
        text = moment(value)
    else:
        text = escape(str(value), {"\r": "&#13;"})
    return f"<{tag}>{text}</{tag}>"


def moment(time: datetime.datetime) -> str:
    """A time as EC2 spells it, in milliseconds."""
    return (
        time.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.")
        + f"{time.microsecond // 1000:03d}Z"
    )
