"""R18: containers of every format version ever released are read for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import images
import pytest
import zstandard
from data import make_golden

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "golden.json").read_text())


@pytest.mark.parametrize("name", GOLDEN["files"])
def test_a_golden_container_reads_as_recorded(name: str) -> None:
    container = (DATA / name).read_bytes()
    assert hashlib.sha256(container).hexdigest() == GOLDEN["files"][name]["sha256"]
    assert make_golden.facts(container) == GOLDEN["files"][name]
    images.read_seekable(container)


@pytest.mark.skipif(
    list(zstandard.ZSTD_VERSION) != GOLDEN["libzstd"],
    reason=f"the golden files were written with libzstd {GOLDEN['libzstd']}",
)
def test_the_same_libzstd_writes_the_golden_bytes_again() -> None:
    assert make_golden.tiny() == (DATA / "tiny-v1.bin").read_bytes()
    assert make_golden.multi() == (DATA / "multi-v1.bin").read_bytes()
    assert make_golden.partial() == (DATA / "partial-v1.bin").read_bytes()


def test_a_partial_archive_of_before_keeps_its_id_and_today_s_has_another() -> None:
    before, today = GOLDEN["files"][make_golden.UNBOUND], GOLDEN["files"]["partial-v1.bin"]
    assert before["volumes"] == today["volumes"]
    assert before["content_id"] != today["content_id"]


def test_the_dump_in_the_format_document_is_that_of_the_golden_file() -> None:
    document = (DATA.parents[1] / "docs" / "format.md").read_text()
    assert make_golden.dump((DATA / "tiny-v1.bin").read_bytes()) in document
    assert make_golden.preamble() in document
