"""Answers and errors in the spelling of each protocol: REST-JSON and the Query APIs' XML."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from amistore.testing.aws.calls import Answer, Call
from amistore.testing.aws.errors import ServiceError

__all__ = ["EC2_VERSION", "STS_VERSION", "error_answer", "json_answer", "moment", "xml_answer"]

EC2_VERSION = "2016-11-15"
STS_VERSION = "2011-06-15"
MESSAGE_LENGTH = 256
"""Most characters of an EBS error's message, in the service's model."""


def json_answer(status: int, members: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of the EBS direct APIs."""
    named = {"Content-Type": "application/json", "x-amzn-RequestId": str(uuid.uuid4()), **(headers or {})}
    return Answer(status=status, body=json.dumps(members).encode(), headers=named)


def xml_answer(call: Call, members: Mapping[str, Any]) -> Answer:
    """An answer of a Query API; members by their names in the XML, in their order."""
    name, identifier = call.operation, str(uuid.uuid4())
    if call.service == "sts":
        body = (
            f'<{name}Response xmlns="https://sts.amazonaws.com/doc/{STS_VERSION}/">'
            f"<{name}Result>{xml(members)}</{name}Result>"
            f"<ResponseMetadata><RequestId>{identifier}</RequestId></ResponseMetadata></{name}Response>"
        )
    else:
        body = (
            f'<{name}Response xmlns="http://ec2.amazonaws.com/doc/{EC2_VERSION}/">'
            f"<requestId>{identifier}</requestId>{xml(members)}</{name}Response>"
        )
    return document(200, body)


def error_answer(call: Call, error: ServiceError) -> Answer:
    """An error in the spelling of the call's service."""
    if call.service == "ebs":
        members = {"Message": error.message[:MESSAGE_LENGTH]}
        if error.reason is not None:
            members["Reason"] = error.reason
        return json_answer(error.status, members, {"x-amzn-ErrorType": error.code})
    inner = f"<Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message>"
    if call.service == "s3":
        return document(error.status, f"<Error>{inner}</Error>")
    identifier = str(uuid.uuid4())
    if call.service == "sts":
        kind = "Sender" if error.status < 500 else "Receiver"
        text = (
            f'<ErrorResponse xmlns="https://sts.amazonaws.com/doc/{STS_VERSION}/">'
            f"<Error><Type>{kind}</Type>{inner}</Error><RequestId>{identifier}</RequestId></ErrorResponse>"
        )
        return document(error.status, text)
    text = f"<Response><Errors><Error>{inner}</Error></Errors><RequestID>{identifier}</RequestID></Response>"
    return document(error.status, text)


def document(status: int, text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    return Answer(status=status, body=body, headers={"Content-Type": "text/xml;charset=UTF-8"})


def xml(members: Mapping[str, Any]) -> str:
    return "".join(element(name, value) for name, value in members.items())


def element(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, Mapping):
        text = xml(value)
    elif isinstance(value, list):
        text = "".join(element("item", item) for item in value)
    elif isinstance(value, datetime.datetime):
        text = moment(value)
    else:
        text = escape(str(value), {"\r": "&#13;"})
    return f"<{name}>{text}</{name}>"


def moment(time: datetime.datetime) -> str:
    """A time as EC2 spells it, in milliseconds."""
    return (
        time.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.")
        + f"{time.microsecond // 1000:03d}Z"
    )
