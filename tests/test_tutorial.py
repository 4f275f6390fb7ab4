"""The backends that the tutorial writes pass the contract suites as the tutorial says they do."""

from __future__ import annotations

import re
from pathlib import Path

pytest_plugins = ("pytester",)
PAGE = Path(__file__).parents[1] / "docs" / "tutorial-backends.md"
SUITES = "TestBlockFolder", "TestSQLiteStore"


def test_the_tutorials_backends_pass_their_suites(pytester) -> None:  # type: ignore[no-untyped-def]
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    # All but "Both at work", which would leave its files in the folder.
    pytester.makepyfile("\n\n".join(block for block in blocks if "folder = Path(" not in block))
    outcome = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider").parseoutcomes()
    # Two are skipped: listing uploads and listing objects are for stores that can.
    assert outcome.pop("skipped", 0) <= 2
    assert set(outcome) == {"passed"}
    assert outcome["passed"] > 40
