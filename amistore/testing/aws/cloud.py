"""One account's view of one region: its snapshots and images, and how time moves them on."""

from __future__ import annotations

import datetime
import itertools
import random
import threading
from collections.abc import Mapping
from typing import Any

from amistore.testing.aws.behaviour import Behaviour
from amistore.testing.aws.clock import Clock
from amistore.testing.aws.content import Pool
from amistore.testing.aws.records import Image, Snapshot
from amistore.testing.aws.tokens import Tokens

__all__ = ["Cloud"]


class Cloud:
    """The state that the services share. Whoever reads or changes it holds `lock`."""

    def __init__(
        self, *, region: str, account_id: str, partition: str, clock: Clock, seed: int | None = None
    ) -> None:
        self.region = region
        self.account_id = account_id
        self.partition = partition
        self.clock = clock
        self.behaviour = Behaviour()
        self.lock = threading.RLock()
        self.pool = Pool()
        self.tokens = Tokens()
        self.snapshots: dict[str, Snapshot] = {}
        self.images: dict[str, Image] = {}
        self.deregistered: set[str] = set()
        self.started: dict[tuple[str, str], tuple[object, Snapshot]] = {}
        self._numbers = itertools.count(1)
        # Other ids in each region and account, with a seed too: who mixes them up is to notice.
        named = None if seed is None else f"{region} {account_id} {seed}"
        self._random = random.Random(named)  # noqa: S311 - names, not secrets

    def number(self) -> int:
        return next(self._numbers)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{self._random.getrandbits(68):017x}"

    def add_snapshot(self, snapshot_id: str, *, parent: Snapshot | None, **members: Any) -> Snapshot:
        """Put a snapshot into the account that begins now.

        Args:
            snapshot_id: that no other has.
            parent: whose lineage it is of.
            members: the others of `Snapshot`.
        """
        now = self.clock.now()
        self.snapshots[snapshot_id] = snapshot = Snapshot(
            number=self.number(),
            snapshot_id=snapshot_id,
            start_time=now,
            last_write=now,
            parent_snapshot_id=parent.snapshot_id if parent else None,
            lineage=frozenset({snapshot_id}) | (parent.lineage if parent else frozenset()),
            **members,
        )
        return snapshot

    def add_image(
        self,
        image_id: str,
        *,
        name: str,
        owner_id: str,
        root_device_name: str,
        members: Mapping[str, Any],
        **rest: Any,
    ) -> Image:
        """Put an image into the account that is made now.

        Args:
            image_id: that no other has.
            name, owner_id, root_device_name: its own.
            members: by their names in the XML; they go over those that an image of snapshots usually has.
            rest: the others of `Image`.
        """
        usual = {
            "imageLocation": f"{owner_id}/{name}",
            "imageType": "machine",
            "platformDetails": "Linux/UNIX",
            "usageOperation": "RunInstances",
            "hypervisor": "xen",
            "rootDeviceName": root_device_name,
            "rootDeviceType": "ebs",
        }
        self.images[image_id] = image = Image(
            number=self.number(),
            image_id=image_id,
            owner_id=owner_id,
            name=name,
            creation_time=self.clock.now(),
            members={**usual, **members},
            **rest,
        )
        return image

    @property
    def default_key(self) -> str:
        """ARN of the key that encrypts when none is named."""
        owner = f"arn:{self.partition}:kms:{self.region}:{self.account_id}"
        return self.behaviour.default_kms_key or f"{owner}:key/00000000-0000-4000-8000-000000000eb5"

    def settle(self, snapshot: Snapshot) -> None:
        """Let a pending snapshot become what its time has come for."""
        if snapshot.state != "pending":
            return
        now, behaviour = self.clock.now(), self.behaviour
        if snapshot.sealed is None:
            if now > snapshot.last_write + datetime.timedelta(minutes=snapshot.timeout):
                snapshot.state = "error"
                snapshot.state_message = "The snapshot was not completed before its timeout."
        elif now >= snapshot.sealed + datetime.timedelta(seconds=behaviour.completion_seconds):
            if snapshot.describes:
                return
            if behaviour.completion_failure is not None:
                snapshot.state, snapshot.state_message = "error", behaviour.completion_failure
            else:
                snapshot.state, snapshot.progress, snapshot.completion_time = "completed", 100, now

    def settle_image(self, image: Image) -> None:
        """Let a pending image become available or failed when its time has come."""
        due = image.creation_time + datetime.timedelta(seconds=self.behaviour.image_seconds)
        if image.state != "pending" or image.describes or self.clock.now() < due:
            return
        failure = self.behaviour.image_failure
        image.state, image.state_message = ("available", None) if failure is None else ("failed", failure)

    def is_missing(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot that was just started still "does not exist"."""
        if snapshot.missing_calls:
            snapshot.missing_calls -= 1
            return True
        return snapshot.missing_until is not None and self.clock.now() < snapshot.missing_until
