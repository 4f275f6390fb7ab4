"""A disk becomes an image, the image becomes one file, the file becomes an image again.

    python examples/quickstart.py              with a small disk made of this machine's files
    python examples/quickstart.py DISK         with a raw disk image or block device of yours
    python examples/quickstart.py --keep DIR   leaves everything in DIR, to look at it

Needs ``pip install '.[demo]'`` for the progress bars.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from example_disk import make_disk
from tqdm import tqdm

import amistore
from amistore import BLOCK_SIZE, GIB, MIB


def main() -> None:
    options = parse_options()
    if options.disk is not None and not options.disk.exists():
        sys.exit(f"no such disk: {options.disk}")
    if not 1 <= options.data <= 1500:
        sys.exit("--data takes 1 to 1,500 MiB: the disk that is made has 2 GiB")
    with contextlib.ExitStack() as stack:
        if options.keep is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amistore-")))
        else:
            work = options.keep
            try:
                work.mkdir(parents=True)
            except OSError as error:
                sys.exit(f"--keep takes a folder that does not exist yet: {error}")
        try:
            run(work, options)
        except amistore.AmistoreError as error:
            sys.exit(str(error))


def run(work: Path, options: argparse.Namespace) -> None:
    disk = options.disk
    if disk is None:
        disk = work / "disk.raw"
        with step("make disk"):
            made = make_disk(disk, size=2 * GIB, data=options.data * MIB, filesystem=options.filesystem)
        print(f"           {disk}: MBR, one {made} partition with files of this machine")

    # Folders stand in for EC2, EBS and S3; a backend for the real ones has the same methods.
    cloud = amistore.DirectoryBackend(work / "cloud")
    cloud.s3.create_bucket("archive")
    with step("import") as done:
        image_id = amistore.import_disks(disk, cloud, name="quickstart").image_id
        image = cloud.ec2.describe_image(image_id)
        blocks = sum(len(page.blocks) for page in cloud.ebs.pages(image.snapshot_ids[0]))
        done(blocks)

    # Store: a task makes one object that holds the image's metadata and its snapshots.
    with amistore.TaskEngine(cloud) as engine:
        with step("store") as done:
            task = engine.create_store_image_task(image_id=image_id, bucket="archive")
            stored = engine.wait(task, progress=done.of(blocks))

        # Look into it and check every byte.
        path = cloud.s3.path("archive", stored.object_key)
        with step("verify") as done, amistore.open(path) as archive:
            archive.verify(progress=done).check()

        # Restore: another task makes new snapshots, and a new image on them.
        with step("restore") as done:
            task = engine.create_restore_image_task(
                bucket="archive", object_key=stored.object_key, name="quickstart restored"
            )
            restored = engine.wait(task, progress=done.of(blocks))

    with step("compare") as done:
        new_image = cloud.ec2.describe_image(restored.image_id)
        compare(disk, cloud.ebs, new_image.snapshot_ids[0], done)

    data = blocks * BLOCK_SIZE
    size = path.stat().st_size
    volume = archive.root_volume
    print()
    print(f"image      {image_id}: {volume.size / GIB:.0f} GiB, {data / MIB:,.0f} MiB of them in blocks")
    print(f"object     {path}")
    print(f"           {size / MIB:,.1f} MiB, {data / size:.2f} times smaller than the blocks")
    print(f"restored   {restored.image_id}: every byte equals the source")
    print()
    print("The object is also a tar archive. Without amistore:")
    print(f"           tar -xvf {shlex.quote(str(path))}")
    if options.keep is None:
        print("           (it is removed now; run with --keep DIR to try this)")


def compare(disk: Path, ebs: amistore.backends.BlockSource, snapshot_id: str, done: Done) -> None:
    """Compare all bytes of a snapshot with the disk; behind the disk's end they must be zeros."""
    hole = bytes(BLOCK_SIZE)
    pages = list(ebs.pages(snapshot_id))
    tokens = {block.block_index: block.block_token for page in pages for block in page.blocks}
    total = pages[0].volume_size * GIB // BLOCK_SIZE
    with disk.open("rb") as source:
        for index in range(total):
            expected = source.read(BLOCK_SIZE).ljust(BLOCK_SIZE, b"\0")
            found = hole
            if index in tokens:
                found = ebs.get_snapshot_block(snapshot_id, index, tokens[index]).content
            if found != expected:
                sys.exit(f"block {index} of {snapshot_id} differs from {disk}")
            done(index + 1, total)


class Done:
    """How much of a step is done: a `progress=` callback, and a bar where there is a terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks = 0
        self.bar: tqdm | None = None

    def __call__(self, what: amistore.Progress | int, total: int | None = None) -> None:
        if isinstance(what, amistore.Progress):
            what, total = what.blocks, what.total_blocks
        if total and self.bar is None:
            self.bar = tqdm(
                desc=f"{self.name:<10}",
                total=total * BLOCK_SIZE,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                bar_format="{desc} {percentage:5.0f} % |{bar}| {n_fmt}/{total_fmt} {rate_fmt}",
                leave=False,
                disable=None,
            )
        if self.bar is not None:
            self.bar.update(what * BLOCK_SIZE - self.bar.n)
        self.blocks = what

    def of(self, blocks: int) -> Callable[[amistore.StoreImageTask | amistore.RestoreImageTask], None]:
        """A `progress=` callback for a task of so many blocks."""
        return lambda task: self(blocks * task.progress_percentage // 100, blocks)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextlib.contextmanager
def step(name: str) -> Iterator[Done]:
    """Time one step and print a line about it."""
    done = Done(name)
    start = time.perf_counter()
    try:
        yield done
    finally:
        done.close()
    seconds = time.perf_counter() - start
    amount = done.blocks * BLOCK_SIZE / MIB
    speed = f"{amount:10,.0f} MiB {amount / seconds:10,.0f} MiB/s" if amount else ""
    print(f"{name:<10} {seconds:6.1f} s {speed}".rstrip(), flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("disk", nargs="?", type=Path, metavar="DISK", help="a raw disk image or block device")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder to leave the results in")
    parser.add_argument(
        "--data", type=int, default=300, metavar="MIB", help="size of the files on a made disk"
    )
    parser.add_argument("--filesystem", choices=["ext4", "iso9660"], help="of a made disk")
    return parser.parse_args()


if __name__ == "__main__":
    main()
