"""`TaskEngine`: the three EC2 calls for any backend, and calls of our own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Literal, TypeVar, overload

import attrs

from amistore import forks
from amistore.backends import Backend
from amistore.backends.base import check_backend
from amistore.backends.quotas import Quotas
from amistore.errors import AlreadyExistsError, InvalidRequestError, JournalError, TaskFailedError
from amistore.model import Tag
from amistore.objects.restore import warn_of_dropped
from amistore.pipeline.orders import given_cluster
from amistore.pipeline.workers import worker_count
from amistore.tasks.database import Ownership, journal_path
from amistore.tasks.journal import Journal
from amistore.tasks.planning import TaskPlans
from amistore.tasks.record import TaskRecord
from amistore.tasks.requests import (
    IfExists,
    OnQuota,
    check_choice,
    listed,
    object_place,
    object_tags,
    refused,
)
from amistore.tasks.restore import RestoreRecord, RestoreRequest
from amistore.tasks.run import SweepReport, sweep_uploads
from amistore.tasks.runner import TaskRunner
from amistore.tasks.store import StoreRecord, StoreRequest, check_stored
from amistore.tasks.task import (
    RestoreImageTask,
    StoreImageTask,
    TagSpecification,
    Task,
    TaskCallback,
    reporting_tasks,
)

__all__ = ["TaskEngine"]

_logger = logging.getLogger("amistore")

T = TypeVar("T", bound=Task)


class TaskEngine(TaskPlans):
    """Stores AMIs as objects and restores them, as tasks that no crash loses.

    A task is durable when the call that creates it returns; it runs in the background. The engine is a
    context manager: leaving it stops tasks at the next part, and this process or another can resume them.
    Several threads may use an engine. Several processes may share a journal, each with an engine of its own:
    a forked child cannot use its parent's.

    Args:
        backend: the backend with the images, snapshots and objects.
        journal: the path of the journal. None for the backend's own (in a `DirectoryBackend`'s folder, in
            memory for a `MemoryBackend`), or else ``tasks.db`` in ``$AMISTORE_STATE_DIR``,
            ``$XDG_STATE_HOME/amistore`` or ``~/.local/state/amistore``. ``":memory:"`` for tasks that end
            with the engine.
        quotas: the quotas; None for the backend's: `Quotas.aws()` for an `AWSBackend`, else the EC2 user
            guide's. `Quotas.unlimited()` sets none.
        workers: the number of segments of a task worked on at once; None for the number of CPUs. With an
            executor, the number of all tasks' orders that are out at once.
        executor: an executor whose workers do the tasks' orders, as in `store`; None for threads of this
            process.
        concurrency: the number of tasks run at once; the others wait, first in, first out.
        clock: a function that returns the seconds since 1970; another one is for tests.

    Raises:
        JournalError: the journal cannot be opened.
        InvalidRequestError: a newer amistore made the journal.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        journal: str | os.PathLike[str] | None = None,
        quotas: Quotas | None = None,
        workers: int | None = None,
        executor: Executor | None = None,
        concurrency: int = 2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_backend(backend, "backend")
        if quotas is not None and not isinstance(quotas, Quotas):
            raise InvalidRequestError(f"quotas must be amistore.Quotas, not {type(quotas).__name__}")
        if type(concurrency) is not int or concurrency < 1:
            raise InvalidRequestError(f"concurrency must be a whole number from 1 on, not {concurrency!r}")
        self._workers = worker_count(workers)
        self._cluster = given_cluster(executor, workers, shared=True, backend=backend)
        self.quotas = quotas or backend.quotas
        path = journal_path(journal, backend.journal)
        # What lies in a backend's own folder is of that backend, wherever the folder is moved.
        own = backend.journal is not None and path == journal_path(None, backend.journal)
        place = "" if own else f"{backend.ebs.where} | {backend.s3.where}"
        super().__init__(backend, Journal(path), place, clock)
        with forks.undoing(lambda _: self._journal.close()):
            self._ownership = Ownership(None if path is None else path.with_name(f"{path.name}-engines"))
        self._runner = TaskRunner(
            backend, self._journal, self._ownership, workers, self._cluster, concurrency, clock
        )

    def __repr__(self) -> str:
        return f"TaskEngine({self.backend!r}, journal={self._journal.name!r})"

    def __enter__(self) -> TaskEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop tasks at the next part; from then on they can be resumed."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        try:
            self._runner.close()
        finally:  # also where it was interrupted: what is written later is refused
            self._let_go()

    def _let_go(self) -> None:
        try:
            left = self._journal.release(self._ownership.owner)
            if left:
                _logger.warning("unfinished; resume() continues: %s", ", ".join(left))
        except JournalError as error:  # they are free all the same once it counts as ended
            _logger.warning("this engine's tasks stay in the journal; resume() continues them: %s", error)
        finally:
            self._ownership.close()
            self._journal.close()

    @overload
    def create_store_image_task(
        self,
        *,
        image_id: str,
        bucket: str,
        s3_object_tags: Iterable[Tag] | Mapping[str, str] = (),
        if_exists: Literal["refuse"] = "refuse",
        on_quota: OnQuota = "wait",
        dry_run: bool = False,
    ) -> StoreImageTask: ...
    @overload
    def create_store_image_task(
        self,
        *,
        image_id: str,
        bucket: str,
        s3_object_tags: Iterable[Tag] | Mapping[str, str] = (),
        if_exists: IfExists,
        on_quota: OnQuota = "wait",
        dry_run: bool = False,
    ) -> StoreImageTask | None: ...
    def create_store_image_task(
        self,
        *,
        image_id: str,
        bucket: str,
        s3_object_tags: Iterable[Tag] | Mapping[str, str] = (),
        if_exists: IfExists = "refuse",
        on_quota: OnQuota = "wait",
        dry_run: bool = False,
    ) -> StoreImageTask | None:
        """Store an AMI as the object ``<image id>.bin``: CreateStoreImageTask.

        Args:
            image_id: the AMI's id.
            bucket: the bucket that gets the object; ``bucket/prefix`` puts the prefix before the key.
            s3_object_tags: the object's tags, ten at most.
            if_exists: the rule for an object that exists: ``"refuse"`` it, or ``"skip"`` an AMI that amistore
                has stored.
            on_quota: the rule for a quota that is used up: ``"wait"`` until a task has ended, of this process
                or another, then check the request again, and only then make the task durable; or ``"refuse"``
                the call, as EC2 does.
            dry_run: whether to make all checks only, and raise ``DryRunOperation``.

        Returns:
            The task. With ``if_exists="skip"``, None if the object exists, or the task that is making
            it, which is resumed if no engine runs it.

        Raises:
            NotFoundError: no such AMI, snapshot or bucket.
            AlreadyExistsError: the object exists, or a task is making it; with ``"skip"``, the object is
                not amistore's.
            InvalidRequestError: a parameter breaks a rule, the AMI cannot be stored, or a quota is used
                up by tasks that no engine runs; `code` is EC2's.
            BackendError: the backend failed.
        """
        self._check_open()
        check_choice(if_exists, "if_exists", IfExists)
        tags = object_tags(s3_object_tags)  # read once, and checked again after a wait

        def check() -> StoreRecord:
            given = self._given()
            return StoreRequest.of(*given, image_id=image_id, bucket=bucket, s3_object_tags=tags).record

        try:
            return self._runner.admit(check, self.quotas, on_quota=on_quota, dry_run=dry_run).task()
        except AlreadyExistsError as error:
            if if_exists == "refuse":
                raise
            place = object_place(bucket, image_id)
            for record in self._in_progress():
                if isinstance(record, StoreRecord) and record.uploads == place:
                    self._take([] if dry_run else [record])
                    return record.task()
            check_stored(self.backend.s3.at(*place), error)
            return None

    def create_restore_image_task(
        self,
        *,
        bucket: str,
        object_key: str,
        name: str | None = None,
        tag_specifications: Iterable[TagSpecification] = (),
        fill_holes: bool = False,
        allow_lost: bool = False,
        expected_content_id: str | None = None,
        on_quota: OnQuota = "wait",
        dry_run: bool = False,
    ) -> RestoreImageTask:
        """Make an AMI of an object: CreateRestoreImageTask.

        Attributes that the new AMI will lack are logged (WARNING); `plan_restore` lists all. Once its
        snapshots are started, a WARNING says if they are encrypted and have holes that are not filled.

        Args:
            bucket: the bucket that holds the object.
            object_key: the object's key.
            name: the new AMI's unique name; None for the stored name.
            tag_specifications: the tags to set on the AMI and its snapshots, over the stored ones.
            fill_holes: whether to put a block of zeros for each block that a snapshot does not list, as in
                `unpack`.
            allow_lost: whether to restore snapshots with lost blocks, too, as in `unpack`.
            expected_content_id: the only content id to accept, 64 hexadecimal digits; None for that of the
                present archive. Every restored block is proved.
            on_quota: the rule for a quota that is used up, ``"wait"`` or ``"refuse"``, as in
                `create_store_image_task`.
            dry_run: whether to make all checks only, and raise ``DryRunOperation``.

        Returns:
            The task; its `image_id` is None until the AMI is registered, unless the registry can
            reserve ids.

        Raises:
            NotFoundError: no such bucket or object.
            ArchiveError: the object is no archive, or damaged.
            AlreadyExistsError: the name is taken.
            AccessDeniedError: registering the AMI would be refused.
            InvalidRequestError: a parameter breaks a rule, or a quota is used up by tasks that no engine
                runs; `code` is EC2's.
            BackendError: the backend failed.
        """
        self._check_open()
        tags = listed(tag_specifications, "tag specifications")

        def check() -> RestoreRecord:
            request = RestoreRequest.of(
                *self._given(),
                bucket=bucket,
                object_key=object_key,
                name=name,
                tag_specifications=tags,
                fill_holes=fill_holes,
                allow_lost=allow_lost,
                expected_content_id=expected_content_id,
            )
            reserved = self.backend.ec2.reserve_image_id()
            warn_of_dropped(self.backend, request.stored.image, request.record.name)
            return attrs.evolve(request.record, image_id=reserved)

        return self._runner.admit(check, self.quotas, on_quota=on_quota, dry_run=dry_run).task()

    @overload
    def wait(self, task: T, *, progress: bool | TaskCallback | None = None) -> T: ...
    @overload
    def wait(self, task: str, *, progress: bool | TaskCallback | None = None) -> Task: ...
    @overload
    def wait(self, task: None = None, *, progress: bool | TaskCallback | None = None) -> tuple[Task, ...]: ...
    def wait(
        self, task: Task | str | None = None, *, progress: bool | TaskCallback | None = None
    ) -> Task | tuple[Task, ...]:
        """Wait, without a limit, until a task has ended, or every task of this engine.

        Args:
            task: the task or its id, also another process's; None for every task that this engine created or
                resumed, except failures already raised.
            progress: True for a bar (extra ``progress``), or a function called with a task when its
                percentage or state has changed.

        Returns:
            The ended task; for None all of them, oldest first.

        Raises:
            TaskFailedError: the task, or one of all, has failed.
            CredentialsExpiredError: the task stays; another engine's `resume` continues it with new
                credentials.
            JournalError: the journal could not be written; `resume` continues the task.
            AmistoreError: another error that may pass, such as `AccessDeniedError`, `StorageFullError` or
                `BackendError`: the task stays, `resume` continues it, `cancel` gives it up.
        """
        self._check_open()
        if task is None:
            self._tell_unowned()
        wanted = list(self._runner.mine) if task is None else [self._own(task)]
        with reporting_tasks(progress, len(wanted)) as report:
            records = self._runner.wait(wanted, report)
        failed = [record for record in records if record.state == "Failed"]
        if failed:
            self._runner.forget({record.task_id for record in failed})
            told = "; ".join(f"{each.task_id} failed: {each.failure_reason}" for each in failed)
            raise TaskFailedError(told, task_ids=tuple(each.task_id for each in failed))
        ended = tuple(record.task() for record in records)
        return ended if task is None else ended[0]

    def _tell_unowned(self) -> None:
        """Log the tasks that no engine runs: a program that was killed may not know of them."""
        unowned = [each.task_id for each in self._in_progress() if self._runner.is_free(each)]
        if unowned:
            _logger.warning("no engine runs these tasks; resume() continues them: %s", ", ".join(unowned))

    def _in_progress(self) -> list[TaskRecord]:
        return [each for each in self._journal.unfinished(self._place) if each.state == "InProgress"]

    def cancel(self, task: Task | str) -> None:
        """Cancel a task, also another process's: it counts as failed, and what it made is removed.

        This returns once the request is durable; `wait` waits for the end. The task's owner notices at the
        next part or segment, another process within five seconds; until then the task may still complete.

        Raises:
            InvalidRequestError: the task has ended; ``IncorrectState``.
        """
        self._check_open()
        task_id = self._own(task)
        self._journal.cancel(task_id)
        if self._runner.has(task_id):
            self._runner.cancel(task_id)
        else:
            self._take([self._journal.task(task_id)])

    def resume(self) -> tuple[Task, ...]:
        """Continue the tasks of this backend that no engine runs; return them, oldest first.

        These are tasks that an error left unfinished, also in this engine; tasks of engines that were closed,
        whose process has ended, or that gave no sign of life for a minute; and failed tasks whose clean-up is
        unfinished.
        """
        self._check_open()
        return self._take(self._journal.unfinished(self._place))

    def sweep(self) -> SweepReport:
        """Remove what belongs to no live task: repeat the clean-up of failed tasks, and look for leftovers.

        Leftovers are uploads whose beginning got no answer, files that crashes left in a `DirectoryBackend`,
        and the journal's tasks that ended more than 31 days ago. What may be another program's is only
        reported.
        """
        self._check_open()
        undoing = [each for each in self._journal.unfinished(self._place) if each.stage == "undoing"]
        ended = self._runner.wait([task.task_id for task in self._take(undoing)])
        uploads = sweep_uploads(self.backend, self._journal, self._place)
        removed = [f"what {each.task_id} had made" for each in ended if each.stage == "ended"]
        things = ((", ".join(each.left_behind) or "what it had made", each) for each in ended)
        left = [
            f"{made} of {each.task_id}: the log has the reason"
            for made, each in things
            if each.stage != "ended"
        ]
        files = self.backend.sweep()
        self._journal.prune(self._place, self._oldest())
        return SweepReport(removed=(*removed, *uploads.removed, *files), left=(*left, *uploads.left))

    def _take(self, records: Iterable[TaskRecord]) -> tuple[Task, ...]:
        return tuple(record.task() for record in self._runner.take(records))

    def _own(self, task: object) -> str:
        """The id of a task of this backend; several backends may share a journal."""
        if not isinstance(task, (Task, str)):
            raise InvalidRequestError(f"a task or its id is wanted, not {type(task).__name__}")
        record = self._journal.task(task if isinstance(task, str) else task.task_id)
        if record.place != self._place:
            raise refused(f"{record.task_id} is a task of another backend: make an engine with that one")
        return record.task_id
