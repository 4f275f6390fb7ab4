"""The metadata of an AMI: `Image`, its mappings, snapshots and tags; and the manifest, `ami.json`.

The fields are those of EC2's DescribeImages, DescribeImageAttribute (UEFI data) and
DescribeSnapshots, in Python spelling; the API reference gives their meaning. Values are
frozen and valid from birth. Imports `fields`, `errors` and `text` only.

The manifest is an `Image` as canonical JSON: UTF-8, keys sorted, two spaces of indent, a final newline, no
floats that JSON cannot repeat. A reader re-encodes what it read and refuses a difference, which also refuses
duplicate keys.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from amistore.errors import CorruptArchiveError, InvalidValueError, UnsupportedArchiveError
from amistore.model import fields
from amistore.text import html_table

__all__ = [
    "MANIFEST_VERSION",
    "BlockDeviceMapping",
    "BlockRange",
    "EbsBlockDevice",
    "Image",
    "ProductCode",
    "Snapshot",
    "Tag",
    "decode_manifest",
    "encode_manifest",
]


@attrs.frozen(kw_only=True)
class Tag:
    """A tag of an image or a snapshot. Tags with an ``aws:`` key are kept in an archive too."""

    key: str = fields.text(required=True)
    value: str | None = fields.text(default="")
    extra: Mapping[str, Any] = fields.extra()


@attrs.frozen(kw_only=True)
class ProductCode:
    """A product code; RegisterImage cannot set those of the Marketplace."""

    product_code_id: str = fields.text(required=True)
    product_code_type: str | None = fields.text()
    extra: Mapping[str, Any] = fields.extra()


@attrs.frozen(kw_only=True)
class EbsBlockDevice:
    """The EBS side of a mapping.

    `volume_size` (GiB) is the size of volumes launched from it. It may exceed the snapshot's
    and is metadata only: the archive holds the snapshot.
    """

    snapshot_id: str | None = fields.identifier("snap")
    volume_size: int | None = fields.integer(least=1)
    volume_type: str | None = fields.text()
    iops: int | None = fields.integer()
    throughput: int | None = fields.integer()
    delete_on_termination: bool | None = fields.boolean()
    encrypted: bool | None = fields.boolean()
    kms_key_id: str | None = fields.text()
    outpost_arn: str | None = fields.text()
    extra: Mapping[str, Any] = fields.extra()


@attrs.frozen(kw_only=True)
class BlockDeviceMapping:
    """One device of an image: an EBS volume, an ephemeral disk, or none."""

    device_name: str = fields.text(required=True)
    virtual_name: str | None = fields.text()
    no_device: str | None = fields.text()
    ebs: EbsBlockDevice | None = fields.one(EbsBlockDevice)
    extra: Mapping[str, Any] = fields.extra()


@attrs.frozen(kw_only=True)
class BlockRange:
    """Consecutive blocks of 524,288 bytes of a volume."""

    first_block: int = fields.integer(required=True, most=2**53)
    block_count: int = fields.integer(required=True, least=1, most=2**53)
    extra: Mapping[str, Any] = fields.extra()

    @property
    def end(self) -> int:
        """One past its last block."""
        return self.first_block + self.block_count


# As EC2 writes it; `fromisoformat` alone takes other forms in newer versions of Python.
_DATE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"
)


@attrs.frozen(kw_only=True)
class Snapshot:
    """A snapshot, as DescribeSnapshots describes it.

    `volume_size` is in GiB. `state` (``pending``, ``completed``, ``error``) is a fact of the
    moment: it takes no part in comparisons and is not stored. `lost_blocks` is ours: blocks
    that could not be recovered from a damaged archive; their content is unknown.
    """

    snapshot_id: str = fields.identifier("snap", required=True)
    volume_size: int | None = fields.integer(least=1)
    description: str | None = fields.text()
    owner_id: str | None = fields.text()
    start_time: str | None = fields.text()
    encrypted: bool | None = fields.boolean()
    kms_key_id: str | None = fields.text()
    volume_id: str | None = fields.text()
    storage_tier: str | None = fields.text()
    lost_blocks: tuple[BlockRange, ...] = fields.many(BlockRange, key="first_block")
    tags: tuple[Tag, ...] = fields.many(Tag, key="key")
    state: str = fields.state("completed")
    extra: Mapping[str, Any] = fields.extra()


@attrs.frozen(kw_only=True)
class Image:
    """An Amazon Machine Image: all its metadata, without its blocks.

    Mappings are kept in the order of their device names, tags of their keys. `snapshots`
    describes the snapshots that the mappings name. `state` (``pending``, ``available``,
    ``failed``) is a fact of the moment: it takes no part in comparisons and is not stored.

    Raises:
        InvalidValueError: a value breaks a rule; the error names field and value.
    """

    image_id: str = fields.identifier("ami", required=True)
    name: str | None = fields.text()
    description: str | None = fields.text()
    architecture: str | None = fields.text()
    creation_date: str | None = fields.text()
    owner_id: str | None = fields.text()
    image_owner_alias: str | None = fields.text()
    image_location: str | None = fields.text()
    image_type: str | None = fields.text()
    kernel_id: str | None = fields.text()
    ramdisk_id: str | None = fields.text()
    platform: str | None = fields.text()
    platform_details: str | None = fields.text()
    usage_operation: str | None = fields.text()
    hypervisor: str | None = fields.text()
    virtualization_type: str | None = fields.text()
    root_device_name: str | None = fields.text()
    root_device_type: str | None = fields.text()
    ena_support: bool | None = fields.boolean()
    sriov_net_support: str | None = fields.text()
    boot_mode: str | None = fields.text()
    tpm_support: str | None = fields.text()
    imds_support: str | None = fields.text()
    uefi_data: str | None = fields.text()
    deprecation_time: str | None = fields.text()
    deregistration_protection: str | None = fields.text()
    source_image_id: str | None = fields.text()
    source_image_region: str | None = fields.text()
    source_instance_id: str | None = fields.text()
    product_codes: tuple[ProductCode, ...] = fields.many(ProductCode, key="product_code_id")
    block_device_mappings: tuple[BlockDeviceMapping, ...] = fields.many(BlockDeviceMapping, key="device_name")
    snapshots: tuple[Snapshot, ...] = fields.many(Snapshot, key="snapshot_id")
    tags: tuple[Tag, ...] = fields.many(Tag, key="key")
    state: str = fields.state("available")
    extra: Mapping[str, Any] = fields.extra()

    def _repr_html_(self) -> str:
        """What a notebook shows: what it is called, and a table of its mappings."""
        facts = {
            "image": f"{self.image_id} {self.name or ''}",
            "description": self.description,
            "created": self.creation_date,
            "architecture": self.architecture,
            "platform": self.platform_details or self.platform,
            "boot mode": self.boot_mode,
            "root device": self.root_device_name,
            "tags": ", ".join(f"{tag.key}={tag.value or ''}" for tag in self.tags),
        }
        rows = []
        for mapping in self.block_device_mappings:
            ebs = mapping.ebs or EbsBlockDevice()
            snapshot_id = ebs.snapshot_id or mapping.virtual_name or ""
            size = self.snapshot(ebs.snapshot_id).volume_size if ebs.snapshot_id else ebs.volume_size
            told = f"{size:,} GiB" if size else ""
            encrypted = "" if ebs.encrypted is None else "yes" if ebs.encrypted else "no"
            rows.append((mapping.device_name, snapshot_id, told, ebs.volume_type or "", encrypted))
        return html_table(facts.items(), ("device", "snapshot", "size", "type", "encrypted"), rows)

    @property
    def snapshot_ids(self) -> tuple[str, ...]:
        """The distinct snapshots that the mappings name, in their order in an archive: sorted.

        Those of another image, such as a restored one, do not pair up with them one by one.
        """
        named = {
            mapping.ebs.snapshot_id
            for mapping in self.block_device_mappings
            if mapping.ebs is not None and mapping.ebs.snapshot_id is not None
        }
        return tuple(sorted(named))

    @property
    def root_mapping(self) -> BlockDeviceMapping | None:
        """The mapping of the root device; None where it is not known.

        AMIs exist whose root device name is no mapping's: ``/dev/sda1`` beside a mapping of
        ``/dev/sda``. EC2 launches them from that volume (hashicorp/terraform pull request 2271), so
        where no name is equal, a name that differs by ``/dev/`` or by the number of a partition is
        the same device, if it is that of one snapshot only. ``/dev/sda1`` and ``/dev/xvda`` are two.
        """
        if self.root_device_name is None:
            return None
        device = self.root_device_name.removeprefix("/dev/")
        alike = []
        for mapping in self.block_device_mappings:
            if mapping.device_name == self.root_device_name:
                return mapping
            other = mapping.device_name.removeprefix("/dev/")
            same = device in (other, other.rstrip("0123456789")) or device.rstrip("0123456789") == other
            if same and mapping.ebs is not None and mapping.ebs.snapshot_id is not None:
                alike.append(mapping)
        return alike[0] if len(alike) == 1 else None

    @property
    def lost_blocks(self) -> bool:
        """Whether any of its snapshots has lost blocks."""
        return any(snapshot.lost_blocks for snapshot in self.snapshots)

    @property
    def creation_time(self) -> int:
        """`creation_date` in seconds since 1970, or 0 where it is absent or no date of EC2's form.

        Never above what a tar header's eleven octal digits hold.
        """
        date = _DATE.fullmatch(self.creation_date or "")
        if date is None:
            return 0
        try:
            moment = datetime.datetime.fromisoformat(date[1] + date[2].replace("Z", "+00:00"))
        except ValueError:
            return 0
        return min(max(int(moment.timestamp()), 0), 8**11 - 1)

    def device_names(self, snapshot_id: str) -> tuple[str, ...]:
        """The names of a snapshot's devices, in the order of the mappings."""
        return tuple(
            mapping.device_name
            for mapping in self.block_device_mappings
            if mapping.ebs is not None and mapping.ebs.snapshot_id == snapshot_id
        )

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """The description of one of its snapshots; only the id where nothing more is known."""
        for snapshot in self.snapshots:
            if snapshot.snapshot_id == snapshot_id:
                return snapshot
        return Snapshot(snapshot_id=snapshot_id)

    def with_tags(self, tags: Iterable[Tag] = (), *, snapshot_tags: Iterable[Tag] = ()) -> Image:
        """The same image with tags set over its own, and the same on every snapshot over theirs."""
        snapshots, over = self.snapshots, tuple(snapshot_tags)
        if over:
            described = (self.snapshot(snapshot_id) for snapshot_id in self.snapshot_ids)
            snapshots = tuple(attrs.evolve(each, tags=_merged(each.tags, over)) for each in described)
        return attrs.evolve(self, tags=_merged(self.tags, tags), snapshots=snapshots)

    def with_snapshots(self, restored: Mapping[str, str]) -> Image:
        """The same image on other snapshots: `restored` gives new ids for old ones.

        Mappings whose snapshot is not in `restored` are left out.
        """
        mappings = []
        for mapping in self.block_device_mappings:
            if mapping.ebs is not None and mapping.ebs.snapshot_id is not None:
                if mapping.ebs.snapshot_id not in restored:
                    continue
                ebs = attrs.evolve(mapping.ebs, snapshot_id=restored[mapping.ebs.snapshot_id])
                mapping = attrs.evolve(mapping, ebs=ebs)
            mappings.append(mapping)
        snapshots = tuple(
            attrs.evolve(snapshot, snapshot_id=restored[snapshot.snapshot_id])
            for snapshot in self.snapshots
            if snapshot.snapshot_id in restored
        )
        return attrs.evolve(self, block_device_mappings=tuple(mappings), snapshots=snapshots)


def _merged(tags: Iterable[Tag], over: Iterable[Tag]) -> tuple[Tag, ...]:
    merged = (*tags, *over)
    for tag in merged:
        if not isinstance(tag, Tag):
            raise InvalidValueError(
                f"tags are a list of amistore.Tag, not of {tag!r:.80}", field="tags", value=tag
            )
    return tuple({tag.key: tag for tag in merged}.values())


MANIFEST_VERSION = "1.0"
"""Major and minor: a reader takes any minor version of its major, and keeps what is new."""

MAX_ELEMENTS = 2**17
"""Most braces, brackets and commas of a manifest: each costs a reader some hundred bytes of memory."""

_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(?:0|[1-9][0-9]{0,8})")


def encode_manifest(image: Image) -> bytes:
    """An image as the bytes of `ami.json`.

    Raises:
        InvalidValueError: `extra` holds a ManifestVersion that is not a newer minor one.
    """
    newer = image.extra.get("ManifestVersion")
    if "ManifestVersion" in image.extra and (newer == MANIFEST_VERSION or not _is_ours(newer)):
        raise InvalidValueError(
            f"Image.extra holds the ManifestVersion {newer!r}", field="Image.extra", value=newer
        )
    members = {"ManifestVersion": MANIFEST_VERSION, **fields.to_wire(image)}
    document = json.dumps(members, ensure_ascii=False, sort_keys=True, indent=2, allow_nan=False)
    manifest = document.encode() + b"\n"
    if _elements(manifest) > MAX_ELEMENTS:
        raise InvalidValueError(
            f"the image's metadata has more than {MAX_ELEMENTS} members and items", field="Image"
        )
    return manifest


def decode_manifest(manifest: bytes) -> Image:
    """The image that `ami.json` describes, lossless for every minor version.

    Raises:
        CorruptArchiveError: not canonical, or a member breaks a rule of its field.
        UnsupportedArchiveError: another major version.
    """
    if _elements(manifest) > MAX_ELEMENTS:  # before anything is made of them
        raise CorruptArchiveError(
            f"the manifest has more than {MAX_ELEMENTS} members and items", record="manifest"
        )
    try:
        members: Any = json.loads(manifest.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptArchiveError(f"the manifest is not JSON: {error}", record="manifest") from None
    if not isinstance(members, dict):
        raise CorruptArchiveError("the manifest is not a JSON object", record="manifest")
    version = members.get("ManifestVersion")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise CorruptArchiveError("the manifest has no ManifestVersion", record="manifest")
    if not _is_ours(version):
        raise UnsupportedArchiveError(
            f"the manifest's version is {version}, not {MANIFEST_VERSION}: install a newer amistore",
            record="manifest",
        )
    if version == MANIFEST_VERSION:
        del members["ManifestVersion"]  # a newer minor stays, in `extra`, to be written back
    try:
        image = fields.from_wire(Image, members)
        canonical = encode_manifest(image) == manifest
    except InvalidValueError as error:
        raise CorruptArchiveError(f"the manifest is invalid: {error}", record="manifest") from None
    if not canonical:
        raise CorruptArchiveError("the manifest is not canonical JSON", record="manifest")
    return image


def _elements(manifest: bytes) -> int:
    return sum(map(manifest.count, (b"{", b"[", b",")))


def _is_ours(version: object) -> bool:
    found = _VERSION.fullmatch(version) if isinstance(version, str) else None
    return found is not None and found[1] == MANIFEST_VERSION.split(".", maxsplit=1)[0]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
