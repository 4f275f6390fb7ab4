"""The contract on SeaweedFS, which writes S3 anew over a tree of folders."""

from __future__ import annotations

import attrs
import pytest
from backends.aws import gateways
from backends.aws.conftest import bucket_of

from amistore import MIB
from amistore.backends import UploadedPart
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.settings import Encryption, ObjectSettings
from amistore.errors import AmistoreError, BackendError, NotFoundError, SourceChangedError
from amistore.testing import BucketCase, ObjectStoreContract
from amistore.testing.uploads import read_object

pytestmark = pytest.mark.xdist_group("seaweedfs")


class TestSeaweedFSObjectStore(ObjectStoreContract):
    """A key is a path; a part that was replaced is kept; If-None-Match is not exact in a race."""

    @pytest.fixture
    def objects(self, seaweedfs: Connection) -> BucketCase:
        return attrs.evolve(bucket_of(seaweedfs), part_size=5 * MIB)

    @pytest.mark.parametrize("key", [*gateways.KEYS, *gateways.SLASHES])
    def test_a_hostile_key_is_a_key_like_any_other(self, objects: BucketCase, key: str) -> None:
        super().test_a_hostile_key_is_a_key_like_any_other(objects, key)

    @pytest.mark.parametrize("key", gateways.DOTS)
    def test_a_key_that_leads_elsewhere_is_refused(self, objects: BucketCase, key: str) -> None:
        with pytest.raises(BackendError, match="InvalidRequest"):
            objects.store.put_object(objects.bucket, key, [b"x"])
        assert objects.store.list_multipart_uploads(objects.bucket) == []

    def test_keys_that_look_alike_are_different_objects(self, objects: BucketCase) -> None:
        """Not those that differ by slashes in front or in a row; and a key is no folder of others."""
        gateways.check_keys_apart(objects)
        gateways.check_slashes(objects)
        with pytest.raises(BackendError, match="InternalError"):
            objects.store.put_object(objects.bucket, "a/b", [b"x"])

    def test_a_key_that_ends_in_a_slash_is_kept_as_another(self, objects: BucketCase) -> None:
        """It is completed, but what is found is a folder: so it is refused as not what was made."""
        with pytest.raises(SourceChangedError, match="as soon as it was made"):
            objects.store.put_object(objects.bucket, "trailing/", [b"x"])
        assert objects.store.list_keys(objects.bucket) == ["trailing/trailing"]

    def test_one_of_many_racing_creates_wins(self, objects: BucketCase) -> None:
        """More than one may be made, each in place of the one before; who sees that tells it."""
        gateways.check_race(objects)

    def test_a_part_uploaded_again_replaces_the_first(self, objects: BucketCase) -> None:
        """Both are listed until the completion, which takes the one that is named."""
        upload, stale = self._part(objects, 1, b"first")
        part = objects.store.upload_part(objects.bucket, "key", upload, 1, b"other!")
        listed = objects.store.list_parts(objects.bucket, "key", upload)
        assert sorted(listed, key=lambda each: each.size) == [stale, part]
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        assert read_object(objects, "key") == b"other!"

    def test_a_part_that_was_replaced_since_is_refused(self, objects: BucketCase) -> None:
        """It is not: it is still there, and the object is of what was named."""
        upload, stale = self._part(objects, 1, b"first")
        objects.store.upload_part(objects.bucket, "key", upload, 1, b"other!")
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [stale])
        assert read_object(objects, "key") == b"first"

    def test_a_part_that_nobody_sent_under_its_number_is_refused(self, objects: BucketCase) -> None:
        upload, part = self._part(objects, 1, b"first")
        store = objects.store
        other = store.upload_part(objects.bucket, "key", upload, 2, b"other")
        for etag in (other.etag, "0" * 32):
            wrong = UploadedPart(part_number=1, size=part.size, etag=etag)
            with pytest.raises(AmistoreError):
                store.complete_multipart_upload(objects.bucket, "key", upload, [wrong])
        with pytest.raises(NotFoundError):
            store.head_object(objects.bucket, "key")

    def test_a_part_sent_again_is_listed_once(self, objects: BucketCase) -> None:
        """As after an answer that was lost: SeaweedFS lists it twice."""
        upload, part = self._part(objects, 1, b"first")
        assert objects.store.upload_part(objects.bucket, "key", upload, 1, b"first") == part
        assert objects.store.list_parts(objects.bucket, "key", upload) == [part]
        objects.store.complete_multipart_upload(objects.bucket, "key", upload, [part])
        assert read_object(objects, "key") == b"first"

    @pytest.mark.parametrize("upload", gateways.UPLOADS)
    def test_an_unknown_upload_is_not_found(self, objects: BucketCase, upload: str) -> None:
        super().test_an_unknown_upload_is_not_found(objects, upload)

    def test_an_upload_id_that_is_a_path_is_refused(self, objects: BucketCase) -> None:
        with pytest.raises(BackendError, match="InvalidRequest"):
            objects.store.upload_part(objects.bucket, "key", "../uploads", 1, b"x")

    @pytest.mark.parametrize("encryption", ["AES256", "aws:kms"])
    def test_encryption_without_a_key_of_the_servers_is_refused(
        self, seaweedfs: Connection, encryption: Encryption
    ) -> None:
        case = bucket_of(seaweedfs, ObjectSettings(server_side_encryption=encryption))
        with pytest.raises(BackendError, match=f"InternalError|does not encrypt with {encryption}"):
            case.store.put_object(case.bucket, "key", [b"x"])
        # The server has begun the upload that it refuses, and tells no id to abort it by.
        left = ["key"] if encryption == "AES256" else []
        assert [each.key for each in case.store.list_multipart_uploads(case.bucket)] == left
