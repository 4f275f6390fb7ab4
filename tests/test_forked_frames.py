"""Children forked inside of our calls, which leave them: and neither wait nor undo."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import pytest
from children import LEFT, answers, forked, split
from objects import runs
from objects.runs import BUCKET, KEY

import amistore
from amistore import DirectoryBackend
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.pipeline import Phase

Part = Callable[[], None]


class Cloud:
    """A folder with an AMI of two snapshots and its archive, and another folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = DirectoryBackend(root / "source")
        self.destination = DirectoryBackend(root / "destination")
        ids = [images.snapshot(self.source.ebs, *volume) for volume in runs.VOLUMES]
        self.image_id = self.source.ec2.register_image(images.image(ids))
        self.image = self.source.ec2.describe_image(self.image_id)
        self.archive = root / "ami.bin"
        self.archive.write_bytes(b"".join(self.pack()))
        for each in (self.source, self.destination):
            each.s3.create_bucket(BUCKET)
        self.source.s3.put_object(BUCKET, KEY, [self.archive.read_bytes()])

    def pack(self) -> Iterator[bytes]:
        return amistore.pack(self.image, self.source.ebs, workers=2, options=runs.PACKING)

    def restored(self, image: amistore.Image) -> bool:
        return runs.disks(self.destination.ebs, image) == runs.VOLUMES

    def registered(self, image_id: str) -> bool:
        return self.restored(self.destination.ec2.describe_image(image_id))

    def stored(self) -> bool:
        return runs.stored(self.destination.s3) == self.archive.read_bytes()


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def unpack(cloud: Cloud, part: Part) -> bool:
    with cloud.archive.open("rb") as stream:
        image = amistore.unpack(stream, cloud.destination.ebs, workers=2, progress=lambda _: part())
    return cloud.restored(image)


def unpack_object(cloud: Cloud, part: Part) -> bool:
    place, ebs = cloud.source.s3.at(BUCKET, KEY), cloud.destination.ebs
    return cloud.restored(amistore.unpack(place, ebs, workers=2, progress=lambda _: part()))


def pack_object(cloud: Cloud, part: Part) -> bool:
    def progress(event: amistore.Progress) -> None:
        if event.phase is Phase.PACK:  # before, nothing is begun, and a child may do all of it
            part()

    options: Any = {"options": runs.PACKING, "workers": 2, "progress": progress}
    amistore.store(cloud.image, cloud.source.ebs, cloud.destination.s3.at(BUCKET, KEY), **options)
    return cloud.stored()


def pack_object_with_a_log(cloud: Cloud, part: Part) -> bool:
    parts = 0

    def progress(event: amistore.Progress) -> None:
        nonlocal parts
        parts += event.stored_bytes > 6 << 20
        if parts:
            part()

    options: Any = {"options": runs.PACKING, "workers": 2, "progress": progress}
    with amistore.FileResumeLog(cloud.root / "run.log") as log:
        place = cloud.destination.s3.at(BUCKET, KEY)
        amistore.store(cloud.image, cloud.source.ebs, place, log=log, **options)
    return cloud.stored()


def put_object(cloud: Cloud, part: Part) -> bool:
    def pieces() -> Iterator[bytes]:
        content = cloud.archive.read_bytes()
        for start in range(0, len(content), 1 << 20):
            yield content[start : start + (1 << 20)]
            part()

    cloud.destination.s3.put_object(BUCKET, KEY, pieces(), part_size=1 << 20)
    return cloud.stored()


def transfer(cloud: Cloud, part: Part) -> bool:
    made = amistore.transfer(
        cloud.image_id,
        source=cloud.source,
        destination=cloud.destination,
        workers=2,
        progress=lambda _: part(),
    )
    return cloud.registered(made.image_id)


def register(cloud: Cloud, part: Part) -> bool:
    inner = cloud.destination.ec2

    class Registry(type(inner)):  # type: ignore[misc]
        def register_image(self, *arguments: Any, **options: Any) -> str:
            part()
            return inner.register_image(*arguments, **options)

    registry = Registry(inner.root, inner.ebs)
    to = amistore.Backend(ebs=cloud.destination.ebs, s3=cloud.destination.s3, ec2=registry)
    return cloud.registered(amistore.restore(cloud.source.s3.at(BUCKET, KEY), to, workers=2).image_id)


def extract(cloud: Cloud, part: Part) -> bool:
    with amistore.open(cloud.archive) as archive:
        archive.extract(cloud.root / "disks", workers=2, progress=lambda _: part())
        for volume in archive.volumes:
            with (
                volume.open() as disk,
                (cloud.root / "disks" / f"{volume.snapshot_id}.raw").open("rb") as raw,
            ):
                for index in volume._reader.descriptors(1):
                    for block in index.runs.indexes():
                        disk.seek(block * amistore.BLOCK_SIZE)
                        raw.seek(block * amistore.BLOCK_SIZE)
                        assert disk.read(amistore.BLOCK_SIZE) == raw.read(amistore.BLOCK_SIZE)
    return not [path for path in (cloud.root / "disks").iterdir() if path.name.startswith(".")]


def recover(cloud: Cloud, part: Part) -> bool:
    target = cloud.root / "recovered.bin"
    amistore.recover(cloud.archive, target, workers=2, progress=lambda _: part())
    with amistore.open(target) as archive, amistore.open(cloud.archive) as before:
        return archive.content_id == before.content_id and archive.verify().ok


def import_disk(cloud: Cloud, part: Part) -> bool:
    raw = cloud.root / "disk.raw"
    raw.write_bytes(b"".join(images.block(number) for number in range(1, 4)))
    put = DirectoryEBS.put_snapshot_block

    def put_and_part(*arguments: Any) -> None:
        put(*arguments)
        part()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectoryEBS, "put_snapshot_block", put_and_part)
        image_id = amistore.import_disks(raw, cloud.destination, name="disk").image_id
    image = cloud.destination.ec2.describe_image(image_id)
    blocks = {number - 1: images.block(number) for number in range(1, 4)}
    return runs.disks(cloud.destination.ebs, image) == [(1, blocks)]


JOBS = [
    import_disk,
    unpack,
    unpack_object,
    pack_object,
    pack_object_with_a_log,
    put_object,
    transfer,
    register,
    extract,
    recover,
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_a_child_that_exits_out_of_a_call_leaves_it_to_its_parent(
    cloud: Cloud, job: Callable[[Cloud, Part], bool]
) -> None:
    right, code = split(lambda part: job(cloud, part))
    assert code == LEFT
    assert right


@pytest.mark.parametrize("job", [unpack, pack_object, put_object, extract], ids=lambda job: job.__name__)
def test_a_child_that_goes_on_with_a_call_of_its_parent_is_refused(
    cloud: Cloud, job: Callable[[Cloud, Part], bool]
) -> None:
    right, code = split(lambda part: job(cloud, part), leave=lambda: None)
    assert code == 1
    assert right


def test_a_child_forked_in_a_worker_ends_where_it_leaves_the_worker_s_task(cloud: Cloud) -> None:
    class Source(amistore.backends.BlockSource):
        def __init__(self, part: Part) -> None:
            self.part = part

        def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> Any:
            return cloud.source.ebs.list_snapshot_blocks(snapshot_id, next_token=next_token)

        def get_snapshot_block(self, *arguments: Any) -> amistore.backends.SnapshotBlock:
            self.part()
            return cloud.source.ebs.get_snapshot_block(*arguments)

    def job(part: Part) -> bytes:
        return b"".join(amistore.pack(cloud.image, Source(part), workers=2, options=runs.PACKING))

    for leave, expected in ((None, LEFT), (lambda: None, 0)):
        packed, code = split(job, leave)
        assert code == expected
        assert packed == cloud.archive.read_bytes()


def test_a_child_that_an_error_takes_out_of_a_worker_tells_it(
    cloud: Cloud, capfd: pytest.CaptureFixture[str]
) -> None:
    class Sink(amistore.backends.BlockSink):
        part: Part

        def put_snapshot_block(self, *arguments: Any) -> None:
            self.part()
            cloud.destination.ebs.put_snapshot_block(*arguments)

        start_snapshot = staticmethod(cloud.destination.ebs.start_snapshot)  # type: ignore[assignment]
        complete_snapshot = staticmethod(cloud.destination.ebs.complete_snapshot)  # type: ignore[assignment]
        delete_snapshot = staticmethod(cloud.destination.ebs.delete_snapshot)  # type: ignore[assignment]

    def job(part: Part) -> amistore.Image:
        Sink.part = staticmethod(part)  # type: ignore[assignment]
        with cloud.archive.open("rb") as stream:
            return amistore.unpack(stream, Sink(), workers=2)

    def fail() -> None:
        raise ZeroDivisionError("of the child")

    image, code = split(job, fail)
    assert code == 1
    assert "of the child" in capfd.readouterr().err
    assert cloud.restored(image)


def test_an_iterator_of_pack_is_refused_in_a_child_and_goes_on_in_its_parent(cloud: Cloud) -> None:
    pieces = cloud.pack()
    taken = [next(pieces) for _ in range(3)]

    def child() -> list[object]:
        found: list[object] = []
        for _ in range(2):
            try:
                found.append(next(pieces))
            except (amistore.InvalidRequestError, StopIteration) as error:
                found.append(error)
        return found

    (found,) = answers([child])
    assert isinstance(found[0], amistore.InvalidRequestError)
    assert "this iterator was made in process" in str(found[0])
    assert isinstance(found[1], (amistore.InvalidRequestError, StopIteration))
    assert b"".join([*taken, *pieces]) == cloud.archive.read_bytes()


@pytest.mark.parametrize("end", ["close", "collect"])
def test_an_iterator_of_pack_is_closed_and_dropped_in_a_child_without_waiting(cloud: Cloud, end: str) -> None:
    kept = [cloud.pack()]
    taken = [next(kept[0])]

    def child() -> str:
        if end == "close":
            kept[0].close()  # type: ignore[attr-defined]
        kept.clear()
        gc.collect()
        return "done"

    assert answers([child] * 3, at_once=3) == ["done"] * 3
    assert b"".join([*taken, *kept[0]]) == cloud.archive.read_bytes()


def test_a_disk_that_is_read_ahead_is_read_right_in_children_too(cloud: Cloud) -> None:
    with amistore.open(cloud.archive) as archive:
        volume = archive.volumes[0]
        size = 40 * amistore.BLOCK_SIZE
        whole = b"".join(runs.VOLUMES[0][1].get(i, bytes(amistore.BLOCK_SIZE)) for i in range(40))
        with volume.open(workers=2) as disk:
            begun = disk.read(size // 4)

            def child() -> bool:
                right = disk.read(size * 3 // 4) == whole[size // 4 :]
                disk.close()
                return right

            assert answers([child] * 4) == [True] * 4
            assert begun + disk.read(size * 3 // 4) == whole


@pytest.mark.parametrize("kind", ["path", "file", "memory", "object"])
def test_an_opened_archive_is_read_right_in_children_or_refused(cloud: Cloud, kind: str) -> None:
    with cloud.archive.open("rb") as file:
        opened: dict[str, Callable[[], amistore.Archive]] = {
            "path": lambda: amistore.open(cloud.archive),
            "file": lambda: amistore.open(file),
            "memory": lambda: amistore.open(io.BytesIO(cloud.archive.read_bytes())),
            "object": lambda: amistore.open(cloud.source.s3.at(BUCKET, KEY)),
        }
        with opened[kind]() as archive:
            children = [lambda: archive.verify(workers=2).ok] * 4
            with forked(children[0]) as child:  # while the parent reads
                assert archive.verify(workers=2).ok
                assert child.answer() is True
            assert answers(children) == [True] * 4


def test_a_file_whose_position_a_child_shares_is_refused_there(cloud: Cloud) -> None:
    with cloud.archive.open("r+b") as file, amistore.open(file) as archive:
        for refusal in answers([lambda: archive.verify()] * 2):
            assert isinstance(refusal, amistore.InvalidRequestError)
            assert "make another one in this process" in str(refusal)
        assert archive.verify().ok
