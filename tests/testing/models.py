"""Clients whose every answer is held against the SDK's own model of the service."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.client
import json
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from typing import Any

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.credentials
import botocore.exceptions
import botocore.session

from amistore.testing.aws import Credential, FakeAWS
from amistore.units import BLOCK_SIZE

# What AWS front ends answer before a service does ("Common errors" of each API reference).
COMMON = {
    "MissingAuthenticationTokenException",
    "IncompleteSignatureException",
    "UnrecognizedClientException",
    "ExpiredTokenException",
    "InvalidSignatureException",
    "ServiceUnavailableException",
    "SerializationException",
    "UnknownOperationException",
}
SCALARS = {
    "string": str,
    "integer": int,
    "long": int,
    "boolean": bool,
    "timestamp": (int, float),
    "blob": bytes,
}
CONTENT_TYPES = {
    "rest-json": ("application/json", "application/octet-stream"),
    "ec2": ("text/xml",),
    "query": ("text/xml",),
}


class ModelError(AssertionError):
    """An answer that the service's model does not know."""


@functools.cache
def session() -> botocore.session.Session:
    """Loading a service's model takes a second, so all clients share what is loaded."""
    return botocore.session.Session()


def client(aws: FakeAWS, service: str, credential: Credential | None = None, **config: Any) -> Any:
    settings = {"retries": {"total_max_attempts": 1}, "read_timeout": 30, **config}
    made = boto3.Session(botocore_session=session()).client(
        service, config=botocore.config.Config(**settings), **aws.client_options(credential)
    )
    made.meta.events.register("before-parse.*.*", check)
    return made


def check(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Raise for what the model does not know, is missing, or has the wrong type."""
    status, protocol = response_dict["status_code"], operation_model.service_model.metadata["protocol"]
    kind = {name.lower(): value for name, value in response_dict["headers"].items()}["content-type"]
    if kind.partition(";")[0] not in CONTENT_TYPES[protocol]:
        raise ModelError(f"{operation_model.name} answers in {kind}")
    if protocol == "rest-json" and status < 300:
        check_rest(operation_model, response_dict)
    elif protocol == "rest-json":
        check_rest_error(operation_model, response_dict)
    elif status < 300:
        check_query(operation_model, response_dict["body"])


def check_rest(operation: Any, response: dict[str, Any]) -> None:
    wanted = operation.http.get("responseCode", 200)
    if response["status_code"] != wanted:
        raise ModelError(f"{operation.name}: status {response['status_code']}, not {wanted}")
    shape = operation.output_shape
    streaming = shape.serialization.get("payload")
    named = {name: item for name, item in shape.members.items() if "location" not in item.serialization}
    if streaming is None:
        members = json.loads(response["body"])
        for name, value in members.items():
            if name not in named:
                raise ModelError(f"{operation.name}: unknown member {name}")
            check_value(f"{operation.name}.{name}", named[name], value)
    headers = {name.lower(): value for name, value in response["headers"].items()}
    for name, item in shape.members.items():
        if item.serialization.get("location") == "header":
            text = headers[item.serialization["name"].lower()]
            check_value(name, item, int(text) if item.type_name in ("integer", "long") else text)


def check_rest_error(operation: Any, response: dict[str, Any]) -> None:
    code = {name.lower(): value for name, value in response["headers"].items()}["x-amzn-errortype"]
    shapes = {shape.name: shape for shape in operation.error_shapes}
    if code in COMMON:
        return
    if code not in shapes:
        raise ModelError(f"{operation.name} has no error {code}")
    if response["status_code"] != shapes[code].metadata["error"]["httpStatusCode"]:
        raise ModelError(f"{code} has not the status {response['status_code']}")
    check_value(code, shapes[code], json.loads(response["body"]))


def check_query(operation: Any, body: bytes) -> None:
    root = ElementTree.fromstring(body)
    if local(root) != f"{operation.name}Response":
        raise ModelError(f"{operation.name} answers {local(root)}")
    shape = operation.output_shape
    wrapper = shape.serialization.get("resultWrapper") if shape else None
    if wrapper:
        root = next(item for item in root if local(item) == wrapper)
    extra = {"requestId"} if shape else {"requestId", "return"}
    check_element(operation.name, shape, [item for item in root if local(item) not in extra])


def check_element(path: str, shape: Any, items: list[ElementTree.Element]) -> None:
    names = {m.serialization.get("name", n): m for n, m in shape.members.items()} if shape else {}
    seen = set()
    for item in items:
        name = local(item)
        if name not in names or name in seen:
            raise ModelError(f"{path}: unknown or repeated member {name}")
        seen.add(name)
        check_node(f"{path}.{name}", names[name], item)


def check_node(path: str, shape: Any, node: ElementTree.Element) -> None:
    if shape.type_name == "structure":
        check_element(path, shape, list(node))
    elif shape.type_name == "list":
        for item in node:
            if local(item) != shape.member.serialization.get("name", "member"):
                raise ModelError(f"{path}: an item is called {local(item)}")
            check_node(path, shape.member, item)
    else:
        check_value(path, shape, text_value(path, shape, node))


def text_value(path: str, shape: Any, node: ElementTree.Element) -> Any:
    text = node.text or ""
    if len(node):
        raise ModelError(f"{path} has members")
    if shape.type_name in ("integer", "long"):
        return int(text)
    if shape.type_name == "boolean":
        return {"true": True, "false": False}[text]
    if shape.type_name == "timestamp":
        if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text) is None:
            raise ModelError(f"{path} is no time: {text}")
        return 0
    return text


def check_value(path: str, shape: Any, value: Any) -> None:
    if shape.type_name == "structure":
        for name in shape.required_members:
            if name not in value:
                raise ModelError(f"{path} has no {name}")
        for name, item in value.items():
            if name not in shape.members:
                raise ModelError(f"{path}: unknown member {name}")
            check_value(f"{path}.{name}", shape.members[name], item)
        return
    if shape.type_name == "list":
        for item in value:
            check_value(path, shape.member, item)
        return
    if not isinstance(value, SCALARS[shape.type_name]) or (
        isinstance(value, bool) != (shape.type_name == "boolean")
    ):
        raise ModelError(f"{path} has the type {type(value)}")
    check_bounds(path, shape, value)


def check_bounds(path: str, shape: Any, value: Any) -> None:
    traits = shape.metadata
    size = len(value) if isinstance(value, str) else value
    if "enum" in traits and value not in traits["enum"]:
        raise ModelError(f"{path}: {value} is none of {traits['enum']}")
    if not traits.get("min", size) <= size <= traits.get("max", size):
        raise ModelError(f"{path}: {value} is out of bounds")
    pattern = traits.get("pattern")
    # The models' patterns are of another dialect; those of ids, tokens and checksums are common.
    if pattern and isinstance(value, str) and "\\u" not in pattern and re.search(pattern, value) is None:
        raise ModelError(f"{path}: {value} does not match {pattern}")


def local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def block(seed: int) -> bytes:
    return hashlib.sha256(str(seed).encode()).digest() * (BLOCK_SIZE // 32)


def sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def linear(blocks: dict[int, bytes]) -> str:
    return sha256(b"".join(hashlib.sha256(blocks[index]).digest() for index in sorted(blocks)))


def put(ebs: Any, snapshot_id: str, index: int, data: bytes, **changed: Any) -> Any:
    members = {"DataLength": len(data), "Checksum": sha256(data), "ChecksumAlgorithm": "SHA256"}
    return ebs.put_snapshot_block(
        SnapshotId=snapshot_id, BlockIndex=index, BlockData=data, **(members | changed)
    )


def complete(ebs: Any, snapshot_id: str, blocks: dict[int, bytes], **changed: Any) -> Any:
    members = {
        "ChangedBlocksCount": len(blocks),
        "Checksum": linear(blocks),
        "ChecksumAlgorithm": "SHA256",
        "ChecksumAggregationMethod": "LINEAR",
    }
    return ebs.complete_snapshot(SnapshotId=snapshot_id, **(members | changed))


def get(ebs: Any, snapshot_id: str, listed: dict[str, Any]) -> bytes:
    answer = ebs.get_snapshot_block(
        SnapshotId=snapshot_id, BlockIndex=listed["BlockIndex"], BlockToken=listed["BlockToken"]
    )
    data: bytes = answer["BlockData"].read()
    return data


def pages(ebs: Any, snapshot_id: str, **arguments: Any) -> list[dict[str, Any]]:
    """All pages of one listing."""
    found = [ebs.list_snapshot_blocks(SnapshotId=snapshot_id, **arguments)]
    while token := found[-1].get("NextToken"):
        found.append(ebs.list_snapshot_blocks(SnapshotId=snapshot_id, NextToken=token, **arguments))
    return found


def indexes(listing: list[dict[str, Any]]) -> list[int]:
    return [block["BlockIndex"] for page in listing for block in page["Blocks"]]


def refusal(call: Any, *arguments: Any, **members: Any) -> tuple[int, str, str | None]:
    """Status, code and reason of the error that a call meets."""
    try:
        call(*arguments, **members)
    except botocore.exceptions.ClientError as error:
        answer = error.response
        return (
            answer["ResponseMetadata"]["HTTPStatusCode"],
            answer["Error"]["Code"],
            answer.get("reason") or answer.get("Reason") or answer["Error"].get("Reason"),
        )
    raise AssertionError("the call was not refused")


def sent(
    aws: FakeAWS,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    service: str = "ebs",
    changed: dict[str, str] | None = None,
    sign: bool = True,
    **headers: str,
) -> tuple[int, str, bytes]:
    """Send what is signed, with headers changed after that."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = botocore.awsrequest.AWSRequest(method, aws.endpoint_url + target, data=body, headers=named)
    keys = botocore.credentials.Credentials(aws.credential.access_key_id, aws.credential.secret_access_key)
    if sign:
        botocore.auth.SigV4Auth(keys, service, aws.region).add_auth(request)
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(aws.endpoint_url).netloc, timeout=30)
    connection.request(method, target, body, {**dict(request.headers.items()), **(changed or {})})
    answer = connection.getresponse()
    found = answer.status, answer.headers.get("x-amzn-ErrorType", ""), answer.read()
    connection.close()
    return found
