"""Joins containers and backends: pack, unpack, opened archives.

Threads live in `workers.py` only. Imports `container` and `backends`.
"""

from amistore.pipeline.archive import Archive, open_archive
from amistore.pipeline.pack import pack, plan_pack
from amistore.pipeline.progress import Phase, Progress
from amistore.pipeline.unpack import unpack
from amistore.pipeline.volume import Volume

__all__ = ["Archive", "Phase", "Progress", "Volume", "open_archive", "pack", "plan_pack", "unpack"]
