"""Joins containers and backends: pack and unpack.

Threads live in `workers.py`. Imports `container` and `backends`.
"""

from amistore.pipeline.pack import ArchiveBytes, pack, plan_pack
from amistore.pipeline.progress import Phase, Progress
from amistore.pipeline.unpack import unpack

__all__ = ["ArchiveBytes", "Phase", "Progress", "pack", "plan_pack", "unpack"]
