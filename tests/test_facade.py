"""What the package shows of itself: its names, help and reprs."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import boto3

import amistore


def test_dir_has_every_public_name_and_no_other() -> None:
    lazy = {"AWSBackend", "ObjectSettings", "SnapshotSettings", "ec2"}
    assert set(dir(amistore)) == {*amistore.__all__, *lazy, "__version__"}
    assert all(hasattr(amistore, name) for name in dir(amistore))


def test_help_calls_open_by_its_public_name() -> None:
    help_text = pydoc.render_doc(amistore.open, renderer=pydoc.plaintext)
    assert re.search(r"\nopen\(\s*what", help_text)


def test_a_backend_and_its_parts_say_shortly_what_they_are(tmp_path: Path) -> None:
    memory, directory = amistore.MemoryBackend(), amistore.DirectoryBackend(tmp_path)
    session = boto3.Session("AKIDEXAMPLE", "canary", "canary", region_name="us-east-2")
    aws = amistore.AWSBackend(session)
    mixed = amistore.Backend(ebs=directory.ebs, s3=directory.s3, ec2=directory.ec2)
    assert repr(memory) == "MemoryBackend()"
    assert repr(directory) == f"DirectoryBackend({str(tmp_path)!r})"
    assert repr(aws) == "AWSBackend(region_name='us-east-2')"
    assert repr(amistore.RetryingBackend(memory)) == "RetryingBackend(MemoryBackend())"
    assert repr(mixed).startswith(f"Backend(ebs={directory.ebs!r}, s3=")
    for part in (aws.ebs, aws.s3, aws.ec2):
        assert "us-east-2" in repr(part) and "canary" not in repr(part) and " at 0x" not in repr(part)
