"""What a notebook shows of images, reports, comparisons, tasks and plans: tables, in which names are text."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import images
import pytest
from tasks.accounts import BUCKET

import amistore

EVIL = "<script>alert('1')</script> & \x1b[2J\u202e\r\n"
SHOWN = "<script>alert('1')</script> & \\x1b[2J\\u202e\\r\\n"


class Table(HTMLParser):
    """The rows of tables, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.rows[-1][-1] += data


def table(shown: Any) -> list[list[str]]:
    found = Table(shown._repr_html_())
    assert found.tags == {"table", "tr", "th", "td"}
    assert not re.search("[\x00-\x1f\u202e]", shown._repr_html_())
    return found.rows


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """What there is to show of an AMI with a hostile description and key."""
    cloud = amistore.MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    ids = [images.snapshot(cloud.ebs, 1, {0: images.block(seed)}) for seed in (1, 2)]
    image = images.image(ids, name="web", description=EVIL)
    image_id = cloud.ec2.register_image(image)
    prefix = f"{BUCKET}/{EVIL}"
    with amistore.TaskEngine(cloud) as engine:
        found: dict[str, Any] = {"store plan": engine.plan_store(image_id=image_id, bucket=prefix)}
        task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket=prefix))
        asked: Any = {"bucket": BUCKET, "object_key": task.object_key, "name": "web-2"}
        found["restore plan"] = engine.plan_restore(**asked)
        found["restore task"] = engine.wait(engine.create_restore_image_task(**asked))
        found["page"] = engine.describe_store_image_tasks()
    other = images.packed([(1, {0: images.block(3)})], name="web", description="other")
    with amistore.open(cloud.s3.at(BUCKET, task.object_key)) as archive:
        found["comparison"] = archive.compare(io.BytesIO(other))
        found["report"] = archive.verify()
        damaged = bytearray(other)
        damaged[len(damaged) // 2] ^= 1
    with amistore.open(io.BytesIO(bytes(damaged))) as opened:
        found["damage"] = opened.verify()
    return {**found, "image": cloud.ec2.describe_image(image_id), "store task": task}


def test_an_image_shows_what_it_is_called_and_its_mappings(shown: dict[str, Any]) -> None:
    rows = table(shown["image"])
    assert ["image", f"{shown['image'].image_id} web"] in rows
    assert ["description", SHOWN] in rows
    first = shown["image"].block_device_mappings[0].ebs.snapshot_id
    assert ["device", "snapshot", "size", "type", "encrypted"] in rows
    assert ["/dev/sda", first, "1 GiB", "", ""] in rows
    assert not any(row[0] == "platform" for row in rows)  # not known


def test_a_report_shows_its_verdict_and_each_finding(shown: dict[str, Any]) -> None:
    rows = table(shown["report"])
    assert ["verdict", "intact"] in rows and ["content id", shown["report"].content_id] in rows
    assert any(name == "archive" and SHOWN in text for name, text in rows)
    damage = dict(map(tuple, table(shown["damage"])))
    assert damage["verdict"] == "DAMAGED, 1 finding"
    assert damage["finding"] == str(shown["damage"].findings[0])
    assert "recover" in damage["remedy"]


def test_a_comparison_shows_attributes_and_volumes(shown: dict[str, Any]) -> None:
    rows = table(shown["comparison"])
    assert ["Description", repr(EVIL), "'other'"] in rows
    assert [row[0] for row in rows if "1 block changed" in row[-1]] == ["/dev/sda"]


@pytest.mark.parametrize("kind", ["store task", "restore task", "page"])
def test_tasks_show_their_state_and_purpose(kind: str, shown: dict[str, Any]) -> None:
    rows = table(shown[kind])
    if kind == "page":
        (row,) = [row for row in rows if row[0] == shown["store task"].task_id]
        assert row[2:4] == ["100 %", "Completed"] and SHOWN in row[4]
        return
    assert ["progress", "100 %"] in rows and ["state", "Completed"] in rows
    assert any(row[0] == "purpose" and SHOWN in row[1] for row in rows)
    if kind == "store task":
        assert ["content id", shown[kind].content_id] in rows
    else:
        (first, _) = shown[kind].snapshots
        assert [first.stored_id, first.snapshot_id, "1 GiB", "100 %"] in rows


@pytest.mark.parametrize("kind", ["store", "restore"])
def test_a_plan_shows_its_lines(kind: str, shown: dict[str, Any]) -> None:
    plan = shown[f"{kind} plan"]
    rows = table(plan)
    assert rows[0][0] == "plan" and SHOWN in rows[0][1]
    assert len(rows) == len(str(plan).splitlines())
    assert [row[1] for row in rows if row[0] == "quota"] == [f"2 GiB; 0 of {plan.quota} GiB in progress"]
