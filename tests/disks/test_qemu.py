"""Disk images as qemu reads them: the raw disk's content, no other file's, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import children
import diskheaders
import pytest
from qemus import Qemu

from amistore import GIB, MIB, BackendError, InvalidRequestError, SourceChangedError
from amistore.disks import qemu as module
from amistore.disks.qemu import open_image
from amistore.units import BLOCK_SIZE, KIB

SIZE = 33 * MIB + 3 * 512  # the last block is not whole
_NOISE = random.Random(3).randbytes(MIB)
PARTS = {0: _NOISE[:512], 3 * MIB + 4096: _NOISE[:700_000], 20 * MIB: _NOISE, SIZE - 1024: _NOISE[:1024]}

# By qemu's options: our format, and the bytes that it allocates at once; 0 where it has no holes.
FORMATS = {
    "qcow2": ("qcow2", 64 * KIB),
    "qcow2 -o compat=0.10": ("qcow2", 64 * KIB),
    "qcow2 -c": ("qcow2", 64 * KIB),
    "qcow2 -c -o compression_type=zstd": ("qcow2", 64 * KIB),
    "qcow2 -o cluster_size=2M": ("qcow2", 2 * MIB),
    "qcow2 -o extended_l2=on,cluster_size=128k": ("qcow2", 4 * KIB),
    "qcow2 -S 0": ("qcow2", 0),
    "vmdk": ("vmdk", 64 * KIB),
    "vmdk -o subformat=streamOptimized": ("vmdk", 64 * KIB),
    "vpc": ("vhd", 2 * MIB),
    "vpc -o force_size=on": ("vhd", 2 * MIB),
    "vpc -o subformat=fixed": ("vhd", 0),
    "vpc -o subformat=fixed,force_size=on": ("vhd", 0),
    "vhdx": ("vhdx", 0),
    "vhdx -o subformat=fixed": ("vhdx", 0),
    "vdi": ("vdi", MIB),
    "vdi -o static=on": ("vdi", 0),
}


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, content in PARTS.items():
            file.seek(offset)
            file.write(content)
    return path


def image_of(raw: Path, folder: Path, options: str) -> Path:
    target = folder / "an image's file"
    command = ["qemu-img", "convert", "-f", "raw", "-O", *options.split(), str(raw), str(target)]
    subprocess.run(command, check=True, timeout=60)
    return target


@pytest.fixture
def image(raw: Path, tmp_path: Path, qemu: Qemu) -> Path:
    return image_of(raw, tmp_path, "qcow2")


def block(raw: Path, index: int) -> bytes:
    with raw.open("rb") as file:
        file.seek(index * BLOCK_SIZE)
        return file.read(BLOCK_SIZE).ljust(BLOCK_SIZE, b"\0")


def expected(size: int, unit: int) -> list[int]:
    """The blocks that overlap what is allocated, in units of so many bytes."""
    if not unit:
        return list(range(-(-size // BLOCK_SIZE)))
    units = {u for at, part in PARTS.items() for u in range(at // unit, -(-(at + len(part)) // unit))}
    ends = ((u * unit, min((u + 1) * unit, size)) for u in units)
    return sorted({b for start, end in ends for b in range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE))})


@pytest.mark.parametrize("options", FORMATS)
def test_an_image_has_the_raw_disk_s_content_and_its_allocated_blocks(
    qemu: Qemu, raw: Path, tmp_path: Path, options: str
) -> None:
    format, unit = FORMATS[options]
    with open_image(image_of(raw, tmp_path, options), format) as disk:
        assert disk.size >= SIZE  # a VHD is rounded up to a cylinder's end
        assert disk.size == SIZE or (format == "vhd" and "force_size" not in options)
        assert list(disk.blocks()) == expected(disk.size, unit)
        for index in range(-(-disk.size // BLOCK_SIZE)):
            assert disk.read(index) == block(raw, index), index


def test_a_vhd_of_a_creator_that_qemu_does_not_know_is_not_cut_short(
    qemu: Qemu, raw: Path, tmp_path: Path
) -> None:
    """qemu itself would take the smaller size of the geometry."""
    path = image_of(raw, tmp_path, "vpc -o subformat=fixed,force_size=on")
    content = path.read_bytes()
    footer = bytearray(content[-512:])
    footer[28:32] = b"vbox"
    footer[56:60] = bytes([0, 100, 16, 17])  # cylinders, heads, sectors: 13 MiB
    footer[64:68] = bytes(4)
    footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content[:-512] + bytes(footer))
    with open_image(path, "vhd") as disk:
        assert disk.size == SIZE


@pytest.mark.parametrize("name", diskheaders.HOSTILE)
def test_a_hostile_image_is_refused_before_qemu_runs(qemu: Qemu, tmp_path: Path, name: str) -> None:
    format, content, words = diskheaders.HOSTILE[name]
    (tmp_path / "disk").write_bytes(content)
    with pytest.raises(InvalidRequestError) as error, open_image(tmp_path / "disk", format):
        pass
    assert words in str(error.value)
    assert qemu.started == []


@pytest.mark.parametrize("kind", ["backing", "data file", "flat VMDK", "VMDK with a parent"])
def test_images_of_qemu_s_making_that_name_other_files_are_refused(
    qemu: Qemu,
    image: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    target = tmp_path / "other"
    made, format = {
        "backing": (f'create -f qcow2 -F qcow2 -b "{image}" TARGET', "qcow2"),
        "data file": (f"create -f qcow2 -o data_file={tmp_path}/data,data_file_raw=on TARGET 1M", "qcow2"),
        "flat VMDK": ("create -f vmdk -o subformat=monolithicFlat TARGET 1M", "vmdk"),
        "VMDK with a parent": (
            f"create -f vmdk {tmp_path}/base 1M && qemu-img create -f vmdk -F vmdk -b {tmp_path}/base TARGET",
            "vmdk",
        ),
    }[kind]
    subprocess.run(f"qemu-img {made}".replace("TARGET", str(target)), shell=True, check=True, timeout=60)
    with pytest.raises(InvalidRequestError, match="qemu-img convert"), open_image(target, format):
        pass
    assert qemu.started == []


def test_a_path_that_leads_elsewhere_after_the_check_changes_nothing(
    qemu: Qemu,
    image: Path,
    raw: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", other, "1M"], check=True)
    link = tmp_path / "link"
    link.symlink_to(image)
    qemu.be(f'ln -sf "{other}" "{link}"\nexec {qemu.real} "$@"')
    with open_image(link, "qcow2") as disk:
        assert link.readlink() == other
        assert disk.size == SIZE
        assert disk.read(40) == block(raw, 40)


def test_a_header_that_changes_after_the_check_is_noticed_before_anything_is_read(
    qemu: Qemu,
    image: Path,
    tmp_path: Path,
) -> None:
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_bytes(b"secret".ljust(SIZE, b"\0"))
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            f"data_file={secret},data_file_raw=on",
            other,
            "1M",
        ],
        check=True,
    )
    qemu.be(f'cat "{other}" > "{image}"\nexec {qemu.real} "$@"')
    with pytest.raises(SourceChangedError), open_image(image, "qcow2"):
        pytest.fail("the other file could be read")


def test_no_backing_file_is_opened_even_where_the_header_changes(
    qemu: Qemu, image: Path, tmp_path: Path
) -> None:
    with open_image(image, "qcow2"):
        arguments = Path(f"/proc/{qemu.started[0]}/cmdline").read_text().split("\0")
    options = json.loads(arguments[-2].removeprefix("json:"))
    assert options["backing"] is None
    assert options["file"]["filename"].startswith("/dev/fd/")


def test_an_image_that_is_written_to_is_noticed(image: Path) -> None:
    with open_image(image, "qcow2") as disk:
        disk.check()
        with image.open("r+b") as file:
            file.seek(MIB)
            file.write(b"another")
        for use in (disk.check, lambda: disk.read(0), lambda: list(disk.blocks())):
            with pytest.raises(SourceChangedError):
                use()


def test_a_killed_server_is_a_typed_error_from_then_on(qemu: Qemu, image: Path) -> None:
    with open_image(image, "qcow2") as disk:
        os.kill(qemu.started[0], signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(BackendError, match=r"ended the connection|takes no request|does not answer"):
                disk.read(0)
        with pytest.raises(BackendError):
            list(disk.blocks())


def test_an_interrupted_request_leaves_no_answer_for_the_next_one(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(length: int) -> bytes:
        raise KeyboardInterrupt

    with open_image(image, "qcow2") as disk:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(disk._client, "_receive", interrupted)
            disk.read(0)
        with pytest.raises(BackendError, match="was interrupted"):
            disk.read(40)


def test_the_last_line_of_a_server_that_fails_is_told(qemu: Qemu, image: Path) -> None:
    qemu.be("echo first >&2; printf 'no \\033[31mluck\\n\\n' >&2; exit 1")
    with pytest.raises(BackendError) as error, open_image(image, "qcow2"):
        pass
    assert str(error.value).endswith(r"does not serve the image; qemu-nbd says: no \x1b[31mluck")


def test_a_server_that_prints_without_end_is_ended_by_its_limit(qemu: Qemu, image: Path) -> None:
    qemu.be("while :; do echo rubbish without end >&2; done")
    with pytest.raises(BackendError) as error, open_image(image, "qcow2"):
        pass
    assert "rubbish" in str(error.value)
    assert len(str(error.value)) < 2000


def test_an_image_that_qemu_refuses_is_a_typed_error(qemu: Qemu, tmp_path: Path) -> None:
    refused = 0
    for format, contents in diskheaders.WHOLE.items():
        for content in contents:
            (tmp_path / "disk").write_bytes(content)
            try:
                with open_image(tmp_path / "disk", format) as disk:
                    list(disk.blocks())
                    disk.read(0)
            except InvalidRequestError:  # headers alone: their tables are behind the file's end
                refused += 1
            except BackendError as error:
                assert "qemu-nbd says: " in str(error)
    assert qemu.started and len(qemu.started) + refused == sum(map(len, diskheaders.WHOLE.values()))


def test_a_silent_server_is_given_up_and_killed(
    qemu: Qemu,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SILENCE", 0.1)
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    # It ignores SIGTERM, as the program that takes its place does.
    qemu.be("trap '' TERM; exec sleep 600")
    with pytest.raises(BackendError, match="does not listen"), open_image(image, "qcow2"):
        pass
    script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); "
    qemu.be(
        f'trap "" TERM; for word; do case $word in --socket=*) exec {sys.executable} -c '
        f"'{script}time.sleep(600)' ${{word#--socket=}};; esac; done"
    )
    monkeypatch.setattr(module, "_SILENCE", 2.0)
    with pytest.raises(BackendError, match="does not answer: timed out"), open_image(image, "qcow2"):
        pass


def test_an_error_or_an_interrupt_in_the_block_leaves_nothing(image: Path) -> None:
    for error in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(error), open_image(image, "qcow2") as disk:
            disk.read(0)
            raise error


def test_a_missing_server_is_told_with_what_makes_a_raw_disk(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidRequestError, match="qemu-utils") as error, open_image(image, "qcow2"):
        pass
    command = str(error.value).split("`")[1]
    assert command.startswith("qemu-img convert -f qcow2 -O raw ")
    subprocess.run(command, shell=True, check=True, env={"PATH": "/usr/bin:/usr/local/bin"}, timeout=60)
    assert Path(f"{image}.raw").stat().st_size == SIZE


def test_the_server_is_bounded_and_knows_nothing_of_ours(
    qemu: Qemu,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    with open_image(image, "qcow2"):
        (pid,) = qemu.started
        assert resource.prlimit(pid, resource.RLIMIT_DATA) == (GIB, GIB)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        names = {line.split("=")[0] for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line}
        assert names <= {"PATH", "PWD", "OLDPWD", "SHLVL", "_"}  # the shell's of this test's script
        opened = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        assert [path for path in opened if path.endswith("disk.raw")] == []


def test_several_threads_take_turns(image: Path, raw: Path) -> None:
    with open_image(image, "qcow2") as disk, ThreadPoolExecutor(8) as pool:
        indexes = [index for index in disk.blocks() for _ in range(8)]
        assert list(pool.map(disk.read, indexes)) == [block(raw, index) for index in indexes]


def test_a_forked_child_uses_and_ends_nothing_of_its_parent_s(image: Path, raw: Path) -> None:
    with open_image(image, "qcow2") as disk:
        with children.forked(lambda: disk.read(0)) as child:
            answer = child.answer()
        assert isinstance(answer, InvalidRequestError)
        assert "open it again" in str(answer)
        assert disk.read(0) == block(raw, 0)

    def job(part: Callable[[], None]) -> bytes:
        with open_image(image, "qcow2") as disk:
            part()
            return disk.read(0)

    assert children.split(job) == (block(raw, 0), children.LEFT)


KILLED = """
import os, sys
from pathlib import Path
from amistore.disks.qemu import open_image
with open_image(Path(sys.argv[1]), "qcow2") as disk:
    if os.fork() == 0:  # a child that stays, with all that it inherits
        sys.stdin.buffer.read()
        os._exit(0)
    print("open", flush=True)
    sys.stdin.buffer.read()
"""


def test_a_killed_process_leaves_no_server(qemu: Qemu, image: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(image)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        server = os.pidfd_open(qemu.started[0])
        process.kill()
        process.wait()
        ready, _, _ = select.select([server], [], [], children.SECONDS)
        os.close(server)
        assert ready, "it still runs"


@pytest.mark.parametrize("kind", ["folder", "FIFO", "empty"])
def test_what_is_no_file_with_content_is_refused(qemu: Qemu, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    {"folder": path.mkdir, "FIFO": lambda: os.mkfifo(path), "empty": path.touch}[kind]()
    with pytest.raises(InvalidRequestError), open_image(path, "qcow2"):
        pass
    assert qemu.started == []
