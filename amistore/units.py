"""The size of a block, and texts for numbers and sizes, for every layer. Imports nothing of ours."""

from __future__ import annotations

import hashlib

__all__ = ["BLOCK_SIZE", "GIB", "KIB", "MIB", "TIB", "ZERO_DIGEST", "counted", "sized"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

BLOCK_SIZE = 512 * KIB
"""Bytes in a block, the unit of the EBS direct APIs (EBS user guide, "Snapshot blocks")."""

ZERO_DIGEST = hashlib.sha256(bytes(BLOCK_SIZE)).digest()
"""SHA-256 of a block of zeros."""


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 block``, ``2,048 blocks``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sized(size: float) -> str:
    """A number of bytes in the largest unit up to GiB that it reaches: ``4.0 KiB``."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB") if size >= MIB else (KIB, "KiB")
    return f"{size / unit:,.1f} {name}"
