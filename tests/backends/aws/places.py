"""Every store that archives are tried on: servers, and front ends before moto."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Iterator
from typing import Any

import attrs
import images
import pytest
from backends.aws import gateways
from backends.aws.conftest import bucket_of, connect
from backends.aws.front_ends import TRAITS, rules_of
from backends.aws.proxy import FaultProxy, fault_proxy
from backends.aws.swift import ACCESS_KEY, SECRET_KEY

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
LEAST_5_MIB = ("swift_connection", "seaweedfs", "juicefs")

ids = [
    *(
        pytest.param(name, marks=pytest.mark.xdist_group(name.removesuffix("_connection")))
        for name in SERVERS
    ),
    *TRAITS,
]


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
    def volumes(self) -> list[tuple[int, dict[int, bytes]]]:
        first = self.blocks * 2 // 3
        return [
            (1, {2 * i: images.noise(i) for i in range(first)} | {2000: images.block(0)}),
            (2, {i: images.noise(5000 + i) for i in range(3000, 3000 + self.blocks - first)}),
        ]

    def source(self) -> images.Volumes:
        return images.Volumes(self.volumes)

    def image(self) -> amistore.Image:
        return images.image(self.source().volumes)

    def options(self) -> amistore.PackOptions:
        form = amistore.Layout(blocks_per_frame=self.segment, blocks_per_segment=self.segment)
        return amistore.PackOptions(layout=form, part_size=self.part_size)

    @functools.cached_property
    def expected(self) -> bytes:
        return b"".join(amistore.pack(self.image(), self.source(), options=self.options()))


@functools.cache
def disks_of(part_size: int, most_parts: int) -> Disks:
    """Disks of a dozen parts or more, or as many as the store takes; in the long form of 300 MiB."""
    segment = 2 if part_size >= amistore.MIB else 1
    blocks = 600 if LONG else 12 * part_size * 2 // amistore.MIB
    if most_parts < 100:
        part_size = -(-(blocks + 4) * amistore.BLOCK_SIZE // most_parts)
    return Disks(blocks=blocks, segment=segment, part_size=part_size)


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
        return bucket_of(self.connect(), traits=self.traits)

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
def front_end(name: str, moto: Connection) -> Iterator[tuple[Place, FaultProxy]]:
    """A front end before moto."""
    with pytest.MonkeyPatch.context() as patch, fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        proxy.rules = rules_of(name)
        patch.setattr(socket, "getaddrinfo", socket.getaddrinfo)
        resolve_localhost()
        url = (
            proxy.url.replace("127.0.0.1", "localhost") if TRAITS[name].addressing == "virtual" else proxy.url
        )
        yield (
            Place(name=name, url=url, keys=(ACCESS_KEY, SECRET_KEY), traits=with_small_parts(TRAITS[name])),
            proxy,
        )


def with_small_parts(traits: StoreTraits) -> StoreTraits:
    """Of a server that takes parts of any size: small ones, but for the long form."""
    return traits if LONG else attrs.evolve(traits, least_part=1)


@pytest.fixture(params=ids)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each store."""
    name = request.param
    if name in TRAITS:
        with front_end(name, request.getfixturevalue("moto")) as (made, _):
            yield made
        return
    connection = request.getfixturevalue(name)
    traits = SERVERS[name] if name in LEAST_5_MIB else with_small_parts(SERVERS[name])
    own = (gateways.ACCESS_KEY, gateways.SECRET_KEY)
    keys = own if name in ("seaweedfs", "juicefs", "rclone") else (ACCESS_KEY, SECRET_KEY)
    yield Place(name=name, url=connection.endpoint_urls["s3"], keys=keys, traits=traits)
