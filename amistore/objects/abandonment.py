"""`abandon`: what an unfinished run has left, removed."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from amistore.backends import Backend
from amistore.backends.base import check_backend
from amistore.backends.checks import check_flags
from amistore.errors import InvalidRequestError, NotFoundError
from amistore.objects.restoration import client_token
from amistore.objects.resumelog import ResumeLog, read_entry, using_log
from amistore.units import GIB

__all__ = ["abandon"]

_logger = logging.getLogger("amistore")


def abandon(log: ResumeLog | str | os.PathLike[str], backend: Backend, *, completed: bool = False) -> None:
    """Give an unfinished run up: abort its upload, delete the snapshots it began, and clear the log.

    Args:
        log: the run's log, or its path.
        backend: the backend that the run wrote to; a transfer's destination.
        completed: delete completed snapshots too, except those of a registered image.

    Raises:
        NotFoundError: no log has this path.
        InvalidRequestError: the log is damaged, or belongs to a run against another backend.
        BackendError: something could not be removed; the log stays, to try again.
    """
    check_backend(backend, "backend")
    check_flags(completed=completed)
    if isinstance(log, (str, os.PathLike)) and not Path(log).exists():
        raise NotFoundError(f"no such log: {os.fspath(log)}", operation="abandon")
    with using_log(log) as opened:
        if opened is None:
            raise InvalidRequestError("a log is needed: give its path, or an amistore.ResumeLog")
        entries = [read_entry(entry) for entry in opened.entries()]
        starts = [at for at, entry in enumerate(entries) if "kind" in entry]
        if entries and (starts[:1] != [0] or entries[0]["kind"] not in ("pack", "copy", "unpack")):
            raise InvalidRequestError("the resume log is damaged")
        ends = [*starts[1:], len(entries)]
        phases = [entries[at:end] for at, end in zip(starts, ends, strict=False)]
        try:
            for phase in phases:
                _check_place(phase[0], backend)
            for phase in phases:
                if phase[0]["kind"] in ("pack", "copy"):
                    for entry in phase[1:]:
                        _abort(phase[0], entry, backend)
                elif phase[0]["kind"] == "unpack":
                    _delete_all(phase[0]["task"], phase[1:], backend, completed)
        except (KeyError, TypeError):
            raise InvalidRequestError("the resume log is damaged") from None
        opened.clear()


def _check_place(header: dict[str, Any], backend: Backend) -> None:
    """Refuse another backend than the one that a job wrote to: a store for objects, a sink for snapshots."""
    written = {
        "pack": (store := ("store", backend.s3.where)),
        "copy": store,
        "unpack": ("sink", backend.ebs.where),
    }
    name, where = written.get(header["kind"], ("", ""))
    if header.get(name, where) != where:
        raise InvalidRequestError(
            f"this log belongs to a run against {header[name]!r}, not {where!r}: give the backend that the "
            "run wrote to"
        )


def _abort(header: dict[str, Any], entry: dict[str, Any], backend: Backend) -> None:
    if "upload" in entry:
        place = header["bucket"], header["key"]
        backend.s3.abort_multipart_upload(*place, entry["upload"])


def _delete_all(task: str, entries: list[dict[str, Any]], backend: Backend, completed: bool) -> None:
    begun = [entry for entry in entries if "snapshot" in entry]
    known = {(entry["volume"], entry["generation"]) for entry in begun}
    for entry in entries:
        if "size" in entry and (entry["volume"], entry["generation"]) not in known:
            # Begun, it may be, without an answer: its token tells the id, or begins it only now.
            token = client_token(task, entry["volume"], entry["generation"])
            snapshot_id = backend.ebs.start_snapshot(entry["size"] // GIB, client_token=token)
            begun.append({"snapshot": snapshot_id, "size": entry["size"]})
    in_use = {
        snapshot_id
        for image in (backend.ec2.describe_images() if completed and begun else ())
        for snapshot_id in image.snapshot_ids
    }
    for entry in begun:
        _delete(entry["snapshot"], entry["size"], backend, completed and entry["snapshot"] not in in_use)


def _delete(snapshot_id: str, size: int, backend: Backend, completed: bool) -> None:
    with contextlib.suppress(NotFoundError):
        found = backend.ebs.describe_snapshot(snapshot_id)
        if found.volume_size is not None and found.volume_size * GIB != size:
            raise InvalidRequestError(f"{snapshot_id} is not what the resume log says: delete it by hand")
        if found.state == "completed" and not completed:
            _logger.warning("keeping snapshot %s, which is completed: an image may be on it", snapshot_id)
            return
        backend.ebs.delete_snapshot(snapshot_id)
