"""A stream becomes a snapshot: read once, from front to end, and put meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

import attrs

from amistore import forks
from amistore.backends import BlockSink, files
from amistore.backends.checks import check_path
from amistore.container.layout import MAX_VOLUME_GIB
from amistore.disks.signatures import SECTOR, refuse_foreign
from amistore.disks.streams import COMPRESSIONS, StreamDisk
from amistore.errors import InvalidRequestError
from amistore.model import Tag
from amistore.pipeline.progress import Phase, Progress, ProgressCallback
from amistore.pipeline.puts import BlockPuts, PutBatch
from amistore.pipeline.workers import closing, worker_pool
from amistore.text import printable
from amistore.units import BLOCK_SIZE, GIB, ZERO_DIGEST, sized

__all__ = ["DiskStream", "put_stream"]

_logger = logging.getLogger("amistore")

_PIECE: Final = 16  # blocks that a worker hashes and puts
_ZEROS: Final = bytes(BLOCK_SIZE)

Blocks = Sequence[tuple[int, bytes]]


class DiskStream:
    """A raw disk that is read once, from front to end: a compressed file, or a pipe.

    Nothing tells its holes: blocks of zeros are not listed. A run of it cannot be gone on with.

    Args:
        source: the path of a file, or a binary stream such as ``sys.stdin.buffer``, which you close yourself.
        volume_size: the volume's size in GiB; the disk may be shorter, and is refused if it is longer.
        compression: ``"gzip"``, ``"bzip2"``, ``"xz"``, ``"zstd"``, or ``"none"``; None for what the path's
            suffix says: ``.gz``, ``.bz2``, ``.xz``, ``.zst``, or none.
        format: ``"raw"`` takes the bytes as they are, also if they look like another format, such as a
            compressed one; None refuses these.

    Attributes:
        volume_size: the volume's size in GiB.
        name: what messages call it.

    Raises:
        InvalidRequestError: an argument is none of these.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        volume_size: int,
        compression: str | None = None,
        format: Literal["raw"] | None = None,
    ) -> None:
        self._stream: BinaryIO | None = None
        self._path: Path | None = None
        if isinstance(source, io.TextIOBase):
            raise InvalidRequestError("the stream is open as text: give sys.stdin.buffer, or open with 'rb'")
        if hasattr(source, "read"):
            self._stream = cast(BinaryIO, source)
        else:
            self._path = check_path(source, "disk")
        if type(volume_size) is not int or not 1 <= volume_size <= MAX_VOLUME_GIB:
            raise InvalidRequestError(
                f"volume_size is a whole number of GiB from 1 to {MAX_VOLUME_GIB}, not {volume_size!r}"
            )
        if compression not in (None, "none", *COMPRESSIONS.values()):
            raise InvalidRequestError(
                f"compression is none, {', '.join(COMPRESSIONS.values())} or None, not {compression!r}"
            )
        if format not in (None, "raw"):
            raise InvalidRequestError(f'format is "raw" or None, not {format!r}')
        self.volume_size = volume_size
        self._is_raw = format == "raw"
        suffix = "" if self._path is None else self._path.suffix.lower()
        self._compression = COMPRESSIONS.get(suffix) if compression is None else compression
        self.name = "a stream" if self._path is None else printable(self._path.name)

    def __repr__(self) -> str:
        return f"DiskStream({self.name!r}, volume_size={self.volume_size})"

    def _check_signatures(self, first: bytes, last: bytes) -> None:
        """Refuse what is no raw disk, by its first and its last sector."""
        if not self._is_raw:
            refuse_foreign(Path(self.name), first, last)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[StreamDisk]:
        """The disk, open."""
        compression = None if self._compression == "none" else self._compression
        with contextlib.ExitStack() as stack:
            stream = self._stream
            if self._path is not None:
                with files.operation("import", path=self._path):
                    stream = stack.enter_context(self._path.open("rb"))
            yield StreamDisk(cast(BinaryIO, stream), self.volume_size, compression, self.name)


@attrs.frozen
class _Put:
    """The worker's job: hash some blocks and put them; gives their digests."""

    sink: BlockSink
    snapshot_id: str

    def __call__(self, item: tuple[Blocks, PutBatch | None]) -> list[bytes]:
        blocks, batch = item
        put = self.sink.put_snapshot_block if batch is None else batch.put
        digests = []
        for index, content in blocks:
            digests.append(ZERO_DIGEST if content is _ZEROS else hashlib.sha256(content).digest())
            put(self.snapshot_id, index, content, digests[-1])
        return digests


def put_stream(
    given: DiskStream,
    sink: BlockSink,
    *,
    description: str,
    tags: Sequence[Tag],
    fill_holes: bool,
    workers: int | None,
    progress: ProgressCallback,
) -> str:
    """As `import_snapshot`; every error deletes the snapshot."""
    with given._opened() as stream:
        snapshot_id = sink.start_snapshot(
            given.volume_size, description=description, tags=tags, client_token=secrets.token_hex(16)
        )
        with forks.undoing(lambda _: _discard(snapshot_id, sink)):
            blocks = _checked(given, stream)
            blocks = _with_holes(blocks, given.volume_size) if fill_holes else _without_zeros(blocks)
            put, linear = _put_all(blocks, snapshot_id, sink, workers, progress)
            _warn_of_holes(snapshot_id, given.volume_size * GIB // BLOCK_SIZE - put, sink)
            sink.complete_snapshot(snapshot_id, put, linear)
            sink.wait_snapshot(snapshot_id)
    return snapshot_id


def _put_all(
    blocks: Iterator[tuple[int, bytes]],
    snapshot_id: str,
    sink: BlockSink,
    workers: int | None,
    progress: ProgressCallback,
) -> tuple[int, bytes]:
    """Put all blocks; give their number and LINEAR checksum."""
    linear = hashlib.sha256()
    done = 0
    with worker_pool(workers, None) as pool:
        puts = BlockPuts(sink, None)
        items = ((piece, puts.batch()) for piece in _pieces(blocks))
        made = pool.map(_Put(sink, snapshot_id), items, _weigh, stop=puts.stop)
        with closing(made), puts:
            for digests in made:
                puts.landed()
                linear.update(b"".join(digests))
                done += len(digests)
                progress(Progress(phase=Phase.UNPACK, blocks=done))
    return done, linear.digest()


def _pieces(blocks: Iterator[tuple[int, bytes]]) -> Iterator[Blocks]:
    while piece := list(itertools.islice(blocks, _PIECE)):
        yield piece


def _weigh(item: tuple[Blocks, PutBatch | None]) -> int:
    return len(item[0]) * BLOCK_SIZE


def _checked(given: DiskStream, stream: StreamDisk) -> Iterator[tuple[int, bytes]]:
    first = b""
    for index, content in stream.blocks():
        if index == 0:
            first = content[:SECTOR]
            given._check_signatures(first, b"")
        yield index, content
    given._check_signatures(first, stream.last)


def _without_zeros(blocks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    return ((index, content) for index, content in blocks if content != _ZEROS)


def _with_holes(blocks: Iterator[tuple[int, bytes]], volume_size: int) -> Iterator[tuple[int, bytes]]:
    """Every block of the volume, also behind the disk's end."""
    following = 0
    for index, content in blocks:
        following = index + 1
        yield index, content
    for index in range(following, volume_size * GIB // BLOCK_SIZE):
        yield index, _ZEROS


def _warn_of_holes(snapshot_id: str, holes: int, sink: BlockSink) -> None:
    if holes and sink.describe_snapshot(snapshot_id).encrypted is True:
        _logger.warning(
            "%s is encrypted, and %s of it are holes, which read as noise on an encrypted volume: "
            "fill_holes=True puts zeros into them",
            snapshot_id,
            sized(holes * BLOCK_SIZE),
        )


def _discard(snapshot_id: str, sink: BlockSink) -> None:
    try:
        sink.delete_snapshot(snapshot_id)
    except Exception as error:  # the first error is the one to tell
        _logger.error("snapshot %s is left behind, delete it: %s", snapshot_id, error)
