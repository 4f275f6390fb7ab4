"""An image's header is judged from its bytes: one whole file is taken, and nothing else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import diskheaders
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amistore import InvalidRequestError
from amistore.disks.headers import FORMATS, check_image

PATH = Path("an image's file")
MUTATED = [(name, content) for name, contents in diskheaders.WHOLE.items() for content in contents]
MUTATED += [(name, content) for name, content, _ in diskheaders.HOSTILE.values()]
SEEN = 2048  # bytes of either end, and of the places of VHDX's tables, that have fields


def check(content: bytes, format: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        check_image(PATH, file.fileno(), format)


def is_taken(content: bytes, format: str) -> bool:
    """Any error but the one of a refusal is raised."""
    try:
        check(content, format)
    except InvalidRequestError as error:
        assert "(offset " in str(error), error
        return False
    return True


@pytest.mark.parametrize("format", FORMATS)
def test_whole_images_are_taken_in_their_own_format_only(format: str) -> None:
    for content in diskheaders.WHOLE[format]:
        check(content, format)
        assert [other for other in FORMATS if is_taken(content, other)] == [format]


@pytest.mark.parametrize("name", diskheaders.HOSTILE)
def test_what_is_not_one_whole_image_is_refused_with_the_reason(name: str) -> None:
    format, content, words = diskheaders.HOSTILE[name]
    with pytest.raises(InvalidRequestError) as error:
        check(content, format)
    assert words in str(error.value)
    assert "an image's file" in str(error.value)


def test_the_remedy_is_a_command_that_a_shell_can_run() -> None:
    format, content, _ = diskheaders.HOSTILE["qcow2 with a backing file"]
    with pytest.raises(InvalidRequestError) as error:
        check(content, format)
    quoted = "'an image'\"'\"'s file"
    assert f"qemu-img convert -f qcow2 -O qcow2 {quoted}' {quoted}.qcow2'" in str(error.value)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="none of qcow2, vmdk, vhd, vhdx, vdi"):
        check_image(PATH, -1, "raw")


@given(st.binary(max_size=4096), st.sampled_from(sorted(FORMATS)))
def test_any_bytes_are_taken_or_refused(content: bytes, format: str) -> None:
    is_taken(content, format)


@given(st.data())
def test_a_field_of_any_value_is_taken_or_refused(data: st.DataObject) -> None:
    format, content = data.draw(st.sampled_from(MUTATED))
    places = [0, len(content) - SEEN, *([192 << 10, 1 << 20, (1 << 20) + 65536] if format == "vhdx" else [])]
    at = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, SEEN))
    new = data.draw(
        st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(4), bytes(8), b"\x7f" + b"\xff" * 7])
        | st.binary(min_size=1, max_size=16)
    )
    at = max(0, min(at, len(content) - len(new)))
    is_taken(content[:at] + new + content[at + len(new) :], format)


@given(st.data())
def test_an_image_cut_anywhere_is_taken_or_refused(data: st.DataObject) -> None:
    format, content = data.draw(st.sampled_from(MUTATED))
    is_taken(content[: data.draw(st.integers(0, min(len(content), 8192)))], format)


def test_a_header_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").write_bytes(b"QFI\xfb")
    with (tmp_path / "disk").open("rb") as file:
        told = os.stat_result((0o100600, 1, 1, 1, 0, 0, 65536, 0, 0, 0))
        monkeypatch.setattr(os, "fstat", lambda descriptor: told)
        with pytest.raises(InvalidRequestError, match="damaged"):
            check_image(PATH, file.fileno(), "qcow2")
