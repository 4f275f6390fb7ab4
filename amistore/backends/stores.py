"""Stores that speak S3: by name, and public ones by the host of their endpoint.

What is not stated here is as at Amazon's, or was not found out. The sources were read in November 2026.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Final

from amistore.backends.traits import AMAZON, StoreTraits
from amistore.units import GIB, MIB

__all__ = ["STORES", "traits_of"]

_TIB = 1024 * GIB

STORES: Final[Mapping[str, StoreTraits]] = {
    "amazon-s3": AMAZON,
    # developers.cloudflare.com/r2: "Multipart upload", "Limits", "S3 API compatibility", "Conditional
    # operations". An object has "4.995 TiB", 5 GiB less than 5 TiB, and a part 5 MiB less than 5 GiB.
    "cloudflare-r2": StoreTraits(
        equal_parts=True,
        largest_part=5 * GIB - 5 * MIB,
        largest_object=5 * _TIB - 5 * GIB,
        tags=False,
        addressing="path",
    ),
    # cloud.google.com/storage/docs: "XML API multipart uploads" ("Preconditions are not supported"), and
    # "Upload an object part", which knows Content-MD5 and x-goog-hash, and no tags.
    "google-cloud-storage": StoreTraits(
        largest_object=5 * _TIB,
        checksum="md5",
        conditional_completion=False,
        tags=False,
        addressing="path",
    ),
    # backblaze.com/apidocs: "S3 Upload Part", "S3 Copy Object" (tags are refused). Reports of 2025 have
    # x-amz-checksum-crc32 refused, those of 2026 taken; If-None-Match is refused with 501.
    "backblaze-b2": StoreTraits(
        largest_object=10 * 10**12, checksum=None, conditional_completion=False, tags=False
    ),
    # scaleway.com/en/docs/object-storage: "Managing multipart uploads", "Using conditional writes".
    "scaleway": StoreTraits(most_parts=1000, largest_part=5 * 10**9, largest_object=5 * 10**12),
    # github.com/meganz/s4-specs: parts of one size, each number once, no ListParts, no tags, and Content-MD5
    # as the only checksum.
    "mega-s4": StoreTraits(
        equal_parts=True,
        replaceable_parts=False,
        part_listing=False,
        checksum="md5",
        conditional_completion=False,
        tags=False,
        addressing="path",
    ),
    # alibabacloud.com/help: "OSS compatibility with S3", "SecondLevelDomainForbidden"; its own conditions and
    # checksums have other headers.
    "alibaba-oss": StoreTraits(checksum=None, conditional_completion=False, tags=False, addressing="virtual"),
    # ibm.com/docs/en/coss: "Uploading objects in multiple parts": conditions of a completion are ignored.
    "ibm-cos": StoreTraits(
        largest_part=5 * 10**9, largest_object=10 * 10**12, conditional_completion=False, addressing="path"
    ),
    # docs.wasabi.com: "REST API introduction" ("recommends path-style").
    "wasabi": StoreTraits(addressing="path"),
    # garagehq.deuxfleurs.fr: "S3 compatibility status".
    "garage": StoreTraits(conditional_completion=False, tags=False),
    # docs.min.io: "Thresholds and limits"; only with MINIO_DOMAIN it knows virtual hosts.
    "minio": StoreTraits(largest_object=5 * _TIB, addressing="path"),
    # Tried with the programs themselves: see docs/stores.md.
    "openstack-swift": StoreTraits(tags=False, addressing="path"),
    "juicefs": StoreTraits(checksum="md5", conditional_completion=False, addressing="path"),
    "rclone": StoreTraits(
        replaceable_parts=False,
        part_gaps=False,
        checksum="md5",
        conditional_completion=False,
        tags=False,
        addressing="path",
    ),
    "seaweedfs": StoreTraits(addressing="path"),
}
"""Traits by a store's name."""

_HOSTS: Final[Mapping[str, str]] = {
    "r2.cloudflarestorage.com": "cloudflare-r2",
    "storage.googleapis.com": "google-cloud-storage",
    "rep.googleapis.com": "google-cloud-storage",
    "backblazeb2.com": "backblaze-b2",
    "scw.cloud": "scaleway",
    "s4.mega.io": "mega-s4",
    "megas4.com": "mega-s4",
    "aliyuncs.com": "alibaba-oss",
    "cloud-object-storage.appdomain.cloud": "ibm-cos",
    "wasabisys.com": "wasabi",
}
"""Names by the end of the endpoint's host."""


def traits_of(url: str | None) -> StoreTraits:
    """The traits of the store at an endpoint's URL; Amazon's where it is not known."""
    host = (urllib.parse.urlsplit(url or "").hostname or "").rstrip(".")
    found = (STORES[name] for end, name in _HOSTS.items() if host == end or host.endswith(f".{end}"))
    return next(found, AMAZON)
