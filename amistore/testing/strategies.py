"""Hypothesis strategies: images with hostile metadata, and snapshots' contents."""

from __future__ import annotations

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
    count = len(mapped) + others
    devices = draw(st.lists(_text(min_size=1), min_size=count, max_size=count, unique=True))
    mappings = [
        draw(
            _value(
                BlockDeviceMapping,
                device_name=st.just(device),
                ebs=_value(EbsBlockDevice, snapshot_id=st.just(snapshot_id)),
            )
        )
        for device, snapshot_id in zip(devices, mapped, strict=False)
    ] + [
        draw(
            _value(
                BlockDeviceMapping,
                device_name=st.just(device),
                virtual_name=st.sampled_from([None, "ephemeral0", "ephemeral23"]),
                ebs=st.none() | _value(EbsBlockDevice, snapshot_id=st.none()),
            )
        )
        for device in devices[len(mapped) :]
    ]
    described = draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    size = st.none() if snapshot_ids is not None else st.none() | st.integers(1, 65_536)
    snapshots = [
        draw(_value(Snapshot, snapshot_id=st.just(snapshot_id), volume_size=size, tags=_tags()))
        for snapshot_id in described
    ]
    image: Image = draw(
        _value(
            Image,
            image_id=_ids("ami"),
            creation_date=st.none() | _text() | st.just("2026-01-02T03:04:05.000Z"),
            root_device_name=st.none() | st.sampled_from(devices) if devices else st.none(),
            product_codes=_unique(_value(ProductCode, product_code_id=_text(min_size=1)), "product_code_id"),
            block_device_mappings=st.just(tuple(mappings)),
            snapshots=st.just(tuple(snapshots)),
            tags=_tags(),
        )
    )
    return image


def _ids(prefix: str) -> st.SearchStrategy[str]:
    return st.integers(0, 2**68 - 1).map(lambda number: f"{prefix}-{number:017x}")


def _text(min_size: int = 0) -> st.SearchStrategy[str]:
    hostile = ["\n", "\0", "ä" * 5_000, '"\\', "../..", "\U0001f4be", "e\u0301", "\u2028", "aws:x", "<&'>"]
    return st.text(min_size=min_size, max_size=20) | st.sampled_from(hostile)


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


def _extra() -> st.SearchStrategy[dict[str, Any]]:
    """Members that no version knows: their names begin with New."""
    return st.just({}) | st.dictionaries(_text().map("New".__add__), _json(), max_size=2)


def _tags() -> st.SearchStrategy[tuple[Tag, ...]]:
    return _unique(_value(Tag, key=_text(min_size=1), value=_text()), "key")


def _unique(values: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3, unique_by=lambda value: getattr(value, key)).map(tuple)


def _value(kind: type[Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A model value with some of its attributes, drawn by `given` or else by their type."""
    by_type = {"str | None": _text(), "int | None": st.integers(1, 2**63 - 1), "bool | None": st.booleans()}
    optional = {
        field.name: st.none() | by_type[field.type]
        for field in attrs.fields(kind)
        if field.name not in given and field.type in by_type
    }
    return st.fixed_dictionaries({**given, "extra": _extra()}, optional=optional).map(
        lambda members: kind(**members)
    )
