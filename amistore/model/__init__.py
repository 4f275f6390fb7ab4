"""Values: what an AMI is. Frozen, validated at birth, no I/O. Imports `errors` only."""

from amistore.model.fidelity import AttributeReport, Fate
from amistore.model.image import (
    MANIFEST_VERSION,
    BlockDeviceMapping,
    BlockRange,
    EbsBlockDevice,
    Image,
    ProductCode,
    Snapshot,
    Tag,
    decode_manifest,
    encode_manifest,
)

__all__ = [
    "MANIFEST_VERSION",
    "AttributeReport",
    "BlockDeviceMapping",
    "BlockRange",
    "EbsBlockDevice",
    "Fate",
    "Image",
    "ProductCode",
    "Snapshot",
    "Tag",
    "decode_manifest",
    "encode_manifest",
]
