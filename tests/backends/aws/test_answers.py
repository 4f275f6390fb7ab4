"""Answers to botocore's clients that are too long, too slow, from elsewhere, or an error that says 200."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from backends.aws import conftest
from backends.aws.proxy import Answer, FaultProxy, fault_proxy
from backends.aws.sockets import Script, read_head, scripted

from amistore.backends.aws.answers import Answers
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.aws.ec2 import AWSImageRegistry
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.errors import AmistoreError, BackendError, InvalidRequestError

SNAPSHOT = "snap-0123456789abcdef0"
IMAGE = "ami-0123456789abcdef0"
RETURN = b"<return>true</return>"


def everywhere(url: str) -> Connection:
    keys = boto3.Session("key", "secret", region_name="us-east-1")
    return Connection(keys, None, {"s3": url, "ec2": url, "ebs": url})


def limited(monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    monkeypatch.setattr("amistore.backends.aws.connection.Answers", lambda: Answers(**limits))


CALLS: dict[str, Callable[[Connection], object]] = {
    "list blocks": lambda there: AWSBlockStore(there).list_snapshot_blocks(SNAPSHOT),
    "start": lambda there: AWSBlockStore(there).start_snapshot(1),
    "complete": lambda there: AWSBlockStore(there).complete_snapshot(SNAPSHOT, 0, bytes(32)),
    "get block": lambda there: AWSBlockStore(there).get_snapshot_block(SNAPSHOT, 0, "1:token"),
    "describe": lambda there: AWSImageRegistry(there).describe_image(IMAGE),
    "delete snapshot": lambda there: AWSBlockStore(there).delete_snapshot(SNAPSHOT),
    "head bucket": lambda there: AWSObjectStore(there).head_bucket("bucket"),
    "head": lambda there: AWSObjectStore(there).head_object("bucket", "key"),
    "get": lambda there: AWSObjectStore(there).get_object_range("bucket", "key", 0, 9),
    "create upload": lambda there: AWSObjectStore(there).create_multipart_upload("bucket", "key"),
    "upload part": lambda there: AWSObjectStore(there).upload_part("bucket", "key", "upload", 1, b"x"),
    "list parts": lambda there: AWSObjectStore(there).list_parts("bucket", "key", "upload"),
    "list uploads": lambda there: AWSObjectStore(there).list_multipart_uploads("bucket"),
}
WITH_BODY = [name for name in CALLS if name not in ("get block", "head bucket", "head")]


def endless(status: str, head: str, sent: list[int]) -> contextlib.AbstractContextManager[Script]:
    """A server whose answers have no end."""

    def play(client: socket.socket) -> None:
        while read_head(client):
            client.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n\r\n".encode())
            while True:
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n" if "chunked" in head else b" " * 65536)
                sent[0] += 65536

    return scripted(play)


HEADS = ["Connection: close", "Content-Length: 99999999999", "Transfer-Encoding: chunked"]


@pytest.mark.parametrize(
    ("status", "head", "names"),
    [
        ("500 Internal Server Error", HEADS[2], WITH_BODY),
        *(("200 OK", head, ["list parts", "list blocks", "delete snapshot"]) for head in HEADS),
    ],
)
def test_an_endless_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, status: str, head: str, names: list[str]
) -> None:
    limited(monkeypatch, most=2**20)
    sent = [0]
    with endless(status, head, sent) as script:
        there = everywhere(script.url)
        for name in names:
            with pytest.raises(BackendError, match="more than 1048576") as raised:
                CALLS[name](there)
            assert raised.value.operation
    assert sent[0] < len(names) * 50 * 2**20  # what fits in the sockets' buffers comes to it


def test_of_an_endless_object_no_more_is_read_than_was_asked_for() -> None:
    sent = [0]
    with endless("200 OK", HEADS[1], sent) as script:
        assert CALLS["get"](everywhere(script.url)) == b" " * 9
    assert sent[0] < 50 * 2**20


def test_an_answer_that_drips_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, limit=-1)
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<"

    def play(client: socket.socket) -> None:
        while read_head(client):
            client.sendall(begun)
            client.recv(1)  # nothing more until the client has had enough

    with scripted(play) as script:
        there = everywhere(script.url)
        for name in WITH_BODY:
            if name != "get":
                with pytest.raises(BackendError, match="too long") as raised:
                    CALLS[name](there)
                assert raised.value.retryable


def test_an_objects_content_that_drips_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amistore.backends.aws.s3_integrity._LONGEST", -1)

    def play(client: socket.socket) -> None:
        while read_head(client):
            client.sendall(
                b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-8/9\r\nContent-Length: 9\r\n\r\n<"
            )
            client.recv(1)

    with scripted(play) as script, pytest.raises(BackendError, match="1 of 9 bytes took more than") as raised:
        CALLS["get"](everywhere(script.url))
    assert raised.value.retryable


def anything(method: str, target: str) -> str:
    return "any"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_nobody_follows_it(status: int) -> None:
    with fault_proxy(None, operation=anything) as there, fault_proxy(None, operation=anything) as foreign:
        headers = {"Location": f"{foreign.url}/secret?X-Amz-Signature=secret"}
        there.fail("any", Answer(status=status, headers=headers), times=100)
        connection = everywhere(there.url)
        for call in CALLS.values():
            with pytest.raises(
                InvalidRequestError, match=f"redirect to '127.0.0.1' .HTTP {status}"
            ) as raised:
                call(connection)
            assert "secret" not in str(raised.value)
        assert not foreign.requests
        assert there.requests["any"] == len(CALLS)


@pytest.mark.parametrize("status", [301, 307, 400])
def test_a_bucket_of_another_region_is_told_by_its_region(status: int) -> None:
    with fault_proxy(None, operation=anything) as there:
        there.fail("any", Answer(status=status, headers={"x-amz-bucket-region": "eu-west-1"}), times=100)
        connection = everywhere(there.url)
        for name in ("head bucket", "head", "get", "upload part"):
            with pytest.raises(InvalidRequestError, match="lies in 'eu-west-1', not in us-east-1") as raised:
                CALLS[name](connection)
            assert raised.value.code == "InaccessibleStorageLocation"
        assert there.requests["any"] == 4


@pytest.fixture
def ec2() -> Iterator[FaultProxy]:
    with fault_proxy(None, operation=anything) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "body",
    [
        b"<Response><Errors><Error><Code>InternalError</Code><Message>m</Message></Error></Errors></Response>",
        b"<DeleteSnapshotResponse><requestId>1</requestId></DeleteSnapshotResponse>",
        b"<DeleteSnapshotResponse><return>false</return></DeleteSnapshotResponse>",
        b"<DescribeImagesResponse>" + RETURN + b"</DescribeImagesResponse>",
        b"<html><body>Please log in</body></html>",
        b"",
    ],
)
def test_a_snapshot_counts_as_deleted_only_when_ec2_says_so(ec2: FaultProxy, body: bytes) -> None:
    store = AWSBlockStore(everywhere(ec2.url))
    ec2.fail("any", Answer(body=body))
    with pytest.raises(BackendError) as raised:
        store.delete_snapshot(SNAPSHOT)
    assert raised.value.retryable
    ec2.fail("any", Answer(body=b"<DeleteSnapshotResponse>" + RETURN + b"</DeleteSnapshotResponse>"))
    store.delete_snapshot(SNAPSHOT)


def test_an_error_of_ec2_inside_a_200_keeps_its_code(ec2: FaultProxy) -> None:
    text = "<Response><Errors><Error><Code>{}</Code><Message>m</Message></Error></Errors></Response>"
    ec2.fail("any", Answer(body=text.format("UnauthorizedOperation").encode()))
    with pytest.raises(AmistoreError, match=r"UnauthorizedOperation: m.*ec2:DeleteSnapshot"):
        AWSBlockStore(everywhere(ec2.url)).delete_snapshot(SNAPSHOT)
    ec2.fail("any", Answer(body=text.format("InvalidAMIID.NotFound").encode()))
    with pytest.raises(AmistoreError, match=r"InvalidAMIID\.NotFound"):
        AWSImageRegistry(everywhere(ec2.url)).describe_image(IMAGE)


def test_connections_are_used_again_after_answers_that_were_read(swift: str) -> None:
    with fault_proxy(swift) as proxy:
        case = conftest.bucket_of(conftest.connect(proxy.url))
        case.store.put_object(case.bucket, "key", [b"x" * 100])
        for _ in range(5):
            assert case.store.get_object_range(case.bucket, "key", 0, 10) == b"x" * 10
            case.store.head_object(case.bucket, "key")
            assert case.store.list_multipart_uploads(case.bucket) == []
    assert sum(proxy.requests.values()) > 15
    assert proxy.connections == 2  # one is for completions, whose answers may take longer


@pytest.mark.parametrize("body", [b"", b"<html/>", b"<ListBucketResult/>"])
@pytest.mark.parametrize("name", ["list parts", "list uploads"])
def test_what_is_no_list_is_not_taken_for_an_empty_one(ec2: FaultProxy, name: str, body: bytes) -> None:
    """Else an upload would count as aborted, with its parts, on the word of a proxy's page."""
    ec2.fail("any", Answer(body=body))
    with pytest.raises(BackendError) as raised:
        CALLS[name](everywhere(ec2.url))
    assert raised.value.retryable


@pytest.mark.parametrize("headers", [{}, {"ETag": '"e"'}])
def test_a_head_without_etag_or_length_is_a_typed_error(headers: dict[str, str]) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()

    def play(client: socket.socket) -> None:
        read_head(client)
        client.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")

    with scripted(play) as script, pytest.raises(BackendError, match=r"has no (ETag|ContentLength)"):
        CALLS["head"](everywhere(script.url))


def test_images_that_are_listed_in_circles_are_left(ec2: FaultProxy) -> None:
    page = "<DescribeImagesResponse><imagesSet/><nextToken>{}</nextToken></DescribeImagesResponse>"
    for number in range(1, 20):
        ec2.fail("any", Answer(body=page.format(number % 2).encode()), nth=number)
    with pytest.raises(BackendError, match="again and again"):
        AWSImageRegistry(everywhere(ec2.url)).describe_images()
    assert ec2.requests["any"] == 3
