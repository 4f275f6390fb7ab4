"""`open`: look into an archive in its place, without unpacking it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from typing_extensions import Self

from amistore.archive.comparison import Difference, compare_live, compare_stored
from amistore.archive.extraction import Extraction, extract_all
from amistore.archive.framecache import CACHE_SIZE, FrameCache
from amistore.archive.nbd import NBDServer
from amistore.archive.opening import Openable, open_container
from amistore.archive.reader import ContainerFile
from amistore.archive.report import VerifyReport
from amistore.archive.verify import verify
from amistore.archive.volume import Volume
from amistore.backends import Backend, BlockSource, files
from amistore.backends.checks import check_flags, check_kind, check_path
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import InvalidRequestError, NotFoundError, advising
from amistore.model import Image, encode_manifest
from amistore.pipeline.orders import given_cluster
from amistore.pipeline.progress import ProgressOption, reporting
from amistore.text import html_table, printable
from amistore.units import BLOCK_SIZE, GIB, MIB, counted, sized

__all__ = ["Archive", "open_archive"]


def open_archive(
    what: Openable,
    *,
    options: Mapping[str, Any] | None = None,
    expected_content_id: str | None = None,
    cache_size: int = CACHE_SIZE,
) -> Archive:
    """Open an archive to look into it, verify it, compare it, or take disks out.

    This reads the archive's end, and the index where that is longer than 64 KiB. Everything else is read on
    demand. Reads of an object or URL are pinned to its present ETag.

    Args:
        what: a path; a URL (``file:``, and with the extra ``amistore[remote]`` ``http:``, ``https:``,
            ``gs:``, ``az:``, and ``s3:``, also with ``?versionId=``); a seekable binary file, which you close
            yourself; a location, such as ``cloud.s3.at("archive", "web.bin")``; or a result of `store`,
            `copy` or `find_archives`, whose location is opened.
        options: the headers for ``http(s):`` URLs, such as ``Authorization``; the options of
            `obstore.store.from_url` for ``s3:``, ``gs:`` and ``az:``, such as ``region`` or
            ``client_options``.
        expected_content_id: the only content id to accept, 64 hexadecimal digits; None for any. Only the
            claim in the index is compared; `verify`, `extract`, `unpack` and the like prove it.
        cache_size: the bytes of blocks to keep, for all open disks of the archive together: decoded, and from
            far away also as they are stored.

    Raises:
        NotFoundError: no such file or object.
        AccessDeniedError: the archive may not be read.
        CorruptArchiveError: the end or index is damaged, the file is no archive, or its content id is
            another.
        UnsupportedArchiveError: the archive has a newer format.
        InvalidRequestError: the arguments do not go together, or the path is that of a folder or a pipe.
        ImportError: the extra that a URL needs is not installed.
    """
    expected = parse_content_id(expected_content_id)
    container = open_container(what, options, FrameCache(cache_size))
    try:
        check_content_id(container.index.content_id, expected)
        return Archive(container)
    except BaseException:
        container.close()
        raise


open_archive.__name__ = "open"  # as users know it, for help()


class Archive:
    """An opened archive; a context manager. Several threads may use it.

    Attributes:
        image: the stored image.
        volumes: one `Volume` for each distinct snapshot: the root device's first, then in the order of the
            mappings.
        content_id: the content id that the archive claims, in hexadecimal: equal for equal images and data.
            `verify`, and all that restores or extracts, proves it.
        size: the archive's size in bytes.
    """

    def __init__(self, container: ContainerFile) -> None:
        self._container = container
        self.image = container.image
        self.size = container.size
        self.content_id = container.index.content_id.hex()
        volumes = [Volume(container, number) for number in range(len(container.index.volumes))]
        self.volumes = tuple(sorted(volumes, key=self._place))

    def _place(self, volume: Volume) -> tuple[bool, bool, tuple[str, ...]]:
        """The sort key of volumes; mappings are in the order of their devices."""
        root = self.image.root_mapping
        is_root = root is not None and root.device_name in volume.device_names
        return not is_root, not volume.device_names, volume.device_names

    @property
    def root_volume(self) -> Volume:
        """The volume of the root device, `Image.root_mapping`.

        Raises:
            NotFoundError: the root device's mapping is not known, or the archive does not have its snapshot.
        """
        root = self.image.root_mapping
        if root is None:
            raise NotFoundError(
                f"no mapping is known to be the root device {self.image.root_device_name}: take a volume "
                f"by its device, {self._devices()}",
                operation="root_volume",
            )
        return self.volume(root.device_name)

    def volume(self, name: str) -> Volume:
        """The volume of a device or an archived snapshot.

        Args:
            name: the device's name in a mapping, such as ``"/dev/xvda"``, or the snapshot's id.

        Raises:
            NotFoundError: the archive has no such volume.
        """
        for volume in self.volumes:
            if name in (volume.snapshot_id, *volume.device_names):
                return volume
        raise NotFoundError(
            f"no volume {name!r:.80} in the archive: it has {self._devices()}", operation="volume"
        )

    def _devices(self) -> str:
        return ", ".join(device for volume in self.volumes for device in volume.device_names) or "none"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        volumes = counted(len(self.volumes), "volume")
        blocks = counted(self._container.head.blocks, "block")
        name = f"{printable(self._container.name)}: {self.image.image_id}"
        return f"<Archive {name}, {volumes}, {blocks} in {self.size} bytes>"

    def _repr_html_(self) -> str:
        """A notebook's view: the image and a table of its volumes."""
        blocks = self._container.head.blocks * BLOCK_SIZE
        ratio = f", {blocks / self.size:.1f} times smaller than its blocks" if blocks > self.size else ""
        facts = {
            "archive": self._container.name,
            "image": f"{self.image.image_id} {self.image.name or ''}",
            "created": self.image.creation_date,
            "architecture": self.image.architecture,
            "size": f"{sized(self.size)}{ratio}",
            "content id": self.content_id,
        }
        rows = []
        for volume in self.volumes:
            lost = sum(each.block_count for each in volume.lost_blocks)
            rows.append(
                (
                    volume.snapshot_id,
                    ", ".join(volume.device_names),
                    f"{volume.size // GIB:,} GiB",
                    f"{volume.blocks * BLOCK_SIZE / MIB:,.1f} MiB",
                    counted(lost, "block") if lost else "",
                )
            )
        return html_table(facts.items(), ("volume", "devices", "size", "in blocks", "lost"), rows)

    def close(self) -> None:
        """Close the file or connections that `open` opened."""
        self._container.close()

    def verify(
        self,
        *,
        quick: bool = False,
        expected_content_id: str | None = None,
        workers: int | None = None,
        executor: Executor | None = None,
        progress: ProgressOption = None,
    ) -> VerifyReport:
        """Read the whole archive and check every byte; `report.check()` raises the first finding.

        Args:
            quick: whether to check only records, index, the CRC-32 of each frame and that both views agree,
                and to decompress and hash no block. It excludes `expected_content_id`.
            expected_content_id: the content id that you kept elsewhere, 64 hexadecimal digits. Only this
                proves an archive that an attacker may have written.
            workers: the number of threads; None for the number of CPUs. With an executor, the number of
                orders that are out at once.
            executor: an executor whose workers open the archive and read its segments by themselves, as in
                `store`; None for threads of this process.
            progress: True for a bar (extra ``progress``), or a function that is called with a `Progress`
                after each segment.

        Returns:
            A report of what was checked and found. Damage raises no error here.

        Raises:
            InvalidRequestError: `expected_content_id` is malformed, or given with `quick`.
            BackendError: the archive could not be read.
        """
        check_flags(quick=quick)
        cluster = given_cluster(executor, workers, archive=self._container)
        with reporting(progress) as report:
            return verify(
                self._container,
                quick=quick,
                expected_content_id=expected_content_id,
                workers=workers,
                cluster=cluster,
                progress=report,
            )

    def extract(
        self,
        folder: str | os.PathLike[str],
        *,
        format: str = "raw",
        overwrite: bool = False,
        resume: bool = False,
        allow_lost: bool = False,
        expected_content_id: str | None = None,
        workers: int | None = None,
        progress: ProgressOption = None,
    ) -> list[Path]:
        """Write ``ami.json`` and each volume, as ``<snapshot id>.raw`` or ``.qcow2`` etc., into a folder.

        A volume with lost blocks becomes ``<snapshot id>.incomplete.raw``. Errors are those of
        `Volume.extract`. A link in the place of one of these files is refused.

        Args:
            folder: the path of the folder, which is made where it is missing and may be a link.
            format: as in `Volume.extract`.
            overwrite: whether to replace files that exist.
            resume: whether to resume what an interrupted call left; files that exist are proved.
            allow_lost: whether to extract volumes with lost blocks, too.
            expected_content_id: the only content id to accept, 64 hexadecimal digits; None for any. It is
                compared before anything is written, and each volume is proved before it appears.
            workers: the number of threads; None for the number of CPUs.
            progress: True for a bar (extra ``progress``), or a function that is called with a `Progress`
                after each segment.

        Returns:
            The paths of the disks, in the order of `volumes`.
        """
        check_flags(overwrite=overwrite, resume=resume, allow_lost=allow_lost)
        expected = parse_content_id(expected_content_id)
        root = check_path(folder, "folder")
        check_content_id(self._container.index.content_id, expected)
        with reporting(progress) as report, advising(), files.operation("extract"):
            how = Extraction(
                overwrite=overwrite,
                resume=resume,
                allow_lost=allow_lost,
                expected=expected,
                workers=workers,
                progress=report,
                format=format,
            )
            readers = [volume._reader for volume in self.volumes]
            return extract_all(encode_manifest(self.image), readers, root, how)

    def serve_nbd(
        self,
        *,
        path: str | os.PathLike[str] | None = None,
        port: int | None = None,
        workers: int | None = None,
    ) -> NBDServer:
        """Serve the disks by NBD, read-only, so that qemu reads or boots them without extracting them.

        Each volume is an export by the name of each of its devices, and by its snapshot id; the default
        export is the root device's. Holes and blocks of zeros are told as such, and never decompressed. What
        is damaged or lost is an input/output error to the client, logged once as a WARNING; nothing wrong is
        served. The archive must stay open.

        Args:
            path: the path of the Unix socket to make, which only this user may connect to; it is removed at
                the end. None for one in a new temporary folder.
            port: a port of 127.0.0.1 to serve on instead, to all users of the machine; 0 for a free one.
            workers: the number of threads that read ahead for each client; None for the number of CPUs.

        Returns:
            A context manager, whose block the disks are served in.

        Raises:
            InvalidRequestError: the arguments do not go together, or the path is too long for a socket.
            AlreadyExistsError: (as the block is entered) the path exists.
            BackendError: (as the block is entered) the socket cannot be made, or the port is in use.
        """
        exports = {}
        with contextlib.suppress(NotFoundError):
            exports[""] = self.root_volume._reader
        for volume in self.volumes:
            for name in (*volume.device_names, volume.snapshot_id):
                exports[name] = volume._reader
        return NBDServer(exports, path=path, port=port, workers=workers)

    def compare(
        self,
        after: Archive | Openable | BlockSource,
        *,
        snapshots: Mapping[str, str] | Image | None = None,
        expected_content_id: str | None = None,
        workers: int | None = None,
        executor: Executor | None = None,
        progress: ProgressOption = None,
    ) -> Difference:
        """Compare this archive with another, or with live snapshots. Nothing is decompressed.

        Of archives only descriptors are read, and none of volumes with equal content ids: verify first what
        you do not trust. Of live snapshots each listed block is read. Volumes are paired by device name, the
        remaining ones by snapshot id.

        Args:
            after: the other side: an opened archive, what `open` takes, or the source of live snapshots.
            snapshots: for a source, a mapping of archived snapshots' ids to live ones, or an image that was
                restored from the archive, whose devices are matched; None for the same ids.
            expected_content_id: the only content id to accept for this archive, 64 hexadecimal digits; None
                for any. The compared digests are proved to be those that it stands for.
            workers: the number of threads; None for the number of CPUs. With an executor, the number of
                orders that are out at once.
            executor: an executor whose workers read the live snapshots by themselves, as in `store`; None for
                threads of this process. Of archives so little is read that it is done here.
            progress: True for a bar (extra ``progress``), or a function that is called with a `Progress`
                now and then.

        Raises:
            NotFoundError: a snapshot does not exist.
            CorruptArchiveError: this archive's content id is another, or a needed part of either is damaged.
            InvalidRequestError: `snapshots` names one that is not the archive's, its image lacks one of the
                archive's devices, or `after` is an archive.
        """
        check_content_id(self._container.index.content_id, parse_content_id(expected_content_id))
        with contextlib.ExitStack() as stack:
            report = stack.enter_context(reporting(progress))
            if isinstance(after, (BlockSource, Backend)):
                check_kind(after, BlockSource, "source")
                cluster = given_cluster(executor, workers, source=after)
                return compare_live(self.image, self.volumes, after, snapshots, workers, cluster, report)
            if snapshots is not None:
                raise InvalidRequestError("snapshots= goes with a source of live snapshots only")
            other = after if isinstance(after, Archive) else stack.enter_context(open_archive(after))
            return compare_stored((self.image, self.volumes), (other.image, other.volumes), workers, report)
