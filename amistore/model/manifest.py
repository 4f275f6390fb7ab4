"""The manifest, `ami.json`: an `Image` as canonical JSON, and back.

Canonical means: UTF-8, keys sorted, two spaces of indent, a final newline, no floats that
JSON cannot repeat. A reader re-encodes what it read and refuses a difference, which also
refuses duplicate keys. Imports the model and `errors` only.
"""

from __future__ import annotations

import json
import re
from typing import Any

from amistore.errors import CorruptArchiveError, InvalidValueError, UnsupportedArchiveError
from amistore.model.fields import from_wire, to_wire
from amistore.model.image import Image

__all__ = ["MANIFEST_VERSION", "decode_manifest", "encode_manifest"]

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
    members = {"ManifestVersion": MANIFEST_VERSION, **to_wire(image)}
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
        image = from_wire(Image, members)
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
