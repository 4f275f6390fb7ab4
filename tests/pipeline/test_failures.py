"""On any error the place and remedy are told, nothing is left behind, and no thread goes on."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import images
import pytest
from pipeline.test_collected import Endings, endings

import amistore

__all__ = ["endings"]

BLOCKS = {i: images.block(i + 1) for i in range(40)}


class Faulty(images.Volumes):
    """A source that raises, or answers wrongly, for one block."""

    def __init__(self, answer: Any) -> None:
        super().__init__([(1, BLOCKS)])
        self.answer = answer

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        if block_index == 25:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (RuntimeError("cable cut"), amistore.BackendError, "RuntimeError: cable cut"),
        (amistore.NotFoundError("gone"), amistore.NotFoundError, "gone"),
        (amistore.backends.SnapshotBlock(b"short"), amistore.BackendError, "5 bytes"),
        (
            amistore.backends.SnapshotBlock(images.block(3), bytes(32)),
            amistore.ChecksumMismatchError,
            "SHA-256",
        ),
        (None, amistore.BackendError, "NoneType"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_source_that_fails_ends_packing_with_a_typed_error(
    answer: object, kind: type[amistore.BackendError], message: str, workers: int
) -> None:
    source = Faulty(answer)
    with pytest.raises(kind, match=message) as caught:
        list(
            amistore.pack(
                images.image(source.volumes),
                source,
                workers=workers,
                options=amistore.PackOptions(layout=images.SMALL),
            )
        )
    if not isinstance(answer, amistore.NotFoundError):
        assert caught.value.block_index == 25
        assert caught.value.snapshot_id == "snap-00000000000000000"


def test_a_source_may_use_one_buffer_for_all_its_blocks() -> None:
    class Reusing(images.Volumes):
        buffer = bytearray(amistore.BLOCK_SIZE)

        def get_snapshot_block(
            self, snapshot_id: str, block_index: int, block_token: str
        ) -> amistore.backends.SnapshotBlock:
            self.buffer[:] = BLOCKS[block_index]
            return amistore.backends.SnapshotBlock(self.buffer)

    source = Reusing([(1, BLOCKS)])
    container = b"".join(amistore.pack(images.image(source.volumes), source, workers=1))
    backend = amistore.MemoryBackend()
    amistore.unpack(io.BytesIO(container), backend.ebs)
    assert images.contents(backend.ebs, images.leftovers(backend)[0]) == (1, BLOCKS)


def test_what_cannot_be_opened_for_random_access_is_a_typed_error() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe, pytest.raises(amistore.BackendError, match="random access"):
        amistore.open(pipe)
    with pytest.raises(amistore.InvalidRequestError):
        amistore.open("nul\0byte")
    for other in (b"abc", 5, None):
        with pytest.raises(amistore.InvalidRequestError, match="path, a URL, a seekable binary file"):
            amistore.open(other)  # type: ignore[arg-type]


class Changing(images.Volumes):
    """A source whose second listing differs."""

    def __init__(self, second: tuple[int, dict[int, bytes]]) -> None:
        super().__init__([(1, BLOCKS)])
        self.listings = [(1, BLOCKS), second]

    def list_snapshot_blocks(
        self, snapshot_id: str, *, next_token: str | None = None
    ) -> amistore.backends.BlockPage:
        self.volumes[snapshot_id] = self.listings.pop(0)
        return super().list_snapshot_blocks(snapshot_id, next_token=next_token)


@pytest.mark.parametrize(
    "second",
    [
        (1, {**BLOCKS, 99: images.block(1)}),
        (1, {i: BLOCKS[i] for i in range(39)}),
        (1, {i + 1: BLOCKS[i] for i in range(40)}),
        (2, BLOCKS),
        (1, {}),
    ],
    ids=["one more", "one less", "moved", "another size", "empty"],
)
def test_a_second_listing_that_differs_is_refused(second: tuple[int, dict[int, bytes]]) -> None:
    source = Changing(second)
    container = amistore.pack(
        images.image(source.volumes), source, options=amistore.PackOptions(layout=images.SMALL)
    )
    with pytest.raises(amistore.SourceChangedError, match="snap-00000000000000000"):
        list(container)


def test_an_empty_snapshot_that_is_not_empty_any_more_is_refused() -> None:
    source = Changing((1, {5: images.block(5)}))
    source.listings[0] = (1, {})
    with pytest.raises(amistore.SourceChangedError):
        list(amistore.pack(images.image(source.volumes), source))


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_iterator_closed_or_dropped_leaves_no_thread(taken: int, end: str, endings: Endings) -> None:
    before = set(threading.enumerate())
    source = images.Volumes([(1, BLOCKS)])
    container = amistore.pack(
        images.image(source.volumes), source, workers=3, options=amistore.PackOptions(layout=images.SMALL)
    )
    for _ in range(taken):
        next(container)
    if end == "close":
        container.close()
    del container
    assert end == "close" or endings.over(before)  # who drops it does not wait; the fixture looks for threads


def test_closing_waits_for_what_runs_in_the_callers_executor_and_cancels_the_rest() -> None:
    calls: list[int] = []

    class Counting(images.Volumes):
        def get_snapshot_block(
            self, snapshot_id: str, block_index: int, block_token: str
        ) -> amistore.backends.SnapshotBlock:
            calls.append(block_index)
            return super().get_snapshot_block(snapshot_id, block_index, block_token)

    source = Counting([(1, {i: images.block(i) for i in range(400)})])
    with ThreadPoolExecutor(1) as executor:
        container = amistore.pack(
            images.image(source.volumes),
            source,
            workers=20,
            executor=executor,
            options=amistore.PackOptions(layout=images.SMALL),
        )
        while not calls:
            next(container)
        container.close()
        at_close = len(calls)
    assert at_close == len(calls) < 160


class Immediate(Executor):
    """Runs each task while it is submitted."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def test_no_more_than_twice_the_workers_segments_are_begun_and_not_taken() -> None:
    begun: list[int] = []

    class Counting(images.Volumes):
        def get_snapshot_block(
            self, snapshot_id: str, block_index: int, block_token: str
        ) -> amistore.backends.SnapshotBlock:
            begun.append(block_index)
            return super().get_snapshot_block(snapshot_id, block_index, block_token)

    source = Counting([(1, {i: images.block(i) for i in range(100)})])
    taken = 0
    image = images.image(source.volumes)
    for piece in amistore.pack(
        image, source, workers=2, executor=Immediate(), options=amistore.PackOptions(layout=images.SMALL)
    ):
        taken += piece[8:16] == b"AMISSEGD"
        assert len(begun) <= (taken + 4) * 4
    assert taken == 25


def test_an_error_of_the_progress_callback_is_not_taken_for_one_of_the_backends(tmp_path: Path) -> None:
    def fail(event: amistore.Progress) -> None:
        raise ValueError("mine")

    source = images.Volumes([(1, BLOCKS)])
    with pytest.raises(ValueError, match="mine"):
        amistore.pack(images.image(source.volumes), source, progress=fail)
    with (
        amistore.open(io.BytesIO(images.packed([(1, BLOCKS)]))) as archive,
        pytest.raises(ValueError, match="mine"),
    ):
        archive.volumes[0].extract(tmp_path / "disk.raw", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_source_whose_listing_fails_is_a_typed_error() -> None:
    class Broken(images.Volumes):
        def list_snapshot_blocks(
            self, snapshot_id: str, *, next_token: str | None = None
        ) -> amistore.backends.BlockPage:
            raise LookupError("no list")

    source = Broken([(1, BLOCKS)])
    with pytest.raises(amistore.BackendError, match="LookupError: no list"):
        amistore.pack(images.image(source.volumes), source)


def test_a_progress_callback_that_raises_ends_both_ways_cleanly() -> None:
    source = images.Volumes([(1, BLOCKS)])

    def interrupt(event: amistore.Progress) -> None:
        if event.blocks > 10 and event.phase is not amistore.pipeline.Phase.LIST:
            raise KeyboardInterrupt

    image = images.image(source.volumes)
    with pytest.raises(KeyboardInterrupt):
        list(
            amistore.pack(
                image, source, progress=interrupt, options=amistore.PackOptions(layout=images.SMALL)
            )
        )
    container = images.packed([(1, BLOCKS)])
    backend = amistore.MemoryBackend()
    with pytest.raises(KeyboardInterrupt):
        amistore.unpack(io.BytesIO(container), backend.ebs, progress=interrupt)
    assert images.leftovers(backend) == []


class FailingSink(type(amistore.MemoryBackend().ebs)):  # type: ignore[misc]
    """MemoryBackend's EBS that fails at one call of one verb."""

    def __init__(self, verb: str, at: int) -> None:
        super().__init__(10_000)
        self._verb, self._left = verb, at

    def _call(self, verb: str) -> None:
        if verb == self._verb:
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.EIO, "disk on fire")

    def start_snapshot(self, *args: Any, **kwargs: Any) -> str:
        self._call("start_snapshot")
        return str(super().start_snapshot(*args, **kwargs))

    def put_snapshot_block(self, *args: Any) -> None:
        self._call("put_snapshot_block")
        super().put_snapshot_block(*args)

    def complete_snapshot(self, *args: Any) -> None:
        self._call("complete_snapshot")
        super().complete_snapshot(*args)


@pytest.mark.parametrize(
    ("verb", "at"),
    [
        ("start_snapshot", 0),
        ("start_snapshot", 1),
        *(("put_snapshot_block", at) for at in range(0, 42, 5)),
        ("complete_snapshot", 0),
        ("complete_snapshot", 1),
    ],
)
def test_a_sink_that_fails_at_any_call_keeps_no_snapshot(verb: str, at: int) -> None:
    container = images.packed([(1, BLOCKS), (1, {0: images.block(1)})])
    sink = FailingSink(verb, at)
    with pytest.raises(amistore.BackendError, match="disk on fire") as caught:
        amistore.unpack(io.BytesIO(container), sink, workers=2)
    assert caught.value.operation == verb
    assert sink._snapshots == {}


def test_a_snapshot_that_cannot_be_deleted_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Undeletable(FailingSink):
        def delete_snapshot(self, snapshot_id: str) -> None:
            raise OSError("no")

    sink = Undeletable("put_snapshot_block", 3)
    with caplog.at_level(logging.ERROR, "amistore"), pytest.raises(amistore.BackendError):
        amistore.unpack(io.BytesIO(images.packed([(1, BLOCKS)])), sink)
    assert next(iter(sink._snapshots)) in caplog.text


@pytest.mark.parametrize("snapshot_id", ["disk-1", "", None])
def test_a_sink_that_gives_ids_that_are_none_keeps_no_snapshot(snapshot_id: object) -> None:
    deleted: list[object] = []

    class Odd(FailingSink):
        def start_snapshot(self, *args: Any, **kwargs: Any) -> Any:
            return snapshot_id

        def put_snapshot_block(self, *args: Any) -> None:
            pass

        def complete_snapshot(self, *args: Any) -> None:
            raise AssertionError("completed")

        def delete_snapshot(self, snapshot_id: str) -> None:
            deleted.append(snapshot_id)

    with pytest.raises(amistore.BackendError, match=r"gave no snapshot id|must give str"):
        amistore.unpack(io.BytesIO(images.packed([(1, BLOCKS)])), Odd("", 0))
    assert deleted == ([] if snapshot_id is None else [snapshot_id])


def test_no_snapshot_is_completed_before_the_last_byte_was_checked() -> None:
    container = images.packed([(1, BLOCKS)])
    completed: list[int] = []

    class Watching(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            completed.append(len([s for s in sink._snapshots.values() if s.description.state == "completed"]))
            return super().read(size)

    sink = amistore.MemoryBackend().ebs
    amistore.unpack(Watching(container), sink)
    assert set(completed) == {0}
    assert [s.description.state for s in sink._snapshots.values()] == ["completed"]


@pytest.mark.parametrize("damage", [0, 2, 9, 30])
def test_extract_leaves_no_file_when_the_archive_is_damaged_or_the_name_is_taken(
    tmp_path: Path, damage: int
) -> None:
    container = bytearray(images.packed([(1, BLOCKS)]))
    at = 0
    for _ in range(damage // 4 + 1):
        at = container.index(b"AMISSEGD", at + 1)
    container[at + 600] ^= 1
    target = tmp_path / "disk.raw"
    with amistore.open(io.BytesIO(bytes(container))) as archive:
        with pytest.raises(amistore.CorruptArchiveError):
            archive.volumes[0].extract(target)
        assert list(tmp_path.iterdir()) == []
        target.write_text("mine")
        with pytest.raises(amistore.AlreadyExistsError):
            archive.volumes[0].extract(target)
    assert target.read_text() == "mine"


def test_requests_that_make_no_sense_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    source = Faulty(RuntimeError("must not be read"))
    image = images.image(source.volumes)
    for wrong in ({"level": 23}, {"workers": 0}, {"snapshots": ["snap-12345678"]}):
        with pytest.raises(amistore.InvalidRequestError):
            amistore.pack(image, source, **wrong)  # type: ignore[arg-type]
    with pytest.raises(amistore.NotFoundError, match="nowhere"):
        amistore.open(tmp_path / "nowhere.bin")
    with pytest.raises(amistore.InvalidRequestError):
        amistore.open(tmp_path)
    missing = images.image(["snap-0000000000000000a"])
    with pytest.raises(amistore.NotFoundError):
        amistore.pack(missing, amistore.MemoryBackend().ebs)


def test_an_image_that_describes_another_volume_size_than_is_listed_is_refused() -> None:
    source = images.Volumes([(2, BLOCKS)])
    (snapshot_id,) = source.volumes
    described = amistore.Snapshot(snapshot_id=snapshot_id, volume_size=1)
    with pytest.raises(amistore.SourceChangedError, match="1 GiB, the listing with 2"):
        amistore.pack(images.image([snapshot_id], snapshots=(described,)), source)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image, cloud: amistore.pack(image.image_id, cloud.ebs), "describe_image gives one"),
        (lambda image, cloud: amistore.pack(image, cloud), r"give its \.ebs"),
        (lambda image, cloud: amistore.pack(image, "disk.raw"), "subclass amistore.backends.BlockSource"),
        (lambda image, cloud: amistore.unpack(io.BytesIO(), cloud), r"give its \.ebs"),
        (lambda image, cloud: amistore.unpack(io.StringIO("text"), cloud.ebs), "open as text"),
        (
            lambda image, cloud: amistore.unpack(5, cloud.ebs),
            r"a location such as backend\.s3\.at\(bucket, key\), or a result that has one, not as int",
        ),
    ],
)
def test_an_argument_of_another_kind_is_a_typed_error_with_the_remedy(
    call: Callable[..., object], message: str
) -> None:
    cloud = amistore.MemoryBackend()
    image = images.image([images.snapshot(cloud.ebs, 1, {0: images.block(1)})])
    with pytest.raises(amistore.AmistoreError, match=message):
        call(image, cloud)


@pytest.mark.parametrize("page", [["not a page"], amistore.backends.BlockPage(volume_size="1", blocks=[])])  # type: ignore[arg-type]
def test_a_listing_of_another_kind_is_the_sources_error(page: object) -> None:
    class Odd(images.Volumes):
        def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> Any:
            return page

    source = Odd([(1, {})])
    with pytest.raises(amistore.BackendError, match="list"):
        amistore.pack(images.image(source.volumes), source)


@pytest.mark.parametrize(
    "page",
    [
        amistore.backends.BlockPage(volume_size=1, blocks=iter([amistore.backends.Block(0)])),  # type: ignore[arg-type]
        amistore.backends.BlockPage(volume_size=1, blocks=[amistore.backends.Block(0, None)]),  # type: ignore[arg-type]
        amistore.backends.BlockPage(volume_size=1, blocks=[object()]),  # type: ignore[list-item]
        amistore.backends.BlockPage(volume_size=1, blocks=[amistore.backends.Block(-1)]),
        amistore.backends.BlockPage(volume_size=1, blocks=[amistore.backends.Block("0")]),  # type: ignore[arg-type]
    ],
)
def test_a_page_with_odd_blocks_is_the_sources_error(page: amistore.backends.BlockPage) -> None:
    class Odd(images.Volumes):
        def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> Any:
            return page

    source = Odd([(1, {})])
    with pytest.raises(amistore.BackendError) as caught:
        amistore.pack(images.image(source.volumes), source)
    assert caught.value.operation == "list_snapshot_blocks"


@pytest.mark.parametrize("checksum", ["text", 5, bytearray(32)])
def test_a_checksum_that_is_no_bytes_is_the_sources_error(checksum: Any) -> None:
    source = Faulty(amistore.backends.SnapshotBlock(images.block(3), checksum))
    with pytest.raises(amistore.BackendError, match="not bytes"):
        list(amistore.pack(images.image(source.volumes), source))


def test_an_interrupt_while_deleting_does_not_keep_the_other_snapshots(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cloud = amistore.MemoryBackend()
    volumes = [(1, {0: images.block(i)}) for i in range(3)]
    container = bytearray(images.packed(volumes))
    container[-1] ^= 1
    delete = cloud.ebs.delete_snapshot
    interrupts = [KeyboardInterrupt()]

    def interrupted(snapshot_id: str) -> None:
        if interrupts:
            raise interrupts.pop()
        delete(snapshot_id)

    cloud.ebs.delete_snapshot = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        amistore.unpack(io.BytesIO(bytes(container)), cloud.ebs)
    (left,) = images.leftovers(cloud)
    assert left in caplog.text


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pool_that_loses_a_process_while_it_packs_is_a_typed_error() -> None:
    source = images.Volumes([(1, {index: images.block(index) for index in range(1, 60)})])
    with ProcessPoolExecutor(1) as pool:
        # It is lost before it gets anything: CPython 3.11 may hang where its queue is being written.
        with pytest.raises(BrokenProcessPool):
            pool.submit(_die).result()
        with pytest.raises(amistore.ResourcesExhaustedError, match="the executor has lost its workers"):
            for _ in amistore.pack(images.image(source.volumes), source, workers=1, executor=pool):
                pass
