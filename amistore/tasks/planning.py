"""Makes plans of checked requests: it lists snapshots or reads an archive's end, and reads no block.

The numbers of requests are those of `objects/` and the two kinds of tasks: who changes what these ask for
changes them here, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from amistore.archive.reader import ContainerFile
from amistore.backends import Backend, checks
from amistore.backends.quotas import Quotas
from amistore.backends.remote import TAIL
from amistore.errors import InvalidRequestError
from amistore.model import AttributeReport, Fate, Image, Tag
from amistore.model.fidelity import Leaf, leaves, report
from amistore.objects.parts import ObjectBounds
from amistore.objects.store_orders import OrderPlan, takes_orders
from amistore.pipeline import Progress
from amistore.pipeline.orders import Cluster
from amistore.pipeline.pack import plan_pack
from amistore.pipeline.requests import HELD, requests_of
from amistore.pipeline.workers import worker_count
from amistore.tasks.descriptions import TaskDescriptions
from amistore.tasks.plans import Prices, RequestRates, RestorePlan, StorePlan
from amistore.tasks.record import TaskRecord
from amistore.tasks.restore import RestoreRequest
from amistore.tasks.store import StoreRequest
from amistore.tasks.task import TagSpecification
from amistore.units import BLOCK_SIZE, GIB, sized

__all__ = ["TaskPlans"]


@attrs.frozen(kw_only=True)
class _Terms:
    """The terms of a plan.

    Attributes:
        record: the record of a task that would be admitted.
        in_progress: the GiB of tasks of its kind in progress.
        quota: the quota in GiB; None for no limit.
        prices: the prices; None for a plan without costs.
        rates: the rates of requests.
        in_flight: the number of requests for blocks at a time.
        workers: the number of the engine's workers.
        cores: the number of cores that they have.
        by_orders: whether they are an executor's.
    """

    record: TaskRecord
    in_progress: int
    quota: int | None
    prices: Prices | None
    rates: RequestRates
    in_flight: int
    workers: int
    cores: int
    by_orders: bool

    def seconds(self, requests: Mapping[str, int], zeros: int = 0) -> float:
        """The seconds that requests take, of which so many put zeros."""
        return self.rates.seconds(requests, in_flight=self.in_flight, cores=self.cores, zeros=zeros)

    def bounded_by(self, requests: Mapping[str, int]) -> str:
        """What bounds the requests for blocks."""
        verb = "get_snapshot_block" if "get_snapshot_block" in requests else "put_snapshot_block"
        bounds = self.rates.bounds(verb, self.in_flight, self.cores)
        return min(bounds, key=bounds.__getitem__)

    def members(self, requests: Mapping[str, int], zeros: int = 0) -> dict[str, Any]:
        """The attributes of a plan that follow from these terms."""
        return {
            "bucket": self.record.bucket,
            "object_key": self.record.object_key,
            "size": self.record.size,
            "in_progress": self.in_progress,
            "quota": self.quota,
            "requests": requests,
            "estimated_seconds": self.seconds(requests, zeros),
            "bounded_by": self.bounded_by(requests),
            "request_cost": None if self.prices is None else self.prices.of_requests(requests),
        }

    def snapshot_storage(self, blocks: int) -> float | None:
        """The cost of snapshots' blocks for a month."""
        return None if self.prices is None else blocks * BLOCK_SIZE / GIB * self.prices.snapshot_storage

    def warnings(self, backend: Backend, image: Image, encrypted: str) -> Iterator[str]:
        """The warnings that both kinds of plans have; of encrypted snapshots the one given."""
        yield from backend.s3.bucket_warnings(self.record.bucket)
        root = checks.root_warning(image)
        if root is not None:
            yield root
        found = {each.snapshot_id for each in image.snapshots if each.encrypted}
        mapped = (each.ebs for each in image.block_device_mappings if each.ebs is not None)
        found |= {each.snapshot_id for each in mapped if each.snapshot_id is not None and each.encrypted}
        if found:
            yield f"encrypted snapshots ({', '.join(sorted(found))}): {encrypted}"
        total = self.in_progress + self.record.size
        if self.quota is not None and total >= self.quota:
            what = "further" if self.in_progress < self.quota else "it and further"
            yield (
                f"with this task {total} GiB are in progress, and the quota is {self.quota} GiB: {what} "
                f"{self.record.kind} tasks wait until one has ended"
            )


class TaskPlans(TaskDescriptions):
    """The planning part of `TaskEngine`, which changes nothing.

    Attributes:
        quotas: the quotas of the engine.
    """

    quotas: Quotas
    _workers: int
    _cluster: Cluster | None

    def plan_store(
        self,
        *,
        image_id: str,
        bucket: str,
        s3_object_tags: Iterable[Tag] | Mapping[str, str] = (),
        prices: Prices | None = None,
        rates: RequestRates | None = None,
    ) -> StorePlan:
        """Plan what `create_store_image_task` would do and take, and change nothing.

        This lists the snapshots once; only the backend's `preflight` reads blocks. On EBS a new listing of a
        snapshot ends the earlier ones; a running store of it lists it anew.

        Args:
            image_id: the AMI's id.
            bucket: the bucket that gets the object; ``bucket/prefix`` puts the prefix before the key.
            s3_object_tags: the object's tags, ten at most.
            prices: the prices of requests and storage; None for a plan without costs.
            rates: the rates of requests; None for AWS's quotas and usual cores.

        Raises:
            AmistoreError: the error that `create_store_image_task` would raise, or the archive would be
                beyond a limit of the format.
        """
        self._check_open()
        given = self._given()
        request = StoreRequest.of(*given, image_id=image_id, bucket=bucket, s3_object_tags=s3_object_tags)
        terms = self._terms(request.record, prices, rates)
        return _plan_store(self.backend, request.image, terms)

    def plan_restore(
        self,
        *,
        bucket: str,
        object_key: str,
        name: str | None = None,
        tag_specifications: Iterable[TagSpecification] = (),
        fill_holes: bool = False,
        allow_lost: bool = False,
        expected_content_id: str | None = None,
        prices: Prices | None = None,
        rates: RequestRates | None = None,
    ) -> RestorePlan:
        """Plan what `create_restore_image_task` would do and take, and change nothing.

        Args:
            bucket: the bucket that holds the object.
            object_key: the object's key.
            name: the new AMI's unique name; None for the stored name.
            tag_specifications: the tags to set on the AMI and its snapshots, over the stored ones.
            fill_holes: whether to put a block of zeros for each block that a snapshot does not list.
            allow_lost: whether to restore snapshots with lost blocks, too.
            expected_content_id: the only content id to accept, 64 hexadecimal digits; None for any. Only the
                archive's claim is compared.
            prices: the prices of requests and storage; None for a plan without costs.
            rates: the rates of requests; None for AWS's quotas and usual cores.

        Raises:
            AmistoreError: the error that `create_restore_image_task` would raise.
        """
        self._check_open()
        request = RestoreRequest.of(
            *self._given(),
            bucket=bucket,
            object_key=object_key,
            name=name,
            tag_specifications=tag_specifications,
            fill_holes=fill_holes,
            allow_lost=allow_lost,
            expected_content_id=expected_content_id,
        )
        return _plan_restore(self.backend, request, self._terms(request.record, prices, rates))

    def _given(self) -> tuple[Backend, Quotas, str, int]:
        """What a request is checked with, and the place and time of its task."""
        return self.backend, self.quotas, self._place, int(self._clock() * 1000)

    def _terms(self, record: TaskRecord, prices: Prices | None, rates: RequestRates | None) -> _Terms:
        """What a plan reckons with, of a task that would be admitted."""
        for given, kind_of in ((prices, Prices), (rates, RequestRates)):
            if given is not None and not isinstance(given, kind_of):
                raise InvalidRequestError(
                    f"amistore.{kind_of.__name__} is wanted, not {type(given).__name__}"
                )
        self._journal.add(record, None, dry_run=True)
        in_flight = min(requests_of(self.backend.ebs), HELD)
        by_orders = self._cluster is not None
        return _Terms(
            record=record,
            in_progress=self._journal.in_progress(self._place, record.kind),
            quota=self.quotas.in_progress(record.kind),
            prices=prices,
            rates=rates or RequestRates(),
            in_flight=in_flight * self._workers if by_orders and in_flight else max(in_flight, self._workers),
            workers=self._workers,
            cores=self._workers if by_orders else min(self._workers, worker_count(None)),
            by_orders=by_orders,
        )


def _plan_store(backend: Backend, image: Image, terms: _Terms) -> StorePlan:
    """List the snapshots, and plan what storing them takes."""
    pages: list[Progress] = []
    planned = plan_pack(image, backend.ebs, progress=pages.append)
    workers = max(terms.workers, requests_of(backend.s3))
    traits = backend.s3.traits
    by_orders = terms.by_orders and takes_orders(traits)
    bounds = (
        OrderPlan.of(planned, traits).bounds(planned)
        if by_orders
        else ObjectBounds.of(planned, workers, traits)
    )
    most = traits.most_bytes
    unsized = sum(image.snapshot(each).volume_size is None for each in image.snapshot_ids)
    requests = {
        "list_snapshot_blocks": unsized + 2 * len(pages),
        "get_snapshot_block": planned.blocks,
        "head_bucket": 1,
        "head_object": 2,
        "get_object_range": 1,  # its last bytes
        "create_multipart_upload": 1,
        "upload_part": bounds.parts,
        "complete_multipart_upload": 1,
        "describe_image": 2,
    }
    fidelity = _fidelity(backend, image)
    decrypted = "their blocks are decrypted into the object, which only the bucket may encrypt"
    warnings = [
        *terms.warnings(backend, image, decrypted),
        *_dropped(fidelity),
        *_too_large(bounds.size, most),
        *_one_uploader(terms.by_orders and not by_orders),
    ]
    return StorePlan(
        image_id=image.image_id,
        volumes=len(planned.volumes),
        blocks=planned.blocks,
        segments=planned.segments,
        part_size=bounds.part_size,
        most_parts=bounds.parts,
        most_object_bytes=bounds.size,
        most_spool_bytes=bounds.spooled,
        monthly_cost=None if terms.prices is None else bounds.size / GIB * terms.prices.object_storage,
        warnings=tuple(warnings),
        fidelity=fidelity,
        **terms.members(requests),
    )


def _plan_restore(backend: Backend, request: RestoreRequest, terms: _Terms) -> RestorePlan:
    """Plan what restoring an archive takes, by its index."""
    job, policy, stored = request.job, request.job.policy, request.stored
    index = stored.index
    holes = {snapshot_id: count for snapshot_id, count in request.holes.items() if count}
    hole_blocks = sum(holes.values())
    filling = {"put_snapshot_block": hole_blocks}
    blocks = stored.head.blocks + (hole_blocks if policy.fill_holes else 0)
    encrypts = backend.ebs.encrypts_snapshots()
    unfilled = {} if policy.fill_holes else holes
    looked_at = min(1, len(unfilled)) if encrypts else len(unfilled)
    requests = _restore_requests(stored, blocks, looked_at)
    restored = job.registered(
        request.restorable.with_tags(snapshot_tags=policy.tags), stored.image.image_id, job.region
    )
    name = request.record.name
    fidelity = _fidelity(backend, stored.image, restored, name)
    left_out = sorted(set(stored.image.snapshot_ids) - set(restored.snapshot_ids))
    encrypted = "whether the new ones are is up to the destination's settings"
    warnings = [
        *terms.warnings(backend, stored.image, encrypted),
        *(f"the mapping of {each} is left out: it is not in the archive" for each in left_out),
        *_lost(stored.image, policy.allow_lost),
        *_dropped(fidelity),
        *_noise(unfilled, encrypts),
    ]
    return RestorePlan(
        image_id=stored.image.image_id,
        volumes=len(index.volumes),
        blocks=stored.head.blocks,
        segments=len(index.offsets),
        name=name,
        object_bytes=stored.size,
        content_id=index.content_id.hex(),
        monthly_cost=terms.snapshot_storage(blocks),
        holes=hole_blocks,
        fill_holes=policy.fill_holes,
        encrypts=encrypts,
        fill_seconds=terms.seconds(filling, hole_blocks),
        fill_request_cost=None if terms.prices is None else terms.prices.of_requests(filling),
        fill_monthly_cost=terms.snapshot_storage(hole_blocks),
        warnings=tuple(warnings),
        fidelity=fidelity + _noisy(unfilled, encrypts),
        **terms.members(requests, hole_blocks if policy.fill_holes else 0),
    )


def _restore_requests(stored: ContainerFile, blocks: int, looked_at: int) -> dict[str, int]:
    """The number of calls of each verb in a restore.

    Args:
        stored: the archive.
        blocks: the number of blocks that are put.
        looked_at: the number of snapshots with holes that are asked whether they are encrypted, up to the
            first encrypted one.
    """
    volumes, segments = len(stored.index.volumes), len(stored.index.offsets)
    per_shard = stored.head.layout.segments_per_shard
    opening = 1 if stored.size - stored.foot.index_offset <= TAIL else 2
    return {
        "start_snapshot": volumes,
        "put_snapshot_block": blocks,
        "complete_snapshot": volumes,
        "describe_snapshot": volumes + looked_at,  # each is waited for
        "head_bucket": 1,
        "head_object": 2,
        # Opened twice; then the front, the tail, all between, and at most
        # a PAD behind each shard but the last.
        "get_object_range": 2 * opening + 2 + volumes + segments + max(0, segments - 1) // per_shard,
        "find_images": 3,
        "dry_run_register_image": 1,
        "register_image": 1,
    }


def _fidelity(
    backend: Backend, image: Image, restored: Image | None = None, name: str | None = None
) -> tuple[AttributeReport, ...]:
    """The fate of an image's attributes when `restored` is registered in its place."""
    registered = {each.attribute: each for each in backend.ec2.fidelity(restored or image, name=name)}
    given = {leaf.path: leaf.value for leaf in leaves(restored or image)}

    def fate(leaf: Leaf) -> tuple[Fate, str]:
        if leaf.path not in given:
            return Fate.DROPPED, "its snapshot is not in the archive, or nothing is known to put there"
        told = registered[leaf.path]
        if told.fate is not Fate.DROPPED and given[leaf.path] != leaf.value:
            source = leaf.name.startswith("source_image")
            return Fate.REMAPPED, "the stored image is the source" if source else "another value was given"
        return told.fate, told.reason

    return report(image, fate)


def _too_large(size: int, most: int) -> Iterator[str]:
    if size > most:
        yield (
            f"where the data cannot be compressed, the object would have {size} bytes, and the store's have "
            f"{most} at most: the task would fail when it gets there"
        )


def _one_uploader(alone: bool) -> Iterator[str]:
    if alone:
        yield (
            "the store wants parts of one size, or numbers without gaps, so this process alone uploads: "
            "the workers compress, and all bytes pass here"
        )


def _lost(image: Image, allowed: bool) -> Iterator[str]:
    snapshots = [each.snapshot_id for each in image.snapshots if each.lost_blocks]
    if snapshots:
        consequence = "restored without them" if allowed else "it will fail without allow_lost=True"
        yield f"blocks of {', '.join(snapshots)} were lost before they were stored: {consequence}"


def _noise(holes: Mapping[str, int], encrypts: bool | None) -> Iterator[str]:
    if holes and encrypts is not False:
        where = "the new snapshots are encrypted" if encrypts else "if the new snapshots are encrypted"
        size = sized(sum(holes.values()) * BLOCK_SIZE)
        yield f"{where}, {size} of holes read as noise: fill_holes=True puts zeros there"


def _noisy(holes: Mapping[str, int], encrypts: bool | None) -> tuple[AttributeReport, ...]:
    """The lines of the fidelity report about holes, by snapshot."""
    return tuple(
        AttributeReport(
            attribute=f"snapshots[{snapshot_id}].holes",
            fate=Fate.DROPPED,
            value=sized(blocks * BLOCK_SIZE),
            reason="they read as noise on an encrypted volume; fill_holes=True puts zeros there",
        )
        for snapshot_id, blocks in holes.items()
        if encrypts
    )


def _dropped(fidelity: Iterable[AttributeReport]) -> Iterator[str]:
    count = sum(each.fate is Fate.DROPPED for each in fidelity)
    if count:
        yield f"{count} attributes of the AMI are not restored here: see fidelity"
