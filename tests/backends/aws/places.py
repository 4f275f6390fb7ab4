"""Every store that archives are tried on: servers, and front ends before moto."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from backends.aws.conftest import bucket_of, connect
from backends.aws.front_ends import TRAITS, rules_of
from backends.aws.proxy import FaultProxy, fault_proxy

import amistore
from amistore.backends import STORES, StoreTraits
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.testing import BucketCase

SERVERS = {
    "moto": StoreTraits(checksum=None),
    "swift_connection": STORES["openstack-swift"],
    "seaweedfs": STORES["seaweedfs"],
    "juicefs": STORES["juicefs"],
    "rclone": STORES["rclone"],
}
"""The traits of servers, by their fixtures."""

LONG = bool(os.environ.get("AMISTORE_LONG"))
# Each rule once.
STRICTEST = ("cloudflare-r2", "google-cloud-storage", "mega-s4", "alibaba-oss", "few-parts", "each-part-once")
LEAST_5_MIB = ("swift_connection", "seaweedfs", "juicefs")

ids = [
    *(
        pytest.param(name, marks=pytest.mark.xdist_group(name.removesuffix("_connection")))
        for name in SERVERS
    ),
    *(TRAITS if LONG else STRICTEST),
]


@attrs.frozen
class Noise(Mapping[int, bytes]):
    """Blocks of noise, each made when it is read."""

    indexes: range
    seed: int

    def __getitem__(self, index: int) -> bytes:
        if index not in self.indexes:
            raise KeyError(index)
        return images.noise(self.seed + index)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indexes)

    def __len__(self) -> int:
        return len(self.indexes)


@attrs.frozen(kw_only=True)
class Disks:
    """Two volumes of noise, and how they are packed.

    Attributes:
        blocks: how many of 512 KiB.
        segment: the blocks of a segment.
        part_size: the size of a part.
    """

    blocks: int
    segment: int
    part_size: int

    @property
    def volumes(self) -> list[tuple[int, Mapping[int, bytes]]]:
        first = self.blocks * 2 // 3
        return [
            (1, Noise(range(0, 2 * first, 2), 0)),
            (2, Noise(range(3000, 3000 + self.blocks - first), 5000)),
        ]

    def source(self) -> images.Volumes:
        return images.Volumes(self.volumes)

    def image(self) -> amistore.Image:
        return images.image(self.source().volumes)

    def options(self) -> amistore.PackOptions:
        form = amistore.Layout(blocks_per_frame=self.segment, blocks_per_segment=self.segment)
        return amistore.PackOptions(layout=form, part_size=self.part_size)

    def pack(self, path: Path) -> int:
        """Write the archive to a file, and give its size."""
        with path.open("wb") as file:
            file.writelines(amistore.pack(self.image(), self.source(), options=self.options()))
        return path.stat().st_size

    def are(self, ebs: amistore.backends.BlockSource, image: amistore.Image) -> bool:
        """Whether the image's snapshots have these blocks."""
        ids = [m.ebs.snapshot_id for m in image.block_device_mappings if m.ebs and m.ebs.snapshot_id]
        for snapshot_id, (size, blocks) in zip(ids, self.volumes, strict=True):
            indexes = []
            for page in ebs.pages(snapshot_id):
                assert page.volume_size == size
                for each in page.blocks:
                    indexes.append(each.block_index)
                    got = ebs.get_snapshot_block(snapshot_id, each.block_index, each.block_token)
                    assert got.content == blocks[each.block_index]
            assert indexes == list(blocks)
        return True


@functools.cache
def disks_of(part_size: int, most_parts: int) -> Disks:
    """Disks of a dozen parts or more, or as many as the store takes; in the long form of 300 MiB."""
    segment = 2 if part_size >= amistore.MIB else 1
    blocks = 600 if LONG and part_size > amistore.MIB else 12 * part_size * 2 // amistore.MIB
    disks = Disks(blocks=blocks, segment=segment, part_size=part_size)
    with amistore.pack(disks.image(), disks.source(), options=disks.options()) as packed:
        needed = -(-packed.most_bytes // most_parts)
    return attrs.evolve(disks, part_size=max(part_size, needed))


_made: list[BucketCase] = []


@contextlib.contextmanager
def emptied() -> Iterator[None]:
    """Delete the objects that are made here: archives of all tests would fill a disk."""
    yield
    while _made:
        case = _made.pop()
        for key in case.store.list_keys(case.bucket):
            case.store.delete_object(case.bucket, key)


@attrs.frozen(kw_only=True)
class Place:
    """A store that another process can connect to.

    Attributes:
        name: the server's or front end's.
        url: where it is.
        keys: access key and secret key.
        traits: the store's.
    """

    name: str
    url: str
    keys: tuple[str, str]
    traits: StoreTraits

    def connect(self) -> Connection:
        return connect(self.url, access_key=self.keys[0], secret_key=self.keys[1])

    def store(self) -> AWSObjectStore:
        return AWSObjectStore(self.connect(), traits=self.traits)

    def bucket(self) -> BucketCase:
        _made.append(bucket_of(self.connect(), traits=self.traits))
        return _made[-1]

    @property
    def disks(self) -> Disks:
        small = self.traits.least_part == 1
        return disks_of(amistore.MIB // 2 if small else 5 * amistore.MIB, self.traits.most_parts)


def resolve_localhost() -> None:
    """Let names that end in .localhost be this machine (RFC 6761), which libc's resolver may not."""
    original = socket.getaddrinfo

    def found(host: Any, *arguments: Any, **options: Any) -> Any:
        local = isinstance(host, str) and host.endswith(".localhost")
        return original("127.0.0.1" if local else host, *arguments, **options)

    socket.getaddrinfo = found


@contextlib.contextmanager
def front_end(name: str, server: Connection, *, small: bool = True) -> Iterator[tuple[Place, FaultProxy]]:
    """A front end before a server; `small`: which takes parts of any size, and gets small ones."""
    with pytest.MonkeyPatch.context() as patch, fault_proxy(server.endpoint_urls["s3"]) as proxy:
        proxy.rules = rules_of(name)
        patch.setattr(socket, "getaddrinfo", socket.getaddrinfo)
        resolve_localhost()
        host = "localhost" if TRAITS[name].addressing == "virtual" else "127.0.0.1"
        url = proxy.url.replace("127.0.0.1", host)
        with emptied():
            yield _place(name, url, server, attrs.evolve(TRAITS[name], **_least(small=small))), proxy


def _place(name: str, url: str, server: Connection, traits: StoreTraits) -> Place:
    keys = server.session.get_credentials()
    return Place(name=name, url=url, keys=(keys.access_key, keys.secret_key), traits=traits)


def _least(*, small: bool) -> dict[str, int]:
    return {"least_part": 1} if small else {}


@pytest.fixture(params=ids)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each store."""
    name = request.param
    if name in TRAITS:
        # moto reads the whole object for each range.
        server = request.getfixturevalue("seaweedfs" if LONG else "moto")
        with front_end(name, server, small=not LONG) as (made, _):
            yield made
        return
    server = request.getfixturevalue(name)
    small = name == "moto" or not (LONG or name in LEAST_5_MIB)
    traits = attrs.evolve(SERVERS[name], **_least(small=small))
    with emptied():
        yield _place(name, server.endpoint_urls["s3"], server, traits)
