"""`StorePlan` and `RestorePlan`: what a task would take.

Values, and their text. Next: `planning.py` makes them.
"""

from __future__ import annotations

import abc
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from amistore.backends import BlockStore, ImageRegistry, ObjectStore
from amistore.model import AttributeReport, Fate
from amistore.model.fields import rule
from amistore.text import html_table, printable
from amistore.units import BLOCK_SIZE, counted, sized

__all__ = ["Prices", "RequestRates", "RestorePlan", "StorePlan", "TaskPlan"]

_MOST_SHOWN = 5  # attributes and warnings of a kind in a plan's text


def _number(least: float, default: Any = attrs.NOTHING) -> Any:
    def holds(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and value >= least

    return attrs.field(default=default, validator=rule(f"a number, {least:g} or more", holds))


@attrs.frozen(kw_only=True)
class Prices:
    """Prices of requests and storage, in any currency.

    AWS's prices differ by Region and change: see its pages "Amazon EBS pricing" (EBS direct APIs for
    snapshots, snapshots) and "Amazon S3 pricing". 0 stands for what is free.

    Attributes:
        block_lists: the price of 1,000 ListSnapshotBlocks requests.
        block_reads: the price of 1,000 GetSnapshotBlock requests.
        block_writes: the price of 1,000 PutSnapshotBlock requests.
        object_writes: the price of 1,000 PUT and POST requests of S3, such as for parts.
        object_reads: the price of 1,000 GET and HEAD requests of S3.
        object_storage: the price of a GB (2**30 bytes) of an object for a month.
        snapshot_storage: the price of a GB of a snapshot's blocks for a month.
    """

    block_lists: float = _number(0)
    block_reads: float = _number(0)
    block_writes: float = _number(0)
    object_writes: float = _number(0)
    object_reads: float = _number(0)
    object_storage: float = _number(0)
    snapshot_storage: float = _number(0)

    def of_requests(self, requests: Mapping[str, int]) -> float:
        """The cost of requests, given their numbers by verb; other verbs are free."""
        prices = {
            "list_snapshot_blocks": self.block_lists,
            "get_snapshot_block": self.block_reads,
            "put_snapshot_block": self.block_writes,
            "create_multipart_upload": self.object_writes,
            "upload_part": self.object_writes,
            "complete_multipart_upload": self.object_writes,
            "head_bucket": self.object_reads,
            "head_object": self.object_reads,
            "get_object_range": self.object_reads,
        }
        return math.fsum(prices.get(verb, 0) * count for verb, count in requests.items()) / 1000


@attrs.frozen(kw_only=True)
class RequestRates:
    """Upper bounds of requests in a second: an account's quotas, your network's and your machine's.

    The defaults of the first four are AWS's for the EBS direct APIs, for each account and each snapshot (EBS
    user guide, "Quotas for the EBS direct APIs"; AWS General Reference, "Amazon EBS endpoints and quotas").
    S3's are too high to matter.

    Attributes:
        block_lists: the most ListSnapshotBlocks requests a second.
        block_reads: the most GetSnapshotBlock requests a second; 1,000 are some 500 MB.
        block_writes: the most PutSnapshotBlock requests a second; 1,000 are some 500 MB.
        snapshots: the most StartSnapshot requests, and the most CompleteSnapshot requests, a second.
        latency: the seconds from a request for a block to its answer, such as 0.02; so many requests at a
            time as are in flight take that long. 0 for no bound.
        compression: the MB of blocks that a core gets and compresses in a second.
        decompression: the MB of blocks that a core decompresses and puts in a second.
    """

    block_lists: float = _number(0.001, 50)
    block_reads: float = _number(0.001, 1000)
    block_writes: float = _number(0.001, 1000)
    snapshots: float = _number(0.001, 10)
    latency: float = _number(0, 0)
    compression: float = _number(0.001, 90)
    decompression: float = _number(0.001, 180)

    def seconds(self, requests: Mapping[str, int], *, in_flight: int, cores: int, zeros: int = 0) -> float:
        """The seconds that requests take at these rates, one kind after the other.

        Args:
            requests: the number of requests of each verb.
            in_flight: the number of requests for blocks at a time.
            cores: the number of cores that compress or decompress.
            zeros: how many of the puts are of zeros, which are not decompressed.
        """
        counts = {**requests, "zeros": zeros}
        counts["put_snapshot_block"] = counts.get("put_snapshot_block", 0) - zeros
        rates = {
            "list_snapshot_blocks": self.block_lists,
            "start_snapshot": self.snapshots,
            "complete_snapshot": self.snapshots,
            **{verb: min(self.bounds(verb, in_flight, cores).values()) for verb in _OF_BLOCKS},
        }
        return math.fsum(counts.get(verb, 0) / rate for verb, rate in rates.items())

    def bounds(self, verb: str, in_flight: int, cores: int) -> dict[str, float]:
        """The most requests for blocks a second, by what bounds them; arguments as in `seconds`.

        Args:
            verb: ``get_snapshot_block``, ``put_snapshot_block``, or ``zeros`` for puts of zeros.
            in_flight: the number of requests for blocks at a time.
            cores: the number of cores.
        """
        work = {"get_snapshot_block": self.compression, "put_snapshot_block": self.decompression}
        return {
            "the cores": cores * work.get(verb, math.inf) * 1e6 / BLOCK_SIZE,
            "the latency": in_flight / self.latency if self.latency else math.inf,
            "the service's rate": self.block_reads if verb == "get_snapshot_block" else self.block_writes,
        }


_OF_BLOCKS: Final = ("get_snapshot_block", "put_snapshot_block", "zeros")


@attrs.frozen(kw_only=True)
class TaskPlan(abc.ABC):
    """The attributes of both plans.

    Attributes:
        image_id: the id of the AMI that is, or was, stored.
        bucket: the bucket that holds the object.
        object_key: the object's key.
        size: the GiB that count for the quota: all snapshots, each once.
        in_progress: the GiB of tasks of this kind in progress when the plan was made.
        quota: the GiB in progress from which on a task waits, or is refused; None for no limit.
        volumes: the number of distinct snapshots.
        blocks: the number of listed blocks, of 524,288 bytes each.
        segments: the number of segments of the archive.
        requests: the number of calls of each verb of the backend's interfaces, without faults; an upper bound
            for ``upload_part`` and ``get_object_range``. `preflight`, a backend's own further requests, and
            repeated calls are not counted.
        estimated_seconds: the seconds that the requests take at the given rates, one kind after the other,
            with the requests in flight that the backend wants, and a core for each worker. An estimate: other
            tasks go first.
        bounded_by: what bounds the requests for blocks: the cores, the latency or the service's rate.
        request_cost: the cost of the requests, an upper bound; None without prices.
        monthly_cost: the cost of the task's result for a month; None without prices.
        warnings: what may be unwise, or become an error.
        fidelity: the fate of each attribute of the AMI in a restore by this backend: kept, dropped or
            remapped, and why. A restore's plan also lists holes that will read as noise, as dropped.
    """

    image_id: str
    bucket: str
    object_key: str
    size: int
    in_progress: int
    quota: int | None
    volumes: int
    blocks: int
    segments: int
    requests: Mapping[str, int] = attrs.field(hash=False)
    estimated_seconds: float
    bounded_by: str
    request_cost: float | None
    monthly_cost: float | None
    warnings: tuple[str, ...]
    fidelity: tuple[AttributeReport, ...]

    @property
    def data_bytes(self) -> int:
        """The bytes of the listed blocks, before compression."""
        return self.blocks * BLOCK_SIZE

    @abc.abstractmethod
    def _title(self) -> str: ...

    @abc.abstractmethod
    def _archive(self) -> Iterator[tuple[str, str]]:
        """The lines about the object, by name."""

    def __str__(self) -> str:
        texts = [self._title(), *(f"  {name:<10}  {text}".rstrip() for name, text in self._lines())]
        return "\n".join(map(printable, texts))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table([("plan", self._title()), *self._lines()])

    def _lines(self) -> list[tuple[str, str]]:
        quota = "no limit" if self.quota is None else f"{self.in_progress} of {self.quota} GiB in progress"
        blocks, volumes = counted(self.blocks, "block"), counted(self.volumes, "volume")
        return [
            ("quota", f"{self.size} GiB; {quota}"),
            ("data", f"{sized(self.data_bytes)}: {blocks} of {volumes}"),
            *self._archive(),
            *_requests(self.requests),
            ("time", f"{_duration(self.estimated_seconds)} at the given rates, bounded by {self.bounded_by}"),
            ("cost", self._cost()),
            ("attributes", ", ".join(f"{len(self._of(fate))} {fate.value}" for fate in Fate)),
            *_listed("dropped", (f"{each.attribute}: {each.reason}" for each in self._of(Fate.DROPPED))),
            *_listed("warnings", self.warnings),
        ]

    def _of(self, fate: Fate) -> list[AttributeReport]:
        return [each for each in self.fidelity if each.fate is fate]

    def _cost(self) -> str:
        if self.request_cost is None or self.monthly_cost is None:
            return "unknown without prices"
        return f"at most {self.request_cost:,.4f} for requests, {self.monthly_cost:,.4f} a month"


@attrs.frozen(kw_only=True)
class StorePlan(TaskPlan):
    """What storing an AMI would take; made by `TaskEngine.plan_store`.

    Attributes:
        part_size: the size in bytes of a part but the last.
        most_parts: the upper bound of the upload's parts, reached if nothing compresses.
        most_object_bytes: the upper bound of the object's size in bytes, reached if nothing compresses.
        most_spool_bytes: the upper bound of bytes in temporary files at one time, for parts above 32 MiB and
            this engine's workers.
    """

    part_size: int
    most_parts: int
    most_object_bytes: int
    most_spool_bytes: int

    def _title(self) -> str:
        return f"store {self.image_id} as {self.bucket}/{self.object_key}"

    def _archive(self) -> Iterator[tuple[str, str]]:
        size = sized(self.most_object_bytes)
        yield "object", f"at most {size}, {counted(self.segments, 'segment')}"
        yield "upload", f"at most {counted(self.most_parts, 'part')}, of {sized(self.part_size)}"
        spooled = f"at most {sized(self.most_spool_bytes)}, for" if self.most_spool_bytes else "none, no"
        yield "disk", f"{spooled} parts above 32 MiB"


@attrs.frozen(kw_only=True)
class RestorePlan(TaskPlan):
    """What restoring an object would take; made by `TaskEngine.plan_restore`. It needs no room on a disk.

    Attributes:
        name: the new AMI's name.
        object_bytes: the object's size in bytes.
        content_id: the archive's content id, 64 hexadecimal digits.
        holes: the number of blocks that the snapshots neither list nor have lost; on an encrypted volume they
            read as noise, unless they are filled.
        fill_holes: whether holes are filled; all other numbers then include that.
        encrypts: whether the new snapshots become encrypted; None where that is not known before.
        fill_seconds: the seconds that filling takes at the given rates, with one PutSnapshotBlock for each
            block.
        fill_request_cost: the cost of these requests; None without prices.
        fill_monthly_cost: the cost of these blocks in the snapshots for a month; None without prices.
    """

    name: str
    object_bytes: int
    content_id: str
    holes: int
    fill_holes: bool
    encrypts: bool | None
    fill_seconds: float
    fill_request_cost: float | None
    fill_monthly_cost: float | None

    def _title(self) -> str:
        return f"restore {self.bucket}/{self.object_key} as {self.name!r}"

    def _archive(self) -> Iterator[tuple[str, str]]:
        yield "object", f"{sized(self.object_bytes)}; {counted(self.segments, 'segment')}, of {self.image_id}"
        yield "content id", self.content_id
        if self.holes:
            yield from self._holes()

    def _holes(self) -> Iterator[tuple[str, str]]:
        size, time = sized(self.holes * BLOCK_SIZE), _duration(self.fill_seconds)
        yield "holes", f"{size}, {'filled' if self.fill_holes else 'not filled; fill_holes=True takes'}:"
        told = f"{self.holes:,} put_snapshot_block, {time}"
        if self.fill_request_cost is not None and self.fill_monthly_cost is not None:
            told += f", {self.fill_request_cost:,.4f} for requests, {self.fill_monthly_cost:,.4f} a month"
        yield "", told


def _requests(requests: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The requests to each service, the one whose interface has the verb, in lines that fit."""
    for service, kind in (("EBS", BlockStore), ("S3", ObjectStore), ("EC2", ImageRegistry)):
        made = [f"{count:,}\xa0{verb}" for verb, count in requests.items() if hasattr(kind, verb)]
        for number, line in enumerate(textwrap.wrap(", ".join(made), 84)):
            yield "" if number else service, line.replace("\xa0", " ")


def _listed(name: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """A line for each text, the name before the first."""
    given = list(texts)
    shown = given[:_MOST_SHOWN]
    if len(given) > _MOST_SHOWN:
        shown.append(f"and {len(given) - _MOST_SHOWN} more")
    for number, text in enumerate(shown):
        yield "" if number else name, text


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
