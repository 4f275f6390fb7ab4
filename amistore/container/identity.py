"""Ids that follow from content alone: file id, content ids, LINEAR. Pure hashing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from amistore.container import layout
from amistore.container.records import Layout

__all__ = ["archive_content_id", "file_id", "linear", "volume_content_id"]


def linear(digests: Iterable[bytes]) -> bytes:
    """The EBS aggregate: SHA-256 over the blocks' raw digests in index order (CompleteSnapshot, LINEAR)."""
    return hashlib.sha256(b"".join(digests)).digest()


def volume_content_id(size: int, blocks: int, linear_digest: bytes, runs_digest: bytes) -> bytes:
    """What a volume holds and where; a restored copy has the same. `size` in bytes."""
    numbers = struct.pack("<QQ", size, blocks)
    return hashlib.sha256(layout.DOMAIN_VOLUME + numbers + linear_digest + runs_digest).digest()


def archive_content_id(manifest: bytes, volumes: Iterable[bytes]) -> bytes:
    """What an archive holds: its manifest and its volumes' content ids, in order."""
    digest = hashlib.sha256(layout.DOMAIN_ARCHIVE + hashlib.sha256(manifest).digest())
    for content_id in volumes:
        digest.update(content_id)
    return digest.digest()


def file_id(manifest: bytes, volumes: Iterable[tuple[int, bytes]], form: Layout) -> bytes:
    """The plan's name, known before any data.

    Args:
        manifest: bytes of ami.json.
        volumes: size in bytes and hash of the runs of each volume, in order.
        form: the layout.
    """
    digest = hashlib.sha256(layout.DOMAIN_FILE + hashlib.sha256(manifest).digest())
    digest.update(
        struct.pack(
            "<HHQQ",
            form.blocks_per_frame,
            form.blocks_per_segment,
            form.segments_per_shard,
            form.part_size,
        )
    )
    for size, runs_digest in volumes:
        digest.update(struct.pack("<Q", size) + runs_digest)
    return digest.digest()[:16]
