"""The caller's session counts: its Config, profile and proxies, in botocore's calls and in ours."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest
from backends.aws.cases import add_web
from backends.aws.conftest import bucket_of, require
from backends.aws.proxy import Answer, error_answer, fault_proxy
from backends.aws.sockets import forward_proxy, read_head, scripted

import amistore
from amistore import AWSBackend
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.ebs import AWSBlockStore
from amistore.backends.connections import no_fork
from amistore.testing import block
from amistore.testing.aws import FakeAWS
from amistore.testing.aws.certificate import make_certificate

SNAPSHOT = "snap-0123456789abcdef0"
POINT = "arn:aws:s3:us-east-2:123456789012:accesspoint/web"
FOUND = {"ETag": '"etag"', "Content-Range": "bytes 0-0/1"}
ONCE = amistore.RetryPolicy(attempts=1)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that names neither a proxy nor certificates, credentials or a profile."""
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for name in (*names, *map(str.upper, names), "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


@pytest.fixture
def aws() -> Iterator[FakeAWS]:
    with FakeAWS(region="us-east-2") as fake:
        yield fake


def session(aws: FakeAWS | None = None, **config: Any) -> boto3.Session:
    """A session whose clients have this Config unless they are given another."""
    keys = (
        ("key", "secret") if aws is None else (aws.credential.access_key_id, aws.credential.secret_access_key)
    )
    made = boto3.Session(*keys, region_name="us-east-2")
    made._session.set_default_client_config(botocore.config.Config(**config))
    return made


def head(cloud: AWSBackend) -> object:
    return cloud.s3.head_object("bucket", "key")


def head_of_point(cloud: AWSBackend) -> object:
    return cloud.s3.head_object(POINT, "key")


def images(cloud: AWSBackend) -> object:
    return cloud.ec2.describe_images()


def blocks(cloud: AWSBackend) -> object:
    return cloud.ebs.list_snapshot_blocks(SNAPSHOT)


def get_block(cloud: AWSBackend) -> object:
    return cloud.ebs.get_snapshot_block(SNAPSHOT, 0, "1:token")


def host_asked(call: Callable[[AWSBackend], object], **config: Any) -> str:
    """The host that a call goes to, as the proxy of the session's Config is told."""
    with forward_proxy(refuse=True) as (url, heads):
        cloud = AWSBackend(session(proxies={"https": url}, **config), retries=ONCE)
        with pytest.raises(amistore.BackendError):
            call(cloud)
    (told,) = {each.split()[1].decode() for each in heads}
    return told.removesuffix(":443")


@pytest.mark.parametrize(
    ("call", "config", "host"),
    [
        (head, {}, "bucket.s3.us-east-2.amazonaws.com"),
        (head, {"s3": {"addressing_style": "path"}}, "s3.us-east-2.amazonaws.com"),
        (head, {"s3": {"use_accelerate_endpoint": True}}, "bucket.s3-accelerate.amazonaws.com"),
        (head, {"use_dualstack_endpoint": True}, "bucket.s3.dualstack.us-east-2.amazonaws.com"),
        (head, {"use_fips_endpoint": True}, "bucket.s3-fips.us-east-2.amazonaws.com"),
        (head_of_point, {}, "web-123456789012.s3-accesspoint.us-east-2.amazonaws.com"),
        (images, {"use_dualstack_endpoint": True}, "ec2.us-east-2.api.aws"),
        (images, {"use_fips_endpoint": True}, "ec2-fips.us-east-2.amazonaws.com"),
        (blocks, {"use_fips_endpoint": True}, "ebs-fips.us-east-2.amazonaws.com"),
        (get_block, {}, "ebs.us-east-2.amazonaws.com"),
        (get_block, {"use_dualstack_endpoint": True}, "ebs.us-east-2.api.aws"),
        (get_block, {"use_fips_endpoint": True}, "ebs-fips.us-east-2.amazonaws.com"),
        (
            get_block,
            {"use_dualstack_endpoint": True, "use_fips_endpoint": True},
            "ebs-fips.us-east-2.api.aws",
        ),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)),
)
def test_the_sessions_config_decides_which_host_is_asked(
    call: Callable[[AWSBackend], object], config: dict[str, Any], host: str
) -> None:
    assert host_asked(call, **config) == host


def test_a_profile_decides_it_too(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[profile work]\nregion = us-east-2\nuse_dualstack_endpoint = true\ns3 =\n  addressing_style = path\n"
    )
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    for call, host in ((head, "s3.dualstack.us-east-2.amazonaws.com"), (get_block, "ebs.us-east-2.api.aws")):
        given = boto3.Session(profile_name="work")
        with forward_proxy(refuse=True) as (url, heads):
            given._session.set_default_client_config(botocore.config.Config(proxies={"https": url}))
            with pytest.raises(amistore.BackendError):
                call(AWSBackend(given, retries=ONCE))
        assert heads[0].startswith(f"CONNECT {host}:443".encode())


def test_a_profile_decides_whether_parts_are_signed(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("openssl", shutil.which("openssl"))
    certificate = make_certificate(tmp_path)
    clean.setenv("AWS_CA_BUNDLE", str(certificate))
    (tmp_path / "config").write_text("[profile work]\ns3 =\n  payload_signing_enabled = true\n")
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    signed = []
    for given in (boto3.Session(profile_name="work"), session()):
        with fault_proxy(None, certificate=certificate) as server:
            urls = {"s3": server.url}
            cloud = AWSBackend(given, region_name="us-east-2", endpoint_urls=urls, retries=ONCE)
            with pytest.raises(amistore.BackendError, match="Not Implemented"):
                cloud.s3.upload_part("bucket", "key", "upload", 1, b"content")
            signed.append(server.headers["upload_part"]["x-amz-content-sha256"])
    assert signed == [hashlib.sha256(b"content").hexdigest(), "UNSIGNED-PAYLOAD"]


def listed_block(aws: FakeAWS) -> tuple[str, int, str]:
    """The arguments of a get: of a snapshot that was listed without a proxy."""
    snapshot_id = aws.add_snapshot(volume_size=1, blocks={7: block(1)})
    plain = AWSBackend(session(aws, proxies={}), endpoint_urls={"ebs": aws.endpoint_url})
    return snapshot_id, 7, plain.ebs.list_snapshot_blocks(snapshot_id).blocks[0].block_token


def test_blocks_pass_the_proxy_of_the_sessions_config_not_the_environments(
    aws: FakeAWS, clean: pytest.MonkeyPatch
) -> None:
    wanted = listed_block(aws)
    with forward_proxy(refuse=True) as (wrong, refused), forward_proxy() as (url, heads):
        clean.setenv("http_proxy", wrong)
        given = session(aws, proxies={"http": url.replace("//", "//user:word@")})
        cloud = AWSBackend(given, endpoint_urls={"ebs": aws.endpoint_url}, retries=ONCE)
        assert cloud.ebs.get_snapshot_block(*wanted).content == block(1)
    assert refused == []
    assert heads[0].startswith(f"GET {aws.endpoint_url}/snapshots/{wanted[0]}/blocks/7?".encode())
    assert b"\r\nProxy-Authorization: Basic dXNlcjp3b3Jk\r\n" in heads[0]


def test_a_session_may_leave_the_environments_proxy_out(aws: FakeAWS, clean: pytest.MonkeyPatch) -> None:
    wanted = listed_block(aws)
    with forward_proxy(refuse=True) as (wrong, refused):
        clean.setenv("http_proxy", wrong)
        cloud = AWSBackend(session(aws, proxies={}), endpoint_urls={"ebs": aws.endpoint_url}, retries=ONCE)
        assert cloud.ebs.get_snapshot_block(*wanted).content == block(1)
    assert refused == []


def test_blocks_pass_a_proxy_over_tls_whose_authority_only_the_session_names(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require("openssl", shutil.which("openssl"))
    certificate = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    heads = []

    def play(connection: socket.socket) -> None:
        with no_fork(), tls.wrap_socket(connection, server_side=True) as client:
            heads.append(read_head(client))
            client.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    with scripted(play) as proxy:
        given = session(
            proxies={"http": proxy.url.replace("http:", "https:")},
            proxies_config={"proxy_ca_bundle": str(certificate)},
        )
        cloud = AWSBackend(given, endpoint_urls={"ebs": "http://127.0.0.1:1"}, retries=ONCE)
        with pytest.raises(amistore.AccessDeniedError):
            get_block(cloud)
    assert heads[0].startswith(b"GET http://127.0.0.1:1/snapshots/")


def test_the_clients_certificate_of_the_sessions_config_is_shown_with_blocks(
    clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require("openssl", shutil.which("openssl"))
    certificate = make_certificate(tmp_path)
    clean.setenv("AWS_CA_BUNDLE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tls.load_verify_locations(certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    shown = []

    def play(connection: socket.socket) -> None:
        with no_fork(), tls.wrap_socket(connection, server_side=True) as client:
            read_head(client)
            shown.append(client.getpeercert(binary_form=True))
            client.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    with scripted(play) as server:
        url = server.url.replace("http:", "https:")
        cloud = AWSBackend(session(client_cert=str(certificate)), endpoint_urls={"ebs": url}, retries=ONCE)
        with pytest.raises(amistore.AccessDeniedError):
            get_block(cloud)
    assert shown[0]


def test_other_values_of_the_sessions_config_stay_but_calls_are_not_made_again() -> None:
    config = {"user_agent_extra": "ours", "retries": {"total_max_attempts": 5, "mode": "adaptive"}}
    with fault_proxy(None) as server:
        cloud = AWSBackend(session(**config), endpoint_urls={"s3": server.url}, retries=ONCE)
        server.fail("head_object", error_answer(503, "SlowDown"), times=9)
        with pytest.raises(amistore.BackendError):
            head(cloud)
        assert server.requests["head_object"] == 1
        assert server.headers["head_object"]["user-agent"].endswith(" ours")


def test_blocks_wait_as_long_as_the_sessions_config_says() -> None:
    store = AWSBackend(session(read_timeout=0.2, connect_timeout=3)).connection
    assert AWSBlockStore(store).limits.read == 0.2
    assert AWSBlockStore(store).limits.connect == 3
    assert AWSBlockStore(AWSBackend(session()).connection).limits.connect == 5


def test_the_region_of_the_sessions_config_counts() -> None:
    given = session(region_name="eu-central-1")
    assert AWSBackend(given).connection.region_name == "eu-central-1"


def write_profile(folder: Path, aws: FakeAWS) -> None:
    keys = aws.credential
    (folder / "config").write_text(f"[profile work]\nregion = {aws.region}\n")
    (folder / "credentials").write_text(
        f"[work]\naws_access_key_id = {keys.access_key_id}\n"
        f"aws_secret_access_key = {keys.secret_access_key}\n"
    )


def image_names(cloud: AWSBackend) -> list[str | None]:
    return [image.name for image in cloud.ec2.describe_images()]


def test_a_backend_of_a_profile_works_in_a_spawned_process_which_gets_no_secret(
    aws: FakeAWS, tmp_path: Path
) -> None:
    write_profile(tmp_path, aws)
    add_web(aws, {})
    urls = {"ec2": aws.endpoint_url, "ebs": aws.endpoint_url}
    cloud = AWSBackend(profile_name="work", endpoint_urls=urls, retries=ONCE)
    assert image_names(cloud) == ["web"]
    assert aws.credential.secret_access_key.encode() not in pickle.dumps(cloud)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(image_names, cloud).result() == ["web"]


def test_a_backend_with_a_session_says_what_to_give_to_be_sent(aws: FakeAWS) -> None:
    with pytest.raises(amistore.InvalidRequestError, match="profile_name= instead"):
        pickle.dumps(AWSBackend(session(aws)))


def test_a_profile_that_is_not_there_is_told_when_the_backend_is_made(clean: pytest.MonkeyPatch) -> None:
    with pytest.raises(amistore.InvalidRequestError, match=r"\(nope\) could not be found: check .*config"):
        AWSBackend(profile_name="nope", region_name="us-east-2")
    clean.setenv("AWS_PROFILE", "none-such")
    with pytest.raises(amistore.InvalidRequestError, match=r"\(none-such\).*AWS_PROFILE"):
        AWSBackend(region_name="us-east-2")


def test_a_session_and_a_profile_together_are_refused(aws: FakeAWS) -> None:
    with pytest.raises(amistore.InvalidRequestError, match="session= or profile_name="):
        AWSBackend(session(aws), profile_name="work")


def test_each_request_to_s3_says_that_the_requester_pays(moto: Connection) -> None:
    """Moto asks for nothing of the kind, so each request is looked at on its way."""
    case = bucket_of(moto)
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        cloud = AWSBackend(moto.session, endpoint_urls={"s3": proxy.url}, requester_pays=True, retries=ONCE)
        store, bucket = cloud.s3, case.bucket
        store.head_bucket(bucket)
        store.put_object(bucket, "key", b"content", if_none_match=True)
        upload = store.create_multipart_upload(bucket, "key")
        store.list_parts(bucket, "key", upload)
        store.list_multipart_uploads(bucket)
        store.abort_multipart_upload(bucket, "key", upload)
        assert store.get_object_range(bucket, "key", 0, 7) == b"content"
        store.get_object_tagging(bucket, "key")
        assert store.list_keys(bucket) == ["key"]
        store.delete_object(bucket, "key")
        told = {name: headers.get("x-amz-request-payer") for name, headers in proxy.headers.items()}
        assert set(told.values()) == {"requester"}
        assert len(told) >= 10
        signed = proxy.headers["head_bucket"]["authorization"]
        assert "x-amz-request-payer" in signed


def test_a_backend_that_was_sent_to_another_process_still_pays(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("AWS_ACCESS_KEY_ID", "key")
    clean.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with fault_proxy(None) as server:
        urls = {"s3": server.url}
        cloud = AWSBackend(region_name="us-east-2", endpoint_urls=urls, requester_pays=True, retries=ONCE)
        with pytest.raises(amistore.BackendError):
            head(pickle.loads(pickle.dumps(cloud)))
        assert server.headers["head_object"]["x-amz-request-payer"] == "requester"


def test_nobody_pays_who_does_not_say_so(moto: Connection) -> None:
    case = bucket_of(moto)
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        AWSBackend(moto.session, endpoint_urls={"s3": proxy.url}).s3.head_bucket(case.bucket)
        assert "x-amz-request-payer" not in proxy.headers["head_bucket"]


def test_a_server_that_does_not_know_who_pays_names_the_argument() -> None:
    with fault_proxy(None) as server:
        cloud = AWSBackend(session(), endpoint_urls={"s3": server.url}, requester_pays=True, retries=ONCE)
        server.fail(
            "list_parts", error_answer(501, "NotImplemented", "x-amz-request-payer is not implemented")
        )
        with pytest.raises(amistore.BackendError, match=r"leave out AWSBackend\.requester_pays"):
            cloud.s3.list_parts("bucket", "key", "upload")


@pytest.mark.parametrize("bucket", ["under_score", "UPPER.Case", "ab", "x" * 200])
def test_whether_a_bucket_of_an_old_name_is_there_the_server_knows(bucket: str) -> None:
    with fault_proxy(None) as server:
        store = AWSBackend(session(), endpoint_urls={"s3": server.url}, retries=ONCE).s3
        server.fail("get_object", Answer(status=206, headers=FOUND, body=b"x"))
        server.fail("head_object", error_answer(404, ""))
        assert store.get_object_range(bucket, "key", 0, 1) == b"x"
        with pytest.raises(amistore.NotFoundError):
            store.head_object(bucket, "key")


@pytest.mark.parametrize("bucket", ["", ".", "..", "...", "a/b", "a b", "a\n", "ä", "x" * 256, None])
def test_what_no_bucket_was_ever_named_is_asked_nowhere(bucket: Any) -> None:
    with fault_proxy(None) as server:
        store = AWSBackend(session(), endpoint_urls={"s3": server.url}, retries=ONCE).s3
        with pytest.raises(amistore.InvalidRequestError, match="is no bucket's name") as caught:
            store.delete_object(bucket, "key")
        assert caught.value.code == "InaccessibleStorageLocation"
        assert not server.requests


def test_an_arn_of_anything_but_an_access_point_is_asked_nowhere() -> None:
    with forward_proxy() as (url, heads):
        cloud = AWSBackend(session(proxies={"https": url}), retries=ONCE)
        with pytest.raises(amistore.InvalidRequestError, match="Invalid bucket name"):
            cloud.s3.head_bucket("arn:aws:s3:::bucket")
    assert heads == []


def test_an_access_point_does_not_tell_how_its_bucket_is_protected() -> None:
    with fault_proxy(None, operation=lambda method, target: f"{method} {target}") as proxy:
        given = session(proxies={"http": proxy.url})
        cloud = AWSBackend(given, endpoint_urls={"s3": "http://localhost:1"}, retries=ONCE)
        asked = "HEAD http://web-123456789012.localhost:1/"
        proxy.fail(asked, Answer())
        (warning,) = cloud.s3.bucket_warnings(POINT)
        assert warning.startswith("an access point does not tell")
        assert dict(proxy.requests) == {asked: 1}


def test_a_profile_that_botocore_cannot_use_is_told_by_each_call(aws: FakeAWS, tmp_path: Path) -> None:
    write_profile(tmp_path, aws)
    with (tmp_path / "config").open("a") as file:
        file.write("s3 =\n  addressing_style = sideways\n")
    cloud = AWSBackend(profile_name="work", retries=ONCE)
    for call in (head, images, get_block):
        with pytest.raises(amistore.BackendError, match="style sideways is invalid"):
            call(cloud)
