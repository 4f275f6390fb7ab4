"""R6: engines killed at any moment, and at every call, and those after them that go on to the end."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tasks.processes import VERB, Engines

LONG = bool(os.environ.get("AMISTORE_LONG"))
KILLS = 200 if LONG else 5

MANY = {"append", *VERB.values()}
READS = ("get_", "head_", "list_", "describe_", "find_")

CLEAN_UP = {"cancel", "fail", "abort_multipart_upload", "delete_snapshot", "clear", "undone"}
"""Calls that only a task that is given up makes."""


@pytest.fixture(params=["store", "restore", "store-cancelled", "restore-cancelled"])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engines]:
    with Engines(request.param, tmp_path) as made:
        made.finish()
        made.check()
        assert (made.what == "store") == bool(made.expected)
        yield made


def test_engines_killed_at_random_moments_are_gone_on_with_to_the_same_end(engines: Engines) -> None:
    rng = random.Random(f"kills {engines.what}")
    kills = ends = 0
    engines.renew()
    _, lines = engines.run()
    engines.renew()
    while kills < KILLS:
        code, _ = engines.run(kill=(rng.randrange(len(lines)), rng.randrange(20_000)))
        kills += code == -9
        if engines.ended():
            engines.check()
            engines.renew()
            ends += 1
    engines.finish()
    engines.check()
    print(f"{engines.what}: {kills} kills, {ends + 1} ends, sent again at worst: {engines.worst}")


def test_engines_that_die_around_any_call_are_gone_on_with_to_the_same_end(engines: Engines) -> None:
    engines.renew()
    _, lines = engines.run()
    calls = Counter(line[1] for line in lines if line[0] == "begin")
    places = 0
    for verb, count in sorted(calls.items()):
        if not LONG and (verb in CLEAN_UP) != (engines.what != engines.kind):
            continue
        numbers = range(1, count + 1) if LONG else {1, count} if verb in MANY else {count}
        for number in numbers:
            for when in ("before",) if verb.startswith(READS) and not LONG else ("before", "after"):
                engines.renew()
                code, _ = engines.run(die=[when, verb, number])
                places += code == 9  # what several threads do comes in another order each time
                engines.finish()
                engines.check()
    print(f"{engines.what}: {places} named points, sent again at worst: {engines.worst}")
