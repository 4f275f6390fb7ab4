"""A name out of an archive is shown, and does nothing: to a terminal, to a log, in a notebook."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import images
import pytest

import amistore
from amistore.text import printable

ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
EVIL = "web\x1b]0;owned\x07\x9b2J\u202egnp.exe\r\nintact \x00"


def archive(tmp_path: Path, name: str, block: int) -> Path:
    tags = (amistore.Tag(key=f"{EVIL}{name}", value=EVIL),)
    extra = {f"X{EVIL}": EVIL}
    content = images.packed(
        [(1, {0: images.block(block)})], name=EVIL + name, description=EVIL, tags=tags, extra=extra
    )
    path = tmp_path / f"{block}.bin"
    path.write_bytes(content)
    return path


def check(text: str, lines: int) -> None:
    assert "web" in text
    assert not ACTING.search(text), text
    assert text.count("\n") == lines - 1, text


def test_a_comparison_shows_names_and_obeys_none(tmp_path: Path) -> None:
    found = images.difference(archive(tmp_path, "a", 1), archive(tmp_path, "b", 2))
    check(str(found), len(found.attributes) + len(found.volumes))


def test_an_opened_archive_shows_names_in_a_notebook_and_obeys_none(tmp_path: Path) -> None:
    with amistore.open(archive(tmp_path, "a", 1)) as opened:
        check(opened._repr_html_(), 1)
        assert not ACTING.search(repr(opened.image))
        assert not ACTING.search(repr(opened))


def test_a_plan_and_what_registering_keeps_show_names_and_obey_none(tmp_path: Path) -> None:
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket("archive")
    cloud.s3.put_object("archive", EVIL, [archive(tmp_path, "a", 1).read_bytes()])
    with amistore.TaskEngine(cloud, journal=tmp_path / "journal") as engine:
        plan = engine.plan_restore(bucket="archive", object_key=EVIL, name="new-web")
    lines = str(plan).split("\n")
    check(lines[0], 1)
    assert all(line.startswith("  ") for line in lines[1:])
    assert not ACTING.search(plan._repr_html_())
    # Its paths are escaped already; a registry of others' may not do that.
    theirs = amistore.model.AttributeReport(
        attribute=EVIL, fate=amistore.model.Fate.DROPPED, value=EVIL, reason=EVIL
    )
    for each in (*plan.fidelity, theirs):
        assert "\n" not in str(each)
        assert not ACTING.search(str(each))


def test_an_error_and_its_line_in_a_log_show_names_and_obey_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = amistore.BackendError(f"no {EVIL}", bucket=EVIL, key=EVIL)
    check(str(error), 2)  # a message may have lines of its own
    with amistore.open(archive(tmp_path, "a", 1)) as opened, pytest.raises(amistore.NotFoundError) as caught:
        opened.volume(EVIL)
    check(str(caught.value), 1)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("amistore").warning("%s", caught.value)
    check(caplog.messages[0], 1)


def test_a_location_and_its_line_in_a_log_show_a_key_and_obey_none(caplog: pytest.LogCaptureFixture) -> None:
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket("archive")
    cloud.s3.put_object("archive", EVIL, [images.packed([])[:-9]])
    check(str(cloud.s3.at("archive", EVIL)), 1)
    assert list(amistore.find_archives(cloud.s3, "archive")) == []
    check(caplog.messages[0], 1)


def test_what_does_not_act_is_left_as_it_is() -> None:
    for text in ("Wörter, 日本語, 👩\u200d💻, עברית", "tab\\t", ""):
        assert printable(text) == text
    assert printable("a\nb") == "a\\nb"
    assert printable("a\nb", lines=True) == "a\nb"
    assert printable("\ud800\u2066\x85") == "\\ud800\\u2066\\x85"
    assert io.BytesIO(printable("\ud800").encode())
