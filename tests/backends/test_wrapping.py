"""Backends around another one tell of it what the one inside tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from amistore import Backend, DirectoryBackend, RetryingBackend
from amistore.testing import FaultyBackend


@pytest.mark.parametrize("wrap", [FaultyBackend, RetryingBackend])
def test_a_backend_around_another_is_in_the_same_place(
    wrap: type[FaultyBackend | RetryingBackend], tmp_path: Path
) -> None:
    inner = DirectoryBackend(tmp_path)
    outer: Backend = wrap(inner)
    assert (outer.ebs.where, outer.s3.where) == (inner.ebs.where, inner.s3.where)
    assert inner.ebs.where
    assert outer.journal == inner.journal is not None
