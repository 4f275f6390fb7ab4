"""An order's bytes as parts: their numbers are its own, however little its blocks compress."""

from __future__ import annotations

from collections import deque

import pytest

import amistore
from amistore.objects.parts import Part
from amistore.objects.store_orders import order_parts


def numbers(length: int, most: int) -> list[tuple[int, int]]:
    """Number and size of the parts of so many bytes, of 10 bytes each, or up to 4 more."""
    begun: deque[Part] = deque()
    pieces = [bytes(min(3, length - at)) for at in range(0, length, 3)]
    return [(part.number, part.size) for part in order_parts(pieces, 10, 4, range(7, 7 + most), begun)]


def test_an_order_fills_the_numbers_that_it_has() -> None:
    assert numbers(33, 3) == [(7, 10), (8, 10), (9, 13)]


def test_an_order_that_needs_more_is_refused_before_it_takes_the_next_ones_number() -> None:
    with pytest.raises(amistore.InvalidRequestError, match="more than its 3 parts"):
        numbers(34, 3)
