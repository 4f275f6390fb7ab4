"""`receive`: a range's pieces are together what came, in memory that goes back to the system."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amistore import MIB
from amistore.backends import receiving
from amistore.backends.receiving import receive
from amistore.errors import BackendError


def each(pieces: Iterable[bytes]) -> Callable[[int], bytes]:
    """A function that gives the pieces as they are, whatever is asked for."""
    given = iter(pieces)
    return lambda _: next(given, b"")


PIECES = st.lists(st.binary(min_size=1, max_size=20), max_size=10)


@given(PIECES, st.integers(0, 100), st.sampled_from((1, MIB)))
def test_what_came_is_cut_where_no_more_was_wanted(pieces: list[bytes], most: int, pages: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receiving, "_PAGES", pages)
        content = receive(each(pieces), most, 60)
    assert content == b"".join(pieces)[:most]
    assert content.readonly


def test_of_what_has_no_end_no_more_than_wanted_is_asked_for() -> None:
    asked = []

    def read(size: int) -> bytes:
        asked.append(size)
        return b"x" * size

    assert len(receive(read, 2 * MIB + 1, 60)) == 2 * MIB + 1 == sum(asked)


def test_what_comes_too_slowly_is_an_error_that_may_be_tried_again() -> None:
    with pytest.raises(BackendError, match="disk: 1 of 2 bytes took more than -1 seconds") as raised:
        receive(each([b"x", b"y"]), 2, -1, "disk")
    assert raised.value.retryable


def run(script: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_memory_of_ranges_that_threads_received_goes_back_to_the_system() -> None:
    kept = run(
        """
        import concurrent.futures
        import re
        from amistore import MIB
        from amistore.backends.receiving import receive

        def resident():
            with open("/proc/self/status") as status:
                return int(re.search(r"VmRSS:\\s+(\\d+) kB", status.read())[1]) * 1024

        def read(number):
            size = (2 + number % 5) * MIB
            return receive(lambda size: b"x" * size, size, 60)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            pool.submit(int).result()
            before = resident()
            for first in range(0, 64, 8):
                ranges = list(pool.map(read, range(first, first + 8)))
                assert {len(each) // MIB for each in ranges} <= {2, 3, 4, 5, 6}
                del ranges
            print(resident() - before)
        """
    )
    assert int(kept) <= 8 * MIB  # the heaps of eight threads kept 20 to 40 MiB


def test_no_memory_is_a_memory_error() -> None:
    told = run(
        """
        import resource
        from amistore import MIB
        from amistore.backends.receiving import receive

        resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB))
        try:
            receive(lambda size: b"", 1024 * MIB, 60)
        except MemoryError as error:
            print(error)
        """
    )
    assert told == f"no memory for {1024 * MIB} bytes: Cannot allocate memory\n"


def test_what_a_forked_child_receives_is_not_in_its_parents_range() -> None:
    told = run(
        """
        import os
        from amistore import MIB
        from amistore.backends.receiving import receive

        def pieces():
            begun, begins = os.pipe()
            ended, ends = os.pipe()
            yield b"a" * MIB
            if os.fork():
                os.close(ends)
                yield b"b" * MIB
                os.write(begins, b"x")
                os.read(ended, 1)
            else:
                os.read(begun, 1)
                yield b"c" * MIB
                os._exit(0)

        given = pieces()
        content = receive(lambda _: next(given, b""), 3 * MIB, 60)
        print(len(content) // MIB, content[-1:].tobytes().decode())
        """
    )
    assert told == "2 b\n"
