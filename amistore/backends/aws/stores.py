"""Public stores that speak S3, by the host of their endpoint, and where they differ from Amazon's."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Final

from amistore.backends.traits import AMAZON, StoreTraits
from amistore.units import GIB, MIB

__all__ = ["KNOWN_STORES", "traits_of"]

KNOWN_STORES: Final[Mapping[str, StoreTraits]] = {
    # Cloudflare R2: "Multipart upload" and "Limits" (developers.cloudflare.com/r2, read in November 2026). An
    # object has "4.995 TiB", 5 GiB less than 5 TiB, and a part 5 MiB less than 5 GiB.
    "r2.cloudflarestorage.com": StoreTraits(
        equal_parts=True, largest_part=5 * GIB - 5 * MIB, largest_object=5 * 1024 * GIB - 5 * GIB
    ),
    # Scaleway: "Managing multipart uploads" (scaleway.com/en/docs, read in November 2026).
    "scw.cloud": StoreTraits(most_parts=1000, largest_part=5 * 10**9, largest_object=5 * 10**12),
}
"""By the end of the host's name."""


def traits_of(url: str | None) -> StoreTraits:
    """The traits of the store at an endpoint's URL; Amazon's where it is not known."""
    host = (urllib.parse.urlsplit(url or "").hostname or "").rstrip(".")
    found = (traits for end, traits in KNOWN_STORES.items() if host == end or host.endswith(f".{end}"))
    return next(found, AMAZON)
