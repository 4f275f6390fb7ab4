"""A resume log gives back what was appended, or less of its end, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import random
import stat
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

import amistore
from amistore import FileResumeLog
from amistore.objects.resumelog import read_entry, write_entry

ENTRIES = [write_entry(kind="pack", task="0" * 32), b"", b"\0" * 40, b"x" * 300, write_entry(part=1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.log"


def filled(path: Path) -> bytes:
    with FileResumeLog(path) as log:
        assert log.entries() == []
        for entry in ENTRIES:
            log.append(entry)
        assert log.entries() == ENTRIES
    return path.read_bytes()


def reread(path: Path) -> list[bytes]:
    with FileResumeLog(path) as log:
        return log.entries()


def test_entries_outlive_their_writer_and_clear_removes_the_file(path: Path) -> None:
    filled(path)
    assert reread(path) == ENTRIES
    with FileResumeLog(path) as log:
        log.append(b"one more")  # without entries() first
    assert reread(path) == [*ENTRIES, b"one more"]
    with FileResumeLog(path) as log:
        log.clear()
        assert not path.exists()
        assert log.entries() == []
        log.clear()
        log.append(b"new")
    assert reread(path) == [b"new"]


def test_a_log_that_is_only_looked_at_is_not_made(path: Path) -> None:
    with FileResumeLog(path) as log:
        assert log.entries() == []
        log.clear()
    assert not path.exists()


def test_the_file_is_its_owners_only(path: Path) -> None:
    before = os.umask(0)
    try:
        filled(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_cut_at_any_byte_keeps_the_entries_before_the_cut_and_can_be_gone_on_with(path: Path) -> None:
    whole = filled(path)
    sizes = [len(entry) + 8 for entry in ENTRIES]
    start = len(whole) - sum(sizes)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        kept = sum(start + sum(sizes[: n + 1]) <= end for n in range(len(sizes)))
        assert reread(path) == ENTRIES[:kept]
        path.write_bytes(whole[:end])
        with FileResumeLog(path) as log:
            log.append(b"after")
        assert reread(path) == [*ENTRIES[:kept], b"after"]


def test_a_flipped_bit_anywhere_gives_no_wrong_entry(path: Path) -> None:
    whole = filled(path)
    starts = [0, 22]
    for entry in ENTRIES[:-1]:
        starts.append(starts[-1] + len(entry) + 8)
    for at in range(len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = reread(path)
            except amistore.InvalidRequestError as error:
                told = (
                    f"`truncate -s {max(start for start in starts if start <= at)}`"
                    if at >= 22
                    else "no resume"
                )
                assert told in str(error)
                assert at < starts[-1]
                assert path.read_bytes() == damaged
                continue
            assert at >= starts[-1]  # as if it were torn
            assert found == ENTRIES[:-1]


@pytest.mark.parametrize("bytes_of_length", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x20\0\0\0"])
def test_a_length_that_is_damaged_swallows_no_entries(path: Path, bytes_of_length: bytes) -> None:
    whole = bytearray(filled(path))
    whole[22:26] = bytes_of_length
    path.write_bytes(whole)
    with pytest.raises(amistore.InvalidRequestError, match="damaged at byte 22"):
        reread(path)
    path.write_bytes(whole[:22])  # what it says to do
    with FileResumeLog(path) as log:
        assert log.entries() == []
        log.append(b"after")
    assert reread(path) == [b"after"]


@pytest.mark.parametrize("spam", [struct.pack("<II", 0x010000, 0) + b'{"', b'{"'], ids=["lengths", "none"])
def test_a_forged_log_full_of_beginnings_of_entries_is_damaged(path: Path, spam: bytes) -> None:
    whole = filled(path)
    path.write_bytes(whole + b"\xff\xff\xff\xff" + spam * (1 << 18))
    with pytest.raises(amistore.InvalidRequestError, match=f"damaged at byte {len(whole)}"):
        reread(path)


def cost(path: Path) -> str:
    """What reading the log says in a process that may use some seconds of CPU and little memory."""
    code = """if True:
    import resource, sys
    import amistore
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
    resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
    try:
        print(len(amistore.FileResumeLog(sys.argv[1]).entries()))
    except amistore.InvalidRequestError as error:
        print(error)
    """
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("zeros", [64 << 20, 3 << 30], ids=["64 MiB", "3 GiB"])
@pytest.mark.parametrize("length", [0, (1 << 32) - 1, 1 << 28], ids=["0", "4 GiB", "256 MiB"])
def test_zeros_however_many_cost_neither_minutes_nor_memory(path: Path, zeros: int, length: int) -> None:
    whole = filled(path) + struct.pack("<II", length, 1)
    path.write_bytes(whole)
    os.truncate(path, len(whole) + zeros)
    told = cost(path)
    assert told == f"{len(ENTRIES)}\n" if zeros < 1 << 29 else "more than a torn entry" in told


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_entry_of_ours_is_dropped_where_it_is_torn(path: Path, seed: int) -> None:
    whole = filled(path)
    torn = random.Random(seed).randbytes(1 << 20)
    path.write_bytes(whole + struct.pack("<II", 1 << 21, 0) + torn)
    assert reread(path) == ENTRIES


def test_a_symbolic_link_and_what_is_no_file_are_refused(path: Path, tmp_path: Path) -> None:
    filled(tmp_path / "other.log")
    path.symlink_to(tmp_path / "other.log")
    with pytest.raises(amistore.InvalidRequestError, match="is a symbolic link"):
        reread(path)
    path.unlink()
    path.symlink_to(tmp_path / "nothing")
    with FileResumeLog(path) as log, pytest.raises(amistore.InvalidRequestError, match="is a symbolic link"):
        log.append(b"x")
    assert not (tmp_path / "nothing").exists()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(amistore.InvalidRequestError, match="no regular file"):
        reread(path)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_log_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    filled(path)
    path.chmod(mode)
    with pytest.raises(amistore.InvalidRequestError, match="others can write"):
        reread(path)
    path.chmod(0o600)
    assert reread(path) == ENTRIES


def test_a_log_that_others_can_read_becomes_its_owners_only(path: Path) -> None:
    filled(path)
    path.chmod(0o644)
    assert reread(path) == ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("count", [1, 8, 4096])
def test_zeros_that_a_power_cut_left_at_the_end_are_no_entries(path: Path, count: int) -> None:
    path.write_bytes(filled(path) + bytes(count))
    assert reread(path) == ENTRIES


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b"amistore resume log 2\n", bytes(100)])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with FileResumeLog(path) as log:
        for call in (log.entries, log.clear, lambda: log.append(b"x")):
            with pytest.raises(amistore.InvalidRequestError, match="no resume log"):
                call()
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_a_file_is_a_typed_error(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing" / "run.log"):
        with pytest.raises(amistore.BackendError) as caught:
            FileResumeLog(place).append(b"x")
        assert caught.value.operation == "resume"
    with pytest.raises(amistore.InvalidRequestError):
        FileResumeLog(tmp_path / "nul\0byte").append(b"x")


def test_two_users_at_once_are_refused_until_the_first_lets_go(path: Path) -> None:
    with FileResumeLog(path) as first:
        first.append(b"mine")
        second = FileResumeLog(path)
        for call in (second.entries, second.clear, lambda: second.append(b"yours")):
            with pytest.raises(amistore.InvalidRequestError, match="in use"):
                call()
    assert reread(path) == [b"mine"]


def test_another_process_is_refused(path: Path) -> None:
    code = "import sys, amistore\nwith amistore.FileResumeLog(sys.argv[1]) as log: print(log.entries())"
    with FileResumeLog(path) as log:
        log.append(b"mine")
        ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert "InvalidRequestError" in ended.stderr
        assert "in use" in ended.stderr
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert ended.stdout == "[b'mine']\n"


def take_and_clear(path: Path, rounds: int, done: Path) -> None:
    """Append and clear; at any time at most one holder sees entries, and they are its own."""
    mine = str(os.getpid()).encode()
    wins = 0
    while wins < rounds:
        with FileResumeLog(path) as log:
            try:
                log.append(mine)
                assert log.entries() == [mine]
                log.clear()
                wins += 1
            except amistore.InvalidRequestError as error:
                assert "in use" in str(error)
    done.write_text(str(wins))


def test_a_log_cleared_while_others_open_it_is_never_shared(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    dones = [tmp_path / f"done{n}" for n in range(3)]
    workers = [
        context.Process(target=take_and_clear, args=(tmp_path / "run.log", 100, done)) for done in dones
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [done.read_text() for done in dones] == ["100"] * 3
    assert not (tmp_path / "run.log").exists()


def test_clearing_leaves_a_file_that_has_taken_the_name_of_one_removed_by_hand(path: Path) -> None:
    with FileResumeLog(path) as old, FileResumeLog(path) as new:
        old.append(b"old")
        path.unlink()
        new.append(b"new")
        old.clear()
        assert new.entries() == [b"new"]
    assert reread(path) == [b"new"]


def test_a_full_disk_is_a_typed_error_and_the_log_stays_good_at_whatever_byte(path: Path) -> None:
    code = """
import resource, signal, sys, amistore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = sys.argv[1]
whole = [b"a" * 20, b"b" * 20]
for limit in range(0, 120):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with amistore.FileResumeLog(path) as log:
        done = []
        try:
            for entry in whole:
                log.append(entry)
                done.append(entry)
        except amistore.StorageFullError as error:
            assert error.operation == "resume" and path in str(error) and "make room" in str(error)
        assert len(done) == sum(limit >= 22 + 28 * n for n in (1, 2)), (limit, done)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.append(b"after")
        done.append(b"after")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with amistore.FileResumeLog(path) as log:
        assert log.entries() == done
        log.append(b"later")
        assert log.entries() == [*done, b"later"]
        log.clear()
print("fine")
"""
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert ended.stdout == "fine\n", ended.stderr


@pytest.mark.parametrize("length", [2**31, 2**32 - 1])
def test_a_huge_length_costs_no_memory(path: Path, length: int) -> None:
    path.write_bytes(filled(path) + struct.pack("<II", length, 0) + b"short")
    tracemalloc.start()
    try:
        assert reread(path) == ENTRIES
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "entry", [b"", b"\xff", b"[]", b"1", b"{", b"null", b"[" * 100_000, b'{"a":' + b"1" * 5000 + b"}"]
)
def test_an_entry_that_is_none_of_ours_is_a_typed_error(entry: bytes) -> None:
    with pytest.raises(amistore.InvalidRequestError, match="damaged"):
        read_entry(entry)


def test_an_entry_says_what_was_written_whatever_stands_behind_it() -> None:
    assert read_entry(write_entry(part=1, etag="ä\n\0") + b"\n{\xff\n") == {"part": 1, "etag": "ä\n\0"}
