"""Many requests in flight from one thread: right bytes, limits, retries, cancelling, and the thread's end."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, ClassVar

import attrs
import boto3
import pytest
from backends.aws.conftest import require
from backends.aws.sockets import read_head, scripted
from backends.aws.test_wire import ANSWER, SNAPSHOT, open_store
from children import answers

import amistore
from amistore import AWSBackend, BackendError, NotFoundError, RetryPolicy
from amistore.backends import Backend, BlockStore, Forwarding, SnapshotBlock
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.aws.ebs_connections import TimeLimits
from amistore.backends.aws.ebs_loop import Loop
from amistore.backends.retries import Retrier
from amistore.backends.retrying import RetryingBackend
from amistore.pipeline.gets import BlockGets
from amistore.testing.aws import FakeAWS
from amistore.units import BLOCK_SIZE

BLOCKS = 200
QUICK = RetryPolicy(base_delay=0.001, max_delay=0.01, attempts=20)


def marked(index: int) -> bytes:
    return index.to_bytes(4, "big").ljust(BLOCK_SIZE, b"x")


def digest(index: int) -> bytes:
    return hashlib.sha256(marked(index)).digest()


@pytest.fixture(params=["http", "https"])
def aws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAWS]:
    if request.param == "https":
        require("openssl", shutil.which("openssl"))
    with FakeAWS(tls=request.param == "https") as fake:
        if request.param == "https":
            monkeypatch.setenv("AWS_CA_BUNDLE", fake.ca_bundle)
        yield fake


plain = pytest.mark.parametrize("aws", ["http"], indirect=True)


def cloud(aws: FakeAWS, retries: RetryPolicy | Retrier = QUICK) -> AWSBackend:
    keys = aws.credential
    session = boto3.Session(keys.access_key_id, keys.secret_access_key, region_name=aws.region)
    urls = {"ec2": aws.endpoint_url, "ebs": aws.endpoint_url}
    return AWSBackend(session, endpoint_urls=urls, retries=retries)


@attrs.frozen
class Source:
    """A snapshot of blocks that say which they are, and a store that reads it."""

    ebs: Any
    snapshot_id: str
    tokens: dict[int, str]

    @classmethod
    def of(cls, aws: FakeAWS, retries: RetryPolicy | Retrier = QUICK) -> Source:
        ebs = cloud(aws, retries).ebs
        snapshot_id = aws.add_snapshot(volume_size=1, blocks=marked, indexes=range(BLOCKS))
        listed = ebs.list_snapshot_blocks(snapshot_id).blocks
        return cls(ebs, snapshot_id, {each.block_index: each.block_token for each in listed})

    def begin(self, index: int) -> Future[Any]:
        begun: Future[Any] = self.ebs.begin_get(self.snapshot_id, index, self.tokens[index])
        return begun

    def wrong(self, indexes: range) -> list[int]:
        """The blocks that are not what they should be, of those asked for together."""
        gets = BlockGets(self.ebs, None, 1)
        with gets:
            got = gets.segment(self.snapshot_id, indexes, [self.tokens[index] for index in indexes])
            return [
                index
                for index, block in zip(indexes, got, strict=True)
                if bytes(block.content) != marked(index)
            ]


@contextlib.contextmanager
def ticking(aws: FakeAWS) -> Iterator[None]:
    """Let the fake's clock go on with the time that passes."""
    done = threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not done.wait(0.002):
            now = time.monotonic()
            aws.clock.advance(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("amistore-requests")]


def test_blocks_are_got_and_put_together_on_as_many_connections_as_requests(aws: FakeAWS) -> None:
    source = Source.of(aws)
    aws.log.reset()
    assert source.wrong(range(BLOCKS)) == []
    target = source.ebs.start_snapshot(1)
    puts = [source.ebs.begin_put(target, index, marked(index), digest(index)) for index in range(BLOCKS)]
    assert [put.result(60) for put in puts] == [None] * BLOCKS
    assert aws.read_snapshot(target) == {index: marked(index) for index in range(BLOCKS)}
    assert aws.log.connections <= source.ebs.requests + 1  # and one of botocore's


def test_connections_that_break_change_no_byte(aws: FakeAWS) -> None:
    source = Source.of(aws)
    kinds = ("reset-before-answer", "short-body", "lost-reply", "flipped-bit", "500", "error-inside")
    for seed, kind in enumerate(kinds):
        aws.faults.add("GetSnapshotBlock", kind, probability=0.05, seed=seed)  # type: ignore[arg-type]
        aws.faults.add("PutSnapshotBlock", kind, probability=0.05, seed=seed)  # type: ignore[arg-type]
    assert source.wrong(range(BLOCKS)) == []
    target = source.ebs.start_snapshot(1)
    puts = [source.ebs.begin_put(target, index, marked(index), digest(index)) for index in range(64)]
    for put in puts:
        put.result(60)
    aws.faults.clear()
    assert aws.read_snapshot(target) == {index: marked(index) for index in range(64)}


@pytest.mark.parametrize("kind", ["silence", "slow-drip"])
def test_a_connection_that_stalls_delays_no_other_request(aws: FakeAWS, kind: Any) -> None:
    source = Source.of(aws)
    fault = aws.faults.add("GetSnapshotBlock", kind, block_index=0, times=1)
    stalled = source.begin(0)
    fault.wait_until_held()
    assert source.wrong(range(1, BLOCKS)) == []
    assert not stalled.done()
    fault.release()
    assert bytes(stalled.result(60).content) == marked(0)


@plain
def test_a_block_in_backoff_delays_no_other_request(aws: FakeAWS) -> None:
    source = Source.of(aws, Retrier(RetryPolicy(base_delay=60.0, max_delay=60.0), draw=lambda: 1.0))
    fault = aws.faults.add("GetSnapshotBlock", "500", block_index=0, times=1)
    waiting = source.begin(0)
    assert source.wrong(range(1, BLOCKS)) == []
    assert fault.fired == 1
    assert not waiting.done()


@plain
@pytest.mark.parametrize("limit", [150, 300])
def test_a_throttled_service_refuses_few_calls(aws: FakeAWS, limit: int) -> None:
    source = Source.of(aws, RetryPolicy())
    throttle = aws.throttle("GetSnapshotBlock", per_second=limit, burst=20)
    with ticking(aws):
        for _ in range(3):
            assert source.wrong(range(BLOCKS)) == []
    assert throttle.refused <= source.ebs.requests + BLOCKS


def test_errors_are_those_of_the_blocking_calls_and_tell_their_attempts(aws: FakeAWS) -> None:
    source = Source.of(aws, RetryPolicy(base_delay=0.0, attempts=3))
    aws.faults.add("GetSnapshotBlock", "503", block_index=7)
    begun, calls = source.begin(7), functools.partial(source.ebs.get_snapshot_block, source.snapshot_id, 7)
    raised = []
    for call in (lambda: begun.result(60), lambda: calls(source.tokens[7])):
        with pytest.raises(BackendError) as caught:
            call()
        raised.append(caught.value)
    assert [type(each) for each in raised] == [BackendError] * 2
    assert str(raised[0]) == str(raised[1])
    assert "attempts 3" in str(raised[0])
    with pytest.raises(NotFoundError):
        source.ebs.begin_get("snap-0", 0, "token").result(60)
    with pytest.raises(amistore.AmistoreError):
        source.ebs.begin_put(source.snapshot_id, 0, b"short", digest(0)).result(60)


@plain
def test_a_snapshot_just_started_is_waited_for(aws: FakeAWS) -> None:
    ebs: Any = cloud(aws).ebs
    target = ebs.start_snapshot(1)
    aws.snapshots[target].missing_calls = 3
    puts = [ebs.begin_put(target, index, marked(index), digest(index)) for index in range(2)]
    for put in puts:
        put.result(60)
    assert aws.read_snapshot(target) == {index: marked(index) for index in range(2)}


def test_one_listing_renews_the_tokens_of_all_that_are_in_flight(aws: FakeAWS) -> None:
    source = Source.of(aws)
    boto3.client("ebs", **aws.client_options()).list_snapshot_blocks(SnapshotId=source.snapshot_id)
    aws.log.reset()
    assert source.wrong(range(64)) == []
    assert aws.log.counts["ListSnapshotBlocks"] == 1


@plain
def test_what_is_cancelled_before_it_is_sent_is_never_sent(aws: FakeAWS) -> None:
    source = Source.of(aws)
    fault = aws.faults.add("GetSnapshotBlock", "silence", times=source.ebs.requests)
    sent = [source.begin(index) for index in range(source.ebs.requests)]
    fault.wait_until_held(len(sent))
    queued = [source.begin(index) for index in range(100, 110)]
    assert [future.cancel() for future in queued] == [True] * 10
    assert [future.cancel() for future in sent] == [False] * len(sent)
    last = source.begin(150)
    fault.release()
    assert bytes(last.result(60).content) == marked(150)
    for future in sent:  # whose only attempt failed: nobody waits for a further one
        with pytest.raises(BackendError):
            future.result(60)
    with pytest.raises(CancelledError):
        queued[0].result(60)
    asked = {index: count for (_, _, index), count in aws.log.blocks.items()}
    assert asked == {**dict.fromkeys(range(len(sent)), 1), 150: 1}


# Odd servers.


@pytest.mark.parametrize(
    "odd",
    [
        ANSWER.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"),
        ANSWER.replace(b"Content-Length: 524288", b"Transfer-Encoding: chunked").replace(
            b"\r\n\r\n", b"\r\n\r\n80000\r\n"
        )
        + b"\r\n0\r\n\r\n",
        ANSWER.replace(b"\r\n", b"\n"),
        ANSWER.replace(b"200 OK", b"200 OK\r\nX-Long: " + b"x" * 60_000),
    ],
    ids=["interim answer", "pieces", "bare line feeds", "a long head"],
)
def test_an_answer_that_is_odd_is_read_all_the_same(odd: bytes) -> None:
    def play(connection: socket.socket) -> None:
        while read_head(connection):
            connection.sendall(odd)

    with scripted(play) as server:
        store = open_store(server.url, limits=TimeLimits(read=20.0))
        futures = [store.begin_get(SNAPSHOT, index, "1:token") for index in range(3)]
        assert [bytes(future.result(60).content) for future in futures] == [bytes(BLOCK_SIZE)] * 3


def test_a_redirect_is_refused() -> None:
    def play(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 307 No\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n")

    with scripted(play) as server, pytest.raises(amistore.InvalidRequestError, match="elsewhere"):
        open_store(server.url).begin_get(SNAPSHOT, 0, "1:token").result(60)


def test_a_server_that_is_not_there_is_an_error_worth_another_attempt() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(BackendError, match="ConnectionRefusedError") as caught:
        open_store(f"http://127.0.0.1:{port}").begin_get(SNAPSHOT, 0, "1:token").result(60)
    assert caught.value.retryable


def test_a_server_that_says_nothing_of_tls_is_given_up_and_delays_no_other_request() -> None:
    silent, heard = threading.Event(), threading.Event()

    def play(connection: socket.socket) -> None:
        heard.set()
        silent.wait(60)

    with scripted(play) as server:
        store = open_store(server.url.replace("http:", "https:"), limits=TimeLimits(connect=0.2))
        stalled = [store.begin_get(SNAPSHOT, index, "1:token") for index in range(8)]
        assert heard.wait(60)
        with pytest.raises(NotFoundError):  # it needs no connection, and comes while they wait
            store.begin_get("snap-0", 0, "1:token").result(60)
        for future in stalled:
            with pytest.raises(BackendError, match="TimeoutError") as caught:
                future.result(60)
            assert caught.value.retryable
        silent.set()


# Who has it, and for how long.


def test_a_wrapper_that_does_not_know_of_it_does_not_have_it(aws: FakeAWS) -> None:
    class Counting(Forwarding[BlockStore], BlockStore):
        pass

    backend = cloud(aws)
    counting = Counting.around(backend.ebs)
    assert counting.requests == backend.ebs.requests == 64
    assert not hasattr(counting, "begin_get")
    wrapped: Any = Backend(ebs=counting, s3=backend.s3, ec2=backend.ec2)
    assert not hasattr(RetryingBackend(wrapped).ebs, "begin_get")
    assert not hasattr(RetryingBackend(amistore.MemoryBackend()).ebs, "begin_put")
    assert amistore.MemoryBackend().ebs.requests == 0


@plain
@pytest.mark.parametrize("how", ["dropped", "idle"])
def test_the_thread_ends(aws: FakeAWS, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amistore.backends.aws.ebs_loop._IDLE", 1000.0)
    source = Source.of(aws)
    before = set(loop_threads())  # other tests' may not have ended yet
    assert source.wrong(range(8)) == []
    (thread,) = (each for each in loop_threads() if each not in before and "helper" not in each.name)
    if how == "dropped":
        del source
        gc.collect()
    else:  # from its next request on
        monkeypatch.setattr("amistore.backends.aws.ebs_loop._IDLE", 0.05)
        assert source.wrong(range(8)) == []
    thread.join(60)
    assert not thread.is_alive()
    if how == "idle":  # and begins again
        assert source.wrong(range(8)) == []


def test_a_lone_request_does_not_wait_for_another_one(aws: FakeAWS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amistore.backends.aws.ebs_loop._IDLE", 1000.0)
    source = Source.of(aws)
    assert bytes(source.begin(5).result(60).content) == marked(5)


def test_a_loop_that_breaks_off_fails_what_was_posted_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(loop: Loop, until: float) -> None:
        raise OSError("the selector is gone")

    async def nothing() -> None: ...

    loop = Loop()
    before = set(loop_threads())
    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)
        patch.setattr(Loop, "_turn", broken)
        future = loop.submit(nothing)
        with pytest.raises(BackendError, match="ended before the answer came"):
            future.result(60)
        for thread in set(loop_threads()) - before:
            thread.join(60)
    loop.submit(nothing).result(60)  # and begins again
    loop.stop()


def none_left() -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_loop_that_cannot_begin_does_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    async def do(what: str) -> None:
        done.append(what)

    loop = Loop()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", none_left)
        with pytest.raises(OSError, match="Too many open files"):
            loop.submit(do, "first")
    loop.submit(do, "second").result(60)
    loop.stop()
    assert done == ["second"]


@plain
def test_a_process_without_descriptors_is_told_how_to_get_some(
    aws: FakeAWS, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = cloud(aws)
    snapshot_id = aws.add_snapshot(volume_size=1, blocks=marked, indexes=range(3))
    mapping = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot_id}}
    image = backend.ec2.describe_image(aws.add_image(name="one", mappings=[mapping]))
    monkeypatch.setattr(socket, "socketpair", none_left)
    with pytest.raises(amistore.ResourcesExhaustedError, match="ulimit -n"):
        b"".join(amistore.pack(image, backend.ebs))


@plain
def test_a_name_server_that_fails_is_asked_once_for_all_that_wait(
    aws: FakeAWS, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source.of(aws)
    ebs = open_store(aws.endpoint_url, aws.credential)
    loop = ebs._in_flight().loop
    go, asked = threading.Event(), []

    def silent(*arguments: object) -> Any:
        asked.append(arguments)
        assert go.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def nothing() -> None: ...

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    go.set()
    with pytest.raises(BackendError, match="gaierror"):  # and credentials are there
        ebs.begin_get(source.snapshot_id, 0, source.tokens[0]).result(60)
    go.clear()
    begun = [ebs.begin_get(source.snapshot_id, index, source.tokens[index]) for index in range(20)]
    loop.submit(nothing).result(60)  # all of them wait
    go.set()
    for future in begun:
        with pytest.raises(BackendError, match="gaierror"):
            future.result(60)
    assert len(asked) == 2
    monkeypatch.undo()
    assert ebs.begin_get(source.snapshot_id, 0, source.tokens[0]).result(60)


PROGRAM = """
    import boto3, concurrent.futures, sys
    from amistore import AWSBackend
    url = sys.argv[1]
    session = boto3.Session("key", "secret", region_name="us-east-1")
    ebs = AWSBackend(session, endpoint_urls={"ec2": url, "ebs": url}).ebs
    futures = [ebs.begin_get("snap-00000000000000000", index, "1:token") for index in range(64)]
    if sys.argv[2] == "answered":
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
    print("end", flush=True)
"""


@pytest.mark.parametrize("when", ["answered", "begun"])
def test_an_interpreter_ends_with_requests_in_flight(when: str) -> None:
    served = threading.Lock()

    def play(connection: socket.socket) -> None:
        if read_head(connection) and served.acquire(blocking=False):
            connection.sendall(ANSWER)
        connection.recv(1)  # the others get nothing, until the client is gone

    with scripted(play) as server:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), server.url, when]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"end\n", b"")


@pytest.mark.xdist_group("forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_children_forked_with_requests_in_flight_have_their_own(aws: FakeAWS) -> None:
    source = Source.of(aws)
    assert source.wrong(range(64)) == []  # many connections are open
    begun = {index: source.begin(index) for index in range(BLOCKS)}
    found = answers([functools.partial(source.wrong, range(number, number + 20)) for number in range(20)])
    assert found == [[]] * 20
    assert [i for i, future in begun.items() if bytes(future.result(60).content) != marked(i)] == []


def test_a_store_states_64_requests(aws: FakeAWS) -> None:
    assert cloud(aws).ebs.requests == 64


def test_a_store_that_overrides_a_call_sees_all_of_them(aws: FakeAWS) -> None:
    class Counting(AWSBlockStore):
        asked: ClassVar[list[int]] = []

        def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
            self.asked.append(block_index)
            return super().get_snapshot_block(snapshot_id, block_index, block_token)

    inner = cloud(aws)
    counting = Counting(inner.ebs.inner.connection)
    store = RetryingBackend(Backend(ebs=counting, s3=inner.s3, ec2=inner.ec2)).ebs
    assert not hasattr(store, "begin_get")
    snapshot_id = aws.add_snapshot(volume_size=1, blocks=marked, indexes=range(70))
    mapping = amistore.BlockDeviceMapping(
        device_name="/dev/xvda", ebs=amistore.EbsBlockDevice(snapshot_id=snapshot_id)
    )
    image = amistore.Image(image_id="ami-0123456789abcdef0", block_device_mappings=(mapping,))
    assert b"".join(amistore.pack(image, store)) == b"".join(amistore.pack(image, inner.ebs))
    assert sorted(Counting.asked) == list(range(70))
