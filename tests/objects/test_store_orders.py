"""`store` by orders: the object that `pack` makes, by workers of any kind, and nothing left behind."""

from __future__ import annotations

import functools
import os
import pickle
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objects import ordered, runs
from objects.ordered import CASES, LEAST
from objects.runs import BUCKET

import amistore
from amistore.backends import BlockPage, Forwarding, ObjectStore, SnapshotBlock, StoreTraits
from amistore.errors import InvalidTokenError
from amistore.pipeline import orders

# Python 3.12 warns of threads at a fork, which a pool of processes may be.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

MakeError = Callable[[], Exception]
EXAMPLES = 500 if os.environ.get("AMISTORE_LONG") else 25


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(abs, range(4)))
        yield pool


@pytest.fixture(autouse=True)
def _nothing_is_left(processes: ProcessPoolExecutor) -> Iterator[None]:
    with runs.nothing_left():
        yield


@functools.cache
def expected(name: str) -> bytes:
    return CASES[name].expected()


def uploads(cloud: amistore.Backend) -> list[Any]:
    return cloud.s3.list_multipart_uploads(BUCKET)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_object_has_the_bytes_that_pack_gives(name: str, workers: int) -> None:
    cloud = runs.cloud()
    with ThreadPoolExecutor(workers) as executor:
        told = CASES[name].store(cloud.s3, executor, workers=workers)
    assert runs.stored(cloud.s3) == expected(name)
    assert runs.is_there(told)
    assert uploads(cloud) == []


@pytest.mark.parametrize("name", CASES)
def test_processes_make_the_object_that_pack_gives(
    name: str, processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    told = CASES[name].store(cloud.s3, processes)
    assert runs.stored(cloud.s3) == expected(name)
    assert runs.is_there(told)
    assert uploads(cloud) == []


@pytest.mark.parametrize("size", [5 * amistore.MIB - 1, 5 * amistore.GIB + 1, 6e6, True, "x"])
def test_a_size_of_parts_that_orders_cannot_have_is_refused_before_anything_is_sent(size: Any) -> None:
    cloud, case = runs.cloud(), CASES["noise"]
    calls = runs.Calls(cloud.s3)
    executor = ordered.Inline()
    with pytest.raises(amistore.InvalidRequestError, match="part_size must be a whole number from 5242880 "):
        case.store(cloud.s3, executor, options=attrs.evolve(case.options, part_size=size))
    assert calls.made["create_multipart_upload"] == len(executor.orders) == 0


@pytest.mark.parametrize(
    ("traits", "wanted", "match"),
    [
        ({"most_parts": 4}, None, None),
        ({"most_parts": 4}, 5 * amistore.MIB, "part_size must be a whole number from 1[0-9]{7} "),
        ({"most_parts": 3}, None, "3 volumes and shards, and the store takes 3 parts: leave out executor="),
        ({"largest_part": 9 * amistore.MIB}, None, "takes parts of up to 9.0 MiB.*leave out executor="),
    ],
)
def test_a_store_of_few_or_small_parts_gets_larger_ones_or_is_refused(
    traits: dict[str, int], wanted: int | None, match: str | None
) -> None:
    cloud, case = runs.cloud(), CASES["noise"]
    cloud.s3.traits = StoreTraits(**traits)  # type: ignore[arg-type]
    calls = runs.Calls(cloud.s3)
    options = attrs.evolve(case.options, part_size=wanted)
    if match is not None:
        with pytest.raises(amistore.InvalidRequestError, match=match):
            case.store(cloud.s3, ordered.Inline(), options=options)
        assert calls.parts() == uploads(cloud) == []
        return
    case.store(cloud.s3, ordered.Inline(), options=options)
    assert max(calls.parts()) <= traits["most_parts"]
    assert runs.stored(cloud.s3) == expected("noise")


class EachPartOnce(Forwarding[ObjectStore], ObjectStore):
    """The rule of some stores: a part's number is taken again with the same bytes only."""

    traits = StoreTraits(replaceable_parts=False)

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._taken: dict[tuple[str, int], bytes] = {}

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Any
    ) -> amistore.backends.UploadedPart:
        if self._taken.setdefault((upload_id, part_number), bytes(content)) != content:
            raise amistore.BackendError("the part is there with other bytes")
        return self.inner.upload_part(bucket, key, upload_id, part_number, content)


@pytest.mark.parametrize(
    "name", ["small at the start", "small between large", "small around a part of small"]
)
def test_no_number_of_a_part_is_sent_with_other_bytes(name: str) -> None:
    cloud = runs.cloud()
    CASES[name].store(EachPartOnce.around(cloud.s3), ordered.Inline())
    assert runs.stored(cloud.s3) == expected(name)
    assert uploads(cloud) == []


class Again(ordered.Inline):
    """Does each order once more after its answer, as a worker that was taken for lost."""

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        future = super().submit(function, *arguments, **options)
        function(*arguments, **options)
        return future


class NewETags(Forwarding[ObjectStore], ObjectStore):
    """A store with another ETag for each upload of a part.

    Args:
        checksums: whether it tells checksums.
        other: the number of a part whose second upload arrives with other bytes of the same size.
    """

    def __init__(self, inner: ObjectStore, *, checksums: bool, other: int = 0) -> None:
        super().__init__(inner)
        self._checksums = checksums
        self._other = other
        self._parts: dict[int, amistore.backends.UploadedPart] = {}

    def upload_part(
        self, bucket: str, key: str, upload_id: str, part_number: int, content: Any
    ) -> amistore.backends.UploadedPart:
        before = self._parts.get(part_number)
        if before is not None and part_number == self._other:
            content = bytes(len(content))
        self.inner.upload_part(bucket, key, upload_id, part_number, content)
        self._parts[part_number] = amistore.backends.UploadedPart(
            part_number=part_number,
            size=len(content),
            etag=f"{part_number}-{int(before.etag.partition('-')[2]) + 1 if before else 1}",
            checksum=str(zlib.crc32(content)) if self._checksums else None,
        )
        return self._parts[part_number]

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[amistore.backends.UploadedPart]:
        return [part for _, part in sorted(self._parts.items())]

    def complete_multipart_upload(
        self, bucket: str, key: str, upload_id: str, parts: Any, **options: Any
    ) -> amistore.backends.ObjectInfo:
        if list(parts) != [self._parts[part.part_number] for part in parts]:
            raise amistore.BackendError("InvalidPart")
        own = {part.part_number: part for part in self.inner.list_parts(bucket, key, upload_id)}
        parts = [own[part.part_number] for part in parts]
        return self.inner.complete_multipart_upload(bucket, key, upload_id, parts, **options)


@pytest.mark.parametrize("checksums", [True, False])
def test_a_worker_that_sends_its_parts_again_later_changes_nothing(checksums: bool) -> None:
    cloud = runs.cloud()
    executor = Again()
    CASES["small between large"].store(NewETags(cloud.s3, checksums=checksums), executor)
    assert runs.stored(cloud.s3) == expected("small between large")
    assert uploads(cloud) == []


def test_a_worker_that_sends_its_parts_again_to_files_changes_nothing(tmp_path: Path) -> None:
    cloud = amistore.DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    CASES["small between large"].store(cloud.s3, Again())
    assert runs.stored(cloud.s3) == expected("small between large")
    assert uploads(cloud) == []


def test_a_part_that_was_sent_again_with_other_bytes_is_found_by_its_checksum() -> None:
    cloud = runs.cloud()
    place = NewETags(cloud.s3, checksums=True, other=1)
    with pytest.raises(amistore.BackendError, match="does not have part 1 as it was sent"):
        CASES["noise"].store(place, Again())
    assert runs.stored(cloud.s3) is None
    assert uploads(cloud) == []


class Breaking(ordered.Source):
    """A source whose block of this index cannot be read; which it tells by an error."""

    def __init__(
        self, volumes: tuple[ordered.Seeds, ...], index: int, error: Callable[[], Exception]
    ) -> None:
        super().__init__(volumes)
        self._index = index
        self._error = error

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        if block_index == self._index:
            raise self._error()
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


class OddError(amistore.BackendError):
    """Of a user: it cannot be made again of its message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} {code}")


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (functools.partial(amistore.NotFoundError, "gone"), amistore.NotFoundError, "gone"),
        (functools.partial(ZeroDivisionError, "once"), amistore.BackendError, "ZeroDivisionError: once"),
        (MemoryError, amistore.ResourcesExhaustedError, "out of memory"),
        (functools.partial(OddError, 7, "odd"), amistore.BackendError, "odd 7"),
    ],
)
def test_an_error_in_a_worker_is_typed_and_leaves_nothing(
    error: MakeError,
    kind: type[amistore.AmistoreError],
    text: str,
    pool: type[Executor],
    processes: ProcessPoolExecutor,
    tmp_path: Path,
) -> None:
    cloud, case = amistore.DirectoryBackend(tmp_path), CASES["noise"]
    cloud.s3.create_bucket(BUCKET)
    with ThreadPoolExecutor(2) as threads:
        executor = threads if pool is ThreadPoolExecutor else processes
        with pytest.raises(kind, match=text) as caught:
            ordered.store(case, Breaking(case.volumes, 20, error), cloud.s3, executor)
    if isinstance(caught.value, amistore.BackendError):
        facts = caught.value.operation, caught.value.snapshot_id, caught.value.block_index
        assert facts == ("get_snapshot_block", f"snap-{0:017x}", 20)
    assert runs.stored(cloud.s3) is None
    assert uploads(cloud) == []
    case.store(cloud.s3, processes)  # which still works
    assert runs.stored(cloud.s3) == expected("noise")


def test_an_error_that_may_pass_ends_the_run_for_all_attempts_were_made_in_the_worker() -> None:
    cloud, case = runs.cloud(), CASES["noise"]
    executor = ordered.Inline()
    source = Breaking(case.volumes, 20, functools.partial(amistore.BackendError, "busy", retryable=True))
    with pytest.raises(amistore.BackendError, match="busy"):
        ordered.store(case, source, cloud.s3, executor)
    assert [order.attempt for order in executor.orders if order.number == 1] == [0]
    assert uploads(cloud) == []


class Held(ordered.Source):
    """A source whose second order waits for `free`."""

    free = threading.Event()

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        if block_index >= 16:
            self.free.wait(60)
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


@pytest.mark.parametrize("error", [KeyboardInterrupt, amistore.NotFoundError("gone")])
def test_an_upload_is_not_aborted_before_all_orders_have_ended(error: Any) -> None:
    cloud, case = runs.cloud(), CASES["noise"]
    source = Held(case.volumes)
    at_abort: list[bool] = []
    out: list[Future[Any]] = []
    abort = cloud.s3.abort_multipart_upload

    def progress(event: amistore.Progress) -> None:
        if event.total_blocks:  # the first order has ended
            source.free.set()
            raise error

    with ThreadPoolExecutor(2) as executor:
        submit = executor.submit
        executor.submit = lambda *given: out.append(submit(*given)) or out[-1]  # type: ignore[method-assign]
        cloud.s3.abort_multipart_upload = lambda *place: (  # type: ignore[method-assign]
            at_abort.extend(each.done() for each in out),
            abort(*place),
        )
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            ordered.store(case, source, cloud.s3, executor, progress=progress)
    assert at_abort == [True, True]
    assert uploads(cloud) == []
    source.free.clear()


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_interrupt_leaves_nothing_behind(number: int) -> None:
    cloud, case = runs.cloud(), CASES["noise"]
    countdown = [number]

    def progress(_: amistore.Progress) -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(KeyboardInterrupt):
            case.store(cloud.s3, executor, progress=progress)
        assert uploads(cloud) == []
    assert countdown[0] == 0
    assert runs.stored(cloud.s3) is None


class Unsendable(ordered.Source):
    def __reduce__(self) -> str:
        raise TypeError("not from here")


@pytest.mark.parametrize(
    ("source", "executor", "workers", "match"),
    [
        (ordered.Source, ThreadPoolExecutor, None, "executor= needs workers="),
        (ordered.Source, ThreadPoolExecutor, 0, "workers must be a whole number"),
        (ordered.Source, lambda _: "dask", 2, "must be a concurrent.futures.Executor, not str.*get_executor"),
        (Unsendable, ProcessPoolExecutor, 2, r"source Unsendable cannot be sent.*\(not from here\).*threads"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    source: type[ordered.Source], executor: Any, workers: int | None, match: str, tmp_path: Path
) -> None:
    cloud, case = amistore.DirectoryBackend(tmp_path), CASES["noise"]
    cloud.s3.create_bucket(BUCKET)
    log = runs.Log()
    with pytest.raises(amistore.InvalidRequestError, match=match):
        ordered.store(case, source(case.volumes), cloud.s3, executor(1), workers=workers, log=log)
    assert uploads(cloud) == log.entries() == []


def test_a_store_of_one_process_is_refused_for_others(processes: ProcessPoolExecutor) -> None:
    cloud = runs.cloud()
    with pytest.raises(amistore.InvalidRequestError, match="the store _MemoryS3 cannot be sent"):
        CASES["noise"].store(cloud.s3, processes)
    assert uploads(cloud) == []


@pytest.mark.parametrize("name", orders.VERSIONS)
def test_a_worker_with_another_version_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = runs.cloud()

    class Elsewhere(ordered.Inline):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(orders, "VERSIONS", {**orders.VERSIONS, name: "0"})
                return super().submit(function, *arguments, **options)

    with pytest.raises(
        amistore.InvalidRequestError, match=f"a worker has another {name} than the run, 0 .*install"
    ):
        CASES["noise"].store(cloud.s3, Elsewhere())
    assert uploads(cloud) == []


def test_no_block_of_a_part_comes_back_to_who_gives_orders() -> None:
    class Counting(ordered.Inline):
        answered = 0

        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            future = super().submit(function, *arguments, **options)
            self.answered += len(pickle.dumps(future.result()))
            return future

    cloud, case = runs.cloud(), ordered.Case((ordered.noise(64),), ordered.SHORT)
    executor = Counting()
    stored = case.store(cloud.s3, executor)
    assert len(executor.orders) == 4
    assert executor.answered < stored.size / 100


class EqualParts(Forwarding[ObjectStore], ObjectStore):
    traits = StoreTraits(equal_parts=True)

    def complete_multipart_upload(
        self, bucket: str, key: str, upload_id: str, parts: Any, **options: Any
    ) -> amistore.backends.ObjectInfo:
        assert len({part.size for part in parts[:-1]}) == 1
        assert parts[-1].size <= parts[0].size
        return self.inner.complete_multipart_upload(bucket, key, upload_id, parts, **options)


class NoGaps(Forwarding[ObjectStore], ObjectStore):
    traits = StoreTraits(part_gaps=False)

    def complete_multipart_upload(
        self, bucket: str, key: str, upload_id: str, parts: Any, **options: Any
    ) -> amistore.backends.ObjectInfo:
        assert [part.part_number for part in parts] == list(range(1, len(parts) + 1))
        assert self.list_parts(bucket, key, upload_id) == list(parts)
        return self.inner.complete_multipart_upload(bucket, key, upload_id, parts, **options)


@pytest.mark.parametrize("kind", [EqualParts, NoGaps])
@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_store_of_equal_parts_or_without_gaps_gets_them_of_segments_that_workers_make(
    kind: type[EqualParts], pool: type[Executor], processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    cloud, case = amistore.DirectoryBackend(tmp_path), CASES["small between large"]
    cloud.s3.create_bucket(BUCKET)
    with ThreadPoolExecutor(2) as threads:
        executor = threads if pool is ThreadPoolExecutor else processes
        case.store(kind.around(cloud.s3), executor)
    assert runs.stored(cloud.s3) == expected("small between large")
    assert uploads(cloud) == []


def test_a_file_is_written_here_of_segments_that_workers_make(
    processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    case = CASES["small between large"]
    amistore.store(
        case.image, case.source(), tmp_path / "web.bin", executor=processes, options=case.options, workers=2
    )
    assert (tmp_path / "web.bin").read_bytes() == expected("small between large")


def test_a_pool_that_has_lost_a_process_is_a_typed_error_and_leaves_nothing(tmp_path: Path) -> None:
    cloud, case = amistore.DirectoryBackend(tmp_path), CASES["noise"]
    cloud.s3.create_bucket(BUCKET)
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(amistore.ResourcesExhaustedError, match="lost its workers"):
            ordered.store(case, ordered.Dying(case.volumes, 0, tmp_path / "killed"), cloud.s3, pool)
        assert uploads(cloud) == []
        with pytest.raises(amistore.ResourcesExhaustedError, match="lost its workers"):
            case.store(cloud.s3, pool)
    assert uploads(cloud) == []
    assert runs.stored(cloud.s3) is None


def test_an_executor_that_was_shut_down_is_a_typed_error() -> None:
    cloud = runs.cloud()
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(amistore.ResourcesExhaustedError, match="lost its workers"):
        CASES["noise"].store(cloud.s3, executor)
    assert uploads(cloud) == []


def test_two_runs_share_the_workers_of_one_executor() -> None:
    cloud = runs.cloud()
    case = CASES["small between large"]
    with ThreadPoolExecutor(2) as executor, ThreadPoolExecutor(2) as callers:
        keys = ["a", "b"]
        done = [
            callers.submit(
                amistore.store,
                case.image,
                case.source(),
                cloud.s3.at(BUCKET, key),
                executor=executor,
                workers=2,
                options=case.options,
            )
            for key in keys
        ]
        assert len({each.result().content_id for each in done}) == 1
    assert [runs.stored(cloud.s3, key) for key in keys] == [expected("small between large")] * 2


def options_of(case: ordered.Case, part_size: int | None = None) -> amistore.PackOptions:
    return attrs.evolve(case.options, part_size=part_size)


small = st.integers(0, 9)
layouts = st.builds(
    lambda frame, frames, shard: amistore.Layout(
        blocks_per_frame=frame, blocks_per_segment=frame * frames, segments_per_shard=shard
    ),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 5, 50]),
)


def cases(seeds: st.SearchStrategy[int]) -> st.SearchStrategy[ordered.Case]:
    """Up to five volumes of up to nine blocks, in all kinds of layouts."""
    volume = st.lists(seeds, max_size=9).map(lambda blocks: dict(enumerate(blocks)))
    return st.builds(ordered.Case, st.lists(volume, max_size=5).map(tuple), layouts)


class EndingTokens(ordered.Source):
    """A source whose tokens end when the snapshot is listed again, by anybody.

    Attributes:
        listed: how often it was.
        gets: how many blocks were asked for.
        others: before which of them somebody else lists.
    """

    def __init__(self, volumes: tuple[ordered.Seeds, ...], others: Collection[int]) -> None:
        super().__init__(volumes)
        self.listed = Counter[str]()
        self.gets = 0
        self.others = others

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> BlockPage:
        self.listed[snapshot_id] += 1
        page = super().list_snapshot_blocks(snapshot_id)
        token = str(self.listed[snapshot_id])
        return attrs.evolve(page, blocks=[attrs.evolve(each, block_token=token) for each in page.blocks])

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> SnapshotBlock:
        self.gets += 1
        if self.gets in self.others:
            self.list_snapshot_blocks(snapshot_id)
        if block_token != str(self.listed[snapshot_id]):
            raise InvalidTokenError("the token has ended")
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


@settings(max_examples=EXAMPLES)
@given(
    cases(small),
    st.integers(1, 4),
    st.sets(st.integers(1, 20), max_size=2),
    st.randoms(use_true_random=False),
)
def test_a_snapshot_is_listed_again_only_where_its_tokens_have_ended(
    case: ordered.Case, workers: int, others: set[int], random: Random
) -> None:
    cloud, source = runs.cloud(), EndingTokens(case.volumes, others)
    with pytest.MonkeyPatch.context() as patch:
        ordered.short_parts(patch.setattr, blocks=case.layout.blocks_per_segment)
        executor = ordered.InTurn(patch, random.randrange)
        wanted = case.expected()
        ordered.store(case, source, cloud.s3, executor, workers=workers, options=options_of(case))
    assert runs.stored(cloud.s3) == wanted
    # To plan, for the orders, and by another one, after which the orders need another listing.
    for snapshot_id, listed in source.listed.items():
        assert listed <= 2 + 2 * len(others), snapshot_id
    assert {order.listing > 0 for order in executor.orders} <= {True}


@settings(max_examples=EXAMPLES)
@given(
    cases(small | st.integers(-9, -1)),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 1, LEAST, 2 * LEAST, 3 * LEAST]),
    st.sampled_from([None, 3 * LEAST, 100_000]),
)
def test_any_mixture_of_blocks_in_orders_of_any_length_makes_the_object_that_pack_makes(
    case: ordered.Case, length: int, workers: int, least: int, part_size: int | None
) -> None:
    cloud = runs.cloud()
    cloud.s3.traits = StoreTraits(least_part=least)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(workers) as executor:
        ordered.short_parts(patch.setattr, blocks=length * case.layout.blocks_per_segment)
        wanted = case.expected()
        calls = runs.Calls(cloud.s3)
        case.store(cloud.s3, executor, workers=workers, options=options_of(case, part_size))
    assert runs.stored(cloud.s3) == wanted
    assert uploads(cloud) == []
    sizes = [len(arguments[4]) for verb, arguments in calls.seen if verb in runs.UPLOADS]
    assert sum(size < least for size in sizes) <= 1  # the last
