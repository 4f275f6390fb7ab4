"""User metadata as HTTP headers can carry it, and back.

S3 keeps US-ASCII only, as header fields: names lose their case, values their outer spaces,
and some servers an empty value. What would not come back as it was is written so that it does:
a value in RFC 8187's form (``UTF-8''na%C3%AFve``), a key with ``.`` in front and each byte but
letters, digits and ``-`` as ``.`` and two hexadecimal digits (``.n.41me``).

Source: S3 user guide, "Working with object metadata", User-defined object metadata.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping

from amistore.errors import InvalidRequestError

__all__ = ["decode_metadata", "encode_metadata"]

MAXIMUM_SIZE = 2048  # bytes of names and values, without the "x-amz-meta-" (the same page)
_MARK = "UTF-8''"
_PLAIN_KEY = re.compile(r"[a-z0-9-]+")
_CODED_KEY = re.compile(r"\.(?:[a-z0-9-]|\.[0-9a-f]{2})*")
_CODED_VALUE = re.compile(r"(?:[A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-F]{2})*")


def encode_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The headers' names (without ``x-amz-meta-``) and values.

    Raises:
        InvalidRequestError: the metadata is more than S3 keeps, or no text.
    """
    try:
        encoded = {_encode_key(key): _encode_value(value) for key, value in metadata.items()}
    except (UnicodeEncodeError, AttributeError, TypeError):
        raise InvalidRequestError("metadata is text that UTF-8 can encode") from None
    size = sum(len(key) + len(value) for key, value in encoded.items())
    if size > MAXIMUM_SIZE:
        raise InvalidRequestError(
            f"the metadata has {size} bytes as S3 keeps it, which are {MAXIMUM_SIZE} at most"
        )
    return encoded


def decode_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that `encode_metadata` was given; other writers' metadata unchanged."""
    return {_decode_key(key.lower()): _decode_value(value) for key, value in metadata.items()}


def _encode_key(key: str) -> str:
    if _PLAIN_KEY.fullmatch(key):
        return key
    return "." + "".join(
        chr(byte) if _PLAIN_KEY.fullmatch(chr(byte)) else f".{byte:02x}" for byte in key.encode()
    )


def _decode_key(key: str) -> str:
    if not _CODED_KEY.fullmatch(key):
        return key
    content = re.sub(rb"\.(..)", lambda found: bytes.fromhex(found[1].decode()), key[1:].encode())
    return content.decode(errors="replace")


def _encode_value(value: str) -> str:
    plain = value.isascii() and value.isprintable() and value == " ".join(value.split())
    if plain and value and not value.startswith((_MARK, "=?")):
        return value
    return _MARK + urllib.parse.quote(value, safe="")


def _decode_value(value: str) -> str:
    if not value.startswith(_MARK) or not _CODED_VALUE.fullmatch(value, len(_MARK)):
        return value
    return urllib.parse.unquote(value[len(_MARK) :])
