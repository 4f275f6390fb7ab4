"""Images that become orders of all sizes, and executors that do them in tests."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from objects.runs import BUCKET, KEY

import amistore
from amistore.backends import BlockPage, BlockSource, ObjectStore, SnapshotBlock, StoreTraits
from amistore.container import layout
from amistore.objects import store_orders
from amistore.pipeline import orders

SHORT = amistore.Layout(blocks_per_frame=2, blocks_per_segment=2, segments_per_shard=8)
"""Shards of 8 MiB of noise, each an order."""

SHARED = amistore.Layout(blocks_per_frame=2, blocks_per_segment=2, segments_per_shard=256)
"""One shard, in which each volume is an order."""

Seeds = Mapping[int, int]
"""A block's content by its index: noise for a negative seed, else `images.block`, of zeros for 0."""

_noise = functools.lru_cache(64)(images.noise)


def noise(count: int, seed: int = 1) -> Seeds:
    """Blocks of noise."""
    return {index: -seed - index for index in range(count)}


def small(count: int, seed: int = 1) -> Seeds:
    """Blocks that take some 700 bytes each."""
    return {3 * index: seed + index for index in range(count)}


class Source(BlockSource):
    """A source that makes each block as it is read, so that it is sent to workers in few bytes."""

    def __init__(self, volumes: tuple[Seeds, ...]) -> None:
        self.volumes = {f"snap-{number:017x}": seeds for number, seeds in enumerate(volumes)}

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        blocks = [amistore.backends.Block(index) for index in sorted(self.volumes[snapshot_id])]
        return BlockPage(volume_size=1, blocks=blocks)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        return SnapshotBlock(content(self.volumes[snapshot_id][block_index]))


def content(seed: int) -> bytes:
    return _noise(-seed) if seed < 0 else images.block(seed)


@attrs.frozen
class Case:
    """Volumes, and how they are cut."""

    volumes: tuple[Seeds, ...]
    layout: amistore.Layout = SHARED
    part_size: int | None = 5 * amistore.MIB

    def source(self) -> Source:
        return Source(self.volumes)

    @property
    def image(self) -> amistore.Image:
        members = {} if self.volumes else {"root_device_name": None}
        return images.image(self.source().volumes, **members)

    @property
    def options(self) -> amistore.PackOptions:
        return amistore.PackOptions(layout=self.layout, part_size=self.part_size)

    def expected(self) -> bytes:
        """What `pack` makes of it."""
        return b"".join(amistore.pack(self.image, self.source(), options=self.options))

    def store(self, to: ObjectStore, executor: Executor | None, **options: Any) -> amistore.StoredArchive:
        """Store it by orders."""
        return store(self, self.source(), to, executor, **options)


def store(
    case: Case, source: amistore.backends.BlockSource, to: ObjectStore, executor: Executor, **options: Any
) -> amistore.StoredArchive:
    given = {"options": case.options, "workers": 2, **options}
    return amistore.store(case.image, source, to.at(BUCKET, KEY), executor=executor, **given)


def _case(*volumes: Seeds, layout: amistore.Layout = SHARED) -> Case:
    return Case(volumes, layout)


CASES = {
    "noise": _case(noise(40), layout=SHORT),
    "compressible": _case(small(70), layout=SHORT),
    "noise and compressible": _case({**noise(24), **small(30, 24)}, noise(5), layout=SHORT),
    "small at the start": _case(small(2), small(3, 9), noise(12)),
    "small between large": _case(noise(11), small(2), {}, noise(4, 50), noise(12, 100)),
    "small at the end": _case(noise(12), small(3), {}, small(2, 7), {}),
    "small that are large together": _case(*(noise(4, 10 * number) for number in range(1, 6))),
    "small around a part of small": _case(
        small(1), noise(7, 50), noise(5, 80), small(2), noise(22, 100), small(1)
    ),
    "all small": _case(small(2), {}, small(1), {0: 0}),
    "no segments": _case({}, {}),
    "no volumes": _case(),
}


LEAST = 4000
"""Bytes of a part where `short_parts` was called: two volumes of one `small` block are less, three more."""


def short_parts(patch: Callable[[object, str, object], None] = setattr, *, blocks: int = 1024) -> None:
    """Have orders of so many blocks, and parts and shards of `LEAST` bytes at least."""
    patch(layout, "MIN_PART", LEAST)
    patch(store_orders, "MIN_PART", LEAST)
    patch(orders, "ORDER_BLOCKS", blocks)
    patch(ObjectStore, "traits", StoreTraits(least_part=1))


RESUMED = Case(
    (
        noise(1),  # of six parts
        small(1),
        small(1, 5),
        noise(1, 2),  # joined with the two before it
        *(small(1, seed) for seed in range(7, 10)),  # a part together
        small(1, 10),
    ),
    SHARED,
    100_000,
)
"""Orders of all kinds, for runs that end early, where `short_parts` was called."""


class Dying(Source):
    """A source one of whose blocks kills the process that gets it, the first time.

    Args:
        volumes: the volumes.
        volume: the number of the volume whose first block it is.
        path: a file that is made then.
    """

    def __init__(self, volumes: tuple[Seeds, ...], volume: int, path: Path) -> None:
        super().__init__(volumes)
        self._path = path
        self._here = os.getpid()
        self._fatal = list(self.volumes)[volume]

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        here = os.getpid() == self._here
        if snapshot_id == self._fatal and block_index == 0 and not here and not self._path.exists():
            self._path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


class Inline(ThreadPoolExecutor):
    """Does each order as it is given, in the caller's thread.

    Attributes:
        orders: those that were given.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self.orders: list[Any] = []

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        self.orders += arguments
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


class InTurn(Inline):
    """Does orders when somebody waits for one, in any order: what is out keeps its tokens meanwhile.

    Args:
        patch: has `amistore.pipeline.orders` wait for it.
        choose: gives the number of the next of so many orders.
        work: does an order; None to call the function with it.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        choose: Callable[[int], int],
        work: Callable[[Callable[[Any], Any], Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self._work = work
        self._out: list[tuple[Future[Any], Any]] = []
        self._choose = choose
        patch.setattr(orders, "wait", self._wait)

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        self.orders += arguments
        future: Future[Any] = Future()
        if self._work is not None:
            function, arguments = self._work, (function, *arguments)
        self._out.append((future, lambda: function(*arguments, **options)))
        return future

    def _wait(
        self, futures: Collection[Future[Any]], timeout: float | None = None, return_when: str = ALL_COMPLETED
    ) -> Any:
        while self._out and not all(each.done() for each in futures):
            future, work = self._out.pop(self._choose(len(self._out)))
            future.set_result(work())
            if return_when == FIRST_COMPLETED:
                break
        return wait(futures, return_when=return_when)
