"""Tokens of blocks and of pages: opaque to clients, and not to be forged."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import secrets
import struct

__all__ = ["PAGE_LIFETIME", "TOKEN_LIFETIME", "Tokens"]

TOKEN_LIFETIME = datetime.timedelta(days=7)
"""Of a block token ("Frequently asked questions for EBS direct APIs")."""
PAGE_LIFETIME = datetime.timedelta(minutes=60)
"""Of a NextToken (the same page)."""

BLOCK = struct.Struct(">QQQd")  # snapshot number, index, generation, expiry
PAGE = struct.Struct(">QQQQd")  # snapshot number, first snapshot's number, next index, page, expiry
MAC = 12


class Tokens:
    """Issue and open tokens; the alphabet is the model's, ``[A-Za-z0-9+/=]``, at most 256 long."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)

    def seal(self, kind: bytes, payload: bytes) -> str:
        mac = hashlib.blake2b(payload, digest_size=MAC, key=self._key, person=kind).digest()
        return base64.b64encode(payload + mac).decode()

    def open(self, kind: bytes, token: str) -> bytes | None:
        """The payload, or None where the token is none of this kind of ours."""
        try:
            raw = base64.b64decode(token, validate=True)
        except (binascii.Error, ValueError):
            return None
        payload, mac = raw[:-MAC], raw[-MAC:]
        wanted = hashlib.blake2b(payload, digest_size=MAC, key=self._key, person=kind).digest()
        return payload if secrets.compare_digest(mac, wanted) else None

    def block(self, number: int, index: int, generation: int, expiry: datetime.datetime) -> str:
        return self.seal(b"block", BLOCK.pack(number, index, generation, expiry.timestamp()))

    def open_block(self, token: str) -> tuple[int, int, int, float] | None:
        payload = self.open(b"block", token)
        return None if payload is None else BLOCK.unpack(payload)

    def page(self, number: int, first: int, index: int, page: int, expiry: datetime.datetime) -> str:
        return self.seal(b"page", PAGE.pack(number, first, index, page, expiry.timestamp()))

    def open_page(self, token: str) -> tuple[int, int, int, int, float] | None:
        payload = self.open(b"page", token)
        return None if payload is None else PAGE.unpack(payload)
