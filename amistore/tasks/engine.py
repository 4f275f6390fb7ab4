"""`TaskEngine`: the three EC2 calls, for any backend, and what is ours beside them."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast, overload

import attrs

from amistore.backends import Backend, checks
from amistore.container import Index
from amistore.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, TaskFailedError
from amistore.model import Image, Tag
from amistore.objects.registration import refuse_taken
from amistore.pipeline.foreign import foreign_errors
from amistore.pipeline.workers import worker_count
from amistore.tasks.bars import ProgressReport, progress_reports
from amistore.tasks.journal import Journal
from amistore.tasks.metadata import REGION_KEY
from amistore.tasks.ownership import Ownership
from amistore.tasks.quotas import Quotas
from amistore.tasks.record import Kind, TaskRecord, VolumeRecord
from amistore.tasks.requests import (
    PageRequest,
    check_image_id,
    dry_run_succeeded,
    object_place,
    object_tags,
    split_tags,
)
from amistore.tasks.runner import TaskRunner
from amistore.tasks.sweep import SweepReport, sweep_uploads, unfinished_cleanup
from amistore.tasks.task import RestoreImageTask, StoreImageTask, TagSpecification, Task, TaskPage
from amistore.tasks.work import open_object
from amistore.units import GIB

__all__ = ["TaskEngine"]

_DAYS: Final = 31  # EC2 user guide, "Store and restore an AMI using S3", DescribeStoreImageTasks

T = TypeVar("T", bound=Task)


class TaskEngine:
    """Stores AMIs as objects and restores them, as tasks that no crash loses.

    A task is durable when the call that creates it returns; it is worked on in the background.
    A context manager: leaving it stops at the next part, and what is unfinished stays to be
    resumed, by this process or another. Safe for several threads, and for several processes on
    one journal.

    Args:
        backend: where images, snapshots and objects are.
        journal: path of the file with the tasks. None for the backend's own place (in a
            `DirectoryBackend`'s folder, in memory for a `MemoryBackend`), or else ``tasks.db`` in
            ``$AMISTORE_STATE_DIR``, ``$XDG_STATE_HOME/amistore`` or ``~/.local/state/amistore``.
        quotas: None for the EC2 user guide's; `Quotas.unlimited()` for none.
        workers: segments of a task worked on at once; None for the number of CPUs.
        concurrency: tasks worked on at once; the others wait, first in, first out.
        clock: gives the seconds since 1970.

    Raises:
        JournalError: the journal cannot be opened.
        InvalidRequestError: it is of a newer amistore.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        journal: str | os.PathLike[str] | None = None,
        quotas: Quotas | None = None,
        workers: int | None = None,
        concurrency: int = 2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(backend, Backend):
            raise InvalidRequestError(f"the backend must be a Backend, not {type(backend).__name__}")
        worker_count(workers)
        worker_count(concurrency)
        self.backend = backend
        self.quotas = quotas or Quotas()
        path = _journal_path(backend, journal)
        # What lies in a backend's own folder is of that backend, wherever the folder is moved.
        own = backend.journal is not None and path in (None, Path(backend.journal).absolute())
        self.place = "" if own else f"{backend.ebs.where} | {backend.s3.where}"
        self._journal = Journal(path)
        self._clock = clock
        self._ownership = Ownership(None if path is None else path.with_name(f"{path.name}-engines"))
        self._runner = TaskRunner(
            backend,
            self._journal,
            self._ownership,
            workers=workers,
            concurrency=concurrency,
            clock=clock,
        )
        self._mine: list[str] = []
        self._taking = threading.Lock()  # a task in the journal is one that the runner has, too
        self._closed = False

    def __enter__(self) -> TaskEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop at the next part; unfinished tasks can be resumed from now on."""
        if self._closed:
            return
        self._closed = True
        self._runner.close()
        try:
            self._journal.release(self._ownership.owner)
        finally:
            self._ownership.close()
            self._journal.close()

    def create_store_image_task(
        self,
        *,
        image_id: str,
        bucket: str,
        s3_object_tags: Iterable[Tag] | Mapping[str, str] = (),
        dry_run: bool = False,
    ) -> StoreImageTask:
        """Store an AMI as the object ``<image id>.bin``: CreateStoreImageTask.

        Args:
            image_id: of the AMI.
            bucket: that holds the object; ``bucket/prefix`` puts the prefix before its key.
            s3_object_tags: of the object: ten at most.
            dry_run: check everything, do nothing, and raise ``DryRunOperation``.

        Raises:
            NotFoundError: no such AMI, snapshot or bucket.
            AlreadyExistsError: the object exists, or a task is making it.
            InvalidRequestError: a parameter breaks a rule, the AMI cannot be stored, a quota is
                used up; `code` is EC2's.
            BackendError: the backend failed.
        """
        self._check_open()
        check_image_id(image_id)
        name, key = object_place(bucket, image_id)
        tags = object_tags(s3_object_tags)
        with foreign_errors("describe_image", image_id=image_id):
            image = self.backend.ec2.describe_image(image_id)
            self.backend.preflight(image)
        size = self._size(image)
        self.quotas.check_image(image_id, size)
        with foreign_errors("head_object", bucket=name, key=key):
            self.backend.s3.head_bucket(name)
            with contextlib.suppress(NotFoundError):
                self.backend.s3.head_object(name, key)
                raise AlreadyExistsError("the AMI is stored there already", bucket=name, key=key)
        record = self._record(
            "store",
            image_id=image_id,
            source_image_id=None,
            name=None,
            bucket=name,
            object_key=key,
            size=size,
            request={"object_tags": tags},
        )
        return cast(StoreImageTask, self._create(record, dry_run))

    def describe_store_image_tasks(
        self,
        *,
        image_ids: Sequence[str] | None = None,
        filters: Mapping[str, Sequence[str]] | None = None,
        max_results: int | None = None,
        next_token: str | None = None,
        dry_run: bool = False,
    ) -> TaskPage[StoreImageTask]:
        """Store tasks of the last 31 days, newest first: DescribeStoreImageTasks.

        Args:
            image_ids: of these AMIs only, 20 at most; filters are ignored then.
            filters: ``task-state`` and ``bucket``, each a list of values.
            max_results: tasks in a page, 1 to 200, not together with `image_ids`; None for 200.
            next_token: of the page before, with the same other arguments.
            dry_run: check the parameters and raise ``DryRunOperation``.

        Raises:
            InvalidRequestError: a parameter breaks a rule; `code` is EC2's.
        """
        return self._page("store", image_ids, filters, max_results, next_token, dry_run)

    def create_restore_image_task(
        self,
        *,
        bucket: str,
        object_key: str,
        name: str | None = None,
        tag_specifications: Iterable[TagSpecification] = (),
        allow_lost: bool = False,
        dry_run: bool = False,
    ) -> RestoreImageTask:
        """Make an AMI of an object: CreateRestoreImageTask.

        Args:
            bucket: that holds the object.
            object_key: of the object.
            name: of the new AMI, unique; None for that of the stored one.
            tag_specifications: tags of the AMI and of its snapshots, over those that were stored.
            allow_lost: restore snapshots with lost blocks too; see `unpack`.
            dry_run: check everything, do nothing, and raise ``DryRunOperation``.

        Returns:
            The task; its `image_id` is None until the AMI is registered, unless the registry can
            reserve ids.

        Raises:
            NotFoundError: no such bucket or object.
            ArchiveError: the object is no archive, or damaged.
            AlreadyExistsError: the name is taken.
            InvalidRequestError: a parameter breaks a rule, a quota is used up; `code` is EC2's.
            BackendError: the backend failed.
        """
        self._check_open()
        for given, role in ((bucket, "a bucket's name"), (object_key, "an object's key")):
            if not isinstance(given, str) or not given:
                raise InvalidRequestError(f"{role} is needed", code="MissingParameter")
        image_tags, snapshot_tags = split_tags(tag_specifications)
        with foreign_errors("head_object", bucket=bucket, key=object_key):
            self.backend.s3.head_bucket(bucket)
            metadata = self.backend.s3.head_object(bucket, object_key).metadata
        stored = open_object(self.backend, bucket, object_key)
        chosen = checks.check_registrable(stored.image, name)
        volumes = _volumes(stored.index)
        size = sum(volume.size for volume in volumes)
        self.quotas.check_image(stored.image.image_id, size)
        refuse_taken(self.backend, chosen)
        with foreign_errors("reserve_image_id"):
            reserved = self.backend.ec2.reserve_image_id()
        record = self._record(
            "restore",
            image_id=reserved,
            source_image_id=stored.image.image_id,
            name=chosen,
            bucket=bucket,
            object_key=object_key,
            size=size,
            request={
                "image_tags": {tag.key: tag.value for tag in image_tags},
                "snapshot_tags": {tag.key: tag.value for tag in snapshot_tags},
                "allow_lost": allow_lost,
                "region": metadata.get(REGION_KEY),
            },
        )
        record = attrs.evolve(record, volumes=volumes, content_id=stored.index.content_id.hex())
        return cast(RestoreImageTask, self._create(record, dry_run))

    def describe_restore_image_tasks(
        self,
        *,
        image_ids: Sequence[str] | None = None,
        filters: Mapping[str, Sequence[str]] | None = None,
        max_results: int | None = None,
        next_token: str | None = None,
        dry_run: bool = False,
    ) -> TaskPage[RestoreImageTask]:
        """Restore tasks of the last 31 days, newest first; arguments as in `describe_store_image_tasks`.

        EC2 has no such call: there, a restore is seen by describing its AMI and snapshots.
        """
        return self._page("restore", image_ids, filters, max_results, next_token, dry_run)

    @overload
    def wait(self, task: T, *, progress: bool | ProgressReport = False) -> T: ...
    @overload
    def wait(self, task: str, *, progress: bool | ProgressReport = False) -> Task: ...
    @overload
    def wait(self, task: None = None, *, progress: bool | ProgressReport = False) -> tuple[Task, ...]: ...
    def wait(
        self, task: Task | str | None = None, *, progress: bool | ProgressReport = False
    ) -> Task | tuple[Task, ...]:
        """Wait until a task has ended, however long that takes, or every task of this engine.

        Args:
            task: a task or its id, also one of another process; None for all that this engine has
                created or resumed.
            progress: True for a bar a task (tqdm; extra ``progress``), or what to call with a task
                when its percentage has changed.

        Returns:
            The task as it is then; for None all of them, oldest first.

        Raises:
            TaskFailedError: it, or one of all, has failed.
            JournalError: the journal could not be written; `resume` goes on.
        """
        self._check_open()
        wanted = list(self._mine) if task is None else [_task_id(task)]
        with progress_reports(progress) as report:
            records = [self._await(task_id, report) for task_id in wanted]
        failed = [record for record in records if record.state == "Failed"]
        if failed:
            told = "; ".join(f"{each.task_id} failed: {each.failure_reason}" for each in failed)
            raise TaskFailedError(told, task_ids=tuple(each.task_id for each in failed))
        ended = tuple(record.task() for record in records)
        return ended if task is None else ended[0]

    def cancel(self, task: Task | str) -> None:
        """Give a task up, of whatever process: what it has made is removed, and it counts as failed.

        This returns once that is durable; `wait` waits for the end. One that is at its very end
        may still be completed.

        Raises:
            InvalidRequestError: it has ended already; ``IncorrectState``.
        """
        self._check_open()
        task_id = _task_id(task)
        self._journal.cancel(task_id)
        if self._runner.has(task_id):
            self._runner.cancel(task_id)
        else:
            self._take([self._journal.task(task_id)])

    def resume(self) -> tuple[Task, ...]:
        """Go on with the tasks of this backend that no running engine has; gives them, oldest first.

        Such are tasks of engines that were closed, whose process has ended, or that gave no sign of
        life for a minute; and failed tasks whose clean-up is not finished.
        """
        self._check_open()
        return self._take(self._journal.unfinished(self.place))

    def sweep(self) -> SweepReport:
        """Remove what belongs to no live task: try the clean-up of failed tasks again, and look for more.

        That is: uploads whose beginning got no answer, files that crashes have left in a
        `DirectoryBackend`, tasks of the journal that ended more than 31 days ago. What may be another
        program's is only told.
        """
        self._check_open()
        undoing = [each for each in self._journal.unfinished(self.place) if each.stage == "undoing"]
        ended = [self._await(task.task_id) for task in self._take(undoing)]
        uploads = sweep_uploads(self.backend, self._journal, self.place)
        removed = [f"what {each.task_id} had made" for each in ended if each.stage == "ended"]
        left = [unfinished_cleanup(each) for each in ended if each.stage != "ended"]
        with foreign_errors("sweep"):
            files = self.backend.sweep()
        self._journal.prune(self.place, self._oldest())
        return SweepReport(removed=(*removed, *uploads.removed, *files), left=(*left, *uploads.left))

    def _oldest(self) -> int:
        """When a task must have been started at least to be described; milliseconds since 1970."""
        return int((self._clock() - datetime.timedelta(days=_DAYS).total_seconds()) * 1000)

    def _take(self, records: Iterable[TaskRecord]) -> tuple[Task, ...]:
        owner, until = self._ownership.owner, self._runner.until()
        with self._taking:
            found = [self._journal.take(each.task_id, owner, until, self._is_free) for each in records]
            taken = [record for record in found if record is not None]
            self._mine += [record.task_id for record in taken if record.task_id not in self._mine]
            if taken:
                self._runner.submit(taken)
        return tuple(record.task() for record in taken)

    def _is_free(self, record: TaskRecord) -> bool:
        if record.owner == self._ownership.owner:
            return not self._runner.has(record.task_id)  # its run ended without an end of the task
        return (
            record.owner is None
            or record.lease_until <= time.monotonic()
            or not self._ownership.alive(record.owner)
        )

    def _await(self, task_id: str, report: ProgressReport | None = None) -> TaskRecord:
        while True:
            record = self._journal.task(task_id)
            if report is not None:
                report(record.task())
            if record.stage == "ended" or (record.stage == "undoing" and record.owner is None):
                return record
            with self._runner.changed:
                if task_id in self._runner.stuck:
                    raise self._runner.stuck[task_id]
                if self._closed:
                    raise InvalidRequestError("the engine is closed")
            if not self._runner.has(task_id) and self._is_free(record):
                self._take([record])
            with self._runner.changed:
                # Of another process nothing is told here: the journal is looked into again.
                self._runner.changed.wait(timeout=0.5)

    def _record(self, kind: Kind, **columns: object) -> TaskRecord:
        return TaskRecord(
            task_id=checks.new_id(kind),
            kind=kind,
            place=self.place,
            started=int(self._clock() * 1000),
            owner=self._ownership.owner,
            epoch=1,
            lease_until=self._runner.until(),
            **columns,  # type: ignore[arg-type]
        )

    def _create(self, record: TaskRecord, dry_run: bool) -> Task:
        with self._taking:
            self._journal.add(record, self.quotas.in_progress(record.kind), dry_run=dry_run)
            if dry_run:
                raise dry_run_succeeded()
            self._mine.append(record.task_id)
            self._runner.submit([record])
        return record.task()

    def _page(
        self,
        kind: Kind,
        image_ids: Sequence[str] | None,
        filters: Mapping[str, Sequence[str]] | None,
        max_results: int | None,
        next_token: str | None,
        dry_run: bool,
    ) -> TaskPage[Any]:
        self._check_open()
        request = PageRequest.of(image_ids, filters, max_results, next_token)
        if dry_run:
            raise dry_run_succeeded()
        since = self._oldest() if request.since is None else request.since
        found = self._journal.page(
            self.place,
            kind,
            since=since,
            limit=request.limit + 1,
            before=request.before,
            image_ids=request.image_ids,
            buckets=request.buckets,
            states=request.states,
        )
        shown = found[: request.limit]
        token = request.token(shown[-1].sequence, since) if len(found) > request.limit else None
        return TaskPage(tuple(record.task() for record in shown), token)

    def _size(self, image: Image) -> int:
        """GiB of the image's snapshots, each counted once."""
        total = 0
        for snapshot_id in image.snapshot_ids:
            size = image.snapshot(snapshot_id).volume_size
            if size is None:
                with foreign_errors("list_snapshot_blocks", snapshot_id=snapshot_id):
                    size = self.backend.ebs.list_snapshot_blocks(snapshot_id).volume_size
            total += size
        return total

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("the engine is closed")


def _task_id(task: object) -> str:
    if isinstance(task, Task):
        return task.task_id
    if not isinstance(task, str):
        raise InvalidRequestError(f"a task or its id is wanted, not {type(task).__name__}")
    return task


def _volumes(index: Index) -> tuple[VolumeRecord, ...]:
    return tuple(
        VolumeRecord(stored_id=volume.snapshot_id, size=volume.size // GIB, blocks=volume.blocks)
        for volume in index.volumes
    )


def _journal_path(backend: Backend, journal: str | os.PathLike[str] | None) -> Path | None:
    chosen = backend.journal if journal is None else journal
    if chosen is not None:
        return None if chosen == ":memory:" else Path(chosen).absolute()
    own = os.environ.get("AMISTORE_STATE_DIR")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return (Path(own) if own else Path(state) / "amistore").absolute() / "tasks.db"
