"""Backends around another one: every verb reaches the one inside, and what it tells of itself is told."""

from __future__ import annotations

import inspect
import io
import pickle
from pathlib import Path
from typing import Any

import images
import pytest

from amistore import (
    BackendError,
    DirectoryBackend,
    InvalidRequestError,
    MemoryBackend,
    RetryingBackend,
    Snapshot,
)
from amistore.backends import (
    Backend,
    BlockPage,
    BlockStore,
    Forwarding,
    ImageRegistry,
    ObjectInfo,
    ObjectStore,
    SnapshotBlock,
    UploadedPart,
)
from amistore.backends.interface import Interface, composed, verbs
from amistore.testing import FaultyBackend

KINDS = {"ebs": BlockStore, "s3": ObjectStore, "ec2": ImageRegistry}
WRAPPERS = [FaultyBackend, RetryingBackend]
VERBS = [(part, verb) for part, kind in KINDS.items() for verb in verbs(kind)]
# Some value for each kind of argument; others get their name.
VALUES = {
    "image": images.image(["snap-00000001"]),
    "parts": [],
    "file": io.BytesIO(b"content"),
    "if_none_match": True,
    "volume_size": 7,
    "block_index": 5,
    "start": 3,
    "length": 4,
    "part_number": 2,
}


# By the kind that a verb gives; others give their name, in a list and such where those are wanted.
ANSWERS = {
    "None": None,
    "bytes": b"content",
    "BlockPage": BlockPage(volume_size=1, blocks=[]),
    "SnapshotBlock": SnapshotBlock(images.block(1)),
    "Snapshot": Snapshot(snapshot_id="snap-00000001"),
    "ObjectInfo": ObjectInfo(size=7, etag="etag"),
    "UploadedPart": UploadedPart(part_number=2, size=7, etag="etag"),
    "Image": VALUES["image"],
}


def answer_of(verb: str, declared: Any) -> Any:
    told = inspect.signature(declared).return_annotation
    made = {"list": [verb], "tuple": (verb,), "dict": {verb: verb}, "bool": True, "int": 7}
    return ANSWERS.get(told, made.get(told.partition("[")[0], verb))


def recording(calls: list[tuple[str, dict[str, Any]]]) -> Backend:
    """A backend that notes the arguments of each call by their names, and answers with the verb."""

    def method(verb: str, declared: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            bound = inspect.signature(declared).bind(*arguments, **options)
            bound.apply_defaults()
            calls.append((verb, {name: bound.arguments[name] for name in bound.arguments if name != "self"}))
            return answer_of(verb, declared)

        return call

    parts = {
        part: type(kind.__name__, (kind,), {verb: method(verb, each) for verb, each in verbs(kind).items()})()
        for part, kind in KINDS.items()
    }
    return Backend(**parts)


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize(("part", "verb"), VERBS)
def test_every_verb_of_an_interface_reaches_the_backend_inside_with_its_arguments(
    wrap: Any, part: str, verb: str
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    backend = wrap(wrap(recording(calls)))
    parameters = inspect.signature(verbs(KINDS[part])[verb]).parameters
    given = {name: VALUES.get(name, name) for name in parameters if name != "self"}
    ordered = [name for name in given if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    options = {name: given[name] for name in given if name not in ordered}
    for positional in (len(ordered), 0):  # by place, and by name
        answer = getattr(getattr(backend, part), verb)(
            *(given[name] for name in ordered[:positional]),
            **{name: given[name] for name in ordered[positional:]},
            **options,
        )
        assert answer == answer_of(verb, verbs(KINDS[part])[verb])
    assert calls == [(verb, given)] * 2


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_backend_around_another_is_in_the_same_place(wrap: Any, tmp_path: Path) -> None:
    inner = DirectoryBackend(tmp_path)
    outer: Backend = wrap(wrap(inner))
    assert (outer.ebs.where, outer.s3.where) == (inner.ebs.where, inner.s3.where)
    assert inner.ebs.where
    assert outer.journal == inner.journal is not None


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_backend_around_another_is_asked_for_its_preflight_and_swept(wrap: Any) -> None:
    class Telling(MemoryBackend):
        def preflight(self, image: Any) -> None:
            raise InvalidRequestError("it is told before anything starts")

        def sweep(self) -> tuple[str, ...]:
            return ("what a crash left",)

    outer = wrap(wrap(Telling()))
    assert outer.sweep() == ("what a crash left",)
    with pytest.raises(InvalidRequestError, match="before anything starts"):
        outer.preflight(VALUES["image"])


def test_a_backend_that_can_be_sent_to_a_process_can_be_sent_with_retries_around_it(tmp_path: Path) -> None:
    inner = DirectoryBackend(tmp_path)
    snapshot_id = images.snapshot(inner.ebs, 1, {3: images.block(1)})
    there = pickle.loads(pickle.dumps(RetryingBackend(inner).ebs))
    assert images.contents(there, snapshot_id) == (1, {3: images.block(1)})


class Shelf(Interface):
    """An interface of a test's own."""

    place = "nowhere"

    def take(self, name: str) -> str:
        """Has a default."""
        return "nothing"

    @composed
    def take_all(self, *names: str) -> list[str]:
        return [self.take(name) for name in names]


class Books(Shelf):
    place = "here"
    pages = 100

    def take(self, name: str) -> str:
        if name == "lost":
            raise LookupError("not on this shelf")
        return f"the book {name}"


class Counting(Forwarding[Shelf], Shelf):
    calls = 0

    def _call(self, verb: str, function: Any, /, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return function(*arguments, **options)


def test_a_wrapper_names_no_verb_and_sees_each_call_those_of_composed_methods_too() -> None:
    shelf = Counting.around(Counting.around(Books()))
    assert shelf.take("a") == shelf.take(name="a") == "the book a"
    assert shelf.take_all("a", "b", "c") == ["the book a", "the book b", "the book c"]
    assert (shelf.calls, shelf.inner.calls, shelf.place) == (5, 5, "here")
    with pytest.raises(BackendError, match="LookupError: not on this shelf"):
        shelf.take("lost")


def test_what_a_service_has_beyond_its_interface_is_found_at_the_one_inside() -> None:
    shelf = Counting.around(Books())
    assert shelf.inner.pages == 100
    assert not hasattr(shelf, "pages")
