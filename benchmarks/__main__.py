"""``python -m benchmarks``: see README.md beside this file."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

from amistore import GIB, DirectoryBackend, import_disks
from benchmarks.cluster import measure_cluster
from benchmarks.coordinator import measure_coordinator
from benchmarks.disk import load_frames, make_disk
from benchmarks.ebs import measure_blocks
from benchmarks.in_flight import measure_requests
from benchmarks.limit import compare_with_limit
from benchmarks.machine import facts
from benchmarks.memory import measure_checksum, measure_index, measure_memory, measure_plan
from benchmarks.network import measure_network
from benchmarks.peers import compare_peers
from benchmarks.reading import measure_reading
from benchmarks.s3 import measure_parts
from benchmarks.simulation import measure_model
from benchmarks.table import Row, print_heading, print_row
from benchmarks.tasks import measure_tasks

SECTIONS = [
    "limit",
    "reading",
    "peers",
    "memory",
    "large",
    "checksum",
    "s3",
    "ebs",
    "network",
    "cluster",
    "coordinator",
    "model",
    "tasks",
]


def main() -> None:
    options = _parse_options()
    print("| machine | |\n|---|---|")
    for name, value in facts():
        print(f"| {name} | {value} |")
    if {"limit", "reading", "peers", "network", "cluster"} & set(options.only):
        with tempfile.TemporaryDirectory(prefix="amistore-benchmarks-", dir=options.work) as work:
            _measure_speed(Path(work), options)
    if "memory" in options.only:
        rows = (row for size in options.sizes for row in measure_memory(size))
        _section("Memory, two workers, a process each", rows)
    if "large" in options.only:
        _section("Large volumes", (row for rows in (measure_plan(), measure_index()) for row in rows))
    if "checksum" in options.only:
        _section("CRC-32C of records without a C extension", measure_checksum(options.repeats))
    if "s3" in options.only:
        _section("Parts of an S3 upload over TLS, one after the other", measure_parts(options.repeats))
    if "ebs" in options.only:
        _section("Blocks of EBS, eight threads in one process", measure_blocks(options.repeats))
        _section("Blocks of EBS in flight, TLS, 20 ms", measure_requests(options.repeats))
    _measure_orders(options)
    if "tasks" in options.only:
        with tempfile.TemporaryDirectory(prefix="amistore-benchmarks-", dir=options.work) as work:
            _section("A journal of 10,000 tasks on the disk", measure_tasks(Path(work), options.repeats))


def _measure_orders(options: argparse.Namespace) -> None:
    """What takes no disk of data."""
    if "coordinator" in options.only:
        _section("The coordinator of a large store, without data", measure_coordinator())
    if "model" in options.only:
        _section("Storing by orders at 20 ms, on a fake clock", measure_model())


def _measure_speed(work: Path, options: argparse.Namespace) -> None:
    disk = options.disk
    if disk is None:
        disk = work / "disk.raw"
        make_disk(disk, int(options.data * GIB))
    cloud = DirectoryBackend(work / "cloud")
    image = import_disks(disk, cloud, name="benchmark").image
    frames = load_frames(cloud, image.snapshot_ids[0])
    size = frames.size
    print(f"| disk | {frames.volume_size} GiB, {size / 1e6:,.0f} MB in listed blocks |")
    print(f"| repeats | {options.repeats}, interleaved; medians |")
    if "limit" in options.only:
        _section(
            "Speed against the limit, two workers",
            compare_with_limit(frames, options.repeats, work),
        )
    if "reading" in options.only:
        _section("An opened archive, two workers", measure_reading(frames, options.repeats, work))
    if "network" in options.only:
        _section(
            "Whole jobs at a latency, over TLS, two workers, a process each",
            measure_network(options.repeats, frames, work, options.before),
        )
    if "cluster" in options.only:
        _section("Orders: two worker processes", measure_cluster(frames, options.repeats, work))
    del frames
    if "peers" in options.only:
        rows = compare_peers(disk, cloud, image, size, options.repeats)
        _section("File to file, two workers or threads", rows)


def _section(title: str, rows: Iterable[Row]) -> None:
    print_heading(title)
    for row in rows:
        print_row(row)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--disk", type=Path, help="a raw disk to measure with, instead of a made one")
    parser.add_argument("--data", type=float, default=2.25, metavar="GIB", help="files on the made disk")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing (default 3)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8], metavar="GIB", help="for memory")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where temporary files go; needs 4 times the data"
    )
    parser.add_argument("--before", type=Path, metavar="DIR", help="an older checkout, for the network")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
