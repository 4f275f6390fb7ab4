"""Hypothesis strategies: images with hostile metadata, and snapshots' contents."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from amistore.model import BlockDeviceMapping, EbsBlockDevice, Image, ProductCode, Snapshot, Tag
from amistore.testing.snapshots import block
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["VolumeCase", "images", "volumes"]


@attrs.frozen(kw_only=True)
class VolumeCase:
    """What a snapshot holds.

    Attributes:
        volume_size: in GiB.
        seeds: for each block that exists, by index, what `block` makes its content from.
    """

    volume_size: int
    seeds: dict[int, int]

    @property
    def blocks(self) -> dict[int, bytes]:
        """The content of each block that exists, by index."""
        return {index: block(seed) for index, seed in self.seeds.items()}


@st.composite
def volumes(draw: st.DrawFn, *, most_blocks: int = 12) -> VolumeCase:
    """Snapshots of 1 to 3 GiB with up to `most_blocks` blocks, some of zeros, some alike."""
    volume_size = draw(st.integers(1, 3))
    last = volume_size * GIB // BLOCK_SIZE - 1
    seeds = st.integers(0, 5)
    indexes = st.integers(0, last)
    contents = st.one_of(
        st.just({}),
        st.fixed_dictionaries({last: seeds}),
        st.fixed_dictionaries({0: seeds, last: seeds}),
        st.lists(indexes, max_size=most_blocks).map(lambda found: dict.fromkeys(sorted(set(found)), 0)),
        st.integers(1, most_blocks).map(lambda count: {2 * number: 1 + number for number in range(count)}),
        st.integers(1, most_blocks).map(lambda count: {number: number % 2 for number in range(count)}),
        st.dictionaries(indexes, seeds, max_size=most_blocks).map(lambda found: dict(sorted(found.items()))),
    )
    return VolumeCase(volume_size=volume_size, seeds=draw(contents))


def images(*, snapshot_ids: Sequence[str] | None = None) -> st.SearchStrategy[Image]:
    """Images with every attribute that may be there, or not, and hostile texts.

    Args:
        snapshot_ids: each is mapped at least once, and no others; their descriptions do not
            say a size. None for up to three snapshots that exist nowhere.
    """
    return _images(snapshot_ids)


@st.composite
def _images(draw: st.DrawFn, snapshot_ids: Sequence[str] | None) -> Image:
    if snapshot_ids is None:
        ids = draw(st.lists(_ids("snap"), max_size=3, unique=True))
    else:
        ids = sorted(set(snapshot_ids))
    mapped = [*ids, *(draw(st.lists(st.sampled_from(ids), max_size=2)) if ids else [])]
    others = draw(st.integers(0, 3))  # mappings without a snapshot
    devices = draw(_devices(len(mapped) + others))
    mappings = [
        BlockDeviceMapping(
            device_name=device,
            ebs=EbsBlockDevice(snapshot_id=snapshot_id, **draw(_members(EbsBlockDevice, "snapshot_id"))),
            **draw(_members(BlockDeviceMapping, "device_name", "ebs")),
        )
        for device, snapshot_id in zip(devices, mapped, strict=False)
    ] + [
        BlockDeviceMapping(
            device_name=device,
            virtual_name=draw(st.sampled_from([None, "ephemeral0", "ephemeral23"])),
            ebs=draw(_without_snapshot()),
            **draw(_members(BlockDeviceMapping, "device_name", "virtual_name", "ebs")),
        )
        for device in devices[len(mapped) :]
    ]
    described = draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    snapshots = [
        Snapshot(
            snapshot_id=snapshot_id,
            volume_size=draw(st.none() | st.integers(1, 65_536)) if snapshot_ids is None else None,
            tags=draw(_tags()),
            **draw(_members(Snapshot, "snapshot_id", "volume_size", "tags")),
        )
        for snapshot_id in described
    ]
    return Image(
        image_id=draw(_ids("ami")),
        creation_date=draw(_dates()),
        root_device_name=draw(st.none() | st.sampled_from(devices)) if devices else None,
        product_codes=draw(_product_codes()),
        block_device_mappings=tuple(mappings),
        snapshots=tuple(snapshots),
        tags=draw(_tags()),
        **draw(
            _members(
                Image,
                "image_id",
                "creation_date",
                "root_device_name",
                "product_codes",
                "block_device_mappings",
                "snapshots",
                "tags",
            )
        ),
    )


# Each of the following is made once: hypothesis looks through every new strategy before it draws from it,
# which took longer than all drawing.


@functools.cache
def _devices(count: int) -> st.SearchStrategy[list[str]]:
    return st.lists(_text(min_size=1), min_size=count, max_size=count, unique=True)


@functools.cache
def _without_snapshot() -> st.SearchStrategy[EbsBlockDevice | None]:
    return st.none() | _members(EbsBlockDevice, "snapshot_id").map(lambda members: EbsBlockDevice(**members))


@functools.cache
def _dates() -> st.SearchStrategy[str | None]:
    return st.none() | _text() | st.just("2026-01-02T03:04:05.000Z")


@functools.cache
def _ids(prefix: str) -> st.SearchStrategy[str]:
    return st.integers(0, 2**68 - 1).map(lambda number: f"{prefix}-{number:017x}")


@functools.cache
def _text(min_size: int = 0) -> st.SearchStrategy[str]:
    hostile = ["\n", "\0", "ä" * 5_000, '"\\', "../..", "\U0001f4be", "e\u0301", "\u2028", "aws:x", "<&'>"]
    return st.text(min_size=min_size, max_size=20) | st.sampled_from(hostile)


@functools.cache
def _json() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | _text()
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text(), inner, max_size=3),
        max_leaves=5,
    )


@functools.cache
def _extra() -> st.SearchStrategy[dict[str, Any]]:
    """Members that no version knows: their names begin with New."""
    return st.just({}) | st.dictionaries(_text().map("New".__add__), _json(), max_size=2)


@functools.cache
def _tags() -> st.SearchStrategy[tuple[Tag, ...]]:
    return _unique(st.builds(Tag, key=_text(min_size=1), value=_text(), extra=_extra()), "key")


@functools.cache
def _product_codes() -> st.SearchStrategy[tuple[ProductCode, ...]]:
    codes = st.builds(
        lambda code, members: ProductCode(product_code_id=code, **members),
        _text(min_size=1),
        _members(ProductCode, "product_code_id"),
    )
    return _unique(codes, "product_code_id")


def _unique(values: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3, unique_by=lambda value: getattr(value, key)).map(tuple)


@functools.cache
def _members(kind: type[Any], *given: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of a model value's attributes, drawn by their type, beside those that are given."""
    by_type = {"str | None": _text(), "int | None": st.integers(1, 2**63 - 1), "bool | None": st.booleans()}
    optional = {
        field.name: st.none() | by_type[field.type]
        for field in attrs.fields(kind)
        if field.name not in given and field.type in by_type
    }
    return st.fixed_dictionaries({"extra": _extra()}, optional=optional)
