"""What the interfaces' base classes add."""

from __future__ import annotations

import logging

import pytest

import amistore


class Pages(amistore.backends.BlockSource):
    """Gives the pages it was made of; their tokens are 1, 2, 3 …"""

    def __init__(self, *pages: amistore.backends.BlockPage) -> None:
        self._pages = pages

    def list_snapshot_blocks(self, snapshot_id, *, next_token=None):
        return self._pages[int(next_token or 0)]

    def get_snapshot_block(self, snapshot_id, block_index, block_token):
        raise NotImplementedError


def page(*indexes: int, size: int = 1, token: str | None = None) -> amistore.backends.BlockPage:
    return amistore.backends.BlockPage(
        volume_size=size, blocks=[amistore.backends.Block(index) for index in indexes], next_token=token
    )


def test_empty_and_short_pages_are_followed():
    source = Pages(page(token="1"), page(0, token="2"), page(token="3"), page(5, 9))
    assert [block.block_index for each in source.pages("snap") for block in each.blocks] == [0, 5, 9]


@pytest.mark.parametrize(
    "pages",
    [
        (page(0, token="1"), page(1, size=2)),
        (page(3, token="1"), page(3)),
        (page(3, token="1"), page(2)),
        (page(1, 1),),
        (page(2048),),
        (page(0, size=65_537),),
        (page(0, size=0),),
    ],
)
def test_pages_that_contradict_each_other_are_refused(pages):
    with pytest.raises(amistore.BackendError):
        list(Pages(*pages).pages("snap"))


def test_a_listing_without_progress_is_refused():
    with pytest.raises(amistore.BackendError, match="no progress"):
        list(Pages(page(0, token="1"), page(token="1")).pages("snap"))


class CannotAbort(type(amistore.MemoryBackend().s3)):
    def abort_multipart_upload(self, bucket, key, upload_id):
        raise amistore.BackendError("the network is down")


def test_a_failed_clean_up_hides_no_error_and_is_logged(caplog):
    s3 = CannotAbort()
    s3.create_bucket("archive")
    with caplog.at_level(logging.ERROR, "amistore"), pytest.raises(ZeroDivisionError):
        s3.put_object("archive", "key", (b"x" * (1 // number) for number in (1, 0)), part_size=1)
    assert "left behind" in caplog.text


class ShortReads(type(amistore.MemoryBackend().s3)):
    def get_object_range(self, bucket, key, start, length, *, if_match=None):
        return super().get_object_range(bucket, key, start, length - 1, if_match=if_match)


def test_an_opened_object_refuses_a_short_answer():
    s3 = ShortReads()
    s3.create_bucket("archive")
    s3.put_object("archive", "key", [b"content"])
    with s3.open_object("archive", "key") as file, pytest.raises(amistore.BackendError) as caught:
        file.read()
    assert caught.value.retryable
    assert "archive/key" in str(caught.value)
