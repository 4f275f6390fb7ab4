"""Whatever is logged, at any level, holds no secret."""

from __future__ import annotations

import logging
import re
import shutil
import urllib.parse

import boto3
import pytest
from backends.aws.conftest import require
from backends.aws.proxy import Answer, Fault, fault_proxy

import amistore
from amistore import AWSBackend, RetryPolicy
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.redaction import redact_logs
from amistore.testing import block, store_snapshot
from amistore.testing.aws import FakeAWS
from amistore.testing.aws.certificate import make_certificate

TOKEN = "CanaryOfTheSession/Token+0123456789=="
QUICK = RetryPolicy(base_delay=0.001, max_delay=0.001)


def target_of(method: str, target: str) -> str:
    return f"{method} {target}"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_log_of_a_whole_run_holds_no_secret(caplog, monkeypatch, tmp_path, tls) -> None:
    certificate = None
    if tls:
        require("openssl", shutil.which("openssl"))
        certificate = make_certificate(tmp_path)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    caplog.set_level(logging.DEBUG)
    with FakeAWS() as aws:
        credential = aws.add_credential(session_token=TOKEN)
        source = aws.add_snapshot(volume_size=1, blocks={1: bytes(block(1)), 2: bytes(block(2))})
        with (
            fault_proxy(aws.endpoint_url, operation=target_of, certificate=certificate) as ec2,
            fault_proxy(None, certificate=certificate) as s3,
        ):
            s3.fail("head_object", Fault.RESET_BEFORE)
            s3.fail("head_object", Answer(headers={"ETag": '"tag"'}), nth=2)
            session = boto3.Session(
                credential.access_key_id, credential.secret_access_key, TOKEN, region_name=aws.region
            )
            urls = {"ec2": ec2.url, "ebs": ec2.url, "s3": s3.url}
            backend = AWSBackend(session, endpoint_urls=urls, retries=QUICK)
            page = backend.ebs.list_snapshot_blocks(source)
            aws.faults.add("GetSnapshotBlock", "500", times=1)
            aws.faults.add("StartSnapshot", "reset-before-answer", times=1)
            backend.ebs.get_snapshot_block(source, 1, page.blocks[0].block_token)
            made = store_snapshot(backend.ebs, 1, {3: block(3)})
            assert backend.ebs.describe_snapshot(made).state == "completed"
            with pytest.raises(amistore.NotFoundError):
                backend.ec2.describe_image("ami-00000000000000000")
            backend.s3.head_object("bucket", "key")
            sent = [*ec2.headers.values(), *s3.headers.values()]
    signatures = {headers["authorization"].rpartition("Signature=")[2] for headers in sent}
    assert len(signatures) > 5
    # What was formatted, and what another handler would find in the records.
    logged = caplog.text + "".join(
        f"{record.msg} {record.args} {record.exc_text}" for record in caplog.records
    )
    assert "CanonicalRequest" in logged
    assert "Sending http request" in logged
    secrets = {credential.secret_access_key, TOKEN, urllib.parse.quote(TOKEN, safe=""), *signatures}
    assert [name for name in secrets if name in logged] == []
    assert re.search(r"Signature\W{1,9}[0-9a-f]{64}", logged) is None


@pytest.mark.parametrize(
    "text",
    [
        "x-amz-security-token:CANARY\nx-amz-date:2026",
        "{'X-Amz-Security-Token': b'CANARY', 'Host': 'here'}",
        """{"Credentials": {"SecretAccessKey" : "CANARY", "SessionToken":"CANARY"}}""",
        "b'<SecretAccessKey>CANARY</SecretAccessKey><SessionToken>CANARY</SessionToken>'",
        "GET /key?X-Amz-Expires=60&X-Amz-Security-Token=CANARY%2F&X-Amz-Signature=CANARY HTTP/1.1",
        "'Authorization': b'AWS4-HMAC-SHA256 Credential=A/b, SignedHeaders=host, Signature=CANARY'",
        "Authorization: AWS4-HMAC-SHA256 Credential=A/b, SignedHeaders=host, Signature=CANARY",
        "Proxy-Authorization: Basic CANARY",
        "Authorization: Bearer CANARY",
        "Signature:\nCANARY",
        "{'x-aws-ec2-metadata-token': 'CANARY'}",
        """{"accessToken": "CANARY", "clientSecret": "CANARY\\"CANARY"}""",
        "cannot connect to proxy http://user:CANARY@proxy:3128",
    ],
)
def test_a_secret_is_hidden_in_every_form(caplog, text) -> None:
    redact_logs()
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore.endpoint").debug("seen: %s", text)
    assert "CANARY" not in caplog.text
    assert "***" in caplog.text
    assert "seen" in caplog.text


def test_a_secret_in_an_errors_text_is_hidden(caplog) -> None:
    redact_logs()
    caplog.set_level(logging.DEBUG)
    try:
        raise ValueError("https://host/?X-Amz-Signature=CANARY")
    except ValueError:
        logging.getLogger("botocore.httpsession").debug("failed", exc_info=True)
    assert "CANARY" not in caplog.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "GET /snapshots/snap-1/blocks?maxResults=10 HTTP/1.1",
        "x-amz-date:20260102T030405Z\nhost:ebs.us-east-1.amazonaws.com",
        "Calculating signature using v4 auth.",
    ],
)
def test_what_is_no_secret_is_shown(caplog, text) -> None:
    redact_logs()
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore.auth").debug("seen: %s", text)
    assert text in caplog.text


def test_a_connection_needs_no_call_to_be_silent(caplog) -> None:
    """Also where it is the first thing that is made: the filters come with the session."""
    caplog.set_level(logging.DEBUG)
    log = logging.getLogger("botocore.auth")
    kept = list(log.filters)
    for each in kept:
        log.removeFilter(each)
    try:
        Connection(boto3.Session("key", "secret", region_name="us-east-1"), None, None).client("s3")
        log.debug("Signature:\n%s", "CANARY")
        assert "CANARY" not in caplog.text
    finally:
        for each in kept:
            log.addFilter(each)
