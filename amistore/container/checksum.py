"""CRC-32C of records, by crcmod."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import crcmod.predefined

__all__ = ["crc32c"]

crc32c: Callable[[bytes], int] = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
"""CRC-32C (Castagnoli) of some bytes."""

# crcmod installs without a compiler and then says nothing of being a hundred times slower.
if not getattr(sys.modules.get("crcmod.crcmod"), "_usingExtension", True):
    warnings.warn(
        "crcmod runs without its C extension: records are checked more slowly, data is not "
        "affected. To mend it: install a C compiler and the Python headers, then "
        "'pip install --force-reinstall --no-binary :all: crcmod'",
        RuntimeWarning,
        stacklevel=2,
    )
