"""What is checked before there is a task: `StoreRequest` and `RestoreRequest` have broken no rule.

What the journal alone can tell, the quota of what is in progress and tasks that make the same,
is checked by `Journal.add`. Next: `requests.py` has the rules of parameters, `engine.py` makes
tasks of what is given here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from amistore.archive.reader import ContainerFile
from amistore.backends import Backend
from amistore.backends.checks import check_flag
from amistore.backends.objects import ObjectRanges
from amistore.container.identity import check_content_id, parse_content_id
from amistore.errors import AlreadyExistsError, NotFoundError
from amistore.model import Image, Tag
from amistore.objects.registration import refuse_unregistrable, restorable_image
from amistore.pipeline.foreign import foreign_errors
from amistore.tasks.metadata import REGION_KEY
from amistore.tasks.quotas import Quotas
from amistore.tasks.record import VolumeRecord
from amistore.tasks.requests import check_image_id, needed, object_place, object_tags, split_tags
from amistore.tasks.restored import described_later
from amistore.tasks.task import TagSpecification
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["RestoreRequest", "StoreRequest"]


@attrs.frozen(kw_only=True)
class StoreRequest:
    """An AMI that can be stored, and where.

    Attributes:
        image: as it is described now.
        bucket: it goes to.
        object_key: of its object.
        volumes: its snapshots, each once.
        tags: of the object.
    """

    image: Image
    bucket: str
    object_key: str
    volumes: tuple[VolumeRecord, ...]
    tags: Mapping[str, str]

    @classmethod
    def of(
        cls,
        backend: Backend,
        quotas: Quotas,
        *,
        image_id: str,
        bucket: str,
        s3_object_tags: Iterable[Tag] | Mapping[str, str],
    ) -> StoreRequest:
        """Check what was asked for; see `TaskEngine.create_store_image_task`."""
        check_image_id(image_id)
        name, key = object_place(bucket, image_id)
        tags = object_tags(s3_object_tags)
        with foreign_errors("describe_image", image_id=image_id):
            image = backend.ec2.describe_image(image_id)
            backend.preflight(image)
        volumes = tuple(_volume(backend, image, snapshot_id) for snapshot_id in image.snapshot_ids)
        quotas.check_image(image_id, _size(volumes))
        with foreign_errors("head_object", bucket=name, key=key):
            backend.s3.head_bucket(name)
            with contextlib.suppress(NotFoundError):
                backend.s3.head_object(name, key)
                raise AlreadyExistsError(
                    "the AMI is stored there already: delete the object, or give bucket/prefix",
                    bucket=name,
                    key=key,
                )
        return cls(image=image, bucket=name, object_key=key, volumes=volumes, tags=tags)

    def columns(self) -> dict[str, Any]:
        """What it says of a `TaskRecord`."""
        return {
            "kind": "store",
            "image_id": self.image.image_id,
            "source_image_id": None,
            "name": None,
            "bucket": self.bucket,
            "object_key": self.object_key,
            "size": self.size,
            "request": {"object_tags": self.tags},
            "volumes": self.volumes,
        }

    @property
    def size(self) -> int:
        """GiB of the volumes."""
        return _size(self.volumes)


def _size(volumes: Iterable[VolumeRecord]) -> int:
    return sum(volume.size for volume in volumes)


def _volume(backend: Backend, image: Image, snapshot_id: str) -> VolumeRecord:
    size = image.snapshot(snapshot_id).volume_size
    if size is None:
        with foreign_errors("list_snapshot_blocks", snapshot_id=snapshot_id):
            size = backend.ebs.list_snapshot_blocks(snapshot_id).volume_size
    return VolumeRecord(stored_id=snapshot_id, size=size)


@attrs.frozen(kw_only=True)
class RestoreRequest:
    """An archive that can be restored, and as what.

    Attributes:
        stored: the archive, its end checked.
        restorable: its image, without mappings whose snapshots are not in the archive.
        region: where the AMI was that it was made of; None where that is not known.
        bucket: the bucket that holds the object.
        object_key: of its object.
        name: of the new AMI.
        size: GiB of its snapshots.
        image_tags: of the new AMI, over those that were stored.
        snapshot_tags: of each of its snapshots, likewise.
        fill_holes: put zeros for blocks that they do not list.
        allow_lost: restore snapshots with lost blocks too.
    """

    stored: ContainerFile
    restorable: Image
    region: str | None
    bucket: str
    object_key: str
    name: str
    size: int
    image_tags: tuple[Tag, ...]
    snapshot_tags: tuple[Tag, ...]
    fill_holes: bool
    allow_lost: bool

    @classmethod
    def of(
        cls,
        backend: Backend,
        quotas: Quotas,
        *,
        bucket: str,
        object_key: str,
        name: str | None,
        tag_specifications: Iterable[TagSpecification],
        fill_holes: bool,
        allow_lost: bool,
        expected_content_id: str | None,
    ) -> RestoreRequest:
        """Check what was asked for; see `TaskEngine.create_restore_image_task`."""
        expected = parse_content_id(expected_content_id)
        check_flag(fill_holes, "fill_holes")
        check_flag(allow_lost, "allow_lost")
        needed(bucket, "a bucket's name")
        needed(object_key, "an object's key")
        image_tags, snapshot_tags = split_tags(tag_specifications)
        with foreign_errors("head_object", bucket=bucket, key=object_key):
            backend.s3.head_bucket(bucket)
            ranges = ObjectRanges(backend.s3, bucket, object_key)
            stored = ContainerFile(ranges)
        # A claim so far: the task's run proves that what it restores is of this id.
        check_content_id(stored.index.content_id, expected)
        restorable = restorable_image(stored)
        size = sum(volume.size // GIB for volume in stored.index.volumes)
        quotas.check_image(stored.image.image_id, size)
        chosen = refuse_unregistrable(backend, restorable, name)
        return cls(
            stored=stored,
            restorable=restorable,
            region=ranges.metadata.get(REGION_KEY),
            bucket=bucket,
            object_key=object_key,
            name=chosen,
            size=size,
            image_tags=image_tags,
            snapshot_tags=snapshot_tags,
            fill_holes=fill_holes,
            allow_lost=allow_lost,
        )

    @property
    def holes(self) -> dict[str, int]:
        """Blocks that are neither listed nor lost, by the stored snapshots' ids."""
        image = self.stored.image
        return {
            volume.snapshot_id: volume.size // BLOCK_SIZE
            - volume.blocks
            - sum(lost.block_count for lost in image.snapshot(volume.snapshot_id).lost_blocks)
            for volume in self.stored.index.volumes
        }

    def columns(self) -> dict[str, Any]:
        """What it says of a `TaskRecord`."""
        holes = self.holes
        return {
            "kind": "restore",
            "image_id": None,
            "source_image_id": self.stored.image.image_id,
            "name": self.name,
            "bucket": self.bucket,
            "object_key": self.object_key,
            "size": self.size,
            "request": {
                "image_tags": {tag.key: tag.value for tag in self.image_tags},
                "snapshot_tags": {tag.key: tag.value for tag in self.snapshot_tags},
                "fill_holes": self.fill_holes,
                "allow_lost": self.allow_lost,
                "region": self.region,
                "image": described_later(self.stored.image),
            },
            "volumes": tuple(
                VolumeRecord(
                    stored_id=volume.snapshot_id,
                    size=volume.size // GIB,
                    blocks=volume.blocks,
                    filled=holes[volume.snapshot_id] if self.fill_holes else 0,
                )
                for volume in self.stored.index.volumes
            ),
            "content_id": self.stored.index.content_id.hex(),
        }
