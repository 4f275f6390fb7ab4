"""Sizes shared by every layer. Imports nothing of ours."""

from __future__ import annotations

__all__ = ["BLOCK_SIZE", "GIB", "KIB", "MIB", "TIB"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

BLOCK_SIZE = 512 * KIB
"""Bytes in a block, the unit of the EBS direct APIs (EBS user guide, "Snapshot blocks")."""
