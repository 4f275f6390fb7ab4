"""`open`: an archive where it lies, without unpacking it."""

from __future__ import annotations

import io
import os
from concurrent.futures import Executor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from typing_extensions import Self

from amistore.errors import BackendError, CorruptArchiveError, NotFoundError
from amistore.pipeline.progress import ProgressCallback
from amistore.pipeline.reader import ContainerFile, WholeFile
from amistore.pipeline.unpack import check_stream
from amistore.pipeline.volume import Volume
from amistore.units import MIB

__all__ = ["Archive", "open_archive"]


def open_archive(what: str | os.PathLike[str] | BinaryIO) -> Archive:
    """Open an archive to look into it, verify it, or take disks out.

    Args:
        what: a path, or a seekable binary file that stays yours to close.

    Raises:
        NotFoundError: no such file.
        CorruptArchiveError: its end or index is damaged, or it is no archive.
        UnsupportedArchiveError: a newer format.
    """
    if isinstance(what, (str, os.PathLike)):
        path = Path(what)
        try:
            return Archive(path.open("rb", buffering=0), name=str(path), close=True)
        except FileNotFoundError:
            raise NotFoundError(f"no such file: {path}", operation="open") from None
        except (OSError, ValueError) as error:
            message = getattr(error, "strerror", None) or str(error)
            raise BackendError(f"{message}: {path}", operation="open") from error
    return Archive(what, name=getattr(what, "name", type(what).__name__), close=False)


class Archive:
    """An opened container; a context manager. May be used from several threads.

    Attributes:
        image: the stored image.
        volumes: one `Volume` per distinct snapshot, by snapshot id.
        content_id: what the archive holds, in hexadecimal: equal for equal images and data.
        size: of the container, in bytes.
    """

    def __init__(self, file: BinaryIO, *, name: str, close: bool) -> None:
        self._file = file
        self._close = close
        try:
            self._container = ContainerFile(file, name)
        except BaseException:
            self.close()
            raise
        index = self._container.index
        self.image = self._container.image
        self.size = self._container.size
        self.content_id = index.content_id.hex()
        volumes = []
        first = 0
        for indexed in index.volumes:
            volumes.append(Volume(self._container, indexed, first))
            first += indexed.segments
        self.volumes = tuple(volumes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Archive {self._container.name}: {self.image.image_id}, {len(self.volumes)} volumes, "
            f"{self._container.head.blocks} blocks in {self.size} bytes>"
        )

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._close:
            self._file.close()

    def verify(
        self,
        *,
        workers: int | None = None,
        executor: Executor | None = None,
        progress: ProgressCallback = None,
    ) -> None:
        """Read all of it and check every byte, as unpacking would.

        Raises:
            CorruptArchiveError: with the place of the first damage.
        """
        with io.BufferedReader(WholeFile(self._container), MIB) as stream:
            end = check_stream(stream, workers=workers, executor=executor, progress=progress)
        if end.index != self._container.index or end.size != self.size:
            raise CorruptArchiveError("the file changed while it was open", record="INDX")
