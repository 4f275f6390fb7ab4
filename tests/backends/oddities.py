"""All calls of a backend while one of its files or folders is something else: the last line names who waits.

Run as a process of its own, which the kernel ends at the first call that waits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import images

import amistore
from amistore.testing import block, read_snapshot, store_snapshot
from amistore.testing.snapshots import linear, sha256

SECONDS = 20


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    os.chdir(path.parent)  # the name of a socket has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def tty(path: Path) -> None:
    path.symlink_to("/dev/ptmx")  # a device, whose reading waits


def calls(root: Path, ids: dict[str, str]) -> dict[str, Callable[[], object]]:
    def cloud() -> amistore.DirectoryBackend:
        return amistore.DirectoryBackend(root)

    def finish() -> object:
        part = cloud().s3.list_parts("archive", "begun", ids["upload"])
        return cloud().s3.complete_multipart_upload("archive", "begun", ids["upload"], part)

    return {
        "open": cloud,
        "describe": lambda: cloud().ec2.describe_images(),
        "find": lambda: cloud().ec2.find_images("web"),
        "register": lambda: cloud().ec2.register_image(
            images.image([ids["completed"]], image_id="ami-11111111", name="new")
        ),
        "snapshot": lambda: cloud().ebs.describe_snapshot(ids["completed"]),
        "read": lambda: read_snapshot(cloud().ebs, ids["completed"]),
        "get": lambda: cloud().ebs.get_snapshot_block(ids["completed"], 0, ""),
        "put": lambda: cloud().ebs.put_snapshot_block(ids["pending"], 1, block(1), sha256(block(1))),
        "complete": lambda: cloud().ebs.complete_snapshot(ids["pending"], 1, linear({1: block(1)})),
        "again": lambda: cloud().ebs.complete_snapshot(ids["completed"], 1, linear({0: block(1)})),
        "head": lambda: cloud().s3.head_object("archive", "done"),
        "range": lambda: cloud().s3.get_object_range("archive", "done", 0, 1),
        "tags": lambda: cloud().s3.get_object_tagging("archive", "done"),
        "uploads": lambda: cloud().s3.list_multipart_uploads("archive"),
        "part": lambda: cloud().s3.upload_part("archive", "begun", ids["upload"], 1, b"x"),
        "finish": finish,
        "replace": lambda: cloud().s3.put_object("archive", "done", [b"new"]),
        "delete": lambda: cloud().s3.delete_object("archive", "done"),
        "abort": lambda: cloud().s3.abort_multipart_upload("archive", "begun", ids["upload"]),
        "engine": lambda: amistore.TaskEngine(cloud()).close(),
        "sweep": lambda: cloud().sweep(),
        "delete snapshot": lambda: cloud().ebs.delete_snapshot(ids["pending"]),
        "deregister": lambda: cloud().ec2.deregister_image(ids["image"]),
    }


def fill(root: Path) -> dict[str, str]:
    cloud = amistore.DirectoryBackend(root)
    completed = store_snapshot(cloud.ebs, 1, {0: block(1)})
    pending = cloud.ebs.start_snapshot(1)
    image = cloud.ec2.register_image(images.image([completed]))
    cloud.s3.create_bucket("archive")
    cloud.s3.put_object("archive", "done", [b"content"], metadata={"a": "b"})
    upload = cloud.s3.create_multipart_upload("archive", "begun")
    cloud.s3.upload_part("archive", "begun", upload, 1, b"x")
    amistore.TaskEngine(cloud).close()
    return {"completed": completed, "pending": pending, "image": image, "upload": upload}


def main(work: Path) -> None:
    ids = fill(work / "full")
    found = sorted(path.relative_to(work / "full") for path in (work / "full").rglob("*"))
    root = work / "tried"
    for name in found:
        for plant in (fifo, bound, tty):
            shutil.copytree(work / "full", root, copy_function=os.link)
            for call, do in calls(root, ids).items():
                path = root / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                if not path.parent.is_dir():  # one of the calls before has removed it
                    continue
                plant(path)
                print(f"{plant.__name__} for {name}: {call}", flush=True)
                signal.alarm(SECONDS)
                with contextlib.suppress(amistore.AmistoreError):
                    do()
                signal.alarm(0)
            shutil.rmtree(root)
    print("done", len(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
