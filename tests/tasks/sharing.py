"""Processes that share a journal: `python -m tasks.sharing`; each works until all tasks have ended.

The tests stop, continue and kill them. A line on the standard output tells when one is ready.
"""

from __future__ import annotations

import sys

import amistore
from amistore.tasks import runner

LEASE = 0.4


def main(root: str) -> None:
    runner.LEASE = LEASE  # type: ignore[misc]
    runner._HEARTBEAT = LEASE / 8  # type: ignore[misc]
    runner._PAUSE = 0.0  # type: ignore[misc]
    cloud = amistore.DirectoryBackend(root)
    with amistore.TaskEngine(cloud, workers=1, concurrency=2) as engine:
        print("ready", flush=True)
        while any(task.state == "InProgress" for task in tasks(engine)):
            engine.resume()
            for task in tasks(engine):
                try:
                    engine.wait(task)
                except amistore.AmistoreError as error:
                    print(task.task_id, type(error).__name__, error, flush=True)


def tasks(engine: amistore.TaskEngine) -> list[amistore.StoreImageTask | amistore.RestoreImageTask]:
    return [*engine.describe_store_image_tasks(), *engine.describe_restore_image_tasks()]


if __name__ == "__main__":
    main(sys.argv[1])
