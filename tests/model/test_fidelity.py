"""The report of what becomes of an image's attributes: each once, and true."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import amistore
from amistore.model.fidelity import AttributeReport, Fate, leaves
from amistore.testing import store_snapshot
from amistore.testing.strategies import images


def count_leaves(value: Any) -> int:
    """How many plain values there are, counted without the model's field metadata."""
    total = 0
    for field in attrs.fields(type(value)):
        item = getattr(value, field.name)
        if field.name == "extra":
            total += sum(member is not None for member in item.values())
        elif isinstance(item, tuple):
            total += sum(map(count_leaves, item))
        elif attrs.has(type(item)):
            total += count_leaves(item)
        elif item is not None and not (field.name == "state" and field.eq is False):
            total += 1
    return total


@given(images())
def test_every_attribute_is_in_the_report_exactly_once(image: amistore.Image) -> None:
    reports = amistore.MemoryBackend().ec2.fidelity(image)
    assert len(reports) == count_leaves(image)
    assert len({each.attribute for each in reports}) == len(reports)


@given(images())
def test_reports_are_printable_lines_and_give_a_reason_for_all_that_is_not_kept(
    image: amistore.Image,
) -> None:
    for each in amistore.MemoryBackend().ec2.fidelity(image, name="another"):
        assert str(each).isprintable()
        assert len(each.value) <= 80
        assert bool(each.reason) == (each.fate is not Fate.KEPT)


@given(
    st.lists(
        st.text("a]['\"\\.v\n", min_size=1, max_size=12) | st.sampled_from(["a].extra[b", "b].extra[c"]),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    st.dictionaries(st.text("a]['\"\\.Nv", min_size=1, max_size=12), st.just(1), max_size=3),
)
def test_hostile_keys_never_make_two_attributes_of_one_path(keys: list[str], extra: dict[str, int]) -> None:
    tags = tuple(amistore.Tag(key=key, value="v", extra=extra) for key in keys)
    image = amistore.Image(image_id="ami-0123456789abcdef0", tags=tags)
    paths = [leaf.path for leaf in leaves(image)]
    assert len(set(paths)) == len(paths) == 1 + len(keys) * (2 + len(extra))


def test_paths_read_like_the_model() -> None:
    ebs = amistore.EbsBlockDevice(snapshot_id="snap-0123456789abcdef0", iops=3000, extra={"New": [1]})
    image = amistore.Image(
        image_id="ami-0123456789abcdef0",
        block_device_mappings=(amistore.BlockDeviceMapping(device_name="/dev/sda1", ebs=ebs),),
        tags=(amistore.Tag(key="line\nbreak", value="x"),),
    )
    assert [str(each) for each in amistore.MemoryBackend().ec2.fidelity(image)] == [
        "image_id = 'ami-0123456789abcdef0' remapped: every image gets an id of its own",
        "block_device_mappings[/dev/sda1].device_name = '/dev/sda1' kept",
        "block_device_mappings[/dev/sda1].ebs.snapshot_id = 'snap-0123456789abcdef0'"
        " remapped: restoring makes new snapshots",
        "block_device_mappings[/dev/sda1].ebs.iops = 3000 kept",
        "block_device_mappings[/dev/sda1].ebs.extra[New] = [1] kept",
        "tags[line\\nbreak].key = 'line\\nbreak' kept",
        "tags[line\\nbreak].value = 'x' kept",
    ]


@pytest.mark.parametrize("member", ["attribute", "value", "reason"])
def test_a_report_of_other_types_is_refused(member: str) -> None:
    members = {"attribute": "name", "value": "'web'", "reason": "", member: 1}
    with pytest.raises(TypeError):
        AttributeReport(fate=Fate.KEPT, **members)  # type: ignore[arg-type]


@given(st.data())
def test_what_memory_reports_as_kept_is_kept(data: st.DataObject) -> None:
    backend = amistore.MemoryBackend()
    snapshot_ids = [store_snapshot(backend.ebs, size, {}) for size in (1, 2)]
    image = data.draw(images(snapshot_ids=snapshot_ids))
    reports = backend.ec2.fidelity(image, name="another")
    described = backend.ec2.describe_image(backend.ec2.register_image(image, name="another"))
    after = {leaf.path: leaf.value for leaf in leaves(described)}
    before = {leaf.path: leaf.value for leaf in leaves(image)}
    for each in reports:
        if each.fate is Fate.KEPT:
            assert after[each.attribute] == before[each.attribute]
    changed = {path for path in before if after.get(path) != before[path]}
    assert changed <= {each.attribute for each in reports if each.fate is not Fate.KEPT}
