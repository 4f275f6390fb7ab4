"""Containers as objects of a store: packed into one, restored from one, moved; on after a crash.

`upload.py` and `restoration.py` do it, `resumelog.py` is what they go on from, `transfer.py`
joins two backends, `copy.py` two stores. Imports `archive`, `pipeline` and `backends`.
"""

from amistore.objects.abandonment import abandon
from amistore.objects.copy import copy_object
from amistore.objects.restoration import unpack_object
from amistore.objects.resumelog import FileResumeLog, ResumeLog
from amistore.objects.transfer import TransferredImage, restore_image, transfer
from amistore.objects.upload import RUN_KEY, StoredArchive, pack_object

__all__ = [
    "RUN_KEY",
    "FileResumeLog",
    "ResumeLog",
    "StoredArchive",
    "TransferredImage",
    "abandon",
    "copy_object",
    "pack_object",
    "restore_image",
    "transfer",
    "unpack_object",
]
