"""`examples/fleet.py` in a process of its own, on folders and two processes of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from images import noise, snapshot

import amistore

pytest.importorskip("distributed")

FLEET = Path(__file__).parents[1] / "examples" / "fleet.py"


class Fleet:
    """A folder with images, and runs that store them in its bucket."""

    def __init__(self, path: Path) -> None:
        self.summary = path / "summary.json"
        self.cloud = amistore.DirectoryBackend(path / "cloud")
        self.ids: dict[str, str] = {}

    def make(self, name: str, blocks: int = 3, **members: Any) -> str:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        snapshot_id = snapshot(self.cloud.ebs, 1, {index: noise(seed + index) for index in range(blocks)})
        root = amistore.EbsBlockDevice(snapshot_id=snapshot_id)
        image = amistore.Image(
            image_id="ami-0123456789abcdef0",
            name=name,
            root_device_name="/dev/xvda",
            block_device_mappings=[amistore.BlockDeviceMapping(device_name="/dev/xvda", ebs=root)],
            **members,
        )
        self.ids[name] = self.cloud.ec2.register_image(image)
        return self.ids[name]

    def begin(self, *options: str) -> subprocess.Popen[str]:
        self.summary.unlink(missing_ok=True)
        given = ["--folder", str(self.cloud.path), "--bucket", "archive/nightly", "--workers", "2"]
        return subprocess.Popen(
            [sys.executable, str(FLEET), *given, "--summary", str(self.summary), *options],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )

    def run(self, *options: str) -> tuple[int, dict[str, Any]]:
        """The exit code and the summary."""
        with self.begin(*options) as process:
            process.communicate()
        return process.returncode, json.loads(self.summary.read_text())

    def end_at(self, words: str, number: signal.Signals) -> int:
        """Begin a run that is sent a signal once its log has these words; return its exit code."""
        with self.begin("--at-once", "1") as process:
            assert process.stderr is not None
            while words not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(number)
            process.communicate()
        return process.returncode

    def expected(self, name: str) -> dict[str, Any]:
        """What the summary is to say of an image: with the content id that it has without a cluster."""
        image_id = self.ids[name]
        path = self.cloud.path / f"{name}.bin"
        stored = amistore.store(image_id, self.cloud, path, overwrite=True)
        return {
            "region": None,
            "profile": None,
            "image_id": image_id,
            "name": name,
            "state": "stored",
            "object": f"archive/nightly/{image_id}.bin",
            "content_id": stored.content_id,
            "size": stored.size,
            "error": None,
        }


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def by_name(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The images of a summary, without the seconds."""
    return {
        image["name"]: {key: image[key] for key in image if key != "seconds"} for image in summary["images"]
    }


def test_images_that_match_are_stored_and_no_others(fleet: Fleet) -> None:
    nightly = {"tags": [amistore.Tag(key="backup", value="nightly")]}
    old = {**nightly, "creation_date": "2020-01-02T03:04:05.000Z"}
    fleet.make("web-1", **old)
    fleet.make("web-2", **old)
    for name, members in {"data": old, "web-untagged": {}, "web-undated": nightly}.items():
        fleet.make(name, **members)
    code, summary = fleet.run("--tag", "backup=nightly", "--name", "web*", "--older-than", "30")
    assert code == 0
    assert by_name(summary) == {name: fleet.expected(name) for name in ("web-1", "web-2")}
    assert all(image["seconds"] >= 0 for image in summary["images"])
    assert (summary["interrupted"], summary["errors"]) == (False, [])
    seconds = summary["totals"].pop("seconds")
    assert seconds > 0
    assert summary["totals"] == {
        "images": 2,
        "stored": 2,
        "failed": 0,
        "unfinished": 0,
        "size": sum(image["size"] for image in summary["images"]),
    }


def test_a_run_that_was_killed_is_run_again_to_the_same_summary(fleet: Fleet) -> None:
    names = ["one", "two", "three"]
    for name in names:
        fleet.make(name, blocks=24)
    assert fleet.end_at("completed", signal.SIGKILL) == -signal.SIGKILL
    assert len(fleet.cloud.s3.list_keys("archive")) < len(names)
    code, summary = fleet.run()
    assert code == 0
    assert by_name(summary) == {name: fleet.expected(name) for name in names}
    assert [image["seconds"] for image in summary["images"]].count(None) >= 1  # stored by the first run
    assert fleet.cloud.s3.list_multipart_uploads("archive") == []


def test_an_interrupt_ends_a_run_that_can_go_on(fleet: Fleet) -> None:
    names = ["one", "two", "three"]
    for name in names:
        fleet.make(name, blocks=24)
    assert fleet.end_at("running", signal.SIGINT) == 130
    summary = json.loads(fleet.summary.read_text())
    assert summary["interrupted"]
    assert summary["totals"]["unfinished"] >= 1
    with amistore.TaskEngine(fleet.cloud) as engine:
        assert engine.resume()
        engine.wait()


def test_an_image_that_fails_is_told_and_the_others_are_stored(fleet: Fleet) -> None:
    for name in ("one", "damaged", "three"):
        fleet.make(name)
    image = fleet.cloud.ec2.describe_image(fleet.ids["damaged"])
    digests = fleet.cloud.path / "ebs" / image.snapshot_ids[0] / "digests"
    digests.write_bytes(bytes(reversed(digests.read_bytes())))
    code, summary = fleet.run()
    found = by_name(summary)
    damaged = found.pop("damaged")
    assert code == 1
    assert found == {name: fleet.expected(name) for name in ("one", "three")}
    assert (damaged["state"], damaged["object"], damaged["content_id"]) == ("failed", None, None)
    assert "digests is damaged" in damaged["error"]
    assert (summary["totals"]["stored"], summary["totals"]["failed"]) == (2, 1)


@pytest.mark.parametrize(
    "options",
    [[], ["--bucket", "b", "--tag", "k"], ["--bucket", "b", "--scheduler", "tls://host:8786"]],
    ids=["no bucket", "no value", "no certificates"],
)
def test_wrong_arguments_are_usage(options: list[str]) -> None:
    done = subprocess.run([sys.executable, str(FLEET), *options], capture_output=True, text=True)
    assert (done.returncode, "usage" in done.stderr) == (2, True)
