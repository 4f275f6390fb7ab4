"""Ids of archives that hold some of the snapshots that their image maps."""

from __future__ import annotations

import io
from itertools import combinations

import attrs
import images
import pytest

import amistore
from amistore.container.identity import file_id
from amistore.container.plan import Plan
from amistore.pipeline.pack import plan_pack
from amistore.pipeline.packing import SegmentEncode, packed_units

SOURCE = images.Volumes([(1, {2: images.block(1)})] * 3)
IDS = tuple(SOURCE.volumes)
IMAGE = images.image(IDS)
READERS = (images.read_streaming, images.read_quickly, images.read_seekable)


def planned(*snapshots: str) -> Plan:
    return plan_pack(IMAGE, SOURCE, snapshots=snapshots, layout=images.SMALL)


def made(plan: Plan) -> bytes:
    units = packed_units(plan, SOURCE, SegmentEncode(3, True), workers=1)
    return b"".join(piece for unit in units for piece in unit.pieces)


def test_each_choice_of_equal_snapshots_has_ids_of_its_own() -> None:
    choices = [chosen for count in range(4) for chosen in combinations(IDS, count)]
    assert len(choices) == 8
    containers = [made(planned(*chosen)) for chosen in choices]
    assert len({planned(*chosen).file_id for chosen in choices}) == 8
    assert len({amistore.open(io.BytesIO(each)).content_id for each in containers}) == 8
    for container in containers:
        for read in READERS:
            read(container)


@pytest.mark.parametrize("chosen", [IDS[:1], IDS])
def test_an_archive_whose_ids_are_of_two_formulas_is_refused(chosen: tuple[str, ...]) -> None:
    right = planned(*chosen)
    mixed = attrs.evolve(right, bound=not right.bound)
    for read in READERS:
        read(made(right))
        with pytest.raises(amistore.CorruptArchiveError, match=r"the index|content id"):
            read(made(mixed))


def test_an_archive_of_all_snapshots_with_the_ids_of_a_partial_one_is_refused() -> None:
    right = planned(*IDS)
    sums = [volume.sums() for volume in right.volumes]
    ids = file_id(right.manifest, sums, right.layout, bound=True)
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError, match="file id"):
            read(made(attrs.evolve(right, bound=True, file_id=ids)))


def test_the_bytes_of_one_snapshot_under_the_name_of_another_are_refused() -> None:
    container = made(planned(IDS[0]))
    renamed = container.replace(IDS[0].encode() + b"\0", IDS[1].encode() + b"\0")
    assert renamed != container
    for read in READERS:
        with pytest.raises(amistore.CorruptArchiveError):
            read(renamed)
