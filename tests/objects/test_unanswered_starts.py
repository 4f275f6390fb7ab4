"""A snapshot whose beginning got no answer is deleted with those that got one."""

from __future__ import annotations

from typing import Any

import images
import pytest

import amistore
from amistore.objects.relay import relay_snapshots
from amistore.pipeline.pack import plan_pack
from amistore.pipeline.snapshots import RestorePolicy

VOLUMES = [(1, {3: images.block(1)}), (1, {5: images.block(2)})]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), amistore.BackendError("cut", retryable=True)], ids=repr
)
@pytest.mark.parametrize("number", [0, 1])
def test_an_interrupt_or_a_cut_behind_the_beginning_of_a_snapshot_leaves_none(
    number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, backend = images.Volumes(VOLUMES), amistore.MemoryBackend()
    start = backend.ebs.start_snapshot
    begun: list[str] = []

    def cut(*arguments: Any, **options: Any) -> str:
        begun.append(start(*arguments, **options))
        if len(begun) == number + 1:
            raise error
        return begun[-1]

    monkeypatch.setattr(backend.ebs, "start_snapshot", cut)
    planned = plan_pack(images.image(source.volumes), source)
    with pytest.raises(type(error)):
        relay_snapshots(planned, source, backend.ebs, RestorePolicy(), workers=1, progress=lambda _: None)
    assert len(begun) == number + 2
    assert images.leftovers(backend) == []


def test_a_refused_beginning_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source, backend = images.Volumes(VOLUMES), amistore.MemoryBackend()
    asked: list[object] = []

    def refused(*arguments: Any, **options: Any) -> str:
        asked.append(arguments)
        raise amistore.AccessDeniedError("no")

    monkeypatch.setattr(backend.ebs, "start_snapshot", refused)
    planned = plan_pack(images.image(source.volumes), source)
    with pytest.raises(amistore.AccessDeniedError):
        relay_snapshots(planned, source, backend.ebs, RestorePolicy(), workers=1, progress=lambda _: None)
    assert len(asked) == 1
