"""Errors tell their facts, and keep them on the way through a process pool."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import amistore
from amistore import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]
FACTS = {
    "offset": 17,
    "record": "SEGD",
    "segment": 3,
    "snapshot_id": "snap-01234567",
    "block_index": 0,
    "retryable": True,
    "operation": "get_snapshot_block",
    "image_id": "ami-01234567",
    "bucket": "archive",
    "key": "größe\n.bin",
    "code": "InvalidParameterValue",
    "task_ids": ("store-0123456789abcdef0", "restore-0123456789abcdef0"),
    "field": "Tag.key",
    "value": [1, "x"],
}


def facts_of(kind: type[amistore.AmistoreError]) -> dict[str, object]:
    names = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "message")]
    return {name: FACTS[name] for name in names}


def fail(kind: type[amistore.AmistoreError]) -> None:
    raise kind("it failed", **facts_of(kind))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_keeps_its_facts_when_pickled_and_copied(kind, again):
    error = again(kind("it failed", **facts_of(kind)))
    assert type(error) is kind
    assert error.message == "it failed"
    assert {name: getattr(error, name) for name in facts_of(kind)} == facts_of(kind)
    assert str(error) == str(kind("it failed", **facts_of(kind)))


def test_an_error_crosses_a_process_pool_whole():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(fail, kind) for kind in CLASSES]
        for kind, future in zip(CLASSES, futures, strict=True):
            error = future.exception()
            assert type(error) is kind
            assert {name: getattr(error, name) for name in facts_of(kind)} == facts_of(kind)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_needs_no_facts(kind):
    assert str(kind("it failed")) == "it failed"


def test_the_text_shows_the_facts_that_are_known():
    error = amistore.CorruptArchiveError("wrong checksum", offset=512, record="SEGD", block_index=0)
    assert str(error) == "wrong checksum (record SEGD, offset 512, block index 0)"
    error = amistore.NotFoundError("no such block", operation="get_snapshot_block", snapshot_id="snap-1")
    assert str(error) == "no such block (operation get_snapshot_block, snapshot id snap-1)"
    error = amistore.InvalidRequestError("too large", code="ResourceLimitExceeded")
    assert str(error) == "too large (code ResourceLimitExceeded)"


def test_every_error_is_in_the_one_tree_and_public():
    for kind in CLASSES:
        assert issubclass(kind, amistore.AmistoreError)
        assert getattr(amistore, kind.__name__) is kind


def test_a_deeper_layer_keeps_the_facts_it_knew():
    error = amistore.CorruptArchiveError("wrong", offset=5).locate(offset=9, segment=2)
    assert (error.offset, error.segment) == (5, 2)
