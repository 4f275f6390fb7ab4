"""The contract on front ends with the rules of public stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from backends.aws import test_s3_others
from backends.aws.front_ends import TRAITS
from backends.aws.places import LONG, STRICTEST, front_end

import amistore
from amistore.backends.aws.connection import Connection
from amistore.testing import BucketCase


class TestFrontEndObjectStore(test_s3_others.TestMotoObjectStore):
    @pytest.fixture(params=TRAITS if LONG else STRICTEST[:3])
    def objects(self, request: pytest.FixtureRequest, moto: Connection) -> Iterator[BucketCase]:
        with front_end(request.param, moto) as (place, _):
            yield place.bucket()

    def test_a_part_that_is_not_named_is_left_out(self, objects: BucketCase) -> None:
        """Or the completion is refused, as by Mega."""
        try:
            super().test_a_part_that_is_not_named_is_left_out(objects)
        except amistore.BackendError as error:
            assert not error.retryable
            assert not objects.store.at(objects.bucket, "key").exists()

    test_a_key_with_a_line_break_is_not_found = None  # moto's own
    test_tags_and_encryption_are_those_of_the_settings = None
    test_an_open_bucket_is_warned_of = None
