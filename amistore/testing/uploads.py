"""The suite for multipart uploads of every `ObjectStore`, a part of `ObjectStoreContract`."""

# ruff: noqa: S101

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from amistore.backends import ObjectStore, UploadedPart
from amistore.errors import AmistoreError, NotFoundError

__all__ = ["BucketCase", "MultipartUploadContract", "read_object"]


@attrs.frozen(kw_only=True)
class BucketCase:
    """A store and a bucket in it.

    Attributes:
        store: the store.
        bucket: the name of an existing bucket, which may hold objects.
        part_size: the least number of bytes of a part before the last.
    """

    store: ObjectStore
    bucket: str
    part_size: int = 1024


def read_object(objects: BucketCase, key: str) -> bytes:
    """The whole content of an object."""
    with objects.store.open_object(objects.bucket, key) as file:
        return file.read()


class MultipartUploadContract:
    """Parts in any order, an object at their end and not before, nothing after an abort."""

    @pytest.fixture
    def objects(self) -> BucketCase:
        """A store and a bucket that exists in it."""
        raise NotImplementedError("override the fixture 'objects'")

    def test_an_object_is_invisible_until_its_upload_is_complete(self, objects: BucketCase) -> None:
        upload, part = self._part(objects, 1, b"x")
        with pytest.raises(NotFoundError):
            objects.store.head_object(objects.bucket, "key")
        with pytest.raises(NotFoundError):
            objects.store.get_object_range(objects.bucket, "key", 0, 1)
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        assert read_object(objects, "key") == b"x"

    def test_a_completed_upload_is_gone(self, objects: BucketCase) -> None:
        upload, part = self._part(objects, 1, b"x")
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        self._is_gone(objects, upload, part)

    def test_an_aborted_upload_leaves_nothing(self, objects: BucketCase) -> None:
        upload, part = self._part(objects, 1, b"x")
        objects.store.abort_multipart_upload(objects.bucket, "key", upload)
        self._is_gone(objects, upload, part)
        with pytest.raises(NotFoundError):
            objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        with pytest.raises(NotFoundError):
            objects.store.head_object(objects.bucket, "key")

    def test_aborting_twice_is_fine(self, objects: BucketCase) -> None:
        upload, _ = self._part(objects, 1, b"x")
        objects.store.abort_multipart_upload(objects.bucket, "key", upload)
        objects.store.abort_multipart_upload(objects.bucket, "key", upload)

    def test_lists_uploads_that_are_neither_completed_nor_aborted(self, objects: BucketCase) -> None:
        store, bucket = objects.store, objects.bucket
        if type(store).list_multipart_uploads is ObjectStore.list_multipart_uploads:
            pytest.skip("this store does not list uploads")
        before = store.list_multipart_uploads(bucket, "listed/")
        uploads = {
            key: store.create_multipart_upload(bucket, key) for key in ("listed/a", "listed/b", "other")
        }
        found = [(each.key, each.upload_id) for each in store.list_multipart_uploads(bucket, "listed/")]
        assert before == []
        assert found == [(key, uploads[key]) for key in ("listed/a", "listed/b")]
        store.abort_multipart_upload(bucket, "listed/a", uploads["listed/a"])
        part = store.upload_part(bucket, "listed/b", uploads["listed/b"], 1, b"x")
        store.complete_multipart_upload(bucket, "listed/b", uploads["listed/b"], [part])
        assert store.list_multipart_uploads(bucket, "listed/") == []
        store.abort_multipart_upload(bucket, "other", uploads["other"])

    def test_uploads_a_part_from_a_file(self, objects: BucketCase) -> None:
        store, bucket = objects.store, objects.bucket
        content = bytes(range(256)) * 5
        upload = store.create_multipart_upload(bucket, "from-file")
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            part = store.upload_part_file(bucket, "from-file", upload, 1, file)
        assert (part.part_number, part.size) == (1, len(content))
        store.complete_multipart_upload(bucket, "from-file", upload, [part])
        assert store.get_object_range(bucket, "from-file", 0, len(content) + 1) == content

    def test_lists_parts_ascending(self, objects: BucketCase) -> None:
        if not objects.store.traits.part_listing:
            pytest.skip("this store lists no parts")
        most = objects.store.traits.most_parts
        upload = objects.store.create_multipart_upload(objects.bucket, "key")
        assert objects.store.list_parts(objects.bucket, "key", upload) == []
        parts = [
            objects.store.upload_part(objects.bucket, "key", upload, number, b"x" * number)
            for number in (most, 2, 3)
        ]
        assert [part.size for part in parts] == [most, 2, 3]
        ascending = sorted(parts, key=lambda part: part.part_number)
        assert objects.store.list_parts(objects.bucket, "key", upload) == ascending

    def test_a_part_uploaded_again_replaces_the_first(self, objects: BucketCase) -> None:
        if not objects.store.traits.replaceable_parts:
            pytest.skip("this store takes each part once")
        upload, _ = self._part(objects, 1, b"first")
        part = objects.store.upload_part(objects.bucket, "key", upload, 1, b"other")
        if objects.store.traits.part_listing:
            assert objects.store.list_parts(objects.bucket, "key", upload) == [part]
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        assert read_object(objects, "key") == b"other"

    def test_a_part_that_was_replaced_since_is_refused(self, objects: BucketCase) -> None:
        if not objects.store.traits.replaceable_parts:
            pytest.skip("this store takes each part once")
        upload, stale = self._part(objects, 1, b"first")
        objects.store.upload_part(objects.bucket, "key", upload, 1, b"other")
        with pytest.raises(AmistoreError):
            objects.store.complete_multipart_upload(objects.bucket, "key", upload, [stale])
        with pytest.raises(NotFoundError):
            objects.store.head_object(objects.bucket, "key")

    def test_a_part_that_was_never_uploaded_is_refused(self, objects: BucketCase) -> None:
        upload, part = self._part(objects, 1, b"first")
        with pytest.raises(AmistoreError):
            objects.store.complete_multipart_upload(
                objects.bucket, "key", upload, [part, UploadedPart(part_number=2, size=5, etag=part.etag)]
            )

    def test_part_numbers_may_have_gaps(self, objects: BucketCase) -> None:
        if not objects.store.traits.part_gaps:
            pytest.skip("this store takes no gaps")
        most = objects.store.traits.most_parts
        upload, first = self._part(objects, 2, b"a" * objects.part_size)
        last = objects.store.upload_part(objects.bucket, "key", upload, most, b"b")
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [first, last])
        assert read_object(objects, "key") == b"a" * objects.part_size + b"b"

    def test_a_part_that_is_not_named_is_left_out(self, objects: BucketCase) -> None:
        upload, first = self._part(objects, 1, b"a")
        objects.store.upload_part(objects.bucket, "key", upload, 2, b"b")
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [first])
        assert read_object(objects, "key") == b"a"

    def test_parts_out_of_order_are_refused(self, objects: BucketCase) -> None:
        upload, first = self._part(objects, 1, b"a" * objects.part_size)
        second = objects.store.upload_part(objects.bucket, "key", upload, 2, b"b" * objects.part_size)
        for parts in ([second, first], [first, first], []):
            with pytest.raises(AmistoreError):
                objects.store.complete_multipart_upload(objects.bucket, "key", upload, parts)

    @pytest.mark.parametrize("number", [0, -1, 10_001])
    def test_an_impossible_part_number_is_refused(self, objects: BucketCase, number: int) -> None:
        upload = objects.store.create_multipart_upload(objects.bucket, "key")
        with pytest.raises(AmistoreError):
            objects.store.upload_part(objects.bucket, "key", upload, number, b"x")

    def test_takes_any_buffer_and_keeps_none(self, objects: BucketCase) -> None:
        content = bytearray(b"first")
        upload = objects.store.create_multipart_upload(objects.bucket, "key")
        part = objects.store.upload_part(objects.bucket, "key", upload, 1, memoryview(content))
        content[:] = b"other"
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        assert read_object(objects, "key") == b"first"

    def test_threads_upload_parts_at_once(self, objects: BucketCase) -> None:
        numbers = range(1, 1 + min(16, objects.store.traits.most_parts))
        contents = [bytes([number]) * objects.part_size for number in numbers]
        upload = objects.store.create_multipart_upload(objects.bucket, "key")
        with ThreadPoolExecutor(8) as pool:
            parts = list(
                pool.map(
                    lambda number: objects.store.upload_part(
                        objects.bucket, "key", upload, number, contents[number - 1]
                    ),
                    numbers,
                )
            )
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, parts)
        assert read_object(objects, "key") == b"".join(contents)

    @pytest.mark.parametrize("upload", ["upload-00000000000000000", "", "../uploads", "upload-\0"])
    def test_an_unknown_upload_is_not_found(self, objects: BucketCase, upload: str) -> None:
        with pytest.raises(NotFoundError):
            objects.store.upload_part(objects.bucket, "key", upload, 1, b"x")
        if objects.store.traits.part_listing:
            with pytest.raises(NotFoundError):
                objects.store.list_parts(objects.bucket, "key", upload)

    def test_an_upload_belongs_to_its_key(self, objects: BucketCase) -> None:
        upload, part = self._part(objects, 1, b"x")
        with pytest.raises(NotFoundError):
            objects.store.complete_multipart_upload(objects.bucket, "another", upload, [part])

    @staticmethod
    def _part(objects: BucketCase, number: int, content: bytes) -> tuple[str, UploadedPart]:
        upload = objects.store.create_multipart_upload(objects.bucket, "key")
        return upload, objects.store.upload_part(objects.bucket, "key", upload, number, content)

    @staticmethod
    def _is_gone(objects: BucketCase, upload: str, part: UploadedPart) -> None:
        with pytest.raises(NotFoundError):
            if objects.store.traits.part_listing:
                objects.store.list_parts(objects.bucket, "key", upload)
            else:
                objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
