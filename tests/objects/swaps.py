"""A store whose object is replaced as soon as it is there, or before any later call."""

from __future__ import annotations

from typing import Any

import attrs
import images

import amistore
from amistore.backends import Backend

BUCKET, KEY = "archive", "web.bin"
GOOD = {0: images.noise(1), 5: images.noise(2)}
EVIL = {0: images.noise(1), 5: images.noise(3)}


def registered(cloud: Backend) -> str:
    """An AMI of one snapshot."""
    return cloud.ec2.register_image(images.image([images.snapshot(cloud.ebs, 1, GOOD)]))


def twin(cloud: Backend, image_id: str) -> tuple[bytes, bytes]:
    """What packing an AMI gives, and what it would with one block replaced: same plan, same size."""
    image = cloud.ec2.describe_image(image_id)
    made = []
    for blocks in (GOOD, EVIL):
        given = images.Volumes([])
        given.volumes = {image.snapshot_ids[0]: (1, blocks)}
        made.append(b"".join(amistore.pack(image, given)))
    assert len(made[0]) == len(made[1])
    return made[0], made[1]


def put_in_place(service: object, verb: str, call: Any) -> None:
    """Have `call` called for a service's verb, whose errors are told as those of any class."""
    method = {verb: lambda self, *arguments, **options: call(*arguments, **options)}
    object.__setattr__(service, "__class__", type(type(service).__name__, (type(service),), method))


@attrs.define
class Swap:
    """Replaces an object when calls of a store come, the completion of an object's upload being call 0.

    Attributes:
        store: whose calls are watched.
        evil: what takes the object's place.
        at: behind the completion, or before this call after it.
        key, bucket: of the object.
        copied: whether it takes the object's metadata, too, as who can read it can.
        etag: that the completion gave.
        pins: ETags that later reads asked for.
        calls: so many came after the completion; None before it.
    """

    store: amistore.backends.ObjectStore
    evil: bytes
    at: int
    copied: bool
    key: str = KEY
    bucket: str = BUCKET
    calls: int | None = None
    etag: str = ""
    pins: set[str | None] = attrs.field(factory=set)
    _busy: bool = False

    def __attrs_post_init__(self) -> None:
        for verb in dir(amistore.backends.ObjectStore):
            if not verb.startswith("_") and callable(getattr(self.store, verb)):
                put_in_place(self.store, verb, self._watched(verb, getattr(self.store, verb)))

    def _watched(self, verb: str, call: Any) -> Any:
        def watched(*arguments: Any, **options: Any) -> Any:
            if self._busy:
                return call(*arguments, **options)
            if self.calls is not None:
                self.calls += 1
                if self.calls == self.at:
                    self.replace()
                if verb == "get_object_range":
                    self.pins.add(options.get("if_match"))
            answer = call(*arguments, **options)
            if verb == "complete_multipart_upload" and self.calls is None:
                self.calls = 0
                self.etag = answer.etag
                if not self.at:
                    self.replace()
            return answer

        return watched

    def replace(self) -> None:
        """Put the other object there."""
        self._busy = True
        metadata = self.store.head_object(self.bucket, self.key).metadata if self.copied else None
        self.store.put_object(self.bucket, self.key, [self.evil], metadata=metadata)
        self._busy = False
