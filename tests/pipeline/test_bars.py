"""`progress=` of every long call: a bar with bytes, rate and time left, or a refusal before the work."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import pytest
from tasks.accounts import BUCKET, account

import amistore

KEY = "web.bin"
Call = Callable[[amistore.MemoryBackend, str, Path, Any], object]


def archive(cloud: amistore.MemoryBackend) -> amistore.ObjectLocation:
    return cloud.s3.at(BUCKET, KEY)


def keys(cloud: amistore.MemoryBackend) -> list[str]:
    return [location.key for location in cloud.s3.list_objects(BUCKET, "")]


def packed(cloud: amistore.MemoryBackend, image_id: str, folder: Path, progress: Any) -> object:
    return list(amistore.pack(cloud.ec2.describe_image(image_id), cloud.ebs, progress=progress))


def unpacked(cloud: amistore.MemoryBackend, image_id: str, folder: Path, progress: Any) -> object:
    stream = io.BytesIO(cloud.s3.get_object_range(BUCKET, KEY, 0, 10**9))
    return amistore.unpack(stream, cloud.ebs, progress=progress)


def compared(cloud: amistore.MemoryBackend, other: Any, progress: Any) -> object:
    with amistore.open(archive(cloud)) as opened:
        return opened.compare(other, progress=progress)


def waited(cloud: amistore.MemoryBackend, image_id: str, folder: Path, progress: Any) -> object:
    with amistore.TaskEngine(cloud) as engine:
        task = engine.create_store_image_task(image_id=image_id, bucket=f"{BUCKET}/tasks")
        return engine.wait(task, progress=progress)


CALLS: dict[str, tuple[str, Call]] = {
    "store": ("pack", lambda c, i, f, p: amistore.store(i, c, c.s3.at(BUCKET, "new.bin"), progress=p)),
    "store to a file": ("pack", lambda c, i, f, p: amistore.store(i, c, f / "new.bin", progress=p)),
    "restore": ("unpack", lambda c, i, f, p: amistore.restore(archive(c), c, name="web-2", progress=p)),
    "transfer": (
        "unpack",
        lambda c, i, f, p: amistore.transfer(i, source=c, destination=c, name="web-3", progress=p),
    ),
    "copy": ("copy", lambda c, i, f, p: amistore.copy(archive(c), c.s3.at(BUCKET, "copy.bin"), progress=p)),
    "pack": ("pack", packed),
    "unpack": ("unpack", lambda c, i, f, p: amistore.unpack(archive(c), c.ebs, progress=p)),
    "unpack a stream": ("unpack", unpacked),
    "verify": ("verify", lambda c, i, f, p: amistore.open(archive(c)).verify(progress=p)),
    "extract": ("extract", lambda c, i, f, p: amistore.open(archive(c)).extract(f / "disks", progress=p)),
    "extract a volume": (
        "extract",
        lambda c, i, f, p: amistore.open(archive(c)).root_volume.extract(f / "disk", progress=p),
    ),
    "compare": ("compare", lambda c, i, f, p: compared(c, archive(c), p)),
    "compare live": ("compare", lambda c, i, f, p: compared(c, c.ebs, p)),
    "recover": ("recover", lambda c, i, f, p: amistore.recover(archive(c), f / "saved.bin", progress=p)),
    "wait": ("archive/tasks/", waited),
}


@pytest.fixture
def cloud() -> tuple[amistore.MemoryBackend, str]:
    """A backend with an AMI, and its archive."""
    backend, image_id = account()
    amistore.store(image_id, backend, archive(backend))
    return backend, image_id


@pytest.mark.parametrize("name", CALLS)
def test_every_long_call_shows_a_bar_that_ends_full(
    name: str, cloud: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    title, call = CALLS[name]
    call(*cloud, tmp_path, True)
    shown = capfd.readouterr().err
    told = (
        r"\[\d\d:\d\d<\d\d:\d\d\]"
        if name == "wait"
        else r"[\d.]+[kMG]/[\d.]+[kMG] \[\d\d:\d\d<[\d:?]+, .*B/s\]"
    )
    assert re.search(rf"{title}[^\r]*: +100%\|[^|]+\| {told}", shown), shown


@pytest.mark.parametrize("name", CALLS)
def test_every_long_call_refuses_another_value_before_the_work(name: str, cloud: Any, tmp_path: Path) -> None:
    objects = keys(cloud[0])
    with pytest.raises(
        amistore.InvalidRequestError, match="progress is True, False or a function, not 'bar'"
    ):
        CALLS[name][1](*cloud, tmp_path, "bar")
    assert name == "wait" or keys(cloud[0]) == objects
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CALLS)
def test_without_tqdm_every_long_call_names_the_extra_before_the_work(
    name: str, cloud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, module, None)
    objects = keys(cloud[0])
    with pytest.raises(ImportError, match=r"pip install 'amistore\[progress\]'"):
        CALLS[name][1](*cloud, tmp_path, True)
    assert name == "wait" or keys(cloud[0]) == objects
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("progress", [None, False])
def test_no_progress_is_shown_without_being_asked_for(
    progress: Any, cloud: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for _, call in CALLS.values():
        call(*cloud, tmp_path, progress)
        cloud[0].s3.delete_object(BUCKET, "new.bin")
        (tmp_path / "new.bin").unlink(missing_ok=True)
    assert "%|" not in capfd.readouterr().err


def test_a_bar_of_volumes_is_one_and_counts_all_of_them(
    cloud: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[amistore.Progress] = []
    with amistore.open(archive(cloud[0])) as opened:
        opened.extract(tmp_path, progress=seen.append)
        opened.extract(tmp_path, overwrite=True, progress=True)
    assert [(each.blocks, each.total_blocks) for each in seen] == [(3, 4), (4, 4)]
    assert capfd.readouterr().err.count("\n") == 1


@contextlib.contextmanager
def console(level: int) -> Iterator[logging.StreamHandler[Any]]:
    """A handler that a program has for its console."""
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)


def logged_in_a_bar(cloud: Any) -> None:
    logger = logging.getLogger("amistore")
    with amistore.pack(cloud[0].ec2.describe_image(cloud[1]), cloud[0].ebs, progress=True) as pieces:
        next(pieces)
        for text in ("told", "a secret"):
            logger.warning(text)
        logger.info("too quiet")


def test_log_lines_stand_above_the_bar_as_their_handler_writes_them(
    cloud: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with console(logging.WARNING) as handler:
        logged_in_a_bar(cloud)
        assert handler.stream is sys.stderr
    shown = capfd.readouterr().err
    assert re.findall(r"(?:^|\r)(<.*>)\n", shown) == ["<told>"]  # behind a bar that was wiped away
    assert "secret" not in shown and "too quiet" not in shown


def test_log_lines_that_no_handler_takes_stand_above_the_bar_too(
    cloud: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    before = logging.lastResort
    logged_in_a_bar(cloud)
    assert logging.lastResort is before
    assert re.findall(r"\r(\w[\w ]*)\n", capfd.readouterr().err) == ["told", "a secret"]


def test_the_bar_of_packing_ends_with_the_iterator_or_when_it_is_closed(cloud: Any) -> None:
    image, before = cloud[0].ec2.describe_image(cloud[1]), logging.lastResort
    pieces = amistore.pack(image, cloud[0].ebs, progress=True)
    assert logging.lastResort is not before
    pieces.close()
    assert logging.lastResort is before
    pieces = amistore.pack(image, cloud[0].ebs, progress=True)
    for _ in pieces:
        assert logging.lastResort is not before
    assert logging.lastResort is before and len(pieces.content_id) == 64
    with pytest.raises(amistore.NotFoundError):
        amistore.pack(images.image(["snap-0123456789abcdef0"]), cloud[0].ebs, progress=True)
    assert logging.lastResort is before


def test_a_forked_child_shows_no_bar_and_logs_as_before(
    cloud: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with console(logging.WARNING):
        pieces = amistore.pack(cloud[0].ec2.describe_image(cloud[1]), cloud[0].ebs, progress=True)
        next(pieces)
        capfd.readouterr()
        child = os.fork()
        if not child:
            logging.getLogger("amistore").warning("of the child")
            with contextlib.suppress(amistore.InvalidRequestError):
                next(pieces)
            pieces.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert capfd.readouterr().err == "<of the child>\n"
        pieces.close()
