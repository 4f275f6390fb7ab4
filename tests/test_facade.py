"""What the package shows of itself: its names, help and reprs."""

from __future__ import annotations

import inspect
import pydoc
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

import amistore


def test_dir_has_every_public_name_and_no_other() -> None:
    lazy = {"AWSBackend", "ObjectSettings", "SnapshotSettings"}
    modules = {"backends", "ec2", "model", "pipeline"}
    assert set(dir(amistore)) == {*amistore.__all__, *lazy, *modules, "__version__"}
    assert all(hasattr(amistore, name) for name in dir(amistore))


def test_help_works_without_what_the_lazy_names_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert "AWSBackend" not in dir(amistore)
    assert "store(image" in pydoc.render_doc(amistore, renderer=pydoc.plaintext)


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


def named(hint: object) -> Iterator[type]:
    """The classes that an annotation names."""
    for each in typing.get_args(hint):
        yield from named(each)
    if isinstance(hint, (list, tuple)):  # a Callable's parameters
        for each in hint:
            yield from named(each)
    found = typing.get_origin(hint) or hint
    if isinstance(found, type):
        yield found


def test_every_class_that_a_public_signature_names_can_be_imported_from_a_package() -> None:
    packages = ("", ".archive", ".backends", ".disks", ".model", ".objects", ".pipeline", ".tasks")
    public = {
        getattr(package, name)
        for package in (sys.modules[f"amistore{each}"] for each in packages)
        for name in package.__all__
        if isinstance(getattr(package, name), type)
    }
    hidden = set()
    for name in amistore.__all__:
        value = getattr(amistore, name)
        calls = [value] if inspect.isfunction(value) else []
        if isinstance(value, type):
            calls = [
                call for verb, call in vars(value).items() if verb[0] != "_" and inspect.isfunction(call)
            ]
        for call in filter(inspect.isfunction, calls):
            for hint in typing.get_type_hints(call).values():
                ours = {each for each in named(hint) if each.__module__.startswith("amistore")}
                hidden |= {f"{name}: {each.__qualname__}" for each in ours - public}
    assert hidden == set()


def test_there_are_at_most_47_public_names_beside_the_errors() -> None:
    errors = {name for name in amistore.__all__ if name.endswith("Error")}
    modules = {"backends", "ec2", "model", "pipeline"}
    assert len(set(dir(amistore)) - errors - modules - {"__version__"}) <= 47
