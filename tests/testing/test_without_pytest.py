"""What of `amistore.testing` needs no pytest works without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from amistore.testing import BlockStoreContract

WITHOUT = "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"


@pytest.mark.parametrize(
    "code",
    [
        "import amistore, amistore.testing as t; t.FaultyBackend(amistore.MemoryBackend()), t.block",
        "from amistore.testing.aws import FakeAWS\nwith FakeAWS() as aws: aws.add_snapshot(volume_size=1)",
    ],
)
def test_faults_and_the_fake_of_aws_work_without_pytest(code: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT + code], check=True)


def test_a_suite_says_that_it_needs_pytest() -> None:
    code = WITHOUT + "from amistore.testing import BlockStoreContract"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BlockStoreContract needs pytest: pip install 'amistore[testing]'" in done.stderr


def test_a_suites_assertions_show_their_values() -> None:
    module = sys.modules[BlockStoreContract.__module__]
    assert type(module.__loader__).__name__ == "AssertionRewritingHook"
