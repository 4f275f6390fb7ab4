"""OpenStack Swift with its s3api, on loopback: a real object store that checks what it is sent.

PyPI's ``swift`` has all of it. Signatures (v4), SHA-256, CRC-32 and MD5 of bodies, the order of
parts, If-Match and If-None-Match are checked. It knows no tags, no encryption, no storage classes
(501), keeps no CRC-32 with a part, and values of metadata up to 256 characters only.
Its If-None-Match is not exact in a race, unless the object server takes one request at a time.
"""

from __future__ import annotations

import contextlib
import getpass
import subprocess
from collections.abc import Iterator
from pathlib import Path

from archive.servers import free_port, program, running

SERVERS = ("object", "container", "account")
FILTERS = ("catch_errors", "listing_formats", "bulk", "s3api", "tempauth", "slo")
ACCESS_KEY = "test:tester"
SECRET_KEY = "testsecret"


@contextlib.contextmanager
def swift_server(folder: Path) -> Iterator[str]:
    """The URL of a Swift that keeps everything in this folder."""
    for part in ("etc", "cache", "node/sdv1"):
        (folder / part).mkdir(parents=True)
    ports = {name: free_port() for name in (*SERVERS, "proxy")}
    (folder / "etc/swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = z\n"
        "[storage-policy:0]\nname = gold\ndefault = yes\n"
    )
    with contextlib.ExitStack() as stack:
        for name in SERVERS:
            _make_ring(folder, name, ports[name])
            text = f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
            stack.enter_context(_server(folder, name, ports[name], text))
        stack.enter_context(_server(folder, "proxy", ports["proxy"], _proxy_text()))
        yield f"http://127.0.0.1:{ports['proxy']}"


def _make_ring(folder: Path, name: str, port: int) -> None:
    builder = str(folder / f"etc/{name}.builder")
    for words in (["create", "2", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/sdv1", "1"], ["rebalance"]):
        tool = str(program("swift-ring-builder"))
        done = subprocess.run([tool, builder, *words], capture_output=True, text=True)
        if done.returncode > 1:  # 1 is a warning
            raise RuntimeError(f"swift-ring-builder {words[0]}: {done.stdout}{done.stderr}")


def _server(folder: Path, name: str, port: int, text: str) -> contextlib.AbstractContextManager[None]:
    common = {
        "bind_ip": "127.0.0.1",
        "bind_port": port,
        "swift_dir": folder / "etc",
        "devices": folder / "node",
        "mount_check": "false",
        "user": getpass.getuser(),
        "workers": 0,
        "log_address": "/dev/null",
        "recon_cache_path": folder / "cache",
        "fallocate_reserve": 0,
        "disable_fallocate": "true",
    }
    if name == "object":
        common["max_clients"] = 1  # one request at a time, or two of racing creates may win
    file = folder / f"etc/{name}-server.conf"
    file.write_text("[DEFAULT]\n" + "".join(f"{key} = {value}\n" for key, value in common.items()) + text)
    return running([str(program(f"swift-{name}-server")), str(file)], port)


def _proxy_text() -> str:
    # Small parts, as many as S3 has, and small pages, so that tests need not move gigabytes.
    options = {
        "s3api": "location = us-east-1\nmin_segment_size = 1\n"
        "max_upload_part_num = 10000\nmax_parts_listing = 8\n",
        "tempauth": f"user_{ACCESS_KEY.replace(':', '_')} = {SECRET_KEY} .admin\n",
        "slo": "max_manifest_segments = 10000\n",
    }
    return (
        f"[pipeline:main]\npipeline = {' '.join(FILTERS)} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\n"
        "allow_account_management = true\naccount_autocreate = true\n"
        + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n{options.get(name, '')}" for name in FILTERS)
    )
