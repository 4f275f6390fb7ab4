"""`import_disks`: disks become an AMI; `import_snapshot`: one becomes a snapshot."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from amistore.backends import Backend, BlockPage, BlockSink, BlockSource, SnapshotBlock
from amistore.backends.base import check_backend
from amistore.backends.checks import check_kind
from amistore.container.layout import MAX_VOLUMES, Layout
from amistore.disks.source import DiskSource
from amistore.disks.streaming import DiskStream, put_stream
from amistore.errors import InvalidRequestError, SourceChangedError
from amistore.model import BlockDeviceMapping, EbsBlockDevice, Image, Snapshot, Tag
from amistore.objects.relay import relay_snapshots
from amistore.objects.restore import RestoredImage, RestoreJob, warn_of_dropped
from amistore.objects.restorelog import RestoreLog
from amistore.objects.resumelog import ResumeLog, using_log
from amistore.pipeline.pack import plan_pack
from amistore.pipeline.progress import ProgressCallback, ProgressOption, reporting
from amistore.pipeline.snapshots import RestorePolicy
from amistore.text import printable

__all__ = ["GivenDisk", "import_disks", "import_snapshot"]

_logger = logging.getLogger("amistore")

GivenDisk = str | os.PathLike[str] | DiskSource
"""A disk: the path of a raw image or of a block device, or a source with its own options."""

_ROOT: Final = "/dev/xvda"
_USUAL: Final[Mapping[str, Any]] = {
    "architecture": "x86_64",
    "virtualization_type": "hvm",
    "root_device_type": "ebs",
    "ena_support": True,
}
_IMAGE_ID: Final = f"ami-{0:017x}"  # until it has one
# Of a plan whose container nobody makes: small segments begin soonest. A huge disk has none too many.
_SMALL: Final = Layout(blocks_per_segment=32)
_LONGEST: Final = 255  # characters of a description (EBS direct APIs, StartSnapshot)
_HUGE: Final = 32 * 1024  # GiB


def import_disks(
    disks: GivenDisk | Mapping[str, GivenDisk],
    backend: Backend,
    *,
    name: str,
    image_tags: Iterable[Tag] = (),
    snapshot_tags: Iterable[Tag] = (),
    fill_holes: bool = False,
    log: ResumeLog | str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: ProgressOption = None,
    **attributes: Any,
) -> RestoredImage:
    """Make an AMI of disks that nobody writes to meanwhile.

    The blocks go straight to the backend: nothing is copied on a disk or compressed. Drivers and boot loaders
    stay as they are: a system of another hypervisor may lack those for EC2's network and NVMe disks, which
    EC2's ImportImage adds and this does not.

    Without `fill_holes`, a warning says that holes will read as noise where the new snapshots are encrypted.

    Args:
        disks: the disks by their device names, the root device first; one alone is the root device. A path
            stands for `DiskSource(path)`.
        backend: the backend that gets the AMI.
        name: the AMI's name.
        image_tags: the tags to set on the AMI.
        snapshot_tags: the tags to set on its snapshots.
        fill_holes: whether to put a block of zeros for each hole, as in `unpack`.
        log: a path, or a log, from which a failed or killed call is resumed: every disk is read again and
            compared with the log, and blocks that were put are not put again. `abandon` ends it.
        workers: the number of segments worked on at once; None for the number of CPUs.
        progress: True for a bar (extra ``progress``), or a function called with a `Progress`.
        **attributes: the further fields of `Image`, such as ``architecture="arm64"`` or
            ``boot_mode="uefi"``; ``block_device_mappings`` without snapshots are added to those of
            the disks.

    Returns:
        The new AMI, and the content id that an archive of these disks would have.

    Raises:
        InvalidValueError: the name or an attribute breaks a rule.
        InvalidRequestError: a disk is empty, larger than any volume, in use, or has another format; the log
            belongs to another job.
        SourceChangedError: a disk was written to, during this call or since the resumed one.
        AlreadyExistsError: the name is taken.
        AccessDeniedError: registering would be refused; raised before anything is made.
        BackendError: a disk cannot be read, or the backend failed. Without a log, nothing is left behind.
    """
    check_backend(backend, "backend")
    policy = RestorePolicy(tags=tuple(snapshot_tags), fill_holes=fill_holes)
    with reporting(progress) as report, using_log(log) as opened, contextlib.ExitStack() as stack:
        if not isinstance(disks, Mapping):
            disks = {attributes.get("root_device_name", _ROOT): disks}
        sources = _Disks(stack, disks.values())
        image = _image(list(disks), sources, {**attributes, "name": name})  # refused before a disk is read
        job = RestoreJob(backend=backend, image_tags=tuple(image_tags), policy=policy)
        if opened is None or not opened.entries():
            job.admit(image)
        else:
            job.admit_again(image, opened)
        warn_of_dropped(backend, image, name)
        restored, content_id = _relay(image, sources, backend.ebs, policy, opened, workers, report)
        return job.register(restored, None, None, content_id.hex(), opened)


def import_snapshot(
    disk: GivenDisk | DiskStream,
    sink: BlockSink,
    *,
    description: str | None = None,
    tags: Iterable[Tag] = (),
    fill_holes: bool = False,
    log: ResumeLog | str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: ProgressOption = None,
) -> str:
    """Make a snapshot of a disk that nobody writes to meanwhile.

    Args:
        disk: the disk, as in `import_disks`, or a `DiskStream`, without `log`.
        sink: the sink that gets the snapshot, such as ``backend.ebs``.
        description: the snapshot's description; None for one with the disk's name.
        tags: the tags to set on the snapshot.
        fill_holes: as in `import_disks`.
        log: as in `import_disks`.
        workers: as in `import_disks`.
        progress: as in `import_disks`.

    Returns:
        The new snapshot's id.

    Raises:
        AmistoreError: as in `import_disks`.
    """
    check_kind(sink, BlockSink, "sink")
    policy = RestorePolicy(tags=tuple(tags), fill_holes=fill_holes)
    if isinstance(disk, DiskStream):
        if log is not None:
            raise InvalidRequestError("log= does not go with a stream, which can be read only once")
        with reporting(progress) as report:
            return put_stream(
                disk,
                sink,
                description=_description(disk.name) if description is None else description,
                tags=policy.tags,
                fill_holes=fill_holes,
                workers=workers,
                progress=report,
            )
    with reporting(progress) as report, using_log(log) as opened, contextlib.ExitStack() as stack:
        sources = _Disks(stack, [disk])
        image = _image([_ROOT], sources, {})
        if description is not None:
            (known,) = image.snapshots
            image = attrs.evolve(image, snapshots=(attrs.evolve(known, description=description),))
        restored, _ = _relay(image, sources, sink, policy, opened, workers, report)
        if opened is not None:
            opened.end()
        return restored.snapshot_ids[0]


class _Disks(BlockSource):
    """Several disks as one source, each under a snapshot id by its place.

    Args:
        closing: closes what is opened here.
        given: the disks.
    """

    def __init__(self, closing: contextlib.ExitStack, given: Iterable[GivenDisk]) -> None:
        self.disks: dict[str, DiskSource] = {}
        for number, each in enumerate(given):
            source = each if isinstance(each, DiskSource) else closing.enter_context(DiskSource(each))
            self.disks[f"snap-{number:017x}"] = source
        if not 1 <= len(self.disks) <= MAX_VOLUMES:
            raise InvalidRequestError(f"an image has 1 to {MAX_VOLUMES} disks, not {len(self.disks)}")
        if len({id(source) for source in self.disks.values()}) < len(self.disks):
            raise InvalidRequestError("a disk was given twice: give each device a source of its own")

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        disk = self.disks[snapshot_id]
        return disk.list_snapshot_blocks(disk.snapshot_id, next_token=next_token)

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        disk = self.disks[snapshot_id]
        return disk.get_snapshot_block(disk.snapshot_id, block_index, block_token)

    def check(self) -> None:
        """Refuse disks of which one has changed: those that were read first, too."""
        for disk in self.disks.values():
            disk.check()


def _image(devices: Sequence[str], sources: _Disks, members: Mapping[str, Any]) -> Image:
    """The image of disks, under ids that it has until it is registered."""
    others = tuple(members.get("block_device_mappings", ()))
    for mapping in others:
        ebs = mapping.ebs if isinstance(mapping, BlockDeviceMapping) else None
        if ebs is not None and ebs.snapshot_id is not None:
            raise InvalidRequestError(
                f"{mapping.device_name} is on {ebs.snapshot_id}: only mappings without a snapshot can be "
                "added; give its disk instead, or register the image yourself"
            )
    mappings = [
        BlockDeviceMapping(
            device_name=device,
            ebs=EbsBlockDevice(snapshot_id=snapshot_id, delete_on_termination=True),
        )
        for device, snapshot_id in zip(devices, sources.disks, strict=True)
    ]
    snapshots = [
        Snapshot(
            snapshot_id=snapshot_id,
            description=_description(disk.path.name),
        )
        for snapshot_id, disk in sources.disks.items()
    ]
    return Image(
        **{
            **_USUAL,
            "image_id": _IMAGE_ID,
            "root_device_name": devices[0],
            **members,
            "block_device_mappings": (*others, *mappings),
            "snapshots": tuple(snapshots),
        }
    )


def _description(name: str) -> str:
    return f"Imported from {printable(name)}"[:_LONGEST]


def _relay(
    image: Image,
    sources: _Disks,
    sink: BlockSink,
    policy: RestorePolicy,
    log: ResumeLog | None,
    workers: int | None,
    progress: ProgressCallback,
) -> tuple[Image, bytes]:
    """Put all blocks, as far as earlier runs have not, and complete the snapshots."""
    sized = [
        attrs.evolve(known, volume_size=sources.disks[known.snapshot_id].volume_size)
        for known in image.snapshots
    ]
    image = attrs.evolve(image, snapshots=tuple(sized))
    huge = sum(disk.volume_size for disk in sources.disks.values()) > _HUGE
    planned = plan_pack(image, sources, progress=progress, layout=None if huge else _SMALL)
    identity = {
        "sink": sink.where,
        "disks": planned.file_id.hex(),
        "fill_holes": policy.fill_holes,
        "tags": {tag.key: tag.value for tag in policy.tags} or None,
    }
    changed = SourceChangedError(
        "the disks, or what is asked for, are not those of this log's run: amistore.abandon ends that run"
    )
    journal = RestoreLog(log, "import", identity, {"disks": changed})
    made = relay_snapshots(
        planned,
        sources,
        sink,
        policy,
        log=journal,
        whole=sources.check,
        workers=workers,
        progress=progress,
    )
    for disk in sources.disks.values():
        disk.log_zeros()
    return made
