"""RegisterImage: what makes an image, and what is refused.

The rules are those of the EC2 API reference: RegisterImage, EbsBlockDevice, BlockDeviceMapping.
The codes are published ones ("Error codes"), but which of them goes with which refusal is
mostly our choice.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.describing import check_tags, visible_snapshot
from amistore.testing.aws.records import Credential, Image, Snapshot
from amistore.wire.errors import wrong
from amistore.wire.members import OPERATIONS, xml_name
from amistore.wire.query import required

__all__ = ["given_mapping", "new_image"]

AS_THEY_ARE = (
    "BootMode",
    "EnaSupport",
    "ImdsSupport",
    "KernelId",
    "RamdiskId",
    "SriovNetSupport",
    "TpmSupport",
)
NAME = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")
CHOICES = {
    "Architecture": ("i386", "x86_64", "arm64", "x86_64_mac", "arm64_mac"),
    "VirtualizationType": ("hvm", "paravirtual"),
    "BootMode": ("legacy-bios", "uefi", "uefi-preferred"),
    "TpmSupport": ("v2.0",),
    "ImdsSupport": ("v2.0",),
    "SriovNetSupport": ("simple",),
}
SIZES = {
    "gp2": (1, 16_384),
    "gp3": (1, 65_536),
    "io1": (4, 16_384),
    "io2": (4, 65_536),
    "st1": (125, 16_384),
    "sc1": (125, 16_384),
    "standard": (1, 1024),
}
"""GiB in a volume of each type."""
IOPS = {"gp3": (3000, 80_000), "io1": (100, 64_000), "io2": (100, 256_000)}
THROUGHPUT = (125, 2000)
INITIALIZATION = (100, 300)


def new_image(cloud: Cloud, values: Mapping[str, Any], caller: Credential) -> Image:
    """The image that a request describes, put into the account.

    Raises:
        ServiceError: the request is not one that EC2 carries out.
    """
    name = values["Name"]
    if NAME.fullmatch(name) is None:
        allowed = "letters, numbers, '(', ')', '[', ']', ' ', '.', '/', '-', ''', '@' and '_'"
        message = f"AMI names must be between 3 and 128 characters long, and may contain {allowed}"
        raise wrong(message, "InvalidAMIName.Malformed")
    for member, choices in CHOICES.items():
        if values.get(member, choices[0]) not in choices:
            raise wrong(f"Value ({values[member]}) for parameter {member} is invalid. Expected: {choices}.")
    if len(values.get("Description", "")) > 255:
        raise wrong("The description is longer than 255 characters.")
    if values.get("BillingProducts"):
        raise wrong("The account is not authorized to specify billing product codes.", "AuthFailure", 403)
    if "ImageLocation" in values:
        raise wrong("Instance store-backed AMIs are not supported here.", "UnsupportedOperation")
    check_platform(values)
    asked = required(values, "BlockDeviceMappings", "BlockDeviceMapping")
    mappings = [mapping(cloud, item, caller) for item in asked]
    devices = [item["deviceName"] for item in mappings]
    if len(set(devices)) != len(devices):
        raise wrong("A device name is mapped twice.", "InvalidBlockDeviceMapping")
    # AMIs with the root /dev/sda1 and a mapping of /dev/sda exist (`add_image` makes them), and EC2 launches
    # them (hashicorp/terraform pull request 2271). Whether RegisterImage takes them is documented nowhere.
    root = required(values, "RootDeviceName")
    if not any(item["deviceName"] == root and item.get("ebs", {}).get("snapshotId") for item in mappings):
        message = f"The root device {root} is not mapped to a snapshot."
        raise wrong(message, "InvalidBlockDeviceMapping")
    taken = (image for image in cloud.images.values() if image.owner_id == caller.account_id)
    if any(image.name == name and image.state != "failed" for image in taken):
        raise wrong(f"AMI name {name} is already in use", "InvalidAMIName.Duplicate")
    return made(cloud, values, mappings, caller)


def check_platform(values: Mapping[str, Any]) -> None:
    hvm = values.get("VirtualizationType", "paravirtual") == "hvm"
    if not hvm and (values.get("EnaSupport") or "SriovNetSupport" in values or "BootMode" in values):
        raise wrong(
            "Enhanced networking and boot modes need virtualizationType hvm.", "InvalidParameterCombination"
        )
    if hvm and ("KernelId" in values or "RamdiskId" in values):
        raise wrong("hvm images have no kernelId and ramdiskId.", "InvalidParameterCombination")
    if "TpmSupport" in values and values.get("BootMode") != "uefi":
        raise wrong("TpmSupport needs the boot mode uefi.", "InvalidParameterCombination")
    if not (
        values.get("KernelId", "aki-").startswith("aki-")
        and values.get("RamdiskId", "ari-").startswith("ari-")
    ):
        raise wrong("The kernel or RAM disk ID is not valid.", "InvalidAMIID.Malformed")
    data = values.get("UefiData", "")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise wrong("uefiData is not valid base64.") from None
    if len(data) > 64_000:
        raise wrong("uefiData is longer than 64000 characters.")


def mapping(cloud: Cloud, item: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
    """One block device mapping by its names in the XML."""
    device = required(item, "DeviceName")
    kinds = [kind for kind in ("Ebs", "VirtualName", "NoDevice") if kind in item]
    if len(kinds) != 1:
        message = f"The device {device} needs one of ebs, virtualName and noDevice."
        raise wrong(message, "InvalidBlockDeviceMapping")
    if "VirtualName" in item and re.fullmatch("ephemeral([0-9]|1[0-9]|2[0-3])", item["VirtualName"]) is None:
        raise wrong(f"Invalid virtual name {item['VirtualName']}", "InvalidBlockDeviceMapping")
    made = {xml_name(name): value for name, value in item.items()}
    return made | {"ebs": volume(cloud, device, item["Ebs"], caller)} if "Ebs" in item else made


def given_mapping(item: Mapping[str, Any]) -> dict[str, Any]:
    """One block device mapping by its names in the XML, or those with a capital, as boto3 has them.

    Raises:
        ValueError: a member that EC2 does not know.
    """
    (known,) = OPERATIONS["RegisterImage"].request["BlockDeviceMappings"]
    made = spelled(item, known)
    return made | {"ebs": spelled(made["ebs"], known["Ebs"])} if "ebs" in made else made


def spelled(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    in_xml = set(map(xml_name, known))
    for name in given:
        if xml_name(name) not in in_xml:
            raise ValueError(f"{name!r} is no member of a mapping; there are {', '.join(known)}")
    return {xml_name(name): value for name, value in given.items()}


def volume(cloud: Cloud, device: str, ebs: Mapping[str, Any], caller: Credential) -> dict[str, Any]:
    for name in ("KmsKeyId", "EbsCardIndex"):
        if name in ebs:
            raise wrong(
                f"The parameter {name} is not supported by RegisterImage.", "InvalidParameterCombination"
            )
    if "AvailabilityZone" in ebs and "AvailabilityZoneId" in ebs:
        raise wrong(
            "AvailabilityZone and AvailabilityZoneId exclude each other.", "InvalidParameterCombination"
        )
    kind = ebs.get("VolumeType", "standard")
    snapshot = visible_snapshot(cloud, ebs["SnapshotId"], caller) if "SnapshotId" in ebs else None
    size = ebs.get("VolumeSize", snapshot.volume_size if snapshot else None)
    if size is None:
        raise wrong(f"The device {device} needs a snapshot or a volume size.", "MissingParameter")
    if kind not in SIZES:
        raise wrong(f"Value ({kind}) for parameter volumeType is invalid.")
    bounded("volumeSize", size, SIZES[kind])
    check_performance(kind, ebs)
    if snapshot is not None:
        check_snapshot(device, snapshot, ebs, size)
    encrypted = (
        snapshot.encrypted
        if snapshot
        else ebs.get("Encrypted", False) or cloud.behaviour.encryption_by_default
    )
    return {
        "snapshotId": ebs.get("SnapshotId"),
        "volumeSize": size,
        "deleteOnTermination": ebs.get("DeleteOnTermination", True),
        "volumeType": kind,
        "iops": ebs.get("Iops", 3000 if kind == "gp3" else None),
        "throughput": ebs.get("Throughput", 125 if kind == "gp3" else None),
        "outpostArn": ebs.get("OutpostArn"),
        "availabilityZone": ebs.get("AvailabilityZone"),
        "AvailabilityZoneId": ebs.get("AvailabilityZoneId"),
        "VolumeInitializationRate": ebs.get("VolumeInitializationRate"),
        "encrypted": encrypted,
    }


def check_snapshot(device: str, snapshot: Snapshot, ebs: Mapping[str, Any], size: int) -> None:
    if snapshot.state != "completed":
        raise wrong(f"Snapshot {snapshot.snapshot_id} is in the state {snapshot.state}", "IncorrectState")
    if snapshot.storage_tier != "standard":
        raise wrong(f"Snapshot {snapshot.snapshot_id} is archived", "IncorrectState")
    if "Encrypted" in ebs:
        message = f"the encrypted flag cannot be specified since device {device} has a snapshot specified."
        raise wrong(message, "InvalidBlockDeviceMapping")
    if size < snapshot.volume_size:
        message = f"Volume of size {size}GB is smaller than snapshot '{snapshot.snapshot_id}'"
        raise wrong(f"{message}, expect size >= {snapshot.volume_size}GB", "InvalidBlockDeviceMapping")


def check_performance(kind: str, ebs: Mapping[str, Any]) -> None:
    iops = ebs.get("Iops")
    if iops is None and kind in ("io1", "io2"):
        raise wrong(f"The parameter iops must be specified for {kind} volumes.", "MissingParameter")
    if iops is not None:
        if kind not in IOPS:
            raise wrong(
                f"The parameter iops is not supported for {kind} volumes.", "InvalidParameterCombination"
            )
        bounded("iops", iops, IOPS[kind])
    if "Throughput" in ebs:
        if kind != "gp3":
            message = f"The parameter throughput is not supported for {kind} volumes."
            raise wrong(message, "InvalidParameterCombination")
        bounded("throughput", ebs["Throughput"], THROUGHPUT)
    if "VolumeInitializationRate" in ebs:
        if "SnapshotId" not in ebs:
            message = "VolumeInitializationRate is only supported for volumes from snapshots."
            raise wrong(message, "InvalidParameterCombination")
        bounded("volumeInitializationRate", ebs["VolumeInitializationRate"], INITIALIZATION)


def bounded(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise wrong(f"Value ({value}) for parameter {name} is not from {bounds[0]} to {bounds[1]}.")


def made(
    cloud: Cloud, values: Mapping[str, Any], mappings: list[dict[str, Any]], caller: Credential
) -> Image:
    tags: dict[str, str] = {}
    for item in values.get("TagSpecifications", []):
        if required(item, "ResourceType") != "image":
            raise wrong(f"'{item['ResourceType']}' is not a valid taggable resource type for this operation.")
        tags |= check_tags(required(item, "Tags"), tags)
    image = cloud.add_image(
        cloud.new_id("ami"),
        name=values["Name"],
        owner_id=caller.account_id,
        root_device_name=values["RootDeviceName"],
        members={
            "architecture": values.get("Architecture", "i386"),
            "description": values.get("Description") or None,
            "virtualizationType": values.get("VirtualizationType", "paravirtual"),
            **{xml_name(name): values.get(name) for name in AS_THEY_ARE},
        },
        state="pending",
        mappings=mappings,
        attributes={"uefiData": values["UefiData"]} if values.get("UefiData") else {},
        tags=tags,
        describes=cloud.behaviour.image_describes,
    )
    cloud.settle_image(image)
    return image
