"""The fake over TLS, and in forked children: they are its clients, and its server stays its owner's."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
from children import answers, forked
from testing.models import block, client, get, pages, refusal

from amistore import InvalidRequestError
from amistore.testing.aws import FakeAWS


@pytest.fixture(params=[False, True], ids=["http", "https"])
def aws(request: pytest.FixtureRequest) -> Iterator[FakeAWS]:
    if request.param and shutil.which("openssl") is None and not os.environ.get("AMISTORE_REQUIRE_TOOLS"):
        pytest.skip("needs openssl")
    with FakeAWS(tls=request.param) as fake:
        yield fake


def read(aws: FakeAWS, snapshot_id: str) -> bytes:
    with contextlib.closing(client(aws, "ebs")) as ebs:
        return get(ebs, snapshot_id, pages(ebs, snapshot_id)[0]["Blocks"][0])


def test_what_tls_carries_is_what_plain_http_carries(aws: FakeAWS) -> None:
    assert read(aws, aws.add_snapshot(volume_size=1, blocks={3: block(1)})) == block(1)


@pytest.mark.parametrize("kind", ["reset-before-answer", "lost-reply", "short-body", "500"])
def test_troubles_on_the_way_happen_over_tls_too(aws: FakeAWS, kind: str) -> None:
    snapshot_id = aws.add_snapshot(volume_size=1, blocks={3: block(1)})
    aws.faults.add("GetSnapshotBlock", kind, calls=[1])  # type: ignore[arg-type]
    with pytest.raises((botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)):
        read(aws, snapshot_id)
    assert read(aws, snapshot_id) == block(1)


def test_a_silent_call_ends_when_its_client_gives_up(aws: FakeAWS, capfd: pytest.CaptureFixture[str]) -> None:
    snapshot_id = aws.add_snapshot(volume_size=1, blocks={3: block(1)})
    rule = aws.faults.add("ListSnapshotBlocks", "silence")
    with (
        contextlib.closing(client(aws, "ebs", read_timeout=0.5)) as ebs,
        pytest.raises(botocore.exceptions.ReadTimeoutError),
    ):
        ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    assert rule.fired == 1
    aws.close()  # which waits for its threads
    assert capfd.readouterr().err == ""  # where its server's threads tell of an error that is none of HTTP's


def test_a_client_that_does_not_trust_it_is_not_served() -> None:
    with FakeAWS(tls=True) as aws:
        options = {**aws.client_options(), "verify": None}
        with (
            contextlib.closing(boto3.client("ec2", **options)) as ec2,
            pytest.raises(botocore.exceptions.SSLError),
        ):
            ec2.describe_images()
        assert not aws.log.counts


def test_the_certificate_goes_with_the_server() -> None:
    with FakeAWS(tls=True) as aws:
        file = Path(aws.ca_bundle)
        assert file.exists()
    assert not file.parent.exists()
    with pytest.raises(RuntimeError, match="inside its with block"):
        _ = aws.ca_bundle


def test_without_openssl_there_is_no_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="openssl program"), FakeAWS(tls=True):
        pass


def test_forked_children_are_clients(aws: FakeAWS) -> None:
    snapshot_ids = [aws.add_snapshot(volume_size=1, blocks={3: block(number)}) for number in range(4)]
    found = answers([functools.partial(read, aws, snapshot_id) for snapshot_id in snapshot_ids])
    assert found == [block(number) for number in range(4)]


def test_a_child_that_leaves_the_with_block_does_not_stop_the_server(aws: FakeAWS) -> None:
    snapshot_id = aws.add_snapshot(volume_size=1, blocks={3: block(1)})
    rule = aws.faults.add("GetSnapshotBlock", "500", calls=[1])

    def leave() -> None:
        with aws:
            sys.exit(3)

    [left] = answers([leave])
    assert isinstance(left, SystemExit)
    assert refusal(read, aws, snapshot_id)[0] == 500  # nor does it forget the faults
    assert rule.fired == 1
    assert read(aws, snapshot_id) == block(1)


def test_a_child_that_ends_by_itself_leaves_the_certificate(tmp_path: Path) -> None:
    with FakeAWS(tls=True) as aws:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                aws.close()
                atexit._run_exitfuncs()
            os._exit(0)
        os.waitpid(pid, 0)
        assert Path(aws.ca_bundle).exists()


def test_what_a_child_would_set_or_read_in_vain_is_refused(aws: FakeAWS) -> None:
    refused = [
        lambda: aws.add_snapshot(volume_size=1),
        lambda: aws.add_image(name="web", mappings=[]),
        lambda: aws.add_credential(),
        lambda: aws.throttle("GetSnapshotBlock", every=2),
        lambda: aws.snapshots,
        lambda: aws.images,
        lambda: aws.read_snapshot("snap-0"),
        lambda: aws.clock,
        lambda: aws.faults,
        lambda: aws.log,
        lambda: aws.behaviour,
    ]

    def kinds() -> list[str]:
        found = []
        for call in refused:
            try:
                call()
            except Exception as error:
                found.append(type(error).__name__)
        return found

    assert answers([kinds]) == [[InvalidRequestError.__name__] * len(refused)]


def test_a_connection_that_the_fake_breaks_off_ends_while_a_child_lives(aws: FakeAWS) -> None:
    """The child has a copy of the server's end, and a reset comes with the last one that is closed."""
    snapshot_id = aws.add_snapshot(volume_size=1, blocks={3: block(1)})
    with contextlib.closing(client(aws, "ebs")) as ebs:
        ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
        reading, writing = os.pipe()
        with forked(lambda: os.read(reading, 1)):
            aws.faults.add("ListSnapshotBlocks", "reset-before-answer", calls=[1])
            with pytest.raises(botocore.exceptions.ConnectionClosedError):
                ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
        os.close(reading)
        os.close(writing)
