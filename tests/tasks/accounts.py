"""An account with an AMI, calls that are held and programs beside, for the tests of tasks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import images

import amistore
from amistore import MemoryBackend, TaskEngine
from amistore.backends import Backend

BUCKET = "archive"
DISKS = [{0: images.block(1), 7: bytes(amistore.BLOCK_SIZE), 900: images.block(2)}, {3: images.block(3)}]


@contextlib.contextmanager
def held(service: object, verb: str, of: object = None) -> Iterator[threading.Event]:
    """Holds calls of a verb, or those on `of`, until the block ends; gives the event that one has come."""
    reached, opened = threading.Event(), threading.Event()
    inner = getattr(service, verb)

    def call(*arguments: Any, **options: Any) -> Any:
        if of is None or of == arguments[0]:
            reached.set()
            assert opened.wait(60)
        return inner(*arguments, **options)

    setattr(service, verb, call)
    try:
        yield reached
    finally:
        opened.set()
        setattr(service, verb, inner)


def registered(cloud: Backend, name: str = "web") -> str:
    """An AMI of two snapshots."""
    ids = [images.snapshot(cloud.ebs, 1, disk) for disk in DISKS]
    return cloud.ec2.register_image(images.image(ids, name=name))


def account() -> tuple[MemoryBackend, str]:
    """A backend with a bucket and an AMI."""
    cloud = MemoryBackend()
    cloud.s3.create_bucket(BUCKET)
    return cloud, registered(cloud)


def stored(cloud: Backend, image_id: str) -> str:
    """The key of the AMI's object."""
    with TaskEngine(cloud) as engine:
        return engine.wait(engine.create_store_image_task(image_id=image_id, bucket=BUCKET)).object_key


def disks(cloud: Backend, image_id: str) -> list[dict[int, bytes]]:
    image = cloud.ec2.describe_image(image_id)
    found = [mapping.ebs.snapshot_id for mapping in image.block_device_mappings if mapping.ebs]
    return [images.contents(cloud.ebs, str(snapshot_id))[1] for snapshot_id in found]


def snapshots(cloud: MemoryBackend) -> set[str]:
    return set(cloud.ebs._snapshots)


def elsewhere(program: str, *arguments: object) -> str:
    """What a program says in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"import os, sys, amistore\n{program}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return done.stdout
