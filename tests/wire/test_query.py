"""The Query protocol against botocore, which writes what is read here, and reads what is written."""

from __future__ import annotations

import datetime
import functools
from typing import Any

import botocore.parsers
import botocore.serialize
import pytest
from ec2.checked import model
from hypothesis import given, settings
from hypothesis import strategies as st

from amistore.wire.answers import xml_answer
from amistore.wire.calls import Call
from amistore.wire.errors import ServiceError
from amistore.wire.members import OPERATIONS
from amistore.wire.query import checked_form, parse, with_form

TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff")
)
MOMENT = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
TIMES = st.datetimes(
    datetime.datetime(1970, 1, 2), datetime.datetime(9000, 1, 1), timezones=st.just(datetime.timezone.utc)
).map(lambda time: time.replace(microsecond=0))
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(-(2**31), 2**31 - 1),
    bool: st.booleans(),
    datetime.datetime: TIMES,
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type; of each structure and list, something: an empty one is not sent at all."""
    if isinstance(kind, dict):
        name = st.sampled_from(sorted(kind))
        return st.lists(name, min_size=1, unique=True).flatmap(
            lambda names: st.fixed_dictionaries({each: values(kind[each]) for each in names})
        )
    if isinstance(kind, list):
        return st.lists(values(kind[0]), min_size=1, max_size=3)
    return SCALARS[kind]


def members(tables: dict[str, Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.sampled_from(sorted(name for name, table in tables.items() if table)).flatmap(
        lambda name: st.tuples(st.just(name), values(tables[name]))
    )


@functools.cache
def serializer() -> Any:
    return botocore.serialize.create_serializer("ec2", include_validation=False)


def called(operation: str, form: str) -> Call:
    call = Call(method="POST", path="/", query="", headers={}, request_id="one", body=form.encode())
    found = with_form(call)
    assert (found.service, found.operation) == ("ec2", operation)
    return found


@given(members({name: dict(each.request) for name, each in OPERATIONS.items()}))
@settings(max_examples=50)
def test_what_botocore_writes_as_a_form_is_read_as_the_same_members(case: tuple[str, dict[str, Any]]) -> None:
    operation, asked = case
    for name in OPERATIONS[operation].required:
        asked.setdefault(name, example(OPERATIONS[operation].request[name]))
        if asked[name] == "":
            asked[name] = "x"
    body = serializer().serialize_to_request(asked, model(operation))["body"]
    call = called(operation, botocore.compat.urlencode(body))
    assert parse(checked_form(call), OPERATIONS[operation]) == asked


def example(kind: Any) -> Any:
    if isinstance(kind, list):
        return [example(kind[0])]
    if isinstance(kind, dict):
        return {name: example(each) for name, each in kind.items()}
    return {str: "x", int: 7, bool: True}.get(kind, MOMENT)


@given(members({name: dict(each.answer) for name, each in OPERATIONS.items()}))
@settings(max_examples=50)
def test_an_answer_is_read_by_botocore_as_the_members_that_it_was_made_of(
    case: tuple[str, dict[str, Any]],
) -> None:
    operation, told = case
    call = called(operation, f"Action={operation}&Version=2016-11-15")
    assert parsed(call, told) == told


def parsed(call: Call, told: dict[str, Any]) -> Any:
    """The members that botocore finds in an answer."""
    answer = xml_answer(call, told)
    raw = {"status_code": answer.status, "headers": dict(answer.headers), "body": answer.body}
    found = botocore.parsers.create_parser("ec2").parse(raw, model(call.operation).output_shape)
    assert found.pop("ResponseMetadata")["RequestId"] == "one"
    return found


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_member_is_read_as_botocore_writes_it_and_written_as_botocore_reads_it(operation: str) -> None:
    asked = {name: example(kind) for name, kind in OPERATIONS[operation].request.items()}
    body = serializer().serialize_to_request(asked, model(operation))["body"]
    call = called(operation, botocore.compat.urlencode(body))
    assert parse(checked_form(call), OPERATIONS[operation]) == asked
    told = {name: example(kind) for name, kind in OPERATIONS[operation].answer.items()}
    if told:
        assert parsed(call, told) == told


def test_what_is_missing_is_told_by_its_name_in_the_form() -> None:
    with pytest.raises(ServiceError, match=r"parameter ResourceId$") as caught:
        parse({"Tag.1.Key": "x"}, OPERATIONS["CreateTags"])
    assert (caught.value.code, caught.value.status) == ("MissingParameter", 400)
