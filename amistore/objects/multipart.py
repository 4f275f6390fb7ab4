"""`LoggedUpload`: a multipart upload that a log resumes, and its object, proved.

The log has a header, the upload's id, and each part's number, size and ETag; the job may append records of
its own. Little in it is believed: a run takes over the parts that the upload's own list confirms, up to the
first that it does not.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from amistore import forks
from amistore.backends import ObjectInfo, ObjectLocation, UploadedPart
from amistore.backends.locations import ObjectRanges
from amistore.errors import (
    AlreadyExistsError,
    AmistoreError,
    ArchiveError,
    BackendError,
    CorruptArchiveError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
    is_final,
)
from amistore.objects.partlog import PartByPart, PartEntries, part_entry, part_size_of, upload_id_of
from amistore.objects.resumelog import (
    NoLog,
    ResumeLog,
    read_task,
    write_entry,
)
from amistore.units import counted

__all__ = ["RUN_KEY", "LoggedUpload", "StoredArchive", "refuse_existing"]

RUN_KEY = "amistore-run"
"""Of an object's metadata: which run made it."""

_logger = logging.getLogger("amistore")


@attrs.frozen(kw_only=True)
class StoredArchive:
    """An archive that was stored as an object or a file.

    Attributes:
        location: the object's location, or the file's path.
        size: the archive's size in bytes.
        etag: the object's ETag, from its completion; None for a file.
        content_id: the archive's content id, 64 hexadecimal digits, computed while the archive was made,
            never read back. Keep it out of reach of those who can write the archive: `expected_content_id`
            proves later that the archive is the same.
    """

    location: ObjectLocation | Path
    size: int
    etag: str | None = None
    content_id: str


def refuse_existing(to: ObjectLocation) -> None:
    """Refuse an object that exists before the work, not after it.

    Raises:
        AlreadyExistsError: the object exists.
    """
    if to.exists():
        raise AlreadyExistsError("the object exists: give another key, or delete it first", **to.facts)


@attrs.define
class LoggedUpload:
    """One run's upload.

    Attributes:
        to: the object's location.
        given: the log of the earlier runs and of this one; None to remove on an error what this run made.
        kind: the kind of job that the log's header names.
        part_size: the size in bytes of each part but the last; the log's where it has one.
        identity: the facts that the log's run must share.
        changed: the error to raise where one of these facts differs; without one, the log belongs to another
            job.
        log: the given log, or one that ends with the process.
        upload_id: the upload's id; empty where there is none to abort.
        task: the id of the run that began the log.
        parts: the parts that were uploaded, this run's included.
        carried: the log's entries for the parts of earlier runs.
        form: how the log's entries of parts are read.
    """

    to: ObjectLocation
    given: ResumeLog | None
    kind: str
    part_size: int
    identity: Mapping[str, Any]
    changed: Mapping[str, AmistoreError]
    log: ResumeLog = attrs.field(init=False)
    upload_id: str = ""
    task: str = ""
    parts: list[UploadedPart] = attrs.field(factory=list)
    carried: list[bytes] = attrs.field(factory=list)
    form: PartEntries = PartByPart()

    def __attrs_post_init__(self) -> None:
        self.log = NoLog() if self.given is None else self.given

    def run(
        self,
        metadata: Mapping[str, str],
        tags: Mapping[str, str] | None,
        make: Callable[[bool], None],
        check: Callable[[ObjectRanges, bool], None],
        *,
        overwrite: bool,
    ) -> ObjectInfo:
        """Make the object, or prove the one that an earlier run made.

        Args:
            metadata: the object's user metadata.
            tags: the object's tags.
            make: a function that makes the archive's bytes; it gets whether the missing parts are to be sent.
            check: a function that raises an `ArchiveError` where the object's bytes differ from what was
                made; it gets whether this run made the object.
            overwrite: whether to replace an object that exists.
        """
        done = self._begin(metadata, tags, overwrite)
        with forks.undoing(lambda error: self._end_run(error, done=done is not None)):
            make(done is None)
            info = done or self._complete(overwrite)
            self._prove(info, check, new=done is None)
        self.log.end()
        return info

    def _begin(
        self, metadata: Mapping[str, str], tags: Mapping[str, str] | None, overwrite: bool
    ) -> ObjectInfo | None:
        """Begin an upload, or resume the log's; return the object if an earlier run completed it."""
        entries = self.log.entries()
        identity = {"store": self.to.store.where, **self.to.facts, **self.identity}
        if entries:
            self.task = read_task(entries[0], self.kind, identity, self.changed)
            self.part_size = part_size_of(entries, self.to.store.traits.largest_part)
            upload_id = upload_id_of(entries)
            if upload_id is not None:
                self.upload_id = upload_id
                info = self._made()
                if info is not None:
                    self._abort()
                    self._carry(entries[2:], None, made=True)
                    return info
                if self._resume(entries[2:]):
                    _logger.info("resuming %s: %s uploaded", self.to, counted(len(self.parts), "part"))
                    return None
                _logger.warning("the upload to %s is gone: starting over", self.to)
            self.log.clear()
        if not overwrite:
            refuse_existing(self.to)
        self.task = secrets.token_hex(16)
        self.log.append(
            write_entry(kind=self.kind, task=self.task, **{**identity, "part_size": self.part_size})
        )
        with forks.undoing(lambda _: self._undo()):
            self.upload_id = self.to.store.create_multipart_upload(
                self.to.bucket, self.to.key, metadata={**metadata, RUN_KEY: self.task}, tags=tags
            )
            self.log.append(write_entry(upload=self.upload_id))
        return None

    def _resume(self, entries: list[bytes]) -> bool:
        """Take over what the log says and the upload has; return whether the upload exists."""
        try:
            self._carry(entries, self._listed() if self.to.store.traits.part_listing else None)
        except NotFoundError:
            return False
        return True

    def _listed(self) -> dict[int, list[UploadedPart]]:
        """The upload's parts by number: several of one where the store keeps those that were sent before."""
        found: dict[int, list[UploadedPart]] = {}
        for part in self.to.store.list_parts(self.to.bucket, self.to.key, self.upload_id):
            found.setdefault(part.part_number, []).append(part)
        return found

    def _carry(
        self, entries: list[bytes], there: Mapping[int, list[UploadedPart]] | None, *, made: bool = False
    ) -> None:
        """Take over the log's parts, up to the first that the upload lacks.

        All are taken over where no list is given: of a completed object, and of a store without lists.
        """
        for entry in self.form.latest(entries):
            found = self.form.parts(entry)
            if there is not None:
                found = _confirmed(found, there)
            if found:
                self.parts += found
            elif not self.form.gaps:
                break
            if found or made:
                self.carried.append(entry)

    def confirm(self) -> None:
        """Take over the ETags of the upload's own list: a part may have been sent once more meanwhile.

        Only for runs that send the same bytes with a number each time: where a store tells no checksum, and
        another ETag for each, the size tells that it is this part.

        Raises:
            BackendError: the upload has another part.
        """
        if not self.to.store.traits.part_listing:
            return
        there = self._listed()
        for at, part in enumerate(self.parts):
            listed = there.get(part.part_number, [])
            like = [each for each in listed if part.is_like(each)] or list(filter(part.may_be, listed))
            if not like:
                raise BackendError(
                    f"the upload does not have part {part.part_number} as it was sent",
                    operation="list_parts",
                    **self.to.facts,
                )
            self.parts[at] = attrs.evolve(part, etag=like[0].etag)

    def bytes_there(self) -> int:
        """The bytes that earlier runs have sent.

        Raises:
            InvalidRequestError: the log's parts have another size than it says.
        """
        if any(part.size != self.part_size for part in self.parts):
            raise InvalidRequestError("the resume log's parts have another size than it says")
        return len(self.parts) * self.part_size

    def _made(self) -> ObjectInfo | None:
        """The object's description if this run made it, else None."""
        with contextlib.suppress(NotFoundError):
            info = self.to.head()
            if info.metadata.get(RUN_KEY) == self.task:
                return info
        return None

    def note(self, part: UploadedPart, records: bytes | None) -> None:
        """Log an uploaded part, with the job's records, for the next run to take over; None for the last."""
        self.parts.append(part)
        if records is not None:
            self.log.append(part_entry(part, records))

    def _complete(self, overwrite: bool) -> ObjectInfo:
        """Make the object visible."""
        try:
            info = self.to.store.complete_multipart_upload(
                self.to.bucket, self.to.key, self.upload_id, self.parts, if_none_match=not overwrite
            )
        except BackendError as error:
            # This attempt or an earlier one, whose answer was lost, may have made it.
            ours = self._made()
            if ours is None:
                self._refuse_believed(error)
                raise
            info = ours
            self._abort()
        self.upload_id = ""
        return info

    def _refuse_believed(self, error: BackendError) -> None:
        """Where parts are not listed, and the store does not have those that it was told, begin anew."""
        believed = not self.to.store.traits.part_listing
        refused = not error.retryable and type(error) in (BackendError, NotFoundError)
        if believed and refused and self._abort():
            self.log.clear()
            error.retryable = True

    def _outdated(self, error: BackendError) -> bool:
        """Whether the upload is gone, or has other parts than this run sent.

        Another run changed it, or a sweep or a lifecycle rule aborted it. The next run begins with what is
        there.
        """
        if not self.upload_id:
            return False
        if not self.to.store.traits.part_listing:
            return isinstance(error, NotFoundError) and not error.retryable
        try:
            there = self._listed()
        except Exception as missing:
            return isinstance(missing, NotFoundError)
        return not all(any(map(part.is_like, there.get(part.part_number, ()))) for part in self.parts)

    def _prove(self, info: ObjectInfo, check: Callable[[ObjectRanges, bool], None], *, new: bool) -> None:
        """Refuse an object that is not what was sent; one that this run made is deleted, any other stays."""
        try:
            check(ObjectRanges(self.to, info), new)
        except (ArchiveError, SourceChangedError) as error:
            replaced = SourceChangedError("the object was replaced as soon as it was made", **self.to.facts)
            if isinstance(error, SourceChangedError) or self._made() is None:
                raise replaced from None
            if not new:
                raise CorruptArchiveError(
                    f"the object that an earlier run made is not what was sent, or its log is not: verify "
                    f"it before you delete it: {error}"
                ) from None
            try:
                # Another's that has taken its place stays: an archive lost is worse than one left.
                self.to.store.delete_object(self.to.bucket, self.to.key, if_match=info.etag)
            except SourceChangedError as refusal:
                if self._made() is None:
                    raise replaced from None
                raise CorruptArchiveError(
                    f"the object is not what was sent, and was not deleted, delete it: {refusal}; {error}"
                ) from None
            raise CorruptArchiveError(
                f"the object of {info.size} bytes was not what was sent, and was deleted: {error}"
            ) from None

    def _end_run(self, error: BaseException, *, done: bool) -> None:
        """After an error, remove what was sent if no later run can resume it.

        The error becomes `retryable` where the next run begins another upload.
        """
        durable = self.given is not None
        given_up = not durable or is_final(error)
        if durable and isinstance(error, BackendError) and self._outdated(error):
            error.retryable = True
            # Without a list the next run would believe the log again.
            given_up = not self.to.store.traits.part_listing
        if not done and given_up:
            self._undo()

    def _undo(self) -> None:
        """Abort the upload and, unless that fails, end the run."""
        if self._abort():
            self.log.clear()

    def _abort(self) -> bool:
        """Abort the upload, also one that a store left behind as it died while completing it.

        Returns whether the upload is gone; one that cannot be aborted is logged by its id.
        """
        if self.upload_id:
            try:
                self.to.store.abort_multipart_upload(self.to.bucket, self.to.key, self.upload_id)
            except Exception as error:
                _logger.error("upload %s of %s is left behind, abort it: %s", self.upload_id, self.to, error)
                return False
            self.upload_id = ""
        return True


def _confirmed(parts: list[UploadedPart], there: Mapping[int, list[UploadedPart]]) -> list[UploadedPart]:
    """The parts with the ETags that a list has of them; none where one of them is missing there."""
    found = []
    for part in parts:
        like = [each for each in there.get(part.part_number, ()) if part.is_like(each)]
        if not like:
            return []
        found.append(attrs.evolve(part, etag=like[0].etag))
    return found
