"""EC2's interface: `ImageRegistry`, where images are described and registered.

As in `blocks.py`: any `BackendError` may be raised, any method called from several threads. An image's id is
``ami-`` and 8 or 17 hexadecimal digits; a method that takes one raises `NotFoundError` for an image that
is not registered, and for text of another form.
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
    """Where images are described and registered: EC2.

    Attributes:
        region_name: of the images, such as ``"us-gov-east-1"``; None where there are no Regions.
    """

    region_name: str | None = None

    def reserve_image_id(self) -> str | None:
        """An id that no image has, to be given to `register_image` later; None where ids come with images."""
        return None

    @abc.abstractmethod
    def describe_image(self, image_id: str) -> Image:
        """All that is known of an image, its snapshots' descriptions included.

        It is what was registered, but for the id; `fidelity` says where not.

        Raises:
            NotFoundError: no such image.
        """

    @abc.abstractmethod
    def describe_images(self) -> list[Image]:
        """Every image of the account, by id."""

    @abc.abstractmethod
    def register_image(self, image: Image, *, name: str | None = None, image_id: str | None = None) -> str:
        """Register an image like `image`, whose snapshots must be there and completed, under a new id.

        An image that is refused leaves none. Of several calls with one name at once, one succeeds.

        Args:
            image: such as `amistore.unpack` returns.
            name: its name, 3 to 128 letters, digits or characters of ``()[] ./-'@_``; None for that of
                `image`. Names are unique; that of a deregistered image is free.
            image_id: one that `reserve_image_id` gave.

        Raises:
            AlreadyExistsError: the name is taken, or the id is an image's.
            AmistoreError: of any kind, there is no such name, a snapshot is not there or pending, or the root
                device has no mapping.
        """

    def dry_run_register_image(self, image: Image, *, name: str | None = None) -> None:
        """Find out, before its snapshots are made, whether `register_image` would be permitted.

        Override it where that can be asked.

        Args:
            image: such as that of an archive, with its old snapshots.
            name: as in `register_image`.

        Raises:
            AccessDeniedError: it would not.
        """

    @abc.abstractmethod
    def deregister_image(self, image_id: str) -> None:
        """Remove an image; its snapshots stay.

        Raises:
            NotFoundError: no such image.
        """

    def find_images(self, name: str) -> list[Image]:
        """The account's images of that name: one at most, since names are unique.

        Override it where that is cheaper than a list of all.
        """
        return [image for image in self.describe_images() if image.name == name]

    def finish_registration(self, image_id: str, image: Image) -> None:
        """Do what registering does after the image has its id; doing it again is fine.

        `register_image` has done it when it returns. It is for a caller who lost the answer and
        found its image by `find_images`.

        Args:
            image_id: of the registered image.
            image: what it was registered from.

        Raises:
            BackendError: the image went into a state from which it does not become available.
        """

    def fidelity(self, image: Image, *, name: str | None = None) -> tuple[AttributeReport, ...]:
        """What restoring and registering an image here keeps, drops or remaps: each of its attributes once.

        Override it where not everything is kept.

        Args:
            image: such as that of an archive.
            name: as in `register_image`.
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
