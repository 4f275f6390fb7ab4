"""The lean path of the two block calls, by threads and in flight: faults, connections, proxies, TLS."""

from __future__ import annotations

import concurrent.futures
import datetime
import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import boto3
import pytest
from backends.aws.conftest import require
from backends.aws.proxy import fault_proxy
from backends.aws.sockets import forward_proxy, read_head, scripted
from botocore.credentials import RefreshableCredentials

from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.aws.ebs_connections import TimeLimits
from amistore.errors import (
    AccessDeniedError,
    BackendError,
    ChecksumMismatchError,
    InvalidRequestError,
    ThrottledError,
)
from amistore.testing import block
from amistore.testing.aws import Credential, FakeAWS
from amistore.testing.aws.certificate import make_certificate
from amistore.units import BLOCK_SIZE

pytestmark = pytest.mark.usefixtures("way")

SHORT = TimeLimits(read=1.0)  # seconds
CONTENT = bytes(block(1))
DIGEST = hashlib.sha256(CONTENT).digest()
SNAPSHOT = "snap-00000000000000000"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 524288\r\nx-amz-Checksum-Algorithm: SHA256\r\n"
    b"x-amz-Checksum: B4VNL+8pega6gWheZgwzLeNtXRjVRpJ9MNqtbX/aFUE=\r\n\r\n" + bytes(BLOCK_SIZE)
)


def open_store(
    url: str, credential: Credential | None = None, limits: TimeLimits | None = None
) -> AWSBlockStore:
    secrets = ("key", "secret", None)
    if credential is not None:
        secrets = credential.access_key_id, credential.secret_access_key, credential.session_token
    session = boto3.Session(*secrets, region_name="us-east-1")
    return AWSBlockStore(Connection(session, None, {"ebs": url, "ec2": url}), limits=limits or SHORT)


@attrs.frozen
class Case:
    """A store on the fake, a snapshot to read and one to write."""

    aws: FakeAWS
    store: AWSBlockStore
    source: str
    token: str
    target: str

    @classmethod
    def of(cls, aws: FakeAWS, store: AWSBlockStore) -> Case:
        source = aws.add_snapshot(volume_size=1, blocks={5: CONTENT})
        token = store.list_snapshot_blocks(source).blocks[0].block_token
        return cls(aws, store, source, token, store.start_snapshot(1))

    def get(self) -> bytes:
        """The block, if it is what its checksum says."""
        found = self.store.get_snapshot_block(self.source, 5, self.token)
        if hashlib.sha256(found.content).digest() != found.checksum:
            raise ValueError("seen by its checksum")
        return bytes(found.content)

    def put(self) -> None:
        self.store.put_snapshot_block(self.target, 7, CONTENT, DIGEST)


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS() as fake:
        yield fake


@pytest.fixture
def case(aws: FakeAWS) -> Case:
    credential = aws.add_credential(session_token="a/token+with=signs")
    return Case.of(aws, open_store(aws.endpoint_url, credential))


TROUBLES = [
    ("500", BackendError),
    ("503", BackendError),
    ("throttle", ThrottledError),
    ("failed-to-read", BackendError),
    ("reset-before-body", BackendError),
    ("reset-before-answer", BackendError),
    ("lost-reply", BackendError),
    ("silence", BackendError),
    ("short-body", BackendError),
    ("error-inside", BackendError),
    ("slow-drip", BackendError),
]


@pytest.mark.parametrize(("kind", "error"), TROUBLES)
def test_a_get_with_a_fault_fails_typed_and_the_next_one_gives_the_block(case, kind, error) -> None:
    rule = case.aws.faults.add("GetSnapshotBlock", kind, times=1)
    with pytest.raises(error) as caught:
        case.get()
    assert rule.fired == 1
    assert caught.value.retryable
    assert (caught.value.operation, caught.value.block_index) == ("get_snapshot_block", 5)
    assert case.get() == CONTENT


@pytest.mark.parametrize(("kind", "error"), [each for each in TROUBLES if each[0] != "slow-drip"])
def test_a_put_with_a_fault_fails_typed_and_the_next_one_is_stored(case, kind, error) -> None:
    # A drip is of answers longer than Put's.
    rule = case.aws.faults.add("PutSnapshotBlock", kind, times=1)
    with pytest.raises(error) as caught:
        case.put()
    assert rule.fired == 1
    assert caught.value.retryable
    assert (caught.value.operation, caught.value.block_index) == ("put_snapshot_block", 7)
    case.put()
    assert case.aws.read_snapshot(case.target) == {7: CONTENT}


def test_a_bit_that_was_flipped_on_the_way_is_seen_by_the_checksum(case) -> None:
    case.aws.faults.add("GetSnapshotBlock", "flipped-bit", times=1)
    with pytest.raises((ValueError, ChecksumMismatchError), match=r"seen by its checksum|SHA-256"):
        case.get()
    assert case.get() == CONTENT


@pytest.mark.parametrize("begun", [b"", b"\r\n"], ids=["head", "body"])
def test_an_answer_that_drips_for_ever_ends_with_the_attempt(begun: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 524288\r\n" + begun)
        while True:
            connection.sendall(b"X")

    with scripted(drip) as server:
        store = open_store(server.url, limits=TimeLimits(attempt=0.05))
        with pytest.raises(BackendError, match="TimeoutError") as caught:
            store.get_snapshot_block(SNAPSHOT, 0, "1:token")
    assert caught.value.retryable


@pytest.mark.parametrize(
    "answer",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + bytes(2 << 20),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n80000\r\nfew",
        b"",
    ],
    ids=["no HTTP", "many headers", "too long", "pieces that break off", "nothing"],
)
def test_an_answer_that_is_no_block_is_an_error_worth_another_attempt(answer: bytes) -> None:
    def play(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(answer)

    with scripted(play) as server:
        store = open_store(server.url)
        with pytest.raises(BackendError) as caught:
            store.get_snapshot_block(SNAPSHOT, 0, "1:token")
    assert caught.value.retryable


def test_a_page_that_repeats_the_request_tells_no_credential() -> None:
    def play(connection: socket.socket) -> None:
        page = json.dumps({"message": f"blocked: {read_head(connection).decode()}"}).encode()
        head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(page)}\r\n\r\n"
        connection.sendall(head.encode() + page)

    with scripted(play) as server:
        store = open_store(
            server.url,
            Credential(access_key_id="AKIA0", secret_access_key="secret", session_token="of/this+session"),
        )
        with pytest.raises(AccessDeniedError, match="blocked: GET /snapshots") as caught:
            store.get_snapshot_block(SNAPSHOT, 0, "1:token")
        with pytest.raises(AccessDeniedError) as listed:
            store.list_snapshot_blocks(SNAPSHOT)
    for error in (caught.value, listed.value):
        assert "of/this" not in str(error)
        assert "Signature=" not in str(error)


@pytest.mark.parametrize("drained", [True, False], ids=["the body is read", "the server hangs up"])
def test_a_refusal_that_comes_before_the_body_is_an_error_that_is_true(drained: bool) -> None:
    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(
            b"HTTP/1.1 403 Forbidden\r\nx-amzn-ErrorType: AccessDeniedException\r\nContent-Length: 0\r\n\r\n"
        )
        while drained and connection.recv(65_536):
            pass

    with scripted(refuse) as server:
        store = open_store(server.url)
        for _ in range(1 if drained else 20):  # the end comes before, within or after the body
            with pytest.raises(BackendError) as caught:
                store.put_snapshot_block(SNAPSHOT, 0, CONTENT, DIGEST)
            # A reset may overtake what was said before it (RFC 9112, 9.6); then it is asked again.
            assert isinstance(caught.value, AccessDeniedError) or (not drained and caught.value.retryable)


def test_a_connection_that_the_server_closed_between_two_calls_is_replaced() -> None:
    def once(connection: socket.socket) -> None:
        if read_head(connection):
            connection.sendall(ANSWER)

    with scripted(once) as server:
        store = open_store(server.url)
        for _ in range(3):
            found = store.get_snapshot_block(SNAPSHOT, 0, "1:token")
            assert bytes(found.content) == bytes(BLOCK_SIZE)
            assert server.closed.acquire(timeout=60)
        assert server.connections == 3


def test_there_are_no_more_connections_than_threads(case) -> None:
    case.aws.log.reset()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: case.get(), range(40))) == {CONTENT}
        list(pool.map(lambda _: case.put(), range(40)))
    assert case.aws.log.counts["PutSnapshotBlock"] == 40
    assert case.aws.log.connections <= 4


def test_credentials_that_end_are_replaced(aws) -> None:
    first, second = (aws.add_credential(session_token=name, expires_in=3600) for name in ("one", "two"))
    now = datetime.datetime.now(datetime.timezone.utc)

    def stated(credential: Credential, hours: int) -> dict[str, str]:
        return {
            "access_key": credential.access_key_id,
            "secret_key": credential.secret_access_key,
            "token": credential.session_token or "",
            "expiry_time": (now + datetime.timedelta(hours=hours)).isoformat(),
        }

    given = [stated(first, 2)]
    session = boto3.Session(region_name=aws.region)
    credentials = RefreshableCredentials.create_from_metadata(given[0], lambda: given[-1], "a test")
    session._session._credentials = credentials
    connection = Connection(session, None, {"ebs": aws.endpoint_url, "ec2": aws.endpoint_url})
    case = Case.of(aws, AWSBlockStore(connection))
    assert case.get() == CONTENT
    aws.remove_credential(first)
    given.append(stated(second, 3))
    credentials._expiry_time = now
    assert case.get() == CONTENT
    case.put()


def test_a_line_break_in_a_credential_begins_no_header(aws) -> None:
    credential = attrs.evolve(aws.credential, session_token="token\r\nX-Evil: yes")
    with pytest.raises(InvalidRequestError, match="line break"):
        open_store(aws.endpoint_url, credential).get_snapshot_block(SNAPSHOT, 0, "1:token")
    assert not aws.log.counts


# Proxies and TLS.


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names neither a proxy nor certificates."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    return monkeypatch


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    require("openssl", shutil.which("openssl"))
    return make_certificate(tmp_path)


def test_plain_http_goes_through_the_environments_proxy(aws, clean) -> None:
    case = Case.of(aws, open_store(aws.endpoint_url, aws.credential))
    with forward_proxy() as (url, heads):
        clean.setenv("http_proxy", url.replace("//", "//user:word@"))
        assert case.get() == CONTENT
    assert heads[0].startswith(f"GET {aws.endpoint_url}/snapshots/{case.source}/blocks/5?".encode())
    assert b"\r\nProxy-Authorization: Basic dXNlcjp3b3Jk\r\n" in heads[0]


def test_tls_goes_through_the_environments_proxy_in_a_tunnel(aws, clean, certificate) -> None:
    clean.setenv("AWS_CA_BUNDLE", str(certificate))
    with fault_proxy(aws.endpoint_url, certificate=certificate) as server, forward_proxy() as (url, heads):
        clean.setenv("https_proxy", url.replace("//", "//user:word@"))
        case = Case.of(aws, open_store(server.url, aws.credential))
        del heads[:]
        assert case.get() == CONTENT
        case.put()
    assert len(heads) == 1
    assert heads[0].startswith(b"CONNECT " + server.url.removeprefix("https://").encode())
    assert b"\r\nProxy-Authorization: Basic dXNlcjp3b3Jk\r\n" in heads[0]
    assert b"X-Amz" not in heads[0]
    assert aws.read_snapshot(case.target) == {7: CONTENT}


def test_a_proxy_that_refuses_is_told(clean) -> None:
    with forward_proxy(refuse=True) as (url, _):
        clean.setenv("https_proxy", url)
        with pytest.raises(BackendError, match="407") as caught:
            open_store("https://127.0.0.1:1").get_snapshot_block(SNAPSHOT, 0, "1:token")
    assert caught.value.retryable


def test_a_private_authority_is_trusted_that_the_environment_names(aws, clean, certificate) -> None:
    clean.setenv("AWS_CA_BUNDLE", str(certificate))
    with fault_proxy(aws.endpoint_url, certificate=certificate) as server:
        case = Case.of(aws, open_store(server.url, aws.credential))
        assert case.get() == CONTENT
        case.put()
    assert aws.read_snapshot(case.target) == {7: CONTENT}


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"], ids=["not named", "of another host"])
def test_a_certificate_that_proves_nothing_is_refused_for_good(aws, clean, certificate, name) -> None:
    if name == "localhost":
        clean.setenv("AWS_CA_BUNDLE", str(certificate))
    with fault_proxy(aws.endpoint_url, certificate=certificate) as server:
        store = open_store(server.url.replace("127.0.0.1", name))
        why = "AWS_CA_BUNDLE names" if name == "127.0.0.1" else "'localhost'"
        with pytest.raises(BackendError, match=rf"SSLCertVerificationError: .*{why}") as lean:
            store.get_snapshot_block(SNAPSHOT, 0, "1:token")
        with pytest.raises(BackendError, match=rf"SSLError: .*{why}") as botocores:
            store.list_snapshot_blocks(SNAPSHOT)
    assert not lean.value.retryable and not botocores.value.retryable
    assert not aws.log.counts


def test_a_bundle_that_is_not_there_is_told(clean, tmp_path) -> None:
    clean.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(InvalidRequestError, match=r"none\.pem"):
        open_store("https://127.0.0.1:1").get_snapshot_block(SNAPSHOT, 0, "1:token")


def test_botocore_tells_of_a_bundle_that_is_not_there(aws, clean, certificate, tmp_path) -> None:
    clean.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with (
        fault_proxy(aws.endpoint_url, certificate=certificate) as server,
        pytest.raises(BackendError, match="the PEM file that AWS_CA_BUNDLE") as caught,
    ):
        open_store(server.url).list_snapshot_blocks(SNAPSHOT)
    assert not caught.value.retryable


def test_a_store_that_went_to_another_process_keeps_its_limits(aws, clean) -> None:
    store = AWSBlockStore(Connection(None, "us-east-1", {}), limits=SHORT)
    rebuilt, arguments = store.__reduce__()
    assert rebuilt(*arguments).limits == SHORT
