"""Images as files: ``<image id>.json``, a manifest each."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from amistore.backends import checks
from amistore.backends.base import ImageRegistry
from amistore.backends.directory import files
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.errors import AlreadyExistsError, NotFoundError
from amistore.model import Image
from amistore.model.fields import from_wire, to_wire

__all__ = ["DirectoryEC2"]

_ID = re.compile(r"ami-[0-9a-f]{8,17}")


@attrs.frozen
class DirectoryEC2(ImageRegistry):
    """EC2 in the folder `root`; `ebs` holds the snapshots that images name."""

    root: Path
    ebs: DirectoryEBS

    def describe_image(self, image_id: str) -> Image:
        members = None
        if isinstance(image_id, str) and _ID.fullmatch(image_id):
            with files.operation("describe_image", image_id=image_id):
                members = files.read_json(self.root / f"{image_id}.json")
        if members is None:
            raise NotFoundError("no such image", operation="describe_image", image_id=image_id)
        return from_wire(Image, members)

    def describe_images(self) -> list[Image]:
        return [self.describe_image(path.stem) for path in sorted(self.root.glob("ami-*.json"))]

    def register_image(self, image: Image, *, name: str | None = None) -> str:
        registered = checks.new_image(image, name, self.ebs.describe)
        with files.operation("register_image"), files.locked(self.root):
            if any(other.name == registered.name for other in self.describe_images()):
                raise AlreadyExistsError(f"an image named {registered.name!r} exists: give another name")
            files.write_json(self.root / f"{registered.image_id}.json", to_wire(registered))
        return registered.image_id

    def deregister_image(self, image_id: str) -> None:
        self.describe_image(image_id)
        with files.operation("deregister_image", image_id=image_id):
            (self.root / f"{image_id}.json").unlink()
            files.sync_directory(self.root)
