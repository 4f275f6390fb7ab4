"""The journal's files: shared, linked, removed, damaged, of another place or another user."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tasks.accounts import BUCKET, account, registered

import amistore
from amistore import DirectoryBackend, TaskEngine


def elsewhere(program: str, *arguments: object) -> str:
    """What a program says in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"import sys, amistore\n{program}", *map(str, arguments)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


LISTED = """
cloud = amistore.DirectoryBackend(sys.argv[1])
with amistore.TaskEngine(cloud) as engine:
    print(*(task.task_id for task in engine.describe_store_image_tasks()))
"""


def test_a_second_engine_of_a_process_does_not_cost_the_first_its_locks(tmp_path: Path) -> None:
    """A process that then opens and closes the journal would remove the write-ahead log under both."""
    cloud = DirectoryBackend(tmp_path)
    cloud.s3.create_bucket(BUCKET)
    with TaskEngine(cloud) as engine, TaskEngine(cloud):
        assert elsewhere(LISTED, tmp_path) == "\n"
        task = engine.create_store_image_task(image_id=registered(cloud), bucket=BUCKET)
        assert elsewhere(LISTED, tmp_path).split() == [task.task_id]
        engine.wait()
