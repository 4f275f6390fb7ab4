"""Buckets as folders, objects as files in them.

A file that someone puts into a bucket's folder is an object, so an archive can be copied there by hand. A
file's name is the percent-encoded key. Metadata, tags and unfinished uploads are in ``<bucket>/.amistore``.
An ETag is a file's size and time; we stamp ours to the nanosecond, since the clock of filesystems may stand
still for milliseconds.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import stat
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from typing_extensions import Buffer

from amistore import forks
from amistore.backends import checks, files
from amistore.backends.locations import ObjectInfo, refuse_version
from amistore.backends.locking import FileLock
from amistore.backends.objects import ObjectStore
from amistore.backends.uploads import MultipartUpload, UploadedPart
from amistore.errors import (
    AlreadyExistsError,
    BackendError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
)
from amistore.units import MIB

__all__ = ["DirectoryS3"]

_UPLOAD = re.compile(r"upload-[0-9a-f]{17}")
_PART = re.compile("[0-9]{5}")
_CARRIED = ("metadata", "tags")


@attrs.frozen
class DirectoryS3(ObjectStore):
    """S3 in the folder `root`, which holds a folder per bucket.

    Attributes:
        root: the folder.
        where: the store's name, as in `ObjectStore`.
    """

    root: Path
    where: str = ""

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket; one that is there is fine."""
        checks.check_bucket(bucket)
        with files.operation("create_bucket", bucket=bucket):
            (self.root / bucket / ".amistore" / "uploads").mkdir(parents=True, exist_ok=True)
            (self.root / bucket / ".amistore" / "objects").mkdir(exist_ok=True)
            files.sync_directory(self.root)

    def path(self, bucket: str, key: str) -> Path:
        """The file that holds an object, whether it exists or not."""
        return self._bucket(bucket) / _file_name(key)

    def head_bucket(self, bucket: str) -> None:
        self._bucket(bucket)

    def head_object(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        refuse_version(version)
        with files.operation("head_object", bucket=bucket, key=key):
            return self._info(self.path(bucket, key))[0]

    def get_object_range(
        self,
        bucket: str,
        key: str,
        start: int,
        length: int,
        *,
        if_match: str | None = None,
        version: str | None = None,
    ) -> bytes:
        refuse_version(version)
        checks.check_range(start, length)
        with (
            files.operation("get_object_range", bucket=bucket, key=key),
            files.open_file(self.path(bucket, key)) as descriptor,
        ):
            content = files.read_at(descriptor, length, start)
            # After the reading: a file that is written to by hand may change in the middle of it.
            if if_match not in (None, _etag(os.fstat(descriptor))):
                raise SourceChangedError("the object was replaced")
            return content

    def delete_object(self, bucket: str, key: str, *, if_match: str | None = None) -> None:
        with files.operation("delete_object", bucket=bucket, key=key):
            path = self.path(bucket, key)
            with FileLock(path.parent):  # no upload is completed between the look and the deed
                if if_match is not None and path.exists() and _etag(path.stat()) != if_match:
                    raise SourceChangedError("the object was replaced")
                path.unlink(missing_ok=True)
                for sidecar in self._sidecar(path, "").parent.glob(f"{glob.escape(path.name)}@*.json"):
                    sidecar.unlink(missing_ok=True)
                files.sync_directory(path.parent)

    def create_multipart_upload(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        with files.operation("create_multipart_upload", path=self.root, bucket=bucket, key=key):
            upload_id = checks.new_id("upload")
            folder = self.path(bucket, key).parent / ".amistore" / "uploads" / upload_id
            folder.mkdir(parents=True)
            with forks.undoing(lambda _: shutil.rmtree(folder, ignore_errors=True)):
                upload = {"key": key, "metadata": dict(metadata or {}), "tags": dict(tags or {})}
                if not _carries(upload):
                    raise InvalidRequestError("metadata and tags are strings")
                files.write_json(folder / "upload.json", upload)
        return upload_id

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Buffer
    ) -> UploadedPart:
        checks.check_part_number(part_number)
        with files.operation("upload_part", path=self.root, bucket=bucket, key=key):
            path = self._upload(bucket, key, upload_id)[0] / f"{part_number:05}"
            with files.temporary(path) as name:
                with name.open("wb", buffering=0) as file:
                    view = memoryview(content).cast("B")
                    while view:
                        view = view[file.write(view) :]
                    _stamp(file.fileno())
                    os.fsync(file.fileno())
                name.replace(path)
            files.sync_directory(path.parent)
            return _part(path)

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[UploadedPart]:
        with files.operation("list_parts", bucket=bucket, key=key):
            folder, _ = self._upload(bucket, key, upload_id)
            found = sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))
            return [_part(path) for path in found if path.is_file()]

    def complete_multipart_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_none_match: bool = False,
    ) -> ObjectInfo:
        with files.operation("complete_multipart_upload", path=self.root, bucket=bucket, key=key):
            path = self.path(bucket, key)
            folder, upload = self._upload(bucket, key, upload_id)
            checks.check_parts(bucket, key, parts, self.list_parts(bucket, key, upload_id))
            # An early answer; the renaming below is the one that counts.
            if if_none_match and path.exists():
                raise AlreadyExistsError("the object exists")
            with files.temporary(folder / "object") as name:
                _concatenate(name, [folder / f"{part.part_number:05}" for part in parts])
                info = ObjectInfo(
                    size=name.stat().st_size, etag=_etag(name.stat()), metadata=upload["metadata"]
                )
                with FileLock(path.parent):
                    self._publish(name, path, info.etag, upload, if_none_match)
            shutil.rmtree(folder, ignore_errors=True)
            return info

    def _publish(
        self, finished: Path, path: Path, etag: str, upload: dict[str, Any], if_none_match: bool
    ) -> None:
        """Give a finished object its name; an object of that name is replaced, or refused."""
        # The sidecar is there before the object and named after its ETag, so neither a crash
        # nor a race parts them.
        sidecar = self._sidecar(path, etag)
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(sidecar, {name: upload[name] for name in _CARRIED})
        before = None
        try:
            if if_none_match:
                files.rename_to_new(finished, path)  # fails if it exists, whoever made it
            else:
                before = _etag(path.stat()) if path.exists() else None
                finished.replace(path)
        except OSError as error:
            sidecar.unlink()
            if isinstance(error, FileExistsError):
                raise AlreadyExistsError("the object exists") from None
            raise
        files.sync_directory(path.parent)
        if before not in (None, etag):  # filesystems that tell times roughly may give both the same one
            self._sidecar(path, str(before)).unlink(missing_ok=True)

    def abort_multipart_upload(self, bucket: str, key: str, upload_id: str) -> None:
        with files.operation("abort_multipart_upload", bucket=bucket, key=key):
            try:
                folder, _ = self._upload(bucket, key, upload_id)
            except NotFoundError:
                return
            # First out of sight, so that a crash leaves no half upload under a valid id.
            hidden = folder.with_name(f".{upload_id}.deleted")
            folder.rename(hidden)
            files.remove(hidden)

    def get_object_tagging(self, bucket: str, key: str) -> dict[str, str]:
        with files.operation("get_object_tagging", bucket=bucket, key=key):
            return self._info(self.path(bucket, key))[1]

    def list_keys(self, bucket: str, prefix: str = "") -> list[str]:
        with files.operation("list_keys", bucket=bucket):
            # Only names that `_file_name` gives: a file that was put there under another is no object.
            keys = [
                urllib.parse.unquote(each.name)
                for each in os.scandir(self._bucket(bucket))
                if _is_object(each)
            ]
        return [key for key in sorted(keys, key=str.encode) if key.startswith(prefix)]

    def list_multipart_uploads(self, bucket: str, prefix: str = "") -> list[MultipartUpload]:
        with files.operation("list_multipart_uploads", bucket=bucket):
            folders = (self._bucket(bucket) / ".amistore" / "uploads").glob("upload-*")
            found = [(_read_upload(folder), folder.name) for folder in folders]
            uploads = [
                MultipartUpload(key=upload["key"], upload_id=upload_id)
                for upload, upload_id in found
                if upload is not None and upload["key"].startswith(prefix)
            ]
            return sorted(uploads, key=lambda upload: (upload.key, upload.upload_id))

    def sweep(self) -> Iterator[Path]:
        """Remove nameless leftovers of crashes; return the files."""
        for own in self.root.glob("*/.amistore"):
            yield from files.remove_hidden(own.parent)
            yield from files.remove_hidden(own / "objects")
            yield from files.remove_hidden(own / "uploads")
            for folder in (own / "uploads").glob("upload-*"):
                if files.is_forgotten(folder) and not (folder / "upload.json").exists():
                    with contextlib.suppress(OSError):  # another process does the same
                        files.remove(folder)
                        yield folder
                yield from files.remove_hidden(folder)

    def _bucket(self, bucket: str) -> Path:
        checks.check_bucket(bucket)
        folder = self.root / bucket
        if not folder.is_dir():
            raise NotFoundError("no such bucket: make it with create_bucket", bucket=bucket)
        return folder

    def _upload(self, bucket: str, key: str, upload_id: str) -> tuple[Path, dict[str, Any]]:
        folder = self._bucket(bucket) / ".amistore" / "uploads" / str(upload_id)
        upload = _read_upload(folder) if _UPLOAD.fullmatch(str(upload_id)) else None
        if upload is None:
            raise NotFoundError("no such upload")
        if upload["key"] != key:
            raise NotFoundError("no such upload of this key")
        return folder, upload

    def _sidecar(self, path: Path, etag: str) -> Path:
        return path.parent / ".amistore" / "objects" / f"{path.name}@{etag}.json"

    def _info(self, path: Path) -> tuple[ObjectInfo, dict[str, str]]:
        """An object's description and its tags."""
        while True:
            try:
                status = path.stat()
            except FileNotFoundError:
                raise NotFoundError("no such object") from None
            if not stat.S_ISREG(status.st_mode):
                raise BackendError(f"{path} is no regular file: move it away")
            etag = _etag(status)
            sidecar = self._sidecar(path, etag)
            beside = files.read_json(sidecar)
            # A sidecar goes when its object was replaced: look again then.
            if beside is not None or _etag(path.stat()) == etag:
                break
        if beside is None:
            beside = {name: {} for name in _CARRIED}
        elif not _carries(beside):
            raise BackendError(
                f"{sidecar} is damaged: remove it, and the object has neither metadata nor tags"
            )
        return ObjectInfo(size=status.st_size, etag=etag, metadata=beside["metadata"]), beside["tags"]


def _read_upload(folder: Path) -> dict[str, Any] | None:
    path = folder / "upload.json"
    upload = files.read_json(path)
    if upload is not None and not (isinstance(upload.get("key"), str) and _carries(upload)):
        raise BackendError(f"{path} is damaged: remove {folder}, its parts are lost")
    return upload


def _carries(document: dict[str, Any]) -> bool:
    """Whether a JSON object has metadata and tags, each of strings."""
    carried = [document.get(name) for name in _CARRIED]
    return all(
        isinstance(each, dict) and all(isinstance(value, str) for value in each.values()) for each in carried
    )


def _is_object(entry: os.DirEntry[str]) -> bool:
    """Whether a file's name stands for a key; a bucket's folder may hold other files."""
    try:
        return entry.is_file() and _file_name(urllib.parse.unquote(entry.name, errors="strict")) == entry.name
    except (InvalidRequestError, UnicodeError):
        return False


def _file_name(key: str) -> str:
    checks.check_key(key)
    name = urllib.parse.quote(key, safe=" ")
    if name.startswith("."):
        name = "%2E" + name[1:]
    # 200 leaves room for the sidecar's ending in the 255 bytes that filesystems allow.
    if len(name) > 200:
        raise InvalidRequestError(
            f"a key, percent-encoded as a file name, has at most 200 characters, not {len(name)}"
        )
    return name


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


def _stamp(descriptor: int) -> None:
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))


def _part(path: Path) -> UploadedPart:
    status = path.stat()
    return UploadedPart(part_number=int(path.name), size=status.st_size, etag=_etag(status))


def _concatenate(target: Path, sources: Sequence[Path]) -> None:
    with target.open("wb") as file:
        for source in sources:
            with files.open_file(source) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as part:
                shutil.copyfileobj(part, file, 1 * MIB)
        file.flush()
        _stamp(file.fileno())
        os.fsync(file.fileno())
