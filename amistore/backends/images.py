"""EC2's interface: `ImageRegistry`, where images are described and registered."""

from __future__ import annotations

import abc

from amistore.model import Image

__all__ = ["ImageRegistry"]


class ImageRegistry(abc.ABC):
    """Where images are described and registered: EC2."""

    @abc.abstractmethod
    def describe_image(self, image_id: str) -> Image:
        """All that is known of an image, its snapshots' descriptions included.

        Raises:
            NotFoundError: no such image.
        """

    @abc.abstractmethod
    def describe_images(self) -> list[Image]:
        """Every image of the account, by id."""

    @abc.abstractmethod
    def register_image(self, image: Image, *, name: str | None = None) -> str:
        """Register an image like `image`, whose snapshots must be there and completed, under a new id.

        Args:
            image: such as `amistore.unpack` returns.
            name: its name; None for that of `image`. Names are unique.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidRequestError: the image cannot be registered as it is.
        """

    @abc.abstractmethod
    def deregister_image(self, image_id: str) -> None:
        """Remove an image; its snapshots stay."""
