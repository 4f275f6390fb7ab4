"""An image of a few parts, and backends whose calls are counted and go wrong when asked to."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
from objects.swaps import put_in_place

import amistore
from amistore.objects.resumelog import ResumeLog

BUCKET, KEY = "archive", "ami.bin"
LAYOUT = amistore.Layout(blocks_per_frame=2, blocks_per_segment=2)
"""Segments of 1 MiB of noise, so that four end in a part of 5 MiB and one goes on in the next."""

PART = 5 * amistore.MIB
PACKING = amistore.PackOptions(layout=LAYOUT, part_size=PART)

VOLUMES: list[tuple[int, dict[int, bytes]]] = [
    (1, {2 * i: images.noise(i) for i in range(19)} | {100: images.block(0)}),
    (1, {}),
    (2, {i: images.noise(50 + i) for i in range(4000, 4013)}),
]
PARTS = 4


def source() -> images.Volumes:
    return images.Volumes(VOLUMES)


IMAGE = images.image(source().volumes)


@functools.cache
def expected(level: int = 3) -> bytes:
    """What `pack` makes of it."""
    return b"".join(amistore.pack(IMAGE, source(), level=level, options=PACKING))


def cloud() -> amistore.MemoryBackend:
    made = amistore.MemoryBackend()
    made.s3.create_bucket(BUCKET)
    return made


def store(
    given: amistore.backends.BlockSource, place: amistore.backends.ObjectStore, **options: Any
) -> amistore.StoredArchive:
    return amistore.store(
        IMAGE, given, place.at(BUCKET, KEY), **{"options": PACKING, "workers": 2, **options}
    )


def is_there(told: amistore.StoredArchive) -> bool:
    """Whether what is told of an object is so."""
    assert isinstance(told.location, amistore.ObjectLocation)
    found = told.location.head()
    with amistore.open(told.location) as archive:
        return (told.size, told.etag, told.content_id) == (found.size, found.etag, archive.content_id)


def stored(store: amistore.backends.ObjectStore, key: str = KEY) -> bytes | None:
    """The object's bytes; None where there is none."""
    try:
        return store.open_object(BUCKET, key).read()
    except amistore.NotFoundError:
        return None


def disks(ebs: amistore.backends.BlockSource, image: amistore.Image) -> list[tuple[int, dict[int, bytes]]]:
    """Size and blocks of each volume of an image, in the mappings' order."""
    ids = [m.ebs.snapshot_id for m in image.block_device_mappings if m.ebs and m.ebs.snapshot_id]
    return [images.contents(ebs, snapshot_id) for snapshot_id in ids]


UPLOADS = ("upload_part", "upload_part_file")


class Calls:
    """Watches verbs of a service in memory: counts calls, and lets one of them go wrong.

    Attributes:
        made: calls by verb.
        seen: verb and arguments of each.
        failed: whether the fault has happened.
    """

    def __init__(self, *services: object) -> None:
        self.made: Counter[str] = Counter()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []
        self.failed = False
        self._fault: tuple[str, int, BaseException | Callable[[], None], bool] | None = None
        self._lock = threading.Lock()
        for service in services:
            for verb in dir(service):
                if not verb.startswith("_") and callable(getattr(service, verb)):
                    put_in_place(service, verb, self._watched(verb, getattr(service, verb)))

    def fail(
        self, verb: str, number: int, what: BaseException | Callable[[], None], *, late: bool = False
    ) -> None:
        """At that call from now on raise or do something; `late`: when the call was carried out."""
        self.made.clear()
        self.seen.clear()
        self.failed = False
        self._fault = verb, number, what, late

    def parts(self) -> list[int]:
        """Numbers of the parts that were sent."""
        return [arguments[3] for verb, arguments in self.seen if verb in UPLOADS]

    def blocks(self) -> list[tuple[str, int]]:
        """Snapshots and indexes of the blocks that were put."""
        return [arguments[:2] for verb, arguments in self.seen if verb == "put_snapshot_block"]

    def _watched(self, verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.made[verb] += 1
                self.seen.append((verb, arguments))
                hit = self._fault is not None and self._fault[:2] == (verb, self.made[verb])
            if hit and self._fault is not None:
                self.failed = True
                _, _, what, late = self._fault
                if late:
                    call(*arguments, **options)
                if isinstance(what, BaseException):
                    raise what
                what()
                if late:
                    return None
            return call(*arguments, **options)

        return watched


class Log(ResumeLog):
    """A log in memory whose entries can be set."""

    def __init__(self, entries: list[bytes] | None = None) -> None:
        self._entries = list(entries or [])

    def entries(self) -> list[bytes]:
        return list(self._entries)

    def append(self, entry: bytes) -> None:
        self._entries.append(entry)

    def clear(self) -> None:
        self._entries.clear()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """No thread and no open file of this process more than before."""
    threads, files = set(threading.enumerate()), _open_files()
    yield
    assert set(threading.enumerate()) <= threads
    assert _open_files() <= files


def _open_files() -> Counter[str]:
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this loop
            target = os.readlink(link)
            if target.startswith("/"):  # no pipe of the interpreter's own
                found[target] += 1
    return found
