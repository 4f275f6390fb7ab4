"""Filters of EC2's lists."""

from __future__ import annotations

from typing import Any

import pytest

from amistore.wire.describing import IMAGE_FILTERS, fitting
from amistore.wire.errors import ServiceError

TAGS = [{"Key": "bare"}, {"Key": "Team", "Value": "a"}, {"Key": "empty", "Value": ""}]


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("tag:Team", "a", True),
        ("tag:Team", "", False),
        ("tag:bare", "*", False),
        ("tag:empty", "", True),
        ("tag:<key>", "a", False),
        ("tag-key", "bare", True),
        ("description", "*", False),
    ],
)
def test_a_tag_without_a_value_is_found_by_its_key_only(name: str, value: str, fits: bool) -> None:
    """An archive's image may have one: `Tag.value` is None where nothing was said."""
    assert fitting([{"Name": name, "Values": [value]}], IMAGE_FILTERS)({"Tags": TAGS}) is fits


@pytest.mark.parametrize(
    "asked", [{"Name": "colour", "Values": ["red"]}, {"Name": "name"}, {"Values": ["x"]}]
)
def test_a_filter_that_is_unknown_or_empty_is_refused_where_there_is_nothing_to_find(asked: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        fitting([asked], IMAGE_FILTERS)
    assert (caught.value.code, caught.value.status) == ("InvalidParameterValue", 400)
