"""The blocks of snapshots: stored once by their digests, generated when read, or laid over others'."""

from __future__ import annotations

import bisect
import hashlib
import os
import random
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from amistore.units import BLOCK_SIZE, GIB

__all__ = [
    "Content",
    "GeneratedBlocks",
    "Overlay",
    "Pool",
    "StoredBlocks",
    "given_content",
    "position",
    "volume_blocks",
]


class Content(Protocol):
    """Blocks by their indexes."""

    @property
    def indexes(self) -> Sequence[int]:
        """The blocks that there are, ascending."""
        ...

    def block(self, index: int) -> tuple[bytes, bytes]:
        """A block that there is, and its raw SHA-256."""
        ...


def position(indexes: Sequence[int], start: int) -> int:
    """Find where in ascending indexes the first one lies that is not below `start`."""
    return bisect.bisect_left(indexes, start)


class Pool:
    """Blocks by their digests, so that equal ones are kept once.

    Args:
        in_memory: how many are kept in memory; those beyond are in a file without a name.
    """

    def __init__(self, in_memory: int = 512) -> None:
        self._in_memory = in_memory
        self._blocks: dict[bytes, bytes | int] = {}  # the content, or the block's number in the file
        self._file: int | None = None

    def keep(self, digest: bytes, data: bytes) -> None:
        if digest not in self._blocks:
            beyond = len(self._blocks) - self._in_memory
            self._blocks[digest] = data if beyond < 0 else self._spool(data, beyond)

    def _spool(self, data: bytes, number: int) -> int:
        if self._file is None:
            self._file, path = tempfile.mkstemp(prefix="amistore-fake-")
            Path(path).unlink()
            weakref.finalize(self, os.close, self._file)
        if os.pwrite(self._file, data, number * BLOCK_SIZE) != BLOCK_SIZE:
            raise OSError("no space for the fake's blocks")
        return number

    def read(self, digest: bytes) -> bytes:
        kept = self._blocks[digest]
        if isinstance(kept, bytes):
            return kept
        return os.pread(cast(int, self._file), BLOCK_SIZE, kept * BLOCK_SIZE)

    def __len__(self) -> int:
        return len(self._blocks)


class StoredBlocks:
    """Blocks that were put; each may be put again."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._digests: dict[int, bytes] = {}
        self._indexes: list[int] | None = None

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def indexes(self) -> Sequence[int]:
        if self._indexes is None:
            self._indexes = sorted(self._digests)
        return self._indexes

    def put(self, index: int, digest: bytes, data: bytes) -> None:
        self._pool.keep(digest, data)
        self._digests[index] = digest
        self._indexes = None

    def holds(self, index: int) -> bool:
        return index in self._digests

    def block(self, index: int) -> tuple[bytes, bytes]:
        digest = self._digests[index]
        return self._pool.read(digest), digest

    def linear(self) -> bytes:
        """Aggregate as CompleteSnapshot does: SHA-256 over the raw digests in index order."""
        return hashlib.sha256(b"".join(self._digests[index] for index in self.indexes)).digest()


class GeneratedBlocks:
    """Blocks that are made when they are read, so that a volume of any size costs no memory."""

    def __init__(self, read: Callable[[int], bytes], indexes: Sequence[int]) -> None:
        self.indexes = indexes
        self._read = read

    def block(self, index: int) -> tuple[bytes, bytes]:
        data = self._read(index)
        if len(data) != BLOCK_SIZE:
            raise ValueError(f"block {index} has {len(data)} bytes, not {BLOCK_SIZE}")
        return data, hashlib.sha256(data).digest()


class Overlay:
    """A snapshot's own blocks over those of its parent."""

    def __init__(self, below: Content, own: StoredBlocks) -> None:
        self._below = below
        self._own = own
        self._indexes = below.indexes
        self._merged = 0  # own blocks that the indexes know

    @property
    def indexes(self) -> Sequence[int]:
        if self._merged != len(self._own):
            self._indexes = sorted({*self._below.indexes, *self._own.indexes})
            self._merged = len(self._own)
        return self._indexes

    def block(self, index: int) -> tuple[bytes, bytes]:
        return (self._own if self._own.holds(index) else self._below).block(index)


def given_content(
    own: StoredBlocks,
    blocks: Mapping[int, bytes] | Callable[[int], bytes],
    indexes: Sequence[int] | None,
    volume_size: int,
) -> Content:
    """Blocks as a test gives them: by their indexes, put into `own`; or made when they are read.

    Raises:
        ValueError: a block is not of 524,288 bytes or lies outside the volume of so many GiB, or nothing
            says which indexes there are.
    """
    if callable(blocks) and indexes is None:
        raise ValueError("blocks that are made need the indexes that there are")
    there = (indexes or ()) if callable(blocks) else sorted(blocks)
    if there and not 0 <= there[0] <= there[-1] < volume_size * (GIB // BLOCK_SIZE):
        raise ValueError("a block lies outside the volume")
    if callable(blocks):
        return GeneratedBlocks(blocks, there)
    for index, data in blocks.items():
        if len(data) != BLOCK_SIZE:
            raise ValueError(f"block {index} has {len(data)} bytes, not {BLOCK_SIZE}")
        own.put(index, hashlib.sha256(data).digest(), bytes(data))
    return own


def volume_blocks(content: Content, count: int, key: str | None) -> Iterator[bytes]:
    """The blocks of a volume of so many: those that there are, and noise that the key makes, or zeros."""
    listed = frozenset(content.indexes)

    def block(index: int) -> bytes:
        if index in listed:
            return content.block(index)[0]
        if key is None:
            return bytes(BLOCK_SIZE)
        return random.Random(f"{key} {index}").randbytes(BLOCK_SIZE)  # noqa: S311 - noise, no secret

    return map(block, range(count))
