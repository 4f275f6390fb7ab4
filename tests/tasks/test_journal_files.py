"""The journal's files: shared, linked, removed, of another backend or another user."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tasks.accounts import BUCKET, elsewhere, held, registered

import amistore
from amistore import DirectoryBackend, JournalError, TaskEngine
from amistore.backends.directory.s3 import DirectoryS3
from amistore.tasks import runner
from amistore.tasks.database import Ownership

DIED = """
cloud = amistore.DirectoryBackend(sys.argv[1])
type(cloud.s3).upload_part = lambda *arguments: os._exit(0)
engine = amistore.TaskEngine(cloud, journal=sys.argv[2])
os.write(1, engine.create_store_image_task(image_id=sys.argv[3], bucket="archive").task_id.encode())
engine.wait()
"""

LISTED = """
cloud = amistore.DirectoryBackend(sys.argv[1])
with amistore.TaskEngine(cloud) as engine:
    print(*(task.task_id for task in engine.describe_store_image_tasks()))
"""

FORKED = """
from tasks.accounts import BUCKET, account
cloud, image_id = account()
with amistore.TaskEngine(cloud, journal=sys.argv[1]) as engine:
    child = os.fork()
    if child == 0:
        try:
            engine.describe_store_image_tasks()
        except amistore.InvalidRequestError as error:
            os.write(1, f"{error}\\n".encode())
        engine.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(*os.listdir(f"{sys.argv[1]}-engines"))
    print(engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).state)
"""


@pytest.fixture
def cloud(tmp_path: Path) -> DirectoryBackend:
    made = DirectoryBackend(tmp_path / "cloud")
    made.s3.create_bucket(BUCKET)
    return made


@pytest.fixture
def working(cloud: DirectoryBackend) -> Iterator[TaskEngine]:
    """An engine in the middle of a task."""
    with TaskEngine(cloud) as engine, held(DirectoryS3, "upload_part") as reached:
        engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
        assert reached.wait(60)
        yield engine


def test_a_second_engine_of_a_process_does_not_cost_the_first_its_locks(cloud: DirectoryBackend) -> None:
    """A process that then opens and closes the journal would remove the write-ahead log under both."""
    with TaskEngine(cloud) as engine, TaskEngine(cloud):
        assert elsewhere(LISTED, cloud.path) == "\n"
        task = engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
        assert elsewhere(LISTED, cloud.path).split() == [task.task_id]
        engine.wait()


def test_a_forked_process_can_neither_use_nor_close_an_engine_of_its_parent(tmp_path: Path) -> None:
    told, signs, state = elsewhere(FORKED, tmp_path / "tasks.db").splitlines()
    assert "make another one in this process" in told
    assert len(signs.split()) == 1
    assert state == "Completed"


def test_engines_that_know_a_journal_by_several_names_see_each_other(
    cloud: DirectoryBackend, working: TaskEngine, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(str(cloud.journal))
    folder = tmp_path / "other"
    folder.symlink_to(cloud.path)
    for name in (link, folder / "tasks.db"):
        with TaskEngine(cloud, journal=name) as other:
            assert len(other.describe_store_image_tasks()) == 1
            assert other.resume() == ()


@pytest.mark.parametrize("content", [None, b"no journal" * 1000])
def test_what_is_no_journal_is_refused_and_left_alone(
    cloud: DirectoryBackend, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "tasks.db"
    path.mkdir() if content is None else path.write_bytes(content)
    path.chmod(0o755)
    with pytest.raises(JournalError, match=str(path)):
        TaskEngine(cloud, journal=path)
    assert path.is_dir() if content is None else path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_database_of_another_program_is_refused_and_left_alone(
    cloud: DirectoryBackend, tmp_path: Path
) -> None:
    path = tmp_path / "bookmarks.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE bookmark (address TEXT)")
    before = path.read_bytes()
    path.chmod(0o644)
    with pytest.raises(amistore.InvalidRequestError, match="another program"):
        TaskEngine(cloud, journal=path)
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_journal_that_others_could_read_is_its_owners_alone_once_it_was_opened(
    cloud: DirectoryBackend,
) -> None:
    TaskEngine(cloud).close()
    journal = Path(str(cloud.journal))
    journal.chmod(0o644)
    with TaskEngine(cloud):
        for each in journal.parent.glob("tasks.db*"):
            assert each.is_dir() or stat.S_IMODE(each.stat().st_mode) == 0o600


def test_a_journal_whose_owners_cannot_be_noted_is_refused(cloud: DirectoryBackend, tmp_path: Path) -> None:
    (tmp_path / "tasks.db-engines").write_bytes(b"")
    with pytest.raises(JournalError, match="db-engines"):
        TaskEngine(cloud, journal=tmp_path / "tasks.db")


def test_a_journal_of_another_user_is_refused() -> None:
    program = """
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    amistore.TaskEngine(amistore.MemoryBackend(), journal=sys.argv[1])
except amistore.JournalError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.db"
        TaskEngine(amistore.MemoryBackend(), journal=path).close()
        Path(folder).chmod(0o777)
        path.chmod(0o600 if os.geteuid() == 0 else 0)
        assert str(path) in elsewhere(program, path)
        Path(folder).chmod(0o700)


def test_a_journal_that_is_removed_under_an_engine_takes_no_task_before_it_is_back(
    cloud: DirectoryBackend, tmp_path: Path
) -> None:
    image_id, path, away = registered(cloud), Path(str(cloud.journal)), tmp_path / "away"
    with TaskEngine(cloud) as engine:
        path.rename(away)
        with pytest.raises(JournalError, match="removed or replaced"):
            engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        path.write_bytes(b"")
        with pytest.raises(JournalError, match="removed or replaced"):
            engine.create_store_image_task(image_id=image_id, bucket=BUCKET)
        away.rename(path)
        assert engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).state
    with TaskEngine(cloud) as engine:
        assert len(engine.describe_store_image_tasks()) == 1


def test_a_running_task_whose_journal_is_removed_is_told_and_goes_on_when_it_is_back(
    cloud: DirectoryBackend, tmp_path: Path
) -> None:
    path = Path(str(cloud.journal))
    with TaskEngine(cloud) as engine:
        with held(DirectoryS3, "upload_part") as reached:
            task = engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
            assert reached.wait(60)
            path.rename(tmp_path / "away")
        with pytest.raises(JournalError, match="removed or replaced"):
            engine.wait(task)
        (tmp_path / "away").rename(path)
        assert [each.task_id for each in engine.resume()] == [task.task_id]
        assert engine.wait(task).state == "Completed"


def test_a_task_of_another_backend_in_the_same_journal_is_not_touched(
    cloud: DirectoryBackend, tmp_path: Path
) -> None:
    other = DirectoryBackend(tmp_path / "other")
    other.s3.create_bucket(BUCKET)
    journal = tmp_path / "shared.db"
    task = elsewhere(DIED, cloud.path, journal, registered(cloud))
    with TaskEngine(other, journal=journal) as engine:
        assert engine.resume() == ()
        for call in (engine.wait, engine.cancel):
            with pytest.raises(amistore.InvalidRequestError, match="another backend"):
                call(task)
    with TaskEngine(cloud, journal=journal) as engine:
        assert engine.wait(task).state == "Completed"


def test_an_owner_counts_as_alive_until_its_process_ends_whatever_happens_to_its_file(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "engines"
    owner, other = Ownership(folder), Ownership(folder)
    assert other.alive(owner.owner)
    shutil.rmtree(folder)
    owner.hold()
    assert other.alive(owner.owner)
    (folder / owner.owner).unlink()
    (folder / owner.owner).symlink_to(folder)  # cannot be opened, which proves nothing
    assert other.alive(owner.owner)
    (folder / owner.owner).unlink()
    owner.hold()
    owner.close()
    assert not other.alive(owner.owner)
    other.close()


def test_an_engine_whose_sign_of_life_was_removed_by_hand_gives_it_again(
    cloud: DirectoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_HEARTBEAT", 0.01)
    beaten, beats = threading.Semaphore(0), Ownership.hold

    def hold(ownership: Ownership) -> None:
        beats(ownership)
        beaten.release()

    monkeypatch.setattr(Ownership, "hold", hold)
    with TaskEngine(cloud) as engine, held(DirectoryS3, "upload_part") as reached:
        engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
        assert reached.wait(60)
        shutil.rmtree(f"{cloud.journal}-engines")
        while beaten.acquire(blocking=False):
            pass
        for _ in range(2):  # the first may have begun before
            assert beaten.acquire(timeout=60)
        with TaskEngine(cloud) as other:
            assert other.resume() == ()


@pytest.mark.parametrize("lease", [1e12, -1e12])
def test_the_tasks_of_a_machine_that_was_restarted_are_free_whatever_its_clock_said(
    cloud: DirectoryBackend, lease: float
) -> None:
    task = elsewhere(DIED, cloud.path, cloud.journal, registered(cloud))
    database = sqlite3.connect(str(cloud.journal), isolation_level=None)
    database.execute("UPDATE task SET owner = '1-0123456789ab', lease_until = ?", [lease])
    database.close()
    with TaskEngine(cloud) as engine:
        assert [each.task_id for each in engine.resume()] == [task]
        assert engine.wait(task).state == "Completed"
