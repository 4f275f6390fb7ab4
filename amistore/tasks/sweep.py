"""`sweep`: find what belongs to no live task, and remove what is surely ours."""

from __future__ import annotations

import attrs

from amistore.backends import Backend, MultipartUpload
from amistore.errors import AmistoreError, NotFoundError
from amistore.tasks.journal import Journal
from amistore.tasks.record import TaskRecord
from amistore.tasks.store import StoreRecord

__all__ = ["SweepReport", "sweep_uploads", "unfinished_cleanup"]


@attrs.frozen(kw_only=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        removed: what was removed, each with its id.
        left: what may not or could not be removed, each with the reason.
    """

    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def sweep_uploads(backend: Backend, journal: Journal, place: str) -> SweepReport:
    """Abort empty uploads at the keys of ended tasks.

    If the answer to a call that begins an upload is lost, the next attempt begins another, and an empty
    upload is left. It holds nothing, and a run elsewhere that has just begun it begins another. An upload
    with parts belongs to another program: a task sends parts only to an upload whose id its log has.
    """
    removed: list[str] = []
    left: list[str] = []
    places = {_place(record): None for record in journal.ended(place) if isinstance(record, StoreRecord)}
    for bucket, key in places:
        try:
            uploads = [each for each in backend.s3.list_multipart_uploads(bucket, key) if each.key == key]
        except NotFoundError:
            continue  # the bucket is gone
        except AmistoreError as error:
            left.append(f"uploads of {bucket}/{key}, which could not be listed: {error}")
            continue
        # Asked for after the list: an upload in it that is of a live task is of one of these.
        if not uploads or any(_place(each) == (bucket, key) for each in journal.unfinished(place)):
            continue
        for upload in uploads:
            try:
                gone = _abort_empty(backend, bucket, upload)
            except NotFoundError:
                continue  # completed or aborted meanwhile
            except AmistoreError as error:
                left.append(f"upload {upload.upload_id} of {bucket}/{key}: {error}")
                continue
            if gone:
                removed.append(f"upload {upload.upload_id} of {bucket}/{key}")
            else:
                left.append(f"upload {upload.upload_id} of {bucket}/{key}, which no task here has begun")
    return SweepReport(removed=tuple(removed), left=tuple(left))


def _place(record: TaskRecord) -> tuple[str, str]:
    return record.bucket, record.object_key


def _abort_empty(backend: Backend, bucket: str, upload: MultipartUpload) -> bool:
    if backend.s3.list_parts(bucket, upload.key, upload.upload_id):
        return False
    backend.s3.abort_multipart_upload(bucket, upload.key, upload.upload_id)
    return True


def unfinished_cleanup(record: TaskRecord) -> str:
    """The line about a failed task whose clean-up failed again."""
    things = ", ".join(record.left_behind) or "what it had made"
    return f"{things} of {record.task_id}: the log has the reason"
