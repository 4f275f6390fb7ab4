"""The suite for every `ObjectStore`; the fixture `objects` returns a `BucketCase`. Uploads: `uploads.py`."""

# ruff: noqa: S101

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from typing_extensions import Buffer

from amistore.backends import ObjectStore
from amistore.errors import (
    AlreadyExistsError,
    AmistoreError,
    InvalidRequestError,
    NotFoundError,
    SourceChangedError,
)
from amistore.testing.uploads import BucketCase, MultipartUploadContract, read_object

__all__ = ["ObjectStoreContract"]

_KEYS = [
    "ami-0123456789abcdef0.bin",
    "a/b/c.bin",
    "a//b",
    "/leading",
    "trailing/",
    "../../escape",
    "..",
    ".",
    ".hidden",
    ".amistore",
    "with space",
    " ",
    "größe-日本",
    "line\nbreak",
    "100%",
    "%2E%2E",
    "*?[a]",
    "a@b",
]


class ObjectStoreContract(MultipartUploadContract):
    """Objects: ranged reads, multipart upload, conditional create."""

    def test_put_object_joins_its_pieces(self, objects: BucketCase) -> None:
        pieces: list[Buffer] = [
            b"a",
            b"",
            bytes(objects.part_size),
            bytearray(b"bc"),
            memoryview(b"d" * 5000),
        ]
        info = objects.store.put_object(objects.bucket, "key", pieces, part_size=objects.part_size)
        expected = b"a" + bytes(objects.part_size) + b"bc" + b"d" * 5000
        assert info.size == len(expected)
        assert read_object(objects, "key") == expected
        assert objects.store.head_object(objects.bucket, "key") == info

    def test_an_empty_object_is_an_object(self, objects: BucketCase) -> None:
        assert objects.store.put_object(objects.bucket, "empty", []).size == 0
        assert read_object(objects, "empty") == b""

    @pytest.mark.parametrize("key", _KEYS)
    def test_a_hostile_key_is_a_key_like_any_other(self, objects: BucketCase, key: str) -> None:
        objects.store.put_object(objects.bucket, key, [key.encode()], metadata={"key": "value"})
        assert read_object(objects, key) == key.encode()
        assert objects.store.head_object(objects.bucket, key).metadata == {"key": "value"}
        objects.store.delete_object(objects.bucket, key)
        with pytest.raises(NotFoundError):
            objects.store.head_object(objects.bucket, key)

    def test_objects_are_listed_by_key_and_prefix(self, objects: BucketCase) -> None:
        keys = ["list/b", "list/a", "list/a-1", "list/größe & 100%+", "list/\U0001f427", "list/￮", "other"]
        for key in keys:
            objects.store.put_object(objects.bucket, key, [b"x"])
        expected = sorted((key for key in keys if key.startswith("list/")), key=str.encode)
        if type(objects.store).list_keys is ObjectStore.list_keys:
            pytest.skip("this store cannot list objects")
        found = list(objects.store.list_objects(objects.bucket, "list/"))
        assert found == [objects.store.at(objects.bucket, key) for key in expected]
        assert [each.key for each in objects.store.list_objects(objects.bucket, "list/a")] == [
            "list/a",
            "list/a-1",
        ]
        assert "other" in [each.key for each in objects.store.list_objects(objects.bucket)]
        assert list(objects.store.list_objects(objects.bucket, "none/")) == []
        with pytest.raises(NotFoundError):
            list(objects.store.list_objects("amistore-no-such-bucket"))

    def test_keys_that_look_alike_are_different_objects(self, objects: BucketCase) -> None:
        for key in _KEYS:
            objects.store.put_object(objects.bucket, key, [key.encode()], metadata={"key": key[:1]})
        objects.store.delete_object(objects.bucket, "a")
        for key in _KEYS:
            assert read_object(objects, key) == key.encode()
            assert objects.store.head_object(objects.bucket, key).metadata == {"key": key[:1]}

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [(0, 10, b"0123456789"), (3, 4, b"3456"), (8, 10, b"89"), (10, 5, b""), (20, 5, b""), (4, 0, b"")],
    )
    def test_a_range_is_short_only_at_the_end(
        self, objects: BucketCase, start: int, length: int, expected: bytes
    ) -> None:
        objects.store.put_object(objects.bucket, "key", [b"0123456789"])
        assert objects.store.get_object_range(objects.bucket, "key", start, length) == expected

    @pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, -1)])
    def test_a_negative_range_is_refused(self, objects: BucketCase, start: int, length: int) -> None:
        objects.store.put_object(objects.bucket, "key", [b"0123456789"])
        with pytest.raises(AmistoreError):
            objects.store.get_object_range(objects.bucket, "key", start, length)

    def test_a_range_of_the_etag_it_has_is_given(self, objects: BucketCase) -> None:
        info = objects.store.put_object(objects.bucket, "key", [b"first"])
        assert objects.store.get_object_range(objects.bucket, "key", 0, 5, if_match=info.etag) == b"first"

    def test_a_range_of_a_replaced_object_is_refused(self, objects: BucketCase) -> None:
        before = objects.store.put_object(objects.bucket, "key", [b"first"])
        after = objects.store.put_object(objects.bucket, "key", [b"other"])
        assert before.etag != after.etag
        with pytest.raises(SourceChangedError):
            objects.store.get_object_range(objects.bucket, "key", 0, 5, if_match=before.etag)

    def test_replacing_replaces_content_and_metadata(self, objects: BucketCase) -> None:
        for round_ in range(3):
            metadata = {f"round{round_}": "x"}
            info = objects.store.put_object(objects.bucket, "key", [b"%d" % round_], metadata=metadata)
            assert objects.store.head_object(objects.bucket, "key") == info
            assert dict(info.metadata) == metadata
            assert read_object(objects, "key") == b"%d" % round_

    def test_metadata_is_kept(self, objects: BucketCase) -> None:
        metadata = {"name": "größe 日本", "empty": "", "long": "x" * 500, "line": "a\tb"}
        objects.store.put_object(objects.bucket, "key", [b"x"], metadata=metadata)
        assert dict(objects.store.head_object(objects.bucket, "key").metadata) == metadata

    def test_tags_are_kept(self, objects: BucketCase) -> None:
        tags = {"team": "platform", "cost center": "a/b+c=d"}
        if not objects.store.traits.tags:
            with pytest.raises(InvalidRequestError):
                objects.store.put_object(objects.bucket, "key", [b"x"], tags=tags)
            assert objects.store.list_multipart_uploads(objects.bucket) == []
            return
        objects.store.put_object(objects.bucket, "key", [b"x"], tags=tags)
        assert objects.store.get_object_tagging(objects.bucket, "key") == tags
        objects.store.put_object(objects.bucket, "key", [b"x"])
        assert objects.store.get_object_tagging(objects.bucket, "key") == {}

    def test_a_bucket_that_does_not_exist_is_told(self, objects: BucketCase) -> None:
        objects.store.head_bucket(objects.bucket)
        if type(objects.store).head_bucket is ObjectStore.head_bucket:
            pytest.skip("this store cannot tell")
        with pytest.raises(NotFoundError):
            objects.store.head_bucket("amistore-no-such-bucket")

    def test_an_object_without_metadata_has_none(self, objects: BucketCase) -> None:
        objects.store.put_object(objects.bucket, "key", [b"x"])
        assert dict(objects.store.head_object(objects.bucket, "key").metadata) == {}

    def test_a_conditional_create_makes_a_new_object(self, objects: BucketCase) -> None:
        objects.store.put_object(objects.bucket, "key", [b"x"], if_none_match=True)
        assert read_object(objects, "key") == b"x"

    def test_a_conditional_create_leaves_an_object_alone(self, objects: BucketCase) -> None:
        info = objects.store.put_object(objects.bucket, "key", [b"first"], metadata={"a": "1"})
        with pytest.raises(AlreadyExistsError):
            objects.store.put_object(objects.bucket, "key", [b"other"], if_none_match=True)
        assert objects.store.head_object(objects.bucket, "key") == info
        assert read_object(objects, "key") == b"first"

    def test_one_of_many_racing_creates_wins(self, objects: BucketCase) -> None:
        if not objects.store.traits.conditional_completion:
            pytest.skip("this store makes no object on condition")
        threads = 16
        barrier = threading.Barrier(threads)

        def create(number: int) -> bool:
            upload = objects.store.create_multipart_upload(
                objects.bucket, "key", metadata={"number": str(number)}
            )
            part = objects.store.upload_part(objects.bucket, "key", upload, 1, b"%d" % number)
            barrier.wait()
            try:
                objects.store.complete_multipart_upload(
                    objects.bucket, "key", upload, [part], if_none_match=True
                )
            except AlreadyExistsError:
                objects.store.abort_multipart_upload(objects.bucket, "key", upload)
                return False
            return True

        with ThreadPoolExecutor(threads) as pool:
            won = list(pool.map(create, range(threads)))
        assert won.count(True) == 1
        assert read_object(objects, "key") == b"%d" % won.index(True)
        metadata = objects.store.head_object(objects.bucket, "key").metadata
        assert dict(metadata) == {"number": str(won.index(True))}

    def test_content_that_fails_leaves_no_object(self, objects: BucketCase) -> None:
        def pieces() -> Iterator[bytes]:
            yield bytes(3 * objects.part_size)
            raise LookupError("the content failed")

        with pytest.raises(LookupError, match="the content failed"):
            objects.store.put_object(
                objects.bucket, "key", pieces(), part_size=objects.part_size, size=4 * objects.part_size
            )
        with pytest.raises(NotFoundError):
            objects.store.head_object(objects.bucket, "key")

    def test_content_that_fails_leaves_the_old_object_alone(self, objects: BucketCase) -> None:
        def pieces() -> Iterator[bytes]:
            yield bytes(3 * objects.part_size)
            raise LookupError("the content failed")

        info = objects.store.put_object(objects.bucket, "key", [b"first"])
        with pytest.raises(LookupError):
            objects.store.put_object(
                objects.bucket, "key", pieces(), part_size=objects.part_size, size=4 * objects.part_size
            )
        assert objects.store.head_object(objects.bucket, "key") == info

    def test_deleting_an_object_that_is_not_there_is_fine(self, objects: BucketCase) -> None:
        objects.store.delete_object(objects.bucket, "none")

    def test_an_object_that_was_replaced_is_not_deleted_for_the_one_before(self, objects: BucketCase) -> None:
        store, place = objects.store, (objects.bucket, "key")
        before = store.put_object(*place, [b"first"])
        store.put_object(*place, [b"other"])
        with pytest.raises(SourceChangedError):
            store.delete_object(*place, if_match=before.etag)
        assert read_object(objects, "key") == b"other"

    def test_an_object_is_deleted_by_its_etag(self, objects: BucketCase) -> None:
        store, place = objects.store, (objects.bucket, "key")
        info = store.put_object(*place, [b"x"])
        store.delete_object(*place, if_match=info.etag)
        with pytest.raises(NotFoundError):
            store.head_object(*place)
        store.delete_object(*place, if_match=info.etag)

    def test_an_unknown_key_is_not_found(self, objects: BucketCase) -> None:
        with pytest.raises(NotFoundError):
            objects.store.head_object(objects.bucket, "none")
        with pytest.raises(NotFoundError):
            objects.store.get_object_range(objects.bucket, "none", 0, 1)
        with pytest.raises(NotFoundError):
            objects.store.open_object(objects.bucket, "none")

    def test_an_unknown_bucket_is_not_found(self, objects: BucketCase) -> None:
        bucket = "amistore-no-such-bucket"
        with pytest.raises(NotFoundError):
            objects.store.head_object(bucket, "key")
        with pytest.raises(NotFoundError):
            objects.store.get_object_range(bucket, "key", 0, 1)
        with pytest.raises(NotFoundError):
            objects.store.delete_object(bucket, "key")
        with pytest.raises(NotFoundError):
            objects.store.put_object(bucket, "key", [b"x"])

    def test_an_opened_object_seeks_and_reads(self, objects: BucketCase) -> None:
        content = bytes(range(256)) * 12_000
        objects.store.put_object(objects.bucket, "key", [content])
        with objects.store.open_object(objects.bucket, "key") as file:
            assert file.read(3) == content[:3]
            assert file.seek(-5, io.SEEK_END) == len(content) - 5
            assert file.read() == content[-5:]
            assert file.read(1) == b""
            assert file.seek(2_000_000) == 2_000_000
            assert file.read(2_000) == content[2_000_000:2_002_000]
            assert file.seek(1, io.SEEK_CUR) == 2_002_001
            assert file.seek(len(content) + 10) == len(content) + 10
            assert file.read(1) == b""
            file.seek(0)
            assert file.read() == content
            with pytest.raises(ValueError, match="seek"):
                file.seek(-1)

    def test_an_opened_object_is_pinned_to_what_it_was(self, objects: BucketCase) -> None:
        objects.store.put_object(objects.bucket, "key", [b"first"])
        with objects.store.open_object(objects.bucket, "key") as file:
            objects.store.put_object(objects.bucket, "key", [b"other"])
            with pytest.raises(SourceChangedError):
                file.read(5)
