"""Archives are opened where they lie, over HTTP, in S3, in any store: pinned, retried, typed errors."""

from __future__ import annotations

import base64
import collections
import contextlib
import email.utils
import hashlib
import hmac
import io
import itertools
import json
import logging
import shutil
import sys
import sysconfig
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest
from archive.servers import Resource, free_port, running, serving
from backends.aws.conftest import require
from backends.aws.proxy import fault_proxy

import amistore
from amistore.container.layout import Layout
from amistore.testing.aws.certificate import make_certificate

FORM = Layout(blocks_per_frame=1, blocks_per_segment=2)
BLOCKS = {i: images.noise(i) for i in range(8)}
CONTAINER = images.packed([(1, BLOCKS)], FORM)
OTHER = images.packed([(1, {i: images.noise(i + 100) for i in range(8)})], FORM)


def read(archive: amistore.Archive) -> None:
    with archive.volumes[0].open(workers=2) as disk:
        assert disk.read(8 * amistore.BLOCK_SIZE) == b"".join(BLOCKS[i] for i in range(8))
    archive.verify().check()


def test_an_archive_is_opened_over_http_in_one_request_and_read_by_ranges() -> None:
    resource = Resource(CONTAINER)
    with serving(resource) as url, amistore.open(url) as archive:
        assert len(resource.requests) == 1
        assert archive.size == len(CONTAINER)
        with archive.volumes[0].open() as disk:
            disk.seek(3 * amistore.BLOCK_SIZE + 5)
            assert disk.read(10) == BLOCKS[3][5:15]
        assert len(resource.requests) == 3
        read(archive)
        assert url in repr(archive)


def test_a_certificate_that_is_not_trusted_is_told_with_the_remedy_and_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("openssl", shutil.which("openssl"))
    certificate = make_certificate(tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with contextlib.ExitStack() as stack:
        origin, _, path = stack.enter_context(serving(Resource(CONTAINER))).rpartition("/")
        url = f"{stack.enter_context(fault_proxy(origin, certificate=certificate)).url}/{path}"
        with pytest.raises(amistore.BackendError, match="SSL_CERT_FILE names the PEM file") as caught:
            amistore.open(url)
        assert caught.value.attempts == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        read(stack.enter_context(amistore.open(url)))


@pytest.mark.parametrize(
    ("etag", "changed"),
    [('"one"', None), ('W/"weak"', None), (None, "Mon, 23 Nov 2026 01:02:03 GMT"), (None, None)],
)
def test_a_replaced_resource_is_noticed(etag: str | None, changed: str | None) -> None:
    resource = Resource(CONTAINER, etag=etag, changed=changed)
    with serving(resource) as url, amistore.open(url) as archive:
        resource.content = OTHER if etag or changed else OTHER + b"\0"  # a size is the last resort
        resource.etag = '"two"' if etag else None
        resource.changed = "Mon, 23 Nov 2026 01:02:04 GMT" if changed else None
        with pytest.raises(amistore.SourceChangedError):
            archive.verify()


def test_without_anything_to_pin_a_replacement_of_the_same_size_is_damage() -> None:
    resource = Resource(CONTAINER, etag=None)
    with serving(resource) as url, amistore.open(url) as archive:
        resource.content = OTHER
        assert not archive.verify().ok


@pytest.mark.parametrize(
    "faults",
    [
        [503, 429, 500],
        ["short", "short"],
        ["close", 502, "short"],
        [],
        ["close"],
        ["flipped", "flipped", 503, "flipped"],
        ["unannounced", "unannounced"],
    ],
)
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_passing_faults_are_waited_out(faults: list[int | str], when: str) -> None:
    resource = Resource(CONTAINER)
    if when == "opening":
        resource.faults = faults.copy()
    with serving(resource) as url, amistore.open(url) as archive:
        if when == "reading":
            resource.faults = faults.copy()
        read(archive)
        assert archive.verify().ok
    assert not resource.faults


@pytest.mark.parametrize(
    ("when", "fault"),
    [*itertools.product(["opening", "reading"], ["short", "close", 503]), ("reading", "flipped")],
)
@pytest.mark.parametrize("scheme", ["http", "gs"])
def test_a_range_is_asked_for_five_times_at_most(when: str, fault: int | str, scheme: str) -> None:
    resource = Resource(CONTAINER, changed=CHANGED)
    with serving(resource) as url:
        where: dict[str, Any] = {"what": url} if scheme == "http" else google(url)
        if when == "opening":
            resource.faults = [fault] * 30
            with pytest.raises(amistore.AmistoreError):
                amistore.open(**where)
        else:
            with amistore.open(**where) as archive:
                resource.faults = [fault] * 30
                with pytest.raises(amistore.AmistoreError):
                    archive.volumes[0].open().read(1)
    asked = collections.Counter(resource.requests)
    assert max(asked.values()) == 5


@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        (403, amistore.AccessDeniedError, False),
        (401, amistore.AccessDeniedError, False),
        (404, amistore.NotFoundError, False),
        (410, amistore.NotFoundError, False),
        (412, amistore.SourceChangedError, False),
        (418, amistore.BackendError, False),
        (503, amistore.BackendError, True),
        ("short", amistore.BackendError, True),
        ("close", amistore.BackendError, True),
    ],
)
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_a_lasting_fault_is_a_typed_error(
    fault: int | str, kind: type[amistore.BackendError], retryable: bool, when: str
) -> None:
    resource = Resource(CONTAINER)
    with serving(resource) as url:
        if when == "opening":
            resource.faults = [fault] * 30
            with pytest.raises(kind) as caught:
                amistore.open(url)
        else:
            with amistore.open(url) as archive:
                resource.faults = [fault] * 200
                with pytest.raises(kind) as caught:
                    archive.volumes[0].open().read(1)
        assert type(caught.value) is kind
        assert caught.value.retryable is retryable
        assert url in str(caught.value)


def test_bytes_are_taken_as_they_are_whatever_encoding_they_are_said_to_have() -> None:
    with serving(Resource(CONTAINER, encoding="gzip")) as url, amistore.open(url) as archive:
        read(archive)
        assert archive.verify().ok


def test_an_end_that_is_damaged_is_asked_for_five_times_too() -> None:
    damaged = bytearray(CONTAINER)
    damaged[-40] ^= 1
    resource = Resource(bytes(damaged))
    with serving(resource) as url, pytest.raises(amistore.TruncatedArchiveError):
        amistore.open(url)
    # By its suffix first, then by its place; and the beginning, to tell what it is.
    assert sorted(collections.Counter(resource.requests).values()) == [1, 1, 4]


def test_another_range_than_the_one_asked_for_is_refused() -> None:
    resource = Resource(CONTAINER)
    with serving(resource) as url, amistore.open(url) as archive:
        resource.faults = ["elsewhere"]
        with pytest.raises(amistore.BackendError, match=r"asked for \d+ bytes at \d+, got \d+ at"):
            archive.volumes[0].open().read(1)


def test_a_server_without_ranges_is_refused_before_its_body_is_read() -> None:
    with (
        serving(Resource(CONTAINER, ranges=False)) as url,
        pytest.raises(amistore.BackendError, match="does not answer range requests"),
    ):
        amistore.open(url)


def test_a_truncated_an_empty_and_a_foreign_resource_are_told_apart() -> None:
    for content, kind in (
        (CONTAINER[:-1], amistore.TruncatedArchiveError),
        (b"", amistore.NotFoundError),
        (bytes(1000), amistore.CorruptArchiveError),
    ):
        with serving(Resource(content)) as url, pytest.raises(kind) as caught:
            amistore.open(url)
        assert type(caught.value) is kind


def test_a_resource_that_was_cut_while_it_was_open_is_no_silent_end() -> None:
    resource = Resource(CONTAINER)
    with serving(resource) as url, amistore.open(url) as archive:
        resource.content = CONTAINER[:1_000_000]
        with pytest.raises(amistore.SourceChangedError):
            archive.volumes[0].open().read()


def test_a_presigned_url_is_followed_and_its_signature_is_shown_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    resource = Resource(CONTAINER, key="CANARY")
    with serving(resource) as url:
        signed = url.replace("//", "//user:CANARY@") + "?signature=CANARY&x=1"
        with amistore.open(signed, cache_size=0) as archive:
            read(archive)
            texts = [repr(archive), archive._repr_html_(), str(archive.verify(quick=True))]
            for fault in (403, 404, 503, "short", "close", 412, 418, "odd-header"):
                resource.faults = [fault] * 200
                with pytest.raises(amistore.BackendError) as caught:
                    archive.volumes[0].open().read(1)
                chain: BaseException | None = caught.value
                while chain is not None:
                    texts.append(f"{chain!r} {chain}")
                    chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
                resource.faults = []
    assert "GET" in caplog.text  # urllib3 did log
    assert not [text for text in [*texts, caplog.text] if "CANARY" in text]


def test_headers_are_sent_and_a_redirect_is_followed() -> None:
    resource = Resource(CONTAINER, token="Bearer canary")
    with serving(resource) as url:
        with pytest.raises(amistore.AccessDeniedError):
            amistore.open(url)
        headers = {"Authorization": "Bearer canary"}
        with amistore.open(url.replace("/ami.bin", "/moved"), options=headers) as archive:
            read(archive)


def test_a_server_that_is_not_there_is_a_typed_error() -> None:
    with pytest.raises(amistore.BackendError, match="NewConnectionError") as caught:
        amistore.open(f"http://127.0.0.1:{free_port()}/ami.bin?signature=CANARY")
    assert caught.value.retryable
    assert "CANARY" not in str(caught.value)


def test_many_threads_read_one_remote_archive() -> None:
    with serving(Resource(CONTAINER)) as url, amistore.open(url) as archive:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                read(archive)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


@pytest.mark.parametrize("store", ["memory", "directory"])
def test_an_object_of_a_store_is_opened_and_pinned(store: str, tmp_path: Path) -> None:
    cloud: Any = amistore.MemoryBackend() if store == "memory" else amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket("archive")
    cloud.s3.put_object("archive", "ami.bin", [CONTAINER])
    with amistore.open(cloud.s3.at("archive", "ami.bin")) as archive:
        read(archive)
        cloud.s3.put_object("archive", "ami.bin", [OTHER])
        with pytest.raises(amistore.SourceChangedError):
            archive.verify()
    with pytest.raises(amistore.NotFoundError, match="no such object"):
        amistore.open(cloud.s3.at("archive", "none.bin"))


def test_file_urls_and_paths_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "my ami.bin"
    path.write_bytes(CONTAINER)
    for what in (path, str(path), path.as_uri(), f"file:{path}"):
        with amistore.open(what) as archive:
            read(archive)


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        ("ftp://host/ami.bin", {}, "unknown scheme"),
        ("file://elsewhere/ami.bin", {}, "unknown scheme"),
        ("s3://bucket", {}, "names no object"),
        ("s3://bucket/key?part", {}, "write . as %3F"),
        ("s3://bucket/key#part", {}, "write . as %3F"),
        ("s3://bucket/key?versionId=", {}, "write . as %3F"),
        ("s3://bucket/key?versionId=a&x=y", {}, "write . as %3F"),
        ("s3://bucket/key?versionId=a#part", {}, "write . as %3F"),
        ("gs://bucket/key?versionId=a", {}, "write . as %3F"),
        ("az://container", {}, "names no object"),
        ("s3://bucket/key", {"options": {"nonsense": 1}}, "nonsense"),
        ("ami.bin", {"options": {}}, "for URLs"),
        (amistore.MemoryBackend().s3, {}, "a bucket and a key name an object"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_the_reason(what: Any, arguments: Any, message: str) -> None:
    with pytest.raises(amistore.InvalidRequestError, match=message):
        amistore.open(what, **arguments)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, url in (("urllib3", "http://host/x"), ("obstore", "s3://bucket/x")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install 'amistore\[remote\]'"):
            amistore.open(url)


def script(name: str) -> str:
    path = Path(sysconfig.get_path("scripts")) / name
    return str(path) if path.exists() else shutil.which(name) or pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    (root / "bucket").mkdir()
    (root / "bucket" / "ami.bin").write_bytes(CONTAINER)
    return root


@pytest.mark.xdist_group("servers")
def test_rclones_http_server(folder: Path) -> None:
    port = free_port()
    with running([script("rclone"), "serve", "http", "--addr", f"127.0.0.1:{port}", folder], port):
        with amistore.open(f"http://127.0.0.1:{port}/bucket/ami.bin") as archive:
            read(archive)
        with pytest.raises(amistore.NotFoundError):
            amistore.open(f"http://127.0.0.1:{port}/bucket/none.bin")


KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "CANARYCANARY", "region": "us-east-1"}


def s3_options(port: int, **others: Any) -> dict[str, Any]:
    return {
        **KEYS,
        "endpoint": f"http://127.0.0.1:{port}",
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 1},
        **others,
    }


@pytest.mark.xdist_group("servers")
def test_rclones_s3_server_which_ignores_ranges_is_refused_and_wrong_keys_are_forbidden(folder: Path) -> None:
    port = free_port()
    keys = f"{KEYS['access_key_id']},{KEYS['secret_access_key']}"
    command = [script("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", keys, folder]
    with running(command, port):
        with pytest.raises(amistore.AccessDeniedError) as forbidden:
            amistore.open("s3://bucket/ami.bin", options=s3_options(port, secret_access_key="WRONG"))
        with pytest.raises(amistore.BackendError, match="non-partial"):
            amistore.open("s3://bucket/ami.bin", options=s3_options(port))
    assert "WRONG" not in str(forbidden.value)


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    port = free_port()
    with running([script("moto_server"), "-H", "127.0.0.1", "-p", str(port)], port):
        yield port


def s3_client(port: int) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=KEYS["region"],
        aws_access_key_id=KEYS["access_key_id"],
        aws_secret_access_key=KEYS["secret_access_key"],
    )


@pytest.mark.xdist_group("servers")
def test_an_object_of_s3_is_opened_pinned_and_its_errors_are_typed(moto: int) -> None:
    client = s3_client(moto)
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="a folder/ami.bin", Body=CONTAINER)
    options = s3_options(moto)
    with amistore.open("s3://bucket/a folder/ami.bin", options=options) as archive:
        read(archive)
        assert "CANARY" not in repr(archive)
        client.put_object(Bucket="bucket", Key="a folder/ami.bin", Body=OTHER)
        with pytest.raises(amistore.SourceChangedError):
            archive.verify()
        client.delete_object(Bucket="bucket", Key="a folder/ami.bin")
        with pytest.raises(amistore.NotFoundError):
            archive.verify()
    with pytest.raises(amistore.NotFoundError):
        amistore.open("s3://bucket/none.bin", options=options)
    with pytest.raises(amistore.BackendError) as caught:
        amistore.open("s3://bucket/ami.bin", options=s3_options(free_port()))
    assert caught.value.retryable
    assert "CANARY" not in str(caught.value)


CHANGED = "Mon, 23 Nov 2026 01:02:03 GMT"


def google(url: str) -> dict[str, Any]:
    """What opens the resource as an object of Google Cloud Storage."""
    account = {
        "gcs_base_url": url.removesuffix("/ami.bin"),
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    options = {"service_account_key": json.dumps(account), "client_options": {"allow_http": True}}
    return {"what": "gs://bucket/ami.bin", "options": options}


def test_an_object_of_google_cloud_storage_is_opened_by_its_xml_api() -> None:
    resource = Resource(CONTAINER, changed=CHANGED)
    with serving(resource) as url:
        with amistore.open(**google(url)) as archive:
            read(archive)
            resource.etag = '"two"'
            with pytest.raises(amistore.SourceChangedError):
                archive.verify()
        with pytest.raises(amistore.NotFoundError):
            amistore.open(**{**google(url), "what": "gs://bucket/none.bin"})


def test_an_object_is_read_again_where_it_was_damaged_on_its_way() -> None:
    resource = Resource(CONTAINER, changed=CHANGED)
    with serving(resource) as url, amistore.open(**google(url)) as archive:
        resource.faults = ["flipped", "short", "flipped", 503]
        assert archive.verify(workers=1).ok
    assert not resource.faults


AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Published by Microsoft for its emulator."""


@pytest.mark.xdist_group("servers")
def test_a_blob_of_azurite_is_opened_pinned_and_its_errors_are_typed(tmp_path: Path) -> None:
    import obstore
    from obstore.store import AzureStore

    port = free_port()
    command = [
        shutil.which("azurite-blob") or pytest.skip("azurite-blob is not installed (npm)"),
        *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"),
        "--skipApiVersionCheck",
    ]
    with running(command, port):
        endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
        options: dict[str, Any] = {
            "account_name": "devstoreaccount1",
            "account_key": AZURITE_KEY,
            "endpoint": endpoint,
            "client_options": {"allow_http": True},
        }
        make_azure_container(endpoint, "box")
        box = AzureStore(container_name="box", **options)
        obstore.put(box, "dir/ami.bin", CONTAINER)
        with amistore.open("az://box/dir/ami.bin", options=options) as archive:
            read(archive)
            obstore.put(box, "dir/ami.bin", OTHER)
            with pytest.raises(amistore.SourceChangedError):
                archive.verify()
        with pytest.raises(amistore.NotFoundError):
            amistore.open("az://box/none.bin", options=options)


def make_azure_container(endpoint: str, name: str) -> None:
    """Create Container, signed with the account's key (Azure Storage, "Authorize with Shared Key")."""
    date = email.utils.formatdate(usegmt=True)
    account = endpoint.rsplit("/", 1)[1]
    wanted = "\n" * 12
    resource = f"/{account}/{account}/{name}\nrestype:container"
    text = f"PUT{wanted}x-ms-date:{date}\nx-ms-version:2021-08-06\n{resource}"
    signature = base64.b64encode(
        hmac.new(base64.b64decode(AZURITE_KEY), text.encode(), hashlib.sha256).digest()
    ).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": "2021-08-06",
        "Authorization": f"SharedKey {account}:{signature}",
        "Content-Length": "0",
    }
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request).close()


@pytest.mark.xdist_group("servers")
def test_a_versioned_object_is_read_in_the_version_that_was_opened(moto: int) -> None:
    client = s3_client(moto)
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket="versioned", Key="ami.bin", Body=CONTAINER)
    with amistore.open("s3://versioned/ami.bin", options=s3_options(moto)) as archive:
        client.put_object(Bucket="versioned", Key="ami.bin", Body=OTHER)
        read(archive)


@pytest.mark.xdist_group("servers")
def test_a_url_names_a_version_of_an_object_of_s3(moto: int) -> None:
    client = s3_client(moto)
    client.create_bucket(Bucket="versions")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    first = client.put_object(Bucket="versions", Key="ami.bin", Body=CONTAINER)["VersionId"]
    client.put_object(Bucket="versions", Key="ami.bin", Body=OTHER)
    client.delete_object(Bucket="versions", Key="ami.bin")
    url, options = "s3://versions/ami.bin", s3_options(moto)
    with amistore.open(f"{url}?versionId={first}", options=options) as archive:
        read(archive)
        assert f"{url}?versionId={first}" in repr(archive)
    with pytest.raises(amistore.NotFoundError):
        amistore.open(url, options=options)
    with pytest.raises(amistore.NotFoundError):
        amistore.open(f"{url}?versionId={first[::-1]}", options=options)


def test_a_server_that_takes_no_notice_of_a_urls_version_is_refused() -> None:
    with serving(Resource(CONTAINER, changed=CHANGED)) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(amistore.BackendError, match="gave another version"):
            amistore.open("s3://bucket/ami.bin?versionId=v1", options=s3_options(port))


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(amistore.AmistoreError):
        amistore.open(io.StringIO("x" * 5000))  # type: ignore[arg-type]
    (tmp_path / "x").write_bytes(CONTAINER)
    with (tmp_path / "x").open(encoding="latin-1") as file, pytest.raises(amistore.AmistoreError):
        amistore.open(file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://[", None),
        ("http://127.0.0.1:99999/x", None),
        ("http://127.0.0.1/x", {"X": "CANARY\r\nInjected: 1"}),
        ("http://127.0.0.1/x", {"X": 1}),
        ("http://127.0.0.1/x", ["X"]),
    ],
)
def test_urls_and_headers_that_cannot_be_said_are_refused(url: str, options: Any) -> None:
    with pytest.raises(amistore.InvalidRequestError) as caught:
        amistore.open(url, options=options)
    assert "CANARY" not in str(caught.value)


def test_a_redirect_shows_no_signature_and_takes_no_headers_to_another_host(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    there, here = Resource(CONTAINER, token="none"), Resource(CONTAINER)
    with serving(there) as other, serving(here) as url:
        # Another port is another host to urllib3, as to browsers.
        here.location = f"{other}?signature=CANARY"
        with pytest.raises(amistore.AccessDeniedError) as caught:
            amistore.open(url.replace("/ami.bin", "/moved?signature=CANARY"), options={"X-Token": "CANARY"})
        assert there.headers
        assert not [each for each in there.headers if "X-Token" in each]
    assert "Redirecting" in caplog.text
    assert "CANARY" not in caplog.text + str(caught.value)


def test_a_server_cannot_make_us_wait_for_long() -> None:
    resource = Resource(CONTAINER)
    with serving(resource) as url, amistore.open(url) as archive:
        resource.faults = [503]
        resource.retry_after = "86400"
        read(archive)
