"""The suite for every `ImageRegistry`; the fixture `registry` returns a `RegistryCase`.

A service that cannot keep an attribute overrides the test of it, and says so.
"""

# ruff: noqa: S101

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from amistore.backends import BlockStore, ImageRegistry
from amistore.errors import AlreadyExistsError, AmistoreError, NotFoundError
from amistore.model import BlockDeviceMapping, EbsBlockDevice, Image, ProductCode, Snapshot, Tag
from amistore.testing.snapshots import block, read_snapshot, store_snapshot

__all__ = ["ImageRegistryContract", "RegistryCase"]

_NO_NAMES = ["", "ab", "x" * 129, "größe", "line\nbreak", "ends\n", "nul\0", "semi;colon", "a\u2028b"]


@attrs.frozen(kw_only=True)
class RegistryCase:
    """A registry, and the store that holds its images' snapshots."""

    registry: ImageRegistry
    store: BlockStore


class ImageRegistryContract:
    """Images: registered, described, deregistered."""

    @pytest.fixture
    def registry(self) -> RegistryCase:
        """A registry and its block store."""
        raise NotImplementedError("override the fixture 'registry'")

    def test_keeps_every_attribute(self, registry: RegistryCase) -> None:
        image = _full_image(registry)
        image_id = registry.registry.register_image(image)
        described = registry.registry.describe_image(image_id)
        assert described == attrs.evolve(image, image_id=image_id)
        assert described.state == "available"
        assert [snapshot.state for snapshot in described.snapshots] == ["completed", "completed"]

    def test_describes_the_snapshots_of_its_mappings(self, registry: RegistryCase) -> None:
        image = _image(registry)
        described = registry.registry.describe_image(registry.registry.register_image(image))
        assert [snapshot.snapshot_id for snapshot in described.snapshots] == list(image.snapshot_ids)
        assert [snapshot.volume_size for snapshot in described.snapshots] == [1]

    def test_gives_a_new_id_each_time(self, registry: RegistryCase) -> None:
        image = _image(registry)
        ids = {registry.registry.register_image(image, name=f"copy-{number}") for number in range(3)}
        assert len(ids | {image.image_id}) == 4
        assert [each.image_id for each in registry.registry.describe_images()] == sorted(ids)

    def test_an_id_that_was_reserved_becomes_an_image_once(self, registry: RegistryCase) -> None:
        image = _image(registry)
        reserved = registry.registry.reserve_image_id()
        if reserved is None:
            pytest.skip("this registry gives ids with images")
        assert reserved != registry.registry.reserve_image_id()
        with pytest.raises(NotFoundError):
            registry.registry.describe_image(reserved)
        assert registry.registry.register_image(image, image_id=reserved) == reserved
        assert registry.registry.describe_image(reserved).name == image.name
        with pytest.raises(AlreadyExistsError):
            registry.registry.register_image(image, name="another", image_id=reserved)

    def test_the_name_is_that_of_the_image_unless_given(self, registry: RegistryCase) -> None:
        image = _image(registry)
        own = registry.registry.register_image(image)
        given = registry.registry.register_image(image, name="other [1] (2) ./-'@_")
        assert registry.registry.describe_image(own).name == image.name
        assert registry.registry.describe_image(given).name == "other [1] (2) ./-'@_"

    @pytest.mark.parametrize("name", _NO_NAMES)
    def test_a_name_that_breaks_the_rules_is_refused(self, registry: RegistryCase, name: str) -> None:
        image = _image(registry)
        with pytest.raises(AmistoreError):
            registry.registry.register_image(image, name=name)
        with pytest.raises(AmistoreError):
            registry.registry.register_image(attrs.evolve(image, name=name))
        assert registry.registry.describe_images() == []

    def test_an_image_without_a_name_needs_one(self, registry: RegistryCase) -> None:
        image = attrs.evolve(_image(registry), name=None)
        with pytest.raises(AmistoreError):
            registry.registry.register_image(image)
        registry.registry.register_image(image, name="given")

    @pytest.mark.parametrize("name", ["abc", "x" * 128])
    def test_names_of_the_least_and_most_length_are_taken(self, registry: RegistryCase, name: str) -> None:
        image_id = registry.registry.register_image(_image(registry), name=name)
        assert registry.registry.describe_image(image_id).name == name

    def test_a_name_that_is_taken_is_refused(self, registry: RegistryCase) -> None:
        image = _image(registry)
        image_id = registry.registry.register_image(image)
        with pytest.raises(AlreadyExistsError):
            registry.registry.register_image(image)
        assert [each.image_id for each in registry.registry.describe_images()] == [image_id]

    def test_the_name_of_a_deregistered_image_is_free(self, registry: RegistryCase) -> None:
        image = _image(registry)
        registry.registry.deregister_image(registry.registry.register_image(image))
        registry.registry.register_image(image)

    def test_one_of_many_racing_names_wins(self, registry: RegistryCase) -> None:
        image = _image(registry)
        threads = 16
        barrier = threading.Barrier(threads)

        def register(_: int) -> str | None:
            barrier.wait()
            try:
                return registry.registry.register_image(image)
            except AlreadyExistsError:
                return None

        with ThreadPoolExecutor(threads) as pool:
            won = [image_id for image_id in pool.map(register, range(threads)) if image_id]
        assert len(won) == 1
        assert [each.image_id for each in registry.registry.describe_images()] == won

    def test_an_image_of_an_unknown_snapshot_is_refused(self, registry: RegistryCase) -> None:
        with pytest.raises(AmistoreError):
            registry.registry.register_image(_of_snapshot("snap-00000000000000000"))
        assert registry.registry.describe_images() == []

    def test_an_image_of_a_pending_snapshot_is_refused(self, registry: RegistryCase) -> None:
        with pytest.raises(AmistoreError):
            registry.registry.register_image(_of_snapshot(registry.store.start_snapshot(1)))
        assert registry.registry.describe_images() == []

    def test_an_image_whose_root_device_is_a_partition_of_a_mapped_disk_is_registered(
        self, registry: RegistryCase
    ) -> None:
        image = attrs.evolve(_image(registry), root_device_name="/dev/xvda1")
        image_id = registry.registry.register_image(image)
        root = registry.registry.describe_image(image_id).root_mapping
        assert root is not None
        assert (root.device_name, root.ebs and root.ebs.snapshot_id) == ("/dev/xvda", image.snapshot_ids[0])

    def test_an_image_whose_root_device_has_no_mapping_is_refused(self, registry: RegistryCase) -> None:
        image = attrs.evolve(_image(registry), root_device_name="/dev/other")
        with pytest.raises(AmistoreError):
            registry.registry.register_image(image)
        assert registry.registry.describe_images() == []

    def test_deregistering_leaves_the_snapshots(self, registry: RegistryCase) -> None:
        image = _image(registry)
        image_id = registry.registry.register_image(image)
        registry.registry.deregister_image(image_id)
        with pytest.raises(NotFoundError):
            registry.registry.describe_image(image_id)
        assert registry.registry.describe_images() == []
        assert read_snapshot(registry.store, image.snapshot_ids[0]) == (1, {0: block(1)})

    @pytest.mark.parametrize("image_id", ["ami-00000000000000000", "", "../ec2", "ami-\0"])
    def test_an_unknown_image_is_not_found(self, registry: RegistryCase, image_id: str) -> None:
        with pytest.raises(NotFoundError):
            registry.registry.describe_image(image_id)
        with pytest.raises(NotFoundError):
            registry.registry.deregister_image(image_id)


def _of_snapshot(snapshot_id: str) -> Image:
    ebs = EbsBlockDevice(snapshot_id=snapshot_id, delete_on_termination=True)
    return Image(
        image_id="ami-0123456789abcdef0",
        name="web",
        root_device_name="/dev/xvda",
        block_device_mappings=(BlockDeviceMapping(device_name="/dev/xvda", ebs=ebs),),
    )


def _image(registry: RegistryCase) -> Image:
    return _of_snapshot(store_snapshot(registry.store, 1, {0: block(1)}))


def _full_image(registry: RegistryCase) -> Image:
    """An image with every attribute set: texts to their own name, the others to what they may be."""
    first, second = (store_snapshot(registry.store, size, {0: block(size)}) for size in (1, 2))
    values: dict[str, Any] = {
        field.name: f"the {field.name}: ä" for field in attrs.fields(Image) if field.name != "state"
    }
    return Image(
        **{
            **values,
            "image_id": "ami-0123456789abcdef0",
            "name": "full",
            "root_device_name": "/dev/xvda",
            "ena_support": False,
            "product_codes": (ProductCode(product_code_id="code", product_code_type="marketplace"),),
            "block_device_mappings": (
                BlockDeviceMapping(
                    device_name="/dev/xvda",
                    ebs=EbsBlockDevice(
                        snapshot_id=first,
                        volume_size=100,
                        volume_type="gp3",
                        iops=3000,
                        throughput=125,
                        delete_on_termination=False,
                        encrypted=True,
                        kms_key_id="key",
                        outpost_arn="arn",
                        extra={"NewInEbs": 1.5},
                    ),
                ),
                BlockDeviceMapping(device_name="/dev/xvdb", ebs=EbsBlockDevice(snapshot_id=second)),
                BlockDeviceMapping(device_name="/dev/xvdc", ebs=EbsBlockDevice(snapshot_id=first)),
                BlockDeviceMapping(device_name="/dev/xvdd", virtual_name="ephemeral0"),
                BlockDeviceMapping(device_name="/dev/xvde", no_device=""),
            ),
            "snapshots": (
                Snapshot(
                    snapshot_id=first,
                    volume_size=1,
                    description="first\nsnapshot",
                    tags=(Tag(key="aws:tag", value="ä"),),
                    extra={"NewInSnapshot": [None]},
                ),
                Snapshot(snapshot_id=second, volume_size=2, encrypted=True),
            ),
            "tags": (Tag(key="Name", value="web"), Tag(key="line\nbreak", value="x" * 256)),
            "extra": {"NewInImage": {"deep": [1, "x", True, None]}},
        }
    )
