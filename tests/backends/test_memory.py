"""`MemoryBackend` beyond the contracts."""

from __future__ import annotations

import pickle

import pytest

import amistore
from amistore.testing import block, read_snapshot, store_snapshot


def test_block_tokens_die_when_the_snapshot_is_listed_again():
    ebs = amistore.MemoryBackend().ebs
    snapshot_id = store_snapshot(ebs, 1, {0: block(1)})
    token = ebs.list_snapshot_blocks(snapshot_id).blocks[0].block_token
    assert ebs.get_snapshot_block(snapshot_id, 0, token).content == block(1)
    ebs.list_snapshot_blocks(snapshot_id)
    with pytest.raises(amistore.BackendError, match="expired"):
        ebs.get_snapshot_block(snapshot_id, 0, token)


def test_page_tokens_die_when_the_snapshot_is_listed_again():
    ebs = amistore.MemoryBackend(page_size=1).ebs
    snapshot_id = store_snapshot(ebs, 1, {0: block(1), 1: block(1)})
    page = ebs.list_snapshot_blocks(snapshot_id)
    assert [listed.block_index for listed in page.blocks] == [0]
    ebs.list_snapshot_blocks(snapshot_id)
    with pytest.raises(amistore.BackendError, match="expired"):
        ebs.list_snapshot_blocks(snapshot_id, next_token=page.next_token)


def test_block_tokens_outlive_further_pages_of_their_listing():
    ebs = amistore.MemoryBackend(page_size=1).ebs
    snapshot_id = store_snapshot(ebs, 1, {0: block(1), 1: block(2)})
    pages = list(ebs.pages(snapshot_id))
    assert len(pages) == 2
    for page in pages:
        for listed in page.blocks:
            ebs.get_snapshot_block(snapshot_id, listed.block_index, listed.block_token)


@pytest.mark.parametrize("token", ["", "x", "1:", "1:x", "0:0", "1:-1"])
def test_a_token_of_nobody_s_making_is_refused(token):
    ebs = amistore.MemoryBackend().ebs
    snapshot_id = store_snapshot(ebs, 1, {0: block(1)})
    ebs.list_snapshot_blocks(snapshot_id)
    with pytest.raises(amistore.BackendError):
        ebs.list_snapshot_blocks(snapshot_id, next_token=token)


def test_a_volume_of_64_tib_is_a_volume_like_any_other():
    ebs = amistore.MemoryBackend().ebs
    blocks = {0: block(1), 65_536 * 2048 - 1: block(2)}
    assert read_snapshot(ebs, store_snapshot(ebs, 65_536, blocks)) == (65_536, blocks)


def test_it_cannot_follow_into_another_process():
    with pytest.raises(amistore.InvalidRequestError, match="one process"):
        pickle.dumps(amistore.MemoryBackend().ebs)


def test_a_failed_put_object_leaves_no_upload():
    s3 = amistore.MemoryBackend().s3
    s3.create_bucket("archive")
    with pytest.raises(ZeroDivisionError):
        s3.put_object("archive", "key", (b"x" * (1 // number) for number in (1, 0)), part_size=1)
    assert not s3._uploads
