"""The contract on JuiceFS's gateway: MinIO's S3 over a filesystem."""

from __future__ import annotations

import pytest
from backends.aws import gateways
from backends.aws.conftest import bucket_of

from amistore.backends.aws.connection import Connection
from amistore.backends.aws.settings import Encryption, ObjectSettings
from amistore.errors import AlreadyExistsError, BackendError, NotFoundError
from amistore.testing import BucketCase, ObjectStoreContract
from amistore.testing.uploads import read_object

pytestmark = pytest.mark.xdist_group("juicefs")


class TestJuiceFSObjectStore(ObjectStoreContract):
    """A key is a path; If-Match at a deletion, If-None-Match and checksums are not looked at."""

    @pytest.fixture
    def objects(self, juicefs: Connection) -> BucketCase:
        return bucket_of(juicefs)

    @pytest.mark.parametrize("key", [*gateways.KEYS, *gateways.SLASHES])
    def test_a_hostile_key_is_a_key_like_any_other(self, objects: BucketCase, key: str) -> None:
        super().test_a_hostile_key_is_a_key_like_any_other(objects, key)

    @pytest.mark.parametrize("key", gateways.DOTS)
    def test_a_key_that_leads_elsewhere_is_refused(self, objects: BucketCase, key: str) -> None:
        with pytest.raises(BackendError, match="bad components"):
            objects.store.put_object(objects.bucket, key, [b"x"])
        assert objects.store.list_multipart_uploads(objects.bucket) == []

    def test_keys_that_look_alike_are_different_objects(self, objects: BucketCase) -> None:
        """Not those that differ by slashes in front or in a row; and a key is no folder of others."""
        gateways.check_keys_apart(objects)
        gateways.check_slashes(objects)
        with pytest.raises(BackendError, match="is a directory"):
            objects.store.put_object(objects.bucket, "a/b", [b"x"])

    def test_a_key_that_ends_in_a_slash_is_kept_without_it(self, objects: BucketCase) -> None:
        """It is completed, but not found again: so it is refused."""
        with pytest.raises(NotFoundError, match="no such object"):
            objects.store.put_object(objects.bucket, "trailing/", [b"x"])
        assert objects.store.list_keys(objects.bucket) == ["trailing"]

    def test_one_of_many_racing_creates_wins(self, objects: BucketCase) -> None:
        """All may be made, each in place of the one before; who sees that tells it."""
        gateways.check_race(objects)

    def test_an_existing_object_is_found_by_the_look_before_and_not_by_the_server(
        self, objects: BucketCase, juicefs: Connection
    ) -> None:
        info = objects.store.put_object(objects.bucket, "key", [b"first"])
        with pytest.raises(AlreadyExistsError):
            objects.store.put_object(objects.bucket, "key", [b"other"], if_none_match=True)
        assert objects.store.head_object(objects.bucket, "key") == info
        upload, part = self._part(objects, 1, b"other")
        named = {"Parts": [{"PartNumber": 1, "ETag": part.etag}]}
        juicefs.client("s3").complete_multipart_upload(
            Bucket=objects.bucket, Key="key", UploadId=upload, MultipartUpload=named, IfNoneMatch="*"
        )
        assert read_object(objects, "key") == b"other"

    @pytest.mark.parametrize("upload", gateways.UPLOADS)
    def test_an_unknown_upload_is_not_found(self, objects: BucketCase, upload: str) -> None:
        super().test_an_unknown_upload_is_not_found(objects, upload)

    def test_an_upload_id_that_is_a_path_is_refused(self, objects: BucketCase) -> None:
        with pytest.raises(BackendError, match="bad components"):
            objects.store.upload_part(objects.bucket, "key", "../uploads", 1, b"x")

    def test_an_upload_belongs_to_its_key(self, objects: BucketCase) -> None:
        """It belongs to its id alone: completed under another key, it is that key's object."""
        upload, part = self._part(objects, 1, b"x")
        objects.store.complete_multipart_upload(objects.bucket, "another", upload, [part])
        assert objects.store.list_keys(objects.bucket) == ["another"]

    @pytest.mark.parametrize("encryption", ["AES256", "aws:kms"])
    def test_encryption_that_it_does_not_do_is_refused(
        self, juicefs: Connection, encryption: Encryption
    ) -> None:
        case = bucket_of(juicefs, ObjectSettings(server_side_encryption=encryption))
        with pytest.raises(BackendError, match="NotImplemented") as raised:
            case.store.put_object(case.bucket, "key", [b"x"])
        assert not raised.value.retryable
        assert case.store.list_multipart_uploads(case.bucket) == []
