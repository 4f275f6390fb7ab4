"""Uploads to servers that list no parts, and to those that want each part's checksum at the completion."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from backends.aws.conftest import bucket_of, connect
from backends.aws.proxy import (
    ALWAYS,
    Answer,
    Asked,
    Fault,
    FaultProxy,
    Rules,
    error_answer,
    fault_proxy,
    s3_operation,
)
from objects import runs
from objects.runs import Log

import amistore
from amistore.backends.aws import connection as connection_module
from amistore.backends.aws.connection import Connection
from amistore.backends.aws.s3 import AWSObjectStore
from amistore.backends.aws.settings import ObjectSettings


@pytest.fixture
def unlisted(moto: Connection) -> Iterator[FaultProxy]:
    """A server without lists of parts, as s3rver is."""
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        proxy.fail("list_parts", error_answer(405, "MethodNotAllowed", "not here"), times=ALWAYS)
        yield proxy


def place_of(connection: Connection) -> amistore.ObjectLocation:
    case = bucket_of(connection)
    return case.store.at(case.bucket, "ami.bin")


def stored(place: amistore.ObjectLocation, **options: Any) -> amistore.StoredArchive:
    return amistore.store(
        runs.IMAGE, runs.source(), place, **{"options": runs.PACKING, "workers": 2, **options}
    )


def test_an_archive_is_stored_where_parts_are_not_listed(unlisted: FaultProxy) -> None:
    place = place_of(connect(unlisted.url))
    stored(place)
    assert unlisted.requests["upload_part"] == runs.PARTS
    assert unlisted.requests["list_parts"] == 0
    with place.store.open_object(place.bucket, place.key) as file:
        assert file.read() == runs.expected()


def test_an_upload_that_fails_is_aborted_where_parts_are_not_listed(unlisted: FaultProxy) -> None:
    place = place_of(connect(unlisted.url))
    unlisted.fail("upload_part", error_answer(403, "AccessDenied"), nth=2, times=ALWAYS)
    with pytest.raises(amistore.AccessDeniedError):
        stored(place, workers=1)
    assert unlisted.requests["abort_multipart_upload"] == 1
    assert place.store.list_multipart_uploads(place.bucket) == []


def test_a_run_goes_on_by_its_log_where_the_traits_say_that_parts_are_not_listed(
    unlisted: FaultProxy,
) -> None:
    log = Log()
    first = place_of(connect(unlisted.url))
    # By its number: parts are sent side by side, and may arrive in another order.
    unlisted.operation = lambda method, target: (
        "third" if re.search(r"partNumber=3\b", target) else s3_operation(method, target)
    )
    unlisted.fail("third", error_answer(503, "ServiceUnavailable"))
    with pytest.raises(amistore.BackendError):
        stored(first, log=log, workers=1)
    traits = amistore.backends.StoreTraits(part_listing=False)
    place = AWSObjectStore(connect(unlisted.url), traits=traits).at(first.bucket, first.key)
    assert len(log.entries()) == 4  # the header, the upload, and the parts before the third
    unlisted.requests.clear()
    stored(place, log=log)
    assert (unlisted.requests["third"], unlisted.requests["upload_part"]) == (1, runs.PARTS - 3)
    with place.store.open_object(place.bucket, place.key) as file:
        assert file.read() == runs.expected()


@attrs.frozen
class Bodies(Rules):
    """Keeps what completions say."""

    seen: list[bytes]

    def refusal(self, asked: Asked) -> None:
        if asked.operation == "complete_multipart_upload":
            self.seen.append(asked.body)


@pytest.mark.parametrize("run", ["whole", "gone on with"])
def test_the_completion_names_the_checksum_that_each_part_was_stored_with(moto: Connection, run: str) -> None:
    told: list[str] = []

    def confirming(operation: str, answer: Answer) -> Answer:
        """As S3 does, and moto does not; its lists have no checksums, as SeaweedFS's."""
        if operation != "upload_part":
            return answer
        told.append(proxy.headers[operation]["x-amz-checksum-crc32"])
        return attrs.evolve(answer, headers={**answer.headers, "x-amz-checksum-crc32": told[-1]})

    log = Log()
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        proxy.change = confirming
        place = place_of(connect(proxy.url))
        place.store.requests = 0  # one part after the other
        bodies: list[bytes] = []
        proxy.rules = Bodies(bodies)
        if run != "whole":
            with pytest.raises(KeyboardInterrupt):
                stored(place, log=log, workers=1, progress=_interrupt)
            assert len(log.entries()) > 2
        stored(place, log=log, workers=1)
    [body] = bodies
    assert len(told) == runs.PARTS
    assert re.findall(r"<ChecksumCRC32>([^<]+)<", body.decode()) == told


def _interrupt(progress: amistore.Progress) -> None:
    if progress.phase.value == "pack" and progress.blocks > 25:
        raise KeyboardInterrupt


def test_a_completion_that_tells_another_etag_than_the_object_has_is_judged_by_the_runs_mark(
    moto: Connection,
) -> None:
    def other(operation: str, answer: Answer) -> Answer:
        if operation != "complete_multipart_upload":
            return answer
        body = re.sub(rb"[0-9a-f]{32}-", b"0" * 32 + b"-", answer.body)
        assert body != answer.body
        return attrs.evolve(answer, body=body)

    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        proxy.change = other
        place = place_of(connect(proxy.url))
        told = stored(place)
        assert told.etag == place.head().etag
        with pytest.raises(amistore.SourceChangedError, match="replaced as soon as it was made"):
            place.store.put_object(place.bucket, "no run's", [b"x"])


def test_tags_of_the_settings_are_refused_where_objects_have_none(moto: Connection) -> None:
    traits = amistore.backends.StoreTraits(tags=False)
    with pytest.raises(amistore.InvalidRequestError, match="the store's objects have no tags"):
        AWSObjectStore(moto, ObjectSettings(tags={"team": "images"}), traits)
    case = bucket_of(moto, None, traits)
    with pytest.raises(amistore.InvalidRequestError, match="the store's objects have no tags"):
        case.store.put_object(case.bucket, "key", b"x", tags={"team": "images"})
    assert case.store.list_multipart_uploads(case.bucket) == []


def test_a_completion_may_take_longer_than_any_other_answer(
    moto: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "PART_TIMEOUT", 0.5)
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy, ThreadPoolExecutor(1) as pool:
        arrived, free = threading.Event(), threading.Event()

        def slow(operation: str, answer: Answer) -> Answer:
            if operation == "complete_multipart_upload":
                arrived.set()
                free.wait(60)
            return answer

        proxy.change = slow
        case = bucket_of(connect(proxy.url))
        completed = pool.submit(case.store.put_object, case.bucket, "key", b"x")
        assert arrived.wait(60)
        proxy.fail("get_object", Fault.SILENT)
        with pytest.raises(amistore.BackendError, match="ReadTimeoutError"):  # half a second later
            case.store.get_object_range(case.bucket, "key", 0, 1)
        free.set()
        assert completed.result(60).size == 1


ONCE = amistore.backends.StoreTraits(replaceable_parts=False, checksum=None)


def test_a_part_that_is_taken_once_and_stored_wrongly_ends_its_run(moto: Connection) -> None:
    """A second attempt would be refused as sent before, and the part be taken for right."""
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case, log = bucket_of(connect(proxy.url)), Log()
        cloud = amistore.AWSBackend(moto.session, endpoint_urls={"s3": proxy.url}, traits=ONCE)
        proxy.fail("upload_part", Fault.FLIPPED_REQUEST, nth=2)
        to = cloud.s3.at(case.bucket, "ami.bin")
        with pytest.raises(amistore.ChecksumMismatchError, match="was not stored as it was sent"):
            stored(to, log=log)
        assert log.entries() == cloud.s3.list_multipart_uploads(case.bucket) == []
        stored(to, log=log)
        with to.store.open_object(case.bucket, to.key) as file:
            assert file.read() == runs.expected()


def test_a_part_that_is_taken_once_is_looked_for_in_the_list(moto: Connection) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url), traits=ONCE)
        upload = case.store.create_multipart_upload(case.bucket, "key")
        part = case.store.upload_part(case.bucket, "key", upload, 1, b"first")
        for content in (b"first", b"other"):
            proxy.fail("upload_part", error_answer(400, "InvalidPart"))
            if content == b"first":
                assert case.store.upload_part(case.bucket, "key", upload, 1, content) == part
                continue
            with pytest.raises(amistore.BackendError, match=r"takes no part twice: amistore\.abandon"):
                case.store.upload_part(case.bucket, "key", upload, 1, content)


@pytest.mark.parametrize("name", ["mega-s4", "rclone"])
def test_a_part_that_is_refused_and_was_never_there_is_not_taken_for_sent(
    moto: Connection, name: str
) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url), traits=amistore.backends.STORES[name])
        upload = case.store.create_multipart_upload(case.bucket, "key")
        proxy.fail("upload_part", error_answer(501, "NotImplemented", "x-amz-expected-bucket-owner"))
        with pytest.raises(amistore.BackendError, match=r"leave out ObjectSettings\.expected_bucket_owner"):
            case.store.upload_part(case.bucket, "key", upload, 1, b"x")


def test_a_refused_list_of_parts_says_which_trait_does_without_it(moto: Connection) -> None:
    with fault_proxy(moto.endpoint_urls["s3"]) as proxy:
        case = bucket_of(connect(proxy.url))
        upload = case.store.create_multipart_upload(case.bucket, "key")
        proxy.fail("list_parts", error_answer(501, "NotImplemented"))
        with pytest.raises(amistore.BackendError, match=r"say StoreTraits\(part_listing=False\)"):
            case.store.list_parts(case.bucket, "key", upload)


def test_an_endpoint_with_the_buckets_name_in_it_is_told(moto: Connection) -> None:
    """Consoles show it so."""
    case = bucket_of(moto)
    wrong = connect(f"{moto.endpoint_urls['s3']}/{case.bucket}")
    for ask in (AWSObjectStore(wrong).head_bucket, AWSObjectStore(wrong).probe):
        with pytest.raises(amistore.NotFoundError, match=f"bucket's name in the endpoint .*{case.bucket}"):
            ask("missing-bucket")
