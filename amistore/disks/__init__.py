"""Disk images that become snapshots and AMIs, and what they are read with.

Next: `source.py`, a disk as a source of blocks; `importing.py`, the jobs.
"""

from amistore.disks.importing import import_disks, import_snapshot
from amistore.disks.source import DiskSource
from amistore.disks.streaming import DiskStream

__all__ = ["DiskSource", "DiskStream", "import_disks", "import_snapshot"]
