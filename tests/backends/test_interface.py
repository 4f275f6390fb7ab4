"""Whatever class implements a verb, its errors say what was called, and on what."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import traceback
from typing import Any

import attrs
import images
import pytest

import amistore
from amistore import backends
from amistore.backends.interface import verbs

FACTS = {
    "snapshot_id": "snap-00000001",
    "block_index": 5,
    "image_id": "ami-00000001",
    "bucket": "archive",
    "key": "web.bin",
}
KINDS = [backends.BlockSource, backends.BlockSink, backends.ObjectStore, backends.ImageRegistry]


def failing(kind: type, error: BaseException) -> Any:
    """Something whose every verb raises this."""

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        raise error

    return type("Failing", (kind,), dict.fromkeys(verbs(kind), fail))()


@pytest.mark.parametrize(("kind", "verb"), [(kind, verb) for kind in KINDS for verb in verbs(kind)])
def test_an_error_of_a_users_backend_is_typed_and_says_which_call_it_was(kind: type, verb: str) -> None:
    cause = LookupError("cable cut")
    names = [name for name in inspect.signature(verbs(kind)[verb]).parameters if name != "self"]
    given = {name: FACTS.get(name, "other") for name in names}
    told = {"operation": verb, **{name: FACTS[name] for name in given if name in FACTS}}
    with pytest.raises(amistore.BackendError, match="LookupError: cable cut") as raised:
        getattr(failing(kind, cause), verb)(**given)
    assert raised.value.__cause__ is cause
    assert {name: getattr(raised.value, name) for name in told} == told
    with pytest.raises(amistore.NotFoundError, match="gone") as raised:
        getattr(failing(kind, amistore.NotFoundError("gone", operation="its own")), verb)(**given)
    assert {name: getattr(raised.value, name) for name in told} == {**told, "operation": "its own"}


class Disk(backends.BlockSource):
    """Fails for every block but the first, with what it was given."""

    error: BaseException = OSError("bad sector")

    def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> Any:
        return backends.BlockPage(volume_size=1, blocks=[backends.Block(0)])

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        """Reads."""
        if block_index:
            raise self.error
        return backends.SnapshotBlock(images.block(1))


PLACE = ("snap-00000001", 7, "")


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("late")])
def test_a_broken_connection_is_worth_another_attempt(error: Exception) -> None:
    disk = Disk()
    disk.error = error
    with pytest.raises(amistore.BackendError) as raised:
        disk.get_snapshot_block(*PLACE)
    assert raised.value.retryable


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyboardInterrupt(), SystemExit(), amistore.InvalidRequestError("no")]
)
def test_what_is_not_the_backends_error_passes_as_it_is(error: BaseException) -> None:
    disk = Disk()
    disk.error = error
    with pytest.raises(type(error)) as raised:
        disk.get_snapshot_block(*PLACE)
    assert raised.value is error


@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        (backends.BlockSource, "list_snapshot_blocks"),
        (backends.BlockSource, "get_snapshot_block"),
        (backends.BlockSink, "describe_snapshot"),
        (backends.ObjectStore, "head_object"),
        (backends.ObjectStore, "get_object_range"),
        (backends.ObjectStore, "upload_part"),
        (backends.ObjectStore, "complete_multipart_upload"),
        (backends.ImageRegistry, "describe_image"),
        (backends.BlockSink, "start_snapshot"),
        (backends.ObjectStore, "create_multipart_upload"),
        (backends.ObjectStore, "list_parts"),
        (backends.ObjectStore, "list_keys"),
        (backends.ObjectStore, "get_object_tagging"),
    ],
)
def test_an_answer_of_another_kind_is_the_backends_error(kind: type, verb: str) -> None:
    names = [name for name in inspect.signature(verbs(kind)[verb]).parameters if name != "self"]
    odd: Any = type("Odd", (kind,), dict.fromkeys(verbs(kind), lambda self, **given: None))()
    with pytest.raises(amistore.BackendError, match=f"{verb} must give .*, not NoneType") as raised:
        getattr(odd, verb)(**dict.fromkeys(names, "other"))
    assert raised.value.operation == verb


async def _asynchronous(self: Any, **given: Any) -> None: ...


def _yielding(self: Any, **given: Any) -> Any:
    yield


@pytest.mark.parametrize("method", [_asynchronous, _yielding])
@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_method_that_only_begins_when_it_is_waited_for_is_refused(method: Any) -> None:
    odd: Any = type("Odd", (backends.BlockSink,), dict.fromkeys(verbs(backends.BlockSink), method))()
    with pytest.raises(amistore.BackendError, match="complete_snapshot has done nothing yet"):
        odd.complete_snapshot(snapshot_id="snap-00000001", changed_blocks_count=0, checksum=b"")


def test_an_error_that_cannot_tell_its_text_is_told_by_its_class() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    disk = Disk()
    disk.error = SilentError()
    with pytest.raises(amistore.BackendError, match=r"^SilentError .operation get_snapshot_block"):
        disk.get_snapshot_block(*PLACE)


def test_a_call_that_is_none_of_the_interfaces_is_the_callers_own_mistake() -> None:
    with pytest.raises(TypeError, match="block_token"):
        Disk().get_snapshot_block("snap-00000001", 7)  # type: ignore[call-arg]


class Mixin:
    """Of another library."""

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        raise OSError("bad sector")


class Mixed(Mixin, Disk):
    pass


class Inheriting(Disk):
    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


@attrs.frozen
class Slotted(Disk):
    """attrs makes this class a second time, with slots."""

    root: str = ""

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


@attrs.frozen
class SlottedAgain(Slotted):
    more: str = ""

    def get_snapshot_block(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        return super().get_snapshot_block(snapshot_id, block_index, block_token)


class Static(Disk):
    @staticmethod
    def get_snapshot_block(snapshot_id: str, block_index: int, block_token: str) -> Any:  # type: ignore[override]
        raise OSError("bad sector")


class Partial(Disk):
    def _read(self, what: str, snapshot_id: str, block_index: int, block_token: str) -> Any:
        raise OSError(what)

    get_snapshot_block = functools.partialmethod(_read, "bad sector")  # type: ignore[assignment]


class _Callable:
    def __call__(self, snapshot_id: str, block_index: int, block_token: str) -> Any:
        raise OSError("bad sector")


class Delegating(Disk):
    get_snapshot_block = _Callable()  # type: ignore[assignment]


class Forgetful(Disk):
    """Names its arguments otherwise."""

    def get_snapshot_block(self, *arguments: Any) -> Any:
        return super().get_snapshot_block(*arguments)


@pytest.mark.parametrize(
    "kind",
    [Disk, Mixed, Inheriting, Slotted, SlottedAgain, Static, Partial, Delegating, Forgetful],
    ids=lambda k: k.__name__,
)
def test_however_a_class_comes_by_its_method_its_error_is_typed_once(kind: Any) -> None:
    with pytest.raises(
        amistore.BackendError, match=r"^OSError: bad sector .operation get_snapshot_block"
    ) as raised:
        kind().get_snapshot_block(*PLACE)
    assert isinstance(raised.value.__cause__, OSError)
    assert (raised.value.snapshot_id, raised.value.block_index) == PLACE[:2]


@pytest.mark.parametrize("kind", [Disk, Inheriting, Slotted, SlottedAgain])
def test_a_source_of_a_class_is_copied_and_sent_to_another_process_as_before(kind: Any) -> None:
    for source in (copy.copy(kind()), pickle.loads(pickle.dumps(kind()))):
        read = pickle.loads(pickle.dumps(source.get_snapshot_block))
        assert read(PLACE[0], 0, "").content == images.block(1)


def test_the_users_own_line_is_in_the_traceback_and_help_shows_the_users_own_method() -> None:
    with pytest.raises(amistore.BackendError) as raised:
        Disk().get_snapshot_block(*PLACE)
    assert "raise self.error" in "".join(traceback.format_exception(raised.value))
    assert Disk.get_snapshot_block.__doc__ == "Reads."
    assert Disk.get_snapshot_block.__qualname__ == "Disk.get_snapshot_block"


def test_a_class_that_lacks_a_verb_cannot_be_made() -> None:
    class Half(backends.BlockSource):
        def list_snapshot_blocks(self, snapshot_id: str, *, next_token: str | None = None) -> Any:
            return None

    with pytest.raises(TypeError, match="get_snapshot_block"):
        Half()  # type: ignore[abstract]
