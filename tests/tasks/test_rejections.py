"""Whatever a call that creates a task refuses leaves nothing: no object, upload, snapshot, image or row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import images
import pytest
from tasks.accounts import BUCKET, registered

import amistore
from amistore import DirectoryBackend, Quotas, Tag, TagSpecification, TaskEngine
from amistore.testing import FaultyBackend

Asked = dict[str, Any]


class Account:
    """A directory with an AMI, its object, and what can be refused."""

    def __init__(self, root: Path) -> None:
        self.cloud = DirectoryBackend(root)
        self.faulty = FaultyBackend(self.cloud)
        self.cloud.s3.create_bucket(BUCKET)
        self.image_id = registered(self.cloud)
        with TaskEngine(self.faulty) as engine:
            task = engine.wait(engine.create_store_image_task(image_id=self.image_id, bucket=f"{BUCKET}/old"))
        self.key = task.object_key

    def state(self) -> dict[str, bytes]:
        """Every file that is there, but for the journal's; and the journal's rows."""
        found = {
            str(path.relative_to(self.cloud.path)): b"" if path.suffix == ".raw" else path.read_bytes()
            for path in self.cloud.path.rglob("*")
            if path.is_file() and not path.is_relative_to(f"{self.cloud.journal}-engines")
        }
        with TaskEngine(self.cloud) as engine:
            rows = [repr(each) for each in engine._journal.ended("") + engine._journal.unfinished("")]
        own = {name: found[name] for name in found if not name.startswith("tasks.db")}
        return {**own, **dict.fromkeys(rows, b"")}

    def registered(self, **members: Any) -> str:
        """Another AMI on the snapshots of the first."""
        image = self.cloud.ec2.describe_image(self.image_id)
        return self.cloud.ec2.register_image(attrs.evolve(image, **members), name="another")


def none(account: Account) -> Asked:
    return {}


def gone(account: Account) -> Asked:
    """An AMI whose snapshot is deleted, and of whose volume nothing is known."""
    image_id = account.registered()
    path = account.cloud.path / "ec2" / f"{image_id}.json"
    snapshot_id = account.cloud.ec2.describe_image(image_id).snapshot_ids[0]
    path.write_text(path.read_text().replace(snapshot_id, "snap-0123456789abcdef0").replace("Size", "_Size"))
    return {"image_id": image_id}


def taken(account: Account) -> Asked:
    account.cloud.s3.put_object(BUCKET, f"{account.image_id}.bin", [b"another's"])
    return {}


def damaged(account: Account) -> Asked:
    content = bytearray(account.cloud.s3.open_object(BUCKET, account.key).read())
    content[-100] ^= 1
    account.cloud.s3.put_object(BUCKET, "damaged.bin", [bytes(content)])
    return {"object_key": "damaged.bin"}


def no_archive(account: Account) -> Asked:
    account.cloud.s3.put_object(BUCKET, "disk.raw", [images.block(1)])
    return {"object_key": "disk.raw"}


def refusing(verb: str) -> Callable[[Account], Asked]:
    def prepare(account: Account) -> Asked:
        account.faulty.add_fault(verb, "refusal")
        return {}

    return prepare


STORES: dict[str, tuple[Callable[[Account], Asked], Asked]] = {
    "bad id": (none, {"image_id": "web"}),
    "unknown id": (none, {"image_id": "ami-0123456789abcdef0"}),
    "no bucket": (none, {"bucket": ""}),
    "bad bucket": (none, {"bucket": "No_Bucket"}),
    "missing bucket": (none, {"bucket": "missing"}),
    "bad tags": (none, {"s3_object_tags": {"aws:x": ""}}),
    "too many tags": (none, {"s3_object_tags": {str(number): "" for number in range(11)}}),
    "taken key": (taken, {}),
    "stored already": (none, {"bucket": f"{BUCKET}/old"}),
    "paravirtual": (lambda account: {"image_id": account.registered(virtualization_type="paravirtual")}, {}),
    "instance store": (
        lambda account: {"image_id": account.registered(root_device_type="instance-store")},
        {},
    ),
    "no snapshots": (
        lambda account: {"image_id": account.registered(block_device_mappings=(), root_device_name=None)},
        {},
    ),
    "deleted snapshot": (gone, {}),
    "too large": (none, {"quotas": Quotas(image_size=1)}),
    "dry run": (none, {"dry_run": True}),
    **{f"no {verb}": (refusing(verb), {}) for verb in ("describe_image", "head_bucket", "head_object")},
}

RESTORES: dict[str, tuple[Callable[[Account], Asked], Asked]] = {
    "no bucket": (none, {"bucket": ""}),
    "missing bucket": (none, {"bucket": "missing"}),
    "no key": (none, {"object_key": ""}),
    "missing object": (none, {"object_key": "missing.bin"}),
    "no archive": (no_archive, {}),
    "damaged object": (damaged, {}),
    "taken name": (none, {"name": None}),
    "bad name": (none, {"name": "x"}),
    "bad tags": (
        none,
        {"tag_specifications": [TagSpecification(resource_type="image", tags=[Tag(key="aws:x")])]},
    ),
    "tags of a volume": (
        none,
        {"tag_specifications": [TagSpecification(resource_type="volume", tags=[Tag(key="x")])]},
    ),
    "too large": (none, {"quotas": Quotas(image_size=1)}),
    "dry run": (none, {"dry_run": True}),
    **{
        f"no {verb}": (refusing(verb), {})
        for verb in ("head_bucket", "head_object", "get_object_range", "find_images", "reserve_image_id")
    },
}


@pytest.mark.parametrize(
    ("call", "case"),
    [
        *(("create_store_image_task", case) for case in STORES),
        *(("create_restore_image_task", case) for case in RESTORES),
    ],
)
def test_what_is_refused_leaves_nothing(call: str, case: str, tmp_path: Path) -> None:
    account = Account(tmp_path)
    asked: Asked
    if call == "create_store_image_task":
        prepare, given = STORES[case]
        asked = {"image_id": account.image_id, "bucket": BUCKET}
    else:
        prepare, given = RESTORES[case]
        asked = {"bucket": BUCKET, "object_key": account.key, "name": "web-2"}
    asked |= prepare(account) | given
    quotas = asked.pop("quotas", None)
    before = account.state()
    with TaskEngine(account.faulty, quotas=quotas) as engine:
        with pytest.raises(amistore.AmistoreError) as caught:
            getattr(engine, call)(**asked)
        assert str(caught.value)
        engine.wait()
    assert account.state() == before


@pytest.mark.parametrize("kind", ["store", "restore"])
def test_a_full_quota_and_a_task_for_the_same_leave_nothing(kind: str, tmp_path: Path) -> None:
    account = Account(tmp_path)
    quotas = Quotas(store_in_progress=1, restore_in_progress=1)
    with TaskEngine(account.faulty, quotas=quotas) as engine:
        engine._runner._submit = lambda records: None  # type: ignore[method-assign,assignment]
        for name in ("web-2", "web-2", "web-3"):  # admitted, the same again, another
            before = account.state()
            try:
                if kind == "store":
                    engine.create_store_image_task(
                        image_id=account.image_id, bucket=f"{BUCKET}/{name}", on_quota="refuse"
                    )
                else:
                    engine.create_restore_image_task(
                        bucket=BUCKET, object_key=account.key, name=name, on_quota="refuse"
                    )
            except amistore.AmistoreError:
                assert account.state() == before
            else:
                assert len(account.state()) == len(before) + 1
        tasks = [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]
        assert [task.state for task in tasks].count("InProgress") == 1
