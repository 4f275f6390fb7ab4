"""What a task will take, told before it is created: `StorePlan` and `RestorePlan`.

Values, and their text. Next: `planning.py` makes them.
"""

from __future__ import annotations

import abc
import html
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from amistore.backends import BlockStore, ImageRegistry, ObjectStore
from amistore.errors import InvalidValueError
from amistore.model import AttributeReport, Fate
from amistore.text import printable
from amistore.units import BLOCK_SIZE, counted, sized

__all__ = ["Prices", "RequestRates", "RestorePlan", "StorePlan", "TaskPlan"]

_MOST_SHOWN = 5  # attributes and warnings of a kind in a plan's text


def _check(least: float) -> Any:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if type(value) not in (int, float) or not (math.isfinite(value) and value >= least):
            field = f"{type(instance).__name__}.{attribute.name}"
            raise InvalidValueError(
                f"{field} is a number, {least:g} or more, not {value!r}", field=field, value=value
            )

    return check


@attrs.frozen(kw_only=True)
class Prices:
    """What requests and storage cost, in a currency of yours.

    AWS's differ by Region and change: see its pages "Amazon EBS pricing" (EBS direct APIs for
    snapshots, snapshots) and "Amazon S3 pricing". 0 for what is free.

    Attributes:
        block_lists: of 1,000 requests ListSnapshotBlocks.
        block_reads: of 1,000 requests GetSnapshotBlock.
        block_writes: of 1,000 requests PutSnapshotBlock.
        object_writes: of 1,000 of S3's PUT and POST requests, of which parts are.
        object_reads: of 1,000 of S3's GET and HEAD requests.
        object_storage: of a GB (2**30 bytes) of an object for a month.
        snapshot_storage: of a GB of a snapshot's blocks for a month.
    """

    block_lists: float = attrs.field(validator=_check(0))
    block_reads: float = attrs.field(validator=_check(0))
    block_writes: float = attrs.field(validator=_check(0))
    object_writes: float = attrs.field(validator=_check(0))
    object_reads: float = attrs.field(validator=_check(0))
    object_storage: float = attrs.field(validator=_check(0))
    snapshot_storage: float = attrs.field(validator=_check(0))

    def of_requests(self, requests: Mapping[str, int]) -> float:
        """What requests cost, by verb; those that are not named above are free."""
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
    """How many requests a second are made at most: an account's quotas, or what your network does.

    The defaults are AWS's for the EBS direct APIs, for each account and each snapshot (EBS user
    guide, "Quotas for the EBS direct APIs"; AWS General Reference, "Amazon EBS endpoints and
    quotas"). S3's are too high to count.

    Attributes:
        block_lists: ListSnapshotBlocks.
        block_reads: GetSnapshotBlock; 1,000 are some 500 MB.
        block_writes: PutSnapshotBlock, likewise.
        snapshots: StartSnapshot and CompleteSnapshot, each.
    """

    block_lists: float = attrs.field(default=50, validator=_check(0.001))
    block_reads: float = attrs.field(default=1000, validator=_check(0.001))
    block_writes: float = attrs.field(default=1000, validator=_check(0.001))
    snapshots: float = attrs.field(default=10, validator=_check(0.001))

    def seconds(self, requests: Mapping[str, int]) -> float:
        """What requests take at these rates, one kind after the other."""
        rates = {
            "list_snapshot_blocks": self.block_lists,
            "get_snapshot_block": self.block_reads,
            "put_snapshot_block": self.block_writes,
            "start_snapshot": self.snapshots,
            "complete_snapshot": self.snapshots,
        }
        return math.fsum(requests.get(verb, 0) / rate for verb, rate in rates.items())


@attrs.frozen(kw_only=True)
class TaskPlan(abc.ABC):
    """What both plans tell.

    Attributes:
        image_id: of the AMI that is stored, or was.
        bucket: of the object.
        object_key: of the object.
        size: GiB that the task takes of the quota: of all snapshots, each counted once.
        in_progress: GiB of tasks of this kind that were in progress when the plan was made.
        quota: GiB in progress from which on a task waits, or is refused; None for no limit.
        volumes: distinct snapshots.
        blocks: listed blocks, of 524,288 bytes each.
        segments: of the archive.
        requests: how often each verb of the backend's interfaces is called, without faults;
            ``upload_part`` and ``get_object_range`` at most so often. Not counted are
            `preflight`, what a backend asks beside, and what is made again.
        estimated_seconds: that the requests take at the rates that were given, one kind after the
            other. An estimate: network and processor may be slower, and other tasks go first.
        request_cost: of the requests, once; None without prices. Their number is the most.
        monthly_cost: of what the task makes, for a month; None without prices.
        warnings: what may be unwise, or become an error.
        fidelity: each attribute of the AMI once: kept, dropped or remapped, and why, by a restore
            in this place; of a restore also holes that will read as noise, as dropped.
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
    request_cost: float | None
    monthly_cost: float | None
    warnings: tuple[str, ...]
    fidelity: tuple[AttributeReport, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of the listed blocks, before compression."""
        return self.blocks * BLOCK_SIZE

    @abc.abstractmethod
    def _title(self) -> str: ...

    @abc.abstractmethod
    def _archive(self) -> Iterator[tuple[str, str]]:
        """Lines about the object, by name."""

    def __str__(self) -> str:
        quota = "no limit" if self.quota is None else f"{self.in_progress} of {self.quota} GiB in progress"
        blocks, volumes = counted(self.blocks, "block"), counted(self.volumes, "volume")
        lines = [
            ("quota", f"{self.size} GiB; {quota}"),
            ("data", f"{sized(self.data_bytes)}: {blocks} of {volumes}"),
            *self._archive(),
            *_requests(self.requests),
            ("time", f"{_duration(self.estimated_seconds)} at the request rates, estimated"),
            ("cost", self._cost()),
            ("attributes", ", ".join(f"{len(self._of(fate))} {fate.value}" for fate in Fate)),
            *_listed("dropped", (f"{each.attribute}: {each.reason}" for each in self._of(Fate.DROPPED))),
            *_listed("warnings", self.warnings),
        ]
        texts = [self._title(), *(f"  {name:<10}  {text}".rstrip() for name, text in lines)]
        return "\n".join(map(printable, texts))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _of(self, fate: Fate) -> list[AttributeReport]:
        return [each for each in self.fidelity if each.fate is fate]

    def _cost(self) -> str:
        if self.request_cost is None or self.monthly_cost is None:
            return "unknown without prices"
        return f"at most {self.request_cost:,.4f} for requests, {self.monthly_cost:,.4f} a month"


@attrs.frozen(kw_only=True)
class StorePlan(TaskPlan):
    """What storing an AMI will take; made by `TaskEngine.plan_store`.

    Attributes:
        part_size: bytes from which on a part ends, behind the next segment.
        most_parts: the most that the upload has; fewer where data can be compressed.
        most_object_bytes: the most that the object has, likewise.
        most_spool_bytes: the most that lies in temporary files at once, of parts above 32 MiB,
            with this engine's workers.
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
        yield "upload", f"at most {counted(self.most_parts, 'part')}, of {sized(self.part_size)} or more"
        spooled = f"at most {sized(self.most_spool_bytes)}, for" if self.most_spool_bytes else "none, no"
        yield "disk", f"{spooled} parts above 32 MiB"


@attrs.frozen(kw_only=True)
class RestorePlan(TaskPlan):
    """What restoring an object will take; made by `TaskEngine.plan_restore`. It needs no room on a disk.

    Attributes:
        name: of the new AMI.
        object_bytes: of the object.
        content_id: of the archive, 64 hexadecimal digits.
        holes: blocks that the snapshots neither list nor have lost; on an encrypted volume they read as
            noise, unless they are filled.
        fill_holes: whether they are: then what that takes is in all other numbers.
        encrypts: whether the new snapshots become encrypted; None where that is not known before.
        fill_seconds: that filling takes at the rates that were given, a PutSnapshotBlock for each block;
            longer where `workers`, which put one block each at a time, are too few to reach them.
        fill_request_cost: of these requests, once; None without prices.
        fill_monthly_cost: of these blocks in the snapshots, for a month; None without prices.
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
    """The requests to each service, which is known by whose interface has the verb, in lines that fit."""
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
