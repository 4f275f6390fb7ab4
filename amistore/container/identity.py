"""Ids that follow from content alone: file id, content ids, LINEAR; and comparing with an expected one.

A *partial* archive holds some of the snapshots that its image maps. Which ones, nothing else would say
where sizes and data are equal: its ids bind the snapshots' ids too. Those of partial archives that were
written before did not, and are accepted by readers (`id_formulas`). Pure hashing.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence

import attrs

from amistore.container import layout
from amistore.container.layout import Layout
from amistore.errors import CorruptArchiveError, InvalidRequestError

__all__ = [
    "archive_content_id",
    "check_content_id",
    "file_id",
    "find_formula",
    "id_formulas",
    "parse_content_id",
    "volume_content_id",
]


def volume_content_id(size: int, blocks: int, linear_digest: bytes, runs_digest: bytes) -> bytes:
    """A volume's content id, for its blocks and indexes; a restored copy without filled holes has the same.

    Args:
        size: the size in bytes.
        blocks: the number of listed blocks.
        linear_digest: LINEAR, as in CompleteSnapshot: SHA-256 over their raw digests in index order.
        runs_digest: the digest of the runs of listed blocks.
    """
    numbers = struct.pack("<QQ", size, blocks)
    return hashlib.sha256(layout.DOMAIN_VOLUME + numbers + linear_digest + runs_digest).digest()


def archive_content_id(manifest: bytes, volumes: Iterable[tuple[str, bytes]], *, bound: bool) -> bytes:
    """An archive's content id, for its manifest and its volumes' content ids, in order.

    Args:
        manifest: the bytes of ami.json.
        volumes: the snapshot id and content id of each volume, in order.
        bound: whether the snapshots' ids are hashed too, as in `id_formulas`.
    """
    domain = layout.DOMAIN_PARTIAL_ARCHIVE if bound else layout.DOMAIN_ARCHIVE
    digest = hashlib.sha256(domain + hashlib.sha256(manifest).digest())
    for snapshot_id, content_id in volumes:
        digest.update(_bound(snapshot_id, bound) + content_id)
    return digest.digest()


def file_id(
    manifest: bytes, volumes: Iterable[tuple[str, int, bytes]], form: Layout, *, bound: bool
) -> bytes:
    """The plan's id, known before any data.

    Args:
        manifest: the bytes of ami.json.
        volumes: the snapshot id, size in bytes and hash of the runs of each volume, in order.
        form: the layout.
        bound: whether the snapshots' ids are hashed too, as in `id_formulas`.
    """
    domain = layout.DOMAIN_PARTIAL_FILE if bound else layout.DOMAIN_FILE
    digest = hashlib.sha256(domain + hashlib.sha256(manifest).digest())
    digest.update(struct.pack("<HHQQ", *attrs.astuple(form)))
    for snapshot_id, size, runs_digest in volumes:
        digest.update(_bound(snapshot_id, bound) + struct.pack("<Q", size) + runs_digest)
    return digest.digest()[:16]


def _bound(snapshot_id: str, bound: bool) -> bytes:
    return layout.SNAPSHOT_ID.pack(snapshot_id.encode()) if bound else b""


def id_formulas(stored: Sequence[str], mapped: Sequence[str]) -> tuple[bool, ...]:
    """Whether an archive's ids bind its snapshots' ids: the writer's choice, then what is accepted too.

    Args:
        stored: ids of the volumes' snapshots, in order.
        mapped: those that the image maps, in order.
    """
    return (True, False) if tuple(stored) != tuple(mapped) else (False,)


def find_formula(
    found: bytes,
    manifest: bytes,
    volumes: Sequence[tuple[str, int, bytes]],
    form: Layout,
    mapped: Sequence[str],
) -> bool:
    """By which formula an archive has its ids, found by its file id; the arguments are those of `file_id`.

    Raises:
        CorruptArchiveError: by none.
    """
    for bound in id_formulas([snapshot_id for snapshot_id, _, _ in volumes], mapped):
        if file_id(manifest, volumes, form, bound=bound) == found:
            return bound
    raise CorruptArchiveError("HEAD's file id is not that of manifest, layout and volumes")


def parse_content_id(given: object) -> bytes | None:
    """A content id that is expected, from its 64 hexadecimal digits, upper or lower case; None for none.

    Raises:
        InvalidRequestError: no archive can have it.
    """
    if given is None:
        return None
    if not isinstance(given, str) or not re.fullmatch("[0-9a-fA-F]{64}", given):
        raise InvalidRequestError(f"a content id is 64 hexadecimal digits, not {given!r:.80}")
    return bytes.fromhex(given)


def check_content_id(found: bytes, expected: bytes | None) -> None:
    """Refuse an archive that is not the expected one.

    Raises:
        CorruptArchiveError: its content id is another.
    """
    if expected not in (None, found):
        raise CorruptArchiveError(
            f"the content id is {found.hex()}, not the expected {expected.hex()}: it is another archive, and "
            "need not be damaged; take the archive of that id, or look for the right id "
            "(amistore.recover cannot help)"
        )
