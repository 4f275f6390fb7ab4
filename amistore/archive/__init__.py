"""Archives where they lie: open, read, verify, extract, compare, recover.

`reader.py` finds segments by the index, `volumereader.py` blocks in a volume; each other file
is one thing to do with them. Imports `pipeline`, `container` and `backends`.
"""

from amistore.archive.archive import Archive, open_archive
from amistore.archive.comparison import AttributeChange, Difference, VolumeDifference
from amistore.archive.nbd import NBDServer
from amistore.archive.opening import Located
from amistore.archive.recovery import RecoveryReport, VolumeRecovery, recover
from amistore.archive.report import VerifyReport
from amistore.archive.volume import Volume

__all__ = [
    "Archive",
    "AttributeChange",
    "Difference",
    "Located",
    "NBDServer",
    "RecoveryReport",
    "VerifyReport",
    "Volume",
    "VolumeDifference",
    "VolumeRecovery",
    "open_archive",
    "recover",
]
