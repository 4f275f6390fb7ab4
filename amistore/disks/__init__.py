"""Disk images that become snapshots and AMIs, and what they are read with.

Next: `source.py`, a disk as a source of blocks; `importing.py`, the jobs.
"""

from amistore.disks.importing import import_disks, import_snapshot
from amistore.disks.source import DiskSource

__all__ = ["DiskSource", "import_disks", "import_snapshot"]
