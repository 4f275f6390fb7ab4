"""EC2's interface: `ImageRegistry`, where images are described and registered.

As in `blocks.py`, a method may raise any `BackendError` and may be called from several threads. An image's
id is ``ami-`` and 8 or 17 hexadecimal digits; a method that takes one raises `NotFoundError` for an image
that is not registered, and for text of another form.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Final

from amistore.backends.interface import Interface
from amistore.model import AttributeReport, Fate, Image
from amistore.model.fidelity import Leaf, report

__all__ = ["ImageRegistry"]


class ImageRegistry(Interface):
    """A registry of images: EC2.

    Attributes:
        region_name: the images' Region, such as ``"us-gov-east-1"``; None where there are no Regions.
    """

    region_name: str | None = None

    def reserve_image_id(self) -> str | None:
        """Reserve an unused id for a later `register_image`; None where only registering gives ids."""
        return None

    @abc.abstractmethod
    def describe_image(self, image_id: str) -> Image:
        """Describe an image, its snapshots included.

        The description equals what was registered, except for the id and what `fidelity` names.

        Raises:
            NotFoundError: no such image.
        """

    @abc.abstractmethod
    def describe_images(self) -> list[Image]:
        """All images of the account, by id."""

    @abc.abstractmethod
    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        """Register an image like `image`, on existing, completed snapshots, under a new id.

        A refused call registers nothing. Of several simultaneous calls with one name, one succeeds.

        Args:
            image: the image to register, such as `amistore.unpack` returns.
            name: the new image's name, 3 to 128 letters, digits or characters of ``()[] ./-'@_``; None for
                that of `image`. Names are unique; the name of a deregistered image is free.
            image_id: an id from `reserve_image_id`; None for a new one.

        Raises:
            AlreadyExistsError: an image has the name or the id.
            AmistoreError: the name breaks the rules, a snapshot is missing or pending, or the root device has
                no mapping; any class will do.
        """

    def dry_run_register_image(self, image: Image, *, name: str | None = None) -> None:
        """Check, before an image's snapshots are made, whether `register_image` would be permitted.

        Override it where that can be asked.

        Args:
            image: the image to register, on its old snapshots, such as an archive's.
            name: the new image's name; None for that of `image`.

        Raises:
            AccessDeniedError: registering is not permitted.
        """

    @abc.abstractmethod
    def deregister_image(self, image_id: str) -> None:
        """Remove an image; its snapshots stay.

        Raises:
            NotFoundError: no such image.
        """

    def find_images(self, name: str) -> list[Image]:
        """The account's images of that name: one at most, since names are unique.

        Override it where that is cheaper than listing all images.
        """
        return [image for image in self.describe_images() if image.name == name]

    def finish_registration(self, image_id: str, image: Image) -> None:
        """Do the steps of registering that follow the image's id; a second call does no harm.

        `register_image` has done them when it returns. This is for a caller who lost its answer and found the
        image by `find_images`.

        Args:
            image_id: the registered image's id.
            image: the image that was given to `register_image`.

        Raises:
            BackendError: the image went into a state from which it does not become available.
        """

    def fidelity(self, image: Image, *, name: str | None = None) -> tuple[AttributeReport, ...]:
        """What restoring and registering an image here keeps, drops or remaps: each of its attributes once.

        Override it where not everything is kept.

        Args:
            image: the image to register, such as an archive's.
            name: the new image's name; None for that of `image`.
        """

        def fate(leaf: Leaf) -> tuple[Fate, str]:
            if leaf.name in _NEW_IDS:
                return Fate.REMAPPED, _NEW_IDS[leaf.name]
            if leaf.name == "name" and name not in (None, leaf.value):
                return Fate.REMAPPED, "another name was given"
            return Fate.KEPT, ""

        return report(image, fate)


_NEW_IDS: Final[Mapping[str, str]] = {
    "image_id": "every image gets an id of its own",
    "block_device_mappings.ebs.snapshot_id": "restoring makes new snapshots",
    "snapshots.snapshot_id": "restoring makes new snapshots",
}
