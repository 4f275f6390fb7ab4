"""Whole jobs at a network's latency, over TLS: beside no network, boto3's threads, and an older amistore."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs

import amistore
from amistore import BLOCK_SIZE
from benchmarks.blocks import MemorySource, image_of_one_snapshot
from benchmarks.client import WORKERS
from benchmarks.disk import Frames
from benchmarks.server import Counts, Network, NetworkServer, serve_network
from benchmarks.table import Row

__all__ = ["measure_network"]

OURS = ("pack", "unpack", "unpack_object", "verify", "extract", "transfer_to_a_folder", "import_snapshot")
PEAK_GOAL = 256  # MiB
PACK_GOALS = {0: None, 20: 0.90, 100: 0.85}  # of the speed without a network
PACK_BEFORE_GOAL, ZEROS_GOAL, LIMIT_GOAL = 0.97, 1.5, 0.85
UNPACK_GOALS = {0: 0.97, 20: 6.0, 100: 20.0}  # of the older one's speed
READ_GOALS = {"unpack_object": 6.0, "verify": 2.0, "extract": 2.0}
TRANSFER_GOAL, TRANSFER_CPU_GOAL = 1.0, 1.2
IMPORT_GOAL, IMPORT_CPU_GOAL = 1.0, 0.5
S3_BANDWIDTH = 87  # MB/s of a connection: 85 to 90 (S3 user guide, "Performance design patterns")
LIMITS = (300, 150)  # block calls a second


@attrs.frozen
class Took:
    """One job: its seconds, CPU seconds and peak memory in MiB, and what the server did meanwhile."""

    seconds: float
    cpu: float
    peak: float
    server: Counts


@attrs.frozen
class Job:
    """One process.

    Attributes:
        way: of `benchmarks.client.WAYS`.
        kind: of blocks: files, noise or zeros.
        before: whether the older amistore does it.
    """

    way: str
    kind: str = "files"
    before: bool = False

    @property
    def name(self) -> str:
        return ", ".join([self.way.replace("_", " "), self.kind] + ["before"] * self.before)


Taken = dict[Job, list[Took]]


class Bench:
    """A server, the files that it has, and the processes that ask it."""

    def __init__(self, server: NetworkServer, folder: Path, count: int, repeats: int, before: bool) -> None:
        self._server = server
        self._folder = folder
        self._count = count
        self._repeats = repeats
        self._before = before
        self.peaks: dict[str, float] = {}

    def run(self, network: Network, *jobs: Job) -> Taken:
        """What the rounds of each job took, in turn; the older amistore's only where there is one."""
        chosen = [job for job in jobs if self._before or not job.before]
        rounds = [[self._run(job, network) for job in chosen] for _ in range(self._repeats)]
        return dict(zip(chosen, map(list, zip(*rounds, strict=True)), strict=True))

    def rows(self, title: str, taken: Taken) -> Iterator[Row]:
        """A row for each job."""
        for job, rounds in taken.items():
            seconds, cpu, servers, refused, broken = (
                statistics.median(values)
                for values in zip(
                    *(
                        (each.seconds, each.cpu, each.server.cpu, each.server.refused, each.server.broken)
                        for each in rounds
                    ),
                    strict=True,
                )
            )
            peak = max(each.peak for each in rounds)
            if job.way in OURS and not job.before:
                self.peaks[job.way] = max(peak, self.peaks.get(job.way, 0))
            busy = (cpu + servers) / seconds / (os.cpu_count() or 1)
            note = f"CPU {cpu:.1f} s, the server's {servers:.1f} s, cores busy {busy:.0%}; {peak:.0f} MiB"
            note += f"; {refused:.0f} calls refused" * bool(refused)
            note += f"; {broken:.0f} connections broken" * bool(broken)
            yield Row(name=f"{title}: {job.name}", value=self._count / seconds, unit="blocks/s", note=note)

    def _run(self, job: Job, network: Network) -> Took:
        self._server.set(network)
        root = Path(__file__).parents[1]
        paths = [str(self._folder / "before")] if job.before else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, str(root)]),
            "AWS_CA_BUNDLE": str(self._server.certificate),
        }
        blocks, archive = self._folder / "blocks", self._folder / "archive.bin"
        command = [
            sys.executable,
            "-m",
            "benchmarks.client",
            job.way,
            self._server.url,
            str(blocks),
            str(archive),
            job.kind,
        ]
        done = subprocess.run(
            command, env=environment, cwd=self._folder, stdout=subprocess.PIPE, text=True, check=True
        )
        return Took(**json.loads(done.stdout), server=self._server.set(Network()))


def measure_network(repeats: int, frames: Frames, work: Path, before: Path | None) -> Iterator[Row]:
    """Rounds that follow each other, a process for each job.

    Args:
        repeats: the number of rounds.
        frames: the blocks of a disk; the server has them, and as many of noise and of zeros.
        work: the folder of temporary files.
        before: the checkout of an older amistore to compare with; None for none.
    """
    with tempfile.TemporaryDirectory(prefix="amistore-benchmarks-", dir=work) as name:
        folder = Path(name)
        blocks, archive = folder / "blocks", folder / "archive.bin"
        with blocks.open("wb") as file:
            file.writelines(frames.contents)
        count = blocks.stat().st_size // BLOCK_SIZE
        source = MemorySource(frames.volume_size, range(count), frames.contents)
        with archive.open("wb") as file:
            file.writelines(amistore.pack(image_of_one_snapshot(), source, workers=WORKERS))
        if before is not None:  # of its folders only this one: the benchmarks are ours
            (folder / "before").mkdir()
            (folder / "before" / "amistore").symlink_to(before.resolve() / "amistore")
        with serve_network(folder, blocks, archive) as server:
            bench = Bench(server, folder, count, repeats, before is not None)
            for part in (_packing, _unpacking, _reading, _transfer, _importing, _troubled):
                yield from part(bench)
            for way, peak in bench.peaks.items():
                yield Row(
                    name=f"most memory: {way.replace('_', ' ')}", value=peak, unit="MiB", goal=PEAK_GOAL
                )


def _packing(bench: Bench) -> Iterator[Row]:
    cases = [("files", latency) for latency in PACK_GOALS]
    cases += [(kind, latency) for kind in ("zeros", "noise") for latency in PACK_GOALS]
    for kind, latency in cases:
        ours, near, boto3, old = (
            Job(way, kind, before)
            for way, before in (
                ("pack", False),
                ("pack_near", False),
                ("boto3_to_a_file", False),
                ("pack", True),
            )
        )
        jobs = [ours, near, boto3, *([old] if latency == 0 else [])]
        taken = bench.run(Network(latency), *jobs)
        yield from bench.rows(f"{latency} ms", taken)
        title = f"{latency} ms: pack of {kind}"
        goal = PACK_GOALS[latency] if kind == "files" else None
        yield _speed(f"{title}, of no network", taken, ours, near, goal)
        goal = ZEROS_GOAL if (kind, latency) == ("zeros", 20) else None
        yield _speed(f"{title}, of boto3's threads", taken, ours, boto3, goal)
        if old in taken:
            yield _speed(
                f"{title}, of before", taken, ours, old, PACK_BEFORE_GOAL if kind == "files" else None
            )


def _unpacking(bench: Bench) -> Iterator[Row]:
    ours, near, old = Job("unpack"), Job("unpack_near"), Job("unpack", before=True)
    for latency, goal in UNPACK_GOALS.items():
        taken = bench.run(Network(latency), ours, near, old)
        yield from bench.rows(f"{latency} ms", taken)
        yield _speed(f"{latency} ms: unpack, of no network", taken, ours, near, None)
        if old in taken:
            yield _speed(f"{latency} ms: unpack, of before", taken, ours, old, goal)


def _reading(bench: Bench) -> Iterator[Row]:
    for way, goal in READ_GOALS.items():
        ours, old = Job(way), Job(way, before=True)
        taken = bench.run(Network(50, bandwidth=S3_BANDWIDTH), ours, old)
        yield from bench.rows("50 ms", taken)
        if old in taken:
            yield _speed(f"50 ms: {way.replace('_', ' ')}, of before", taken, ours, old, goal)


def _transfer(bench: Bench) -> Iterator[Row]:
    name = "transfer to a folder, of boto3's threads into a file"
    yield from _beside(
        bench, name, "transfer_to_a_folder", "boto3_to_a_file", TRANSFER_GOAL, TRANSFER_CPU_GOAL
    )


def _importing(bench: Bench) -> Iterator[Row]:
    name = "import of a disk, of boto3's threads from a file"
    yield from _beside(bench, name, "import_snapshot", "boto3_from_a_file", IMPORT_GOAL, IMPORT_CPU_GOAL)


def _beside(bench: Bench, name: str, way: str, other: str, goal: float, cpu_goal: float) -> Iterator[Row]:
    """Time and CPU of ours, of another's, at 20 ms."""
    ours, theirs = Job(way), Job(other)
    taken = bench.run(Network(20), ours, theirs)
    yield from bench.rows("20 ms", taken)
    pairs = list(zip(taken[ours], taken[theirs], strict=True))
    seconds = statistics.median(own.seconds / other.seconds for own, other in pairs)
    cpu = statistics.median(own.cpu / other.cpu for own, other in pairs)
    yield Row(name=f"20 ms: {name}: time", value=seconds, goal=goal)
    yield Row(name=f"20 ms: {name}: CPU", value=cpu, goal=cpu_goal)


def _troubled(bench: Bench) -> Iterator[Row]:
    zeros = Job("pack", "zeros")
    for limit in LIMITS:
        taken = bench.run(Network(20, limit=limit), zeros)
        yield from bench.rows(f"{limit} calls a second", taken)
        # The server admits a second's calls at once.
        rates = [(each.server.blocks - limit) / each.seconds for each in taken[zeros]]
        rate = max(0.0, statistics.median(rates))  # 0 where there are too few blocks to tell
        name = f"throttled at {limit} a second: rate, of the limit"
        yield Row(name=name, value=rate / limit, goal=LIMIT_GOAL, at_least=True)
    for title, network in (
        ("20 ms and as much jitter", Network(20, jitter=20)),
        ("20 ms, 1 % of the answers broken", Network(20, breaks=0.01)),
    ):
        yield from bench.rows(title, bench.run(network, Job("pack"), Job("unpack")))


def _speed(name: str, taken: Taken, ours: Job, theirs: Job, goal: float | None) -> Row:
    """Of rounds that follow each other, since the machine's speed changes."""
    pairs = zip(taken[ours], taken[theirs], strict=True)
    value = statistics.median(other.seconds / own.seconds for own, other in pairs)
    return Row(name=name, value=value, goal=goal, at_least=True)
