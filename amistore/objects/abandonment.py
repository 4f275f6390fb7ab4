"""`abandon`: what an unfinished run has left, removed."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from amistore.backends import Backend, BlockSink
from amistore.backends.base import check_backend
from amistore.backends.checks import check_flags
from amistore.errors import InvalidRequestError, NotFoundError
from amistore.model import Snapshot, Tag
from amistore.objects.restorelog import client_token
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
        InvalidRequestError: the log is damaged, belongs to a run against another backend, or names a snapshot
            that its run did not begin, which stays.
        BackendError: something could not be removed; the log stays, to try again.
    """
    check_backend(backend, "backend")
    check_flags(completed=completed)
    if isinstance(log, (str, os.PathLike)) and not Path(log).exists():
        raise NotFoundError(f"no such log: {os.fspath(log)}", operation="abandon")
    with using_log(log) as opened:
        if opened is None:
            raise InvalidRequestError("a log is needed: give its path, or an amistore.ResumeLog")
        phases = _phases([read_entry(entry) for entry in opened.entries()])
        try:
            for header, _ in phases:
                _check_place(header, backend)
            for header, entries in phases:
                if header["kind"] in ("unpack", "import"):
                    _delete_all(header["task"], entries, backend, completed)
                for entry in entries if header["kind"] in ("pack", "copy") else ():
                    if "upload" in entry:
                        backend.s3.abort_multipart_upload(header["bucket"], header["key"], entry["upload"])
        except (KeyError, TypeError, ValueError):
            raise InvalidRequestError("the resume log is damaged") from None
        opened.clear()


def _phases(entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The jobs of a log: the header of each, and the entries behind it."""
    starts = [at for at, entry in enumerate(entries) if "kind" in entry]
    if entries and (starts[:1] != [0] or entries[0]["kind"] not in ("pack", "copy", "unpack", "import")):
        raise InvalidRequestError("the resume log is damaged")
    ends = [*starts[1:], len(entries)]
    return [(entries[at], entries[at + 1 : end]) for at, end in zip(starts, ends, strict=False)]


def _check_place(header: dict[str, Any], backend: Backend) -> None:
    """Refuse another backend than the one that a job wrote to: a store for objects, a sink for snapshots."""
    written = {
        "pack": (store := ("store", backend.s3.where)),
        "copy": store,
        "unpack": (sink := ("sink", backend.ebs.where)),
        "import": sink,
    }
    name, where = written.get(header["kind"], ("", ""))
    if header.get(name, where) != where:
        raise InvalidRequestError(
            f"this log belongs to a run against {header[name]!r}, not {where!r}: give the backend that the "
            "run wrote to"
        )


def _delete_all(task: str, entries: list[dict[str, Any]], backend: Backend, completed: bool) -> None:
    begun: dict[str, tuple[int, str | None]] = {}  # size, and the token that proves it
    answered = {(entry["volume"], entry["generation"]) for entry in entries if "snapshot" in entry}
    for entry in entries:
        if "size" not in entry and "snapshot" not in entry:
            continue
        token = client_token(task, entry["volume"], entry["generation"])
        if "snapshot" in entry:
            begun[entry["snapshot"]] = entry["size"], token
        elif (entry["volume"], entry["generation"]) not in answered:
            # Begun, it may be, without an answer: its token tells the id, or begins it only now.
            known = _described(entry)
            snapshot_id = backend.ebs.start_snapshot(
                entry["size"] // GIB,
                description=known.description or "",
                tags=known.tags,
                client_token=token,
            )
            begun[snapshot_id] = entry["size"], None
    in_use = {
        snapshot_id
        for image in (backend.ec2.describe_images() if completed and begun else ())
        for snapshot_id in image.snapshot_ids
    }
    for snapshot_id, (size, proof) in begun.items():
        with contextlib.suppress(NotFoundError):
            found = backend.ebs.describe_snapshot(snapshot_id)
            if found.volume_size is not None and found.volume_size * GIB != size:
                raise InvalidRequestError(f"{snapshot_id} is not what the resume log says: delete it by hand")
            if found.state == "completed" and (not completed or snapshot_id in in_use):
                _logger.warning("keeping snapshot %s, which is completed: an image may be on it", snapshot_id)
                continue
            if proof is not None:
                _prove_begun(found, size, proof, backend.ebs)
            backend.ebs.delete_snapshot(snapshot_id)


def _described(entry: dict[str, Any]) -> Snapshot:
    """What the run asked for; a log of an earlier version has no description and tags."""
    try:
        return Snapshot(
            snapshot_id=entry["volume"],
            description=entry.get("description", ""),
            tags=tuple(Tag(key=key, value=value) for key, value in entry.get("tags", ())),
        )
    except InvalidRequestError as error:
        raise InvalidRequestError(f"the resume log is damaged: {error}") from None


def _prove_begun(found: Snapshot, size: int, token: str, sink: BlockSink) -> None:
    """Refuse a snapshot that the run did not begin: for its token and facts the sink tells another."""
    told = sink.start_snapshot(
        size // GIB, description=found.description or "", tags=found.tags, client_token=token
    )
    if told != found.snapshot_id:
        with contextlib.suppress(NotFoundError):
            if sink.describe_snapshot(told).state == "pending":  # the run's own, or begun by this question
                sink.delete_snapshot(told)
        raise InvalidRequestError(
            f"{found.snapshot_id} is not the snapshot that the run of this log began: if it is yours, delete "
            "it by hand"
        )
