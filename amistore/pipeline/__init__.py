"""Joins containers and backends: blocks become a container's bytes, and bytes blocks.

Threads live in `workers.py`. Imports `container` and `backends`.
"""

from amistore.pipeline.pack import ArchiveBytes, PackOptions, pack, plan_pack
from amistore.pipeline.progress import Phase, Progress

__all__ = ["ArchiveBytes", "PackOptions", "Phase", "Progress", "pack", "plan_pack"]
