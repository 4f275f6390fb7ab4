"""Archives as objects and files: stored, restored, moved, copied, found; resumed after a crash.

`store.py` and `restore.py` hold the jobs, which `transfer.py` and the task engine drive, too. `upload.py`
and `restoration.py` do the work; `resumelog.py` holds the logs that they resume from. Imports `archive`,
`pipeline` and `backends`.
"""

from amistore.objects.abandonment import abandon
from amistore.objects.copy import copy
from amistore.objects.finding import FoundArchive, find_archives
from amistore.objects.multipart import RUN_KEY, StoredArchive
from amistore.objects.restore import RestoredImage, restore, unpack
from amistore.objects.resumelog import FileResumeLog, ResumeLog
from amistore.objects.store import store
from amistore.objects.transfer import transfer

__all__ = [
    "RUN_KEY",
    "FileResumeLog",
    "FoundArchive",
    "RestoredImage",
    "ResumeLog",
    "StoredArchive",
    "abandon",
    "copy",
    "find_archives",
    "restore",
    "store",
    "transfer",
    "unpack",
]
