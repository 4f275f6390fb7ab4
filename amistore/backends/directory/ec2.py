"""Images as files: ``<image id>.json`` holds an image's members, as in a manifest."""

from __future__ import annotations

from pathlib import Path

import attrs

from amistore.backends import checks, files
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.images import ImageRegistry
from amistore.backends.locking import FileLock
from amistore.errors import BackendError, NotFoundError
from amistore.model import Image
from amistore.model.fields import to_wire

__all__ = ["DirectoryEC2"]


@attrs.frozen
class DirectoryEC2(ImageRegistry):
    """EC2 in the folder `root`; `ebs` has the snapshots that images name."""

    root: Path
    ebs: DirectoryEBS

    def describe_image(self, image_id: str) -> Image:
        with files.operation("describe_image", image_id=image_id):
            checks.check_image_id(image_id)
            image = self._read(image_id)
            if image is None:
                raise NotFoundError("no such image")
            return image

    def describe_images(self) -> list[Image]:
        with files.operation("describe_images"):
            found = [self._read(path.stem) for path in sorted(self.root.glob("ami-*.json"))]
        # None is a file of another kind, or one that has just gone.
        return [image for image in found if image is not None]

    def find_images(self, name: str) -> list[Image]:
        with files.operation("find_images"):
            ids = sorted(path.stem for path in self.root.glob("ami-*.json") if checks.is_image_id(path.stem))
            named = [each for each in ids if (files.read_json(self._path(each)) or {}).get("Name") == name]
            found = [self._read(each) for each in named]
        return [image for image in found if image is not None]

    def reserve_image_id(self) -> str | None:
        return checks.new_id("ami")

    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        with files.operation("register_image", path=self.root):
            registered = self.prepare_image(image, name=name, image_id=image_id)
            with FileLock(self.root):
                checks.check_untaken(registered, self.describe_images())
                files.write_json(self._path(registered.image_id), to_wire(registered))
        return registered.image_id

    def prepare_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> Image:
        """The image that `register_image` would register, or its error; nothing is changed."""
        registered = checks.new_image(image, name, self.ebs.describe_snapshot, image_id)
        checks.check_untaken(registered, self.describe_images())
        return registered

    def deregister_image(self, image_id: str) -> None:
        with files.operation("deregister_image", image_id=image_id):
            checks.check_image_id(image_id)
            try:
                self._path(image_id).unlink()
            except FileNotFoundError:
                raise NotFoundError("no such image") from None
            files.sync_directory(self.root)

    def _read(self, image_id: str) -> Image | None:
        if not checks.is_image_id(image_id):
            return None
        image = files.read_value(self._path(image_id), Image)
        if image is not None and image.image_id != image_id:
            raise BackendError(f"{self._path(image_id)} is damaged: it describes {image.image_id}")
        return image

    def _path(self, image_id: str) -> Path:
        return self.root / f"{image_id}.json"
