"""What a forked child lets go of, and what it refuses."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest
from children import answers, forked

from amistore import InvalidRequestError, forks
from amistore.backends.connections import no_fork


@contextlib.contextmanager
def catching_unraisable() -> Iterator[None]:
    """What a hook raises is printed; pytest would make it an error."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


class Thing:
    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


def test_a_child_lets_go_of_what_is_registered_and_the_parent_does_not() -> None:
    things = [Thing() for _ in range(3)]
    for thing in things:
        forks.register(thing, Thing.release)
    assert answers([lambda: [thing.released for thing in things]]) == [[1, 1, 1]]
    assert [thing.released for thing in things] == [0, 0, 0]


def test_what_is_gone_is_not_kept_for_a_release() -> None:
    before = len(forks._registered)
    thing = Thing()
    forks.register(thing, Thing.release)
    del thing
    gc.collect()
    assert len(forks._registered) <= before


def test_equal_things_are_let_go_of_each() -> None:
    class Equal(Thing):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    things = [Equal(), Equal()]
    for thing in things:
        forks.register(thing, Thing.release)
    assert answers([lambda: [thing.released for thing in things]]) == [[1, 1]]


def test_a_release_that_fails_keeps_no_other_from_running(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_: Thing) -> None:
        raise ValueError("cannot let go")

    first, second = Thing(), Thing()
    forks.register(first, fail)
    forks.register(second, Thing.release)
    with forked(lambda: second.released) as child:
        assert child.answer() == 1


def test_children_forked_while_threads_register_let_go_of_all_that_was() -> None:
    kept = Thing()
    forks.register(kept, Thing.release)
    done = threading.Event()

    def make() -> None:
        while not done.is_set():
            forks.register(Thing(), Thing.release)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert answers([lambda: kept.released] * 12) == [1] * 12
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_waits_for_a_fork_goes_on_after_it_in_the_parent_alone(error: type[BaseException]) -> None:
    told: list[str] = []

    def before(_: Thing) -> None:
        told.append("before")

    def after(_: Thing) -> None:
        told.append("after")

    def fail(_: Thing) -> None:
        raise error("cannot wait")

    failing, thing = Thing(), Thing()
    forks.register(failing, Thing.release, before=fail, after=after)
    forks.register(thing, Thing.release, before=before, after=after)
    with catching_unraisable():
        assert answers([lambda: (told, thing.released)]) == [(["before"], 1)]
    assert told == ["before", "after"]


def test_a_fork_while_another_fork_waits_takes_nothing_from_it() -> None:
    """As the handler of a signal does."""
    told: list[str] = []
    nested: list[object] = []

    def before(_: Thing) -> None:
        told.append("before")
        if not nested:
            nested.append(None)
            nested[0] = answers([lambda: "nested"])

    def after(_: Thing) -> None:
        told.append("after")

    thing = Thing()
    forks.register(thing, Thing.release, before=before, after=after)
    assert answers([lambda: "outer"]) == ["outer"]
    assert nested == [["nested"]]
    assert told == ["before", "before", "after", "after"]
    assert not forks._paused


def test_an_interrupt_while_a_fork_waits_for_a_handshake_holds_up_no_other() -> None:
    begun, over = threading.Event(), threading.Event()

    def shake() -> None:
        with no_fork():
            begun.set()
            over.wait(60)

    def interrupt(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is threading.Condition.wait_for.__code__:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise KeyboardInterrupt
            frame = frame.f_back

    slow = threading.Thread(target=shake)
    slow.start()
    begun.wait()
    kept = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        with catching_unraisable():
            assert answers([lambda: "child"]) == ["child"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
        over.set()
    slow.join(60)
    next_one = threading.Thread(target=shake, daemon=True)
    next_one.start()
    next_one.join(60)
    assert not slow.is_alive()
    assert not next_one.is_alive()


def test_what_another_process_made_is_refused_with_the_remedy() -> None:
    pid = os.getpid()
    forks.check_owner(pid, "this thing")
    [refusal] = answers([lambda: forks.check_owner(pid, "this thing")])
    assert isinstance(refusal, InvalidRequestError)
    assert f"this thing was made in process {pid}" in str(refusal)
    assert "make another one in this process" in str(refusal)
