"""A notebook that is run by a kernel of its own: what its cells show, and what nbconvert makes of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
nbconvert = pytest.importorskip("nbconvert")
pytest.importorskip("ipywidgets")

SETUP = """
import logging
import amistore
cloud = amistore.DirectoryBackend("cloud")
with open("disk.raw", "wb") as disk:
    disk.write(b"boot" * 262_144)
image_id = amistore.import_disks("disk.raw", cloud, name="web (b)").image_id
cloud.s3.create_bucket("archive")
here = cloud.s3.at("archive", "web.bin")
engine = amistore.TaskEngine(cloud)
"""


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *cells: str) -> Any:
    """The notebook, with the outputs of these cells."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *cells)]
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
    return notebook


def test_a_bar_in_a_notebook_is_shown_once_and_log_lines_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = run(
        tmp_path,
        monkeypatch,
        "pieces = amistore.pack(cloud.ec2.describe_image(image_id), cloud.ebs, progress=True)\n"
        "next(pieces)\nlogging.getLogger('amistore').warning('told')\nfor piece in pieces: pass",
        "task = engine.create_store_image_task(image_id=image_id, bucket='archive')\n"
        "task = engine.wait(task, progress=True)",
    )
    widgets = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    bars = [each["state"] for each in widgets if each["model_name"] == "FloatProgressModel"]
    texts = "".join(each["state"]["value"] for each in widgets if each["model_name"] == "HTMLModel")
    assert [bar["bar_style"] for bar in bars] == ["success"] * 3  # of listing, packing and the task
    assert "█" not in texts and "#" not in texts  # of a bar of characters, beside the widget
    assert texts.count("100%") == 2 and "B/s]" in texts
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert [each["text"] for each in outputs if each.output_type == "stream"] == ["told\n"]


def test_what_is_looked_at_is_a_table_after_nbconvert_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = run(
        tmp_path,
        monkeypatch,
        "image = cloud.ec2.describe_image(image_id)\nimage",
        "engine.plan_store(image_id=image_id, bucket='archive')",
        "task = engine.wait(engine.create_store_image_task(image_id=image_id, bucket='archive'))\ntask",
        "archive = amistore.open(cloud.s3.at('archive', task.object_key))\narchive",
        "archive.verify()",
        "archive.compare(cloud.ebs)",
    )
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    for row in ("root device", "quota", "purpose", "architecture", "verdict", "comparison"):
        assert f'<tr><th style="text-align:left">{row}</th>' in page.replace(
            "'text-align:left'", '"text-align:left"'
        )
    text, _ = nbconvert.MarkdownExporter().from_notebook_node(notebook)
    assert text.count("<table>") >= 6
