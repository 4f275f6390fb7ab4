"""`abandon` proves by client token, and by its facts, that a pending snapshot is the run's: on AWS, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import images
import pytest

import amistore
from amistore.testing.aws import FakeAWS


@pytest.mark.parametrize("verb", ["put_snapshot_block", "start_snapshot"])
def test_a_restore_whose_snapshots_have_tags_of_two_sources_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    volumes = images.Volumes([(1, {index: images.block(index + 1) for index in range(9)})])
    described = amistore.Snapshot(
        snapshot_id=next(iter(volumes.volumes)),
        volume_size=1,
        description="of a disk",
        tags=(amistore.Tag(key="Alpha"), amistore.Tag(key="Zed", value="z")),
    )
    image = images.image(volumes.volumes, snapshots=(described,))
    stored = amistore.store(image, volumes, tmp_path / "web.bin")
    with FakeAWS() as fake:
        options = fake.client_options()
        url = options.pop("endpoint_url")
        cloud = amistore.AWSBackend(
            boto3.Session(**options),
            endpoint_urls={"ebs": url, "ec2": url},
            snapshots=amistore.SnapshotSettings(tags=(amistore.Tag(key="Cost", value="1"),)),
        )

        call = getattr(cloud.ebs, verb)

        def cut(*arguments: Any, **options: Any) -> None:
            call(*arguments, **options)
            raise amistore.BackendError("cut")

        with monkeypatch.context() as patch, pytest.raises(amistore.BackendError, match="cut"):
            patch.setattr(cloud.ebs, verb, cut)
            amistore.unpack(stored.location, cloud.ebs, log=tmp_path / "log")
        assert len(fake.snapshots) == 1
        amistore.abandon(tmp_path / "log", cloud)
        assert len(fake.snapshots) == 0
    assert not (tmp_path / "log").exists()
