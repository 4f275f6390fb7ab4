"""The manifest is lossless, canonical, and refuses everything else with a typed error."""

from __future__ import annotations

import json
import random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amistore
from amistore.model import decode_manifest, encode_manifest
from amistore.testing.strategies import images

AMI = "ami-0123456789abcdef0"
SNAP = "snap-0123456789abcdef0"
MINIMAL = {"ImageId": AMI, "ManifestVersion": "1.0"}


def canonical(members: object) -> bytes:
    return json.dumps(members, ensure_ascii=False, sort_keys=True, indent=2).encode() + b"\n"


def full() -> amistore.Image:
    """Every attribute of every value is set."""

    def value(kind, **members):
        by_type = {"str | None": "ä\n", "int | None": 7, "bool | None": False}
        values = {f.name: by_type[f.type] for f in attrs.fields(kind) if f.type in by_type}
        return kind(**{**values, "extra": {f"NewIn{kind.__name__}": [1, None]}, **members})

    tag = value(amistore.Tag, key="key")
    ebs = value(amistore.EbsBlockDevice, snapshot_id=SNAP)
    return value(
        amistore.Image,
        image_id=AMI,
        product_codes=(value(amistore.model.ProductCode, product_code_id="code"),),
        block_device_mappings=(value(amistore.BlockDeviceMapping, device_name="/dev/sda", ebs=ebs),),
        snapshots=(value(amistore.Snapshot, snapshot_id=SNAP, tags=(tag,)),),
        tags=(tag,),
    )


@given(images())
def test_an_image_survives_writing_and_reading(image):
    manifest = encode_manifest(image)
    assert decode_manifest(manifest) == image
    assert encode_manifest(decode_manifest(manifest)) == manifest


def test_no_attribute_is_lost():
    image = full()
    assert decode_manifest(encode_manifest(image)) == image
    members = json.loads(encode_manifest(image))
    unwritten = (
        {"ManifestVersion", "NewInImage"}
        ^ set(members)
        ^ {
            "".join(word.capitalize() for word in field.name.split("_"))
            for field in attrs.fields(amistore.Image)
        }
    )
    assert unwritten == {"State", "Extra"}


def test_the_bytes_of_a_manifest_never_change():
    tag = amistore.Tag(key="größe", value='"')
    image = amistore.Image(image_id=AMI, name="web", ena_support=True, tags=(tag,))
    assert encode_manifest(image).decode() == (
        "{\n"
        '  "EnaSupport": true,\n'
        f'  "ImageId": "{AMI}",\n'
        '  "ManifestVersion": "1.0",\n'
        '  "Name": "web",\n'
        '  "Tags": [\n'
        "    {\n"
        '      "Key": "größe",\n'
        '      "Value": "\\""\n'
        "    }\n"
        "  ]\n"
        "}\n"
    )


def test_what_a_newer_minor_version_says_is_written_back():
    members = json.loads(encode_manifest(full()))
    members["ManifestVersion"] = "1.7"
    for each in (
        members,
        members["BlockDeviceMappings"][0],
        members["BlockDeviceMappings"][0]["Ebs"],
        members["ProductCodes"][0],
        members["Snapshots"][0],
        members["Snapshots"][0]["Tags"][0],
        members["Tags"][0],
    ):
        each["Newer"] = {"text": "ä", "list": [1, 2.5, None, True, {}], "": ""}
    image = decode_manifest(canonical(members))
    assert encode_manifest(image) == canonical(members)
    assert encode_manifest(image.with_snapshots({SNAP: "snap-00000000"})).count(b'"Newer"') == 7


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "2.1"])
def test_another_major_version_is_unsupported(version):
    with pytest.raises(amistore.UnsupportedArchiveError, match=version):
        decode_manifest(canonical({**MINIMAL, "ManifestVersion": version, "Unknown": [1]}))


@pytest.mark.parametrize(
    "version", ["", "1", "1.", "1.00", "01.0", "1.0.0", "1.-1", " 1.0", "1.0\n", "１.0", None, 1.0, []]
)
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(amistore.CorruptArchiveError):
        decode_manifest(canonical({**MINIMAL, "ManifestVersion": version}))


@pytest.mark.parametrize("version", ["1.0", "2.0", "x", None, 5])
def test_a_version_that_nobody_could_read_is_not_written(version):
    image = amistore.Image(image_id=AMI, extra={"ManifestVersion": version})
    with pytest.raises(amistore.InvalidValueError):
        encode_manifest(image)


CORRUPT = {
    "empty": b"",
    "not UTF-8": canonical(MINIMAL).replace(b"ami-", b"ami\xff"),
    "UTF-16": canonical(MINIMAL).decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + canonical(MINIMAL),
    "not JSON": b"{",
    "a list": b"[]\n",
    "a string": b'"ami"\n',
    "null": b"null\n",
    "without a version": canonical({"ImageId": AMI}),
    "without an id": canonical({"ManifestVersion": "1.0"}),
    "without the final newline": canonical(MINIMAL)[:-1],
    "two newlines": canonical(MINIMAL) + b"\n",
    "junk behind": canonical(MINIMAL) + b"{}",
    "other indent": json.dumps(MINIMAL, sort_keys=True).encode() + b"\n",
    "other order": json.dumps(dict(reversed(MINIMAL.items())), indent=2).encode() + b"\n",
    "carriage returns": canonical(MINIMAL).replace(b"\n", b"\r\n"),
    "escaped": canonical(MINIMAL).replace(b"ami-", b"\\u0061mi-"),
    "duplicate key": canonical(MINIMAL).replace(b"{\n", b'{\n  "ImageId": "ami-01234567",\n'),
    "duplicate unknown key": canonical({**MINIMAL, "New": {"a": 1}}).replace(b": 1", b': 1,\n    "a": 1'),
    "null member": canonical({**MINIMAL, "Name": None}),
    "empty list": canonical({**MINIMAL, "Tags": []}),
    "list as text": canonical({**MINIMAL, "Tags": ""}),
    "list as object": canonical({**MINIMAL, "Tags": {}}),
    "list of nulls": canonical({**MINIMAL, "Tags": [None]}),
    "list of lists": canonical({**MINIMAL, "Tags": [[]]}),
    "list of texts": canonical({**MINIMAL, "Tags": ["a"]}),
    "tags out of order": canonical({**MINIMAL, "Tags": [{"Key": key, "Value": ""} for key in "ba"]}),
    "same tag twice": canonical({**MINIMAL, "Tags": [{"Key": "a", "Value": ""}] * 2}),
    "tag without key": canonical({**MINIMAL, "Tags": [{"Value": "a"}]}),
    "tag without value": canonical({**MINIMAL, "Tags": [{"Key": "a"}]}),
    "mapping of a list": canonical({**MINIMAL, "BlockDeviceMappings": [{"DeviceName": "a", "Ebs": []}]}),
    "number as name": canonical({**MINIMAL, "Name": 5}),
    "text as flag": canonical({**MINIMAL, "EnaSupport": "true"}),
    "state": canonical({**MINIMAL, "State": "available"}),
    "state of no type": canonical({**MINIMAL, "State": []}),
    "extra": canonical({**MINIMAL, "Snapshots": [{"SnapshotId": SNAP, "Tags": [{"Key": 1}]}]}),
    "lone surrogate": canonical({**MINIMAL, "Name": "x"}).replace(b'"x"', b'"\\ud800"'),
    "lone surrogate in a name": canonical({**MINIMAL, "x": 1}).replace(b'"x"', b'"\\ud800"'),
    "raw lone surrogate": canonical({**MINIMAL, "Name": "x"}).replace(b'"x"', b'"\xed\xa0\x80"'),
    "NaN": canonical({**MINIMAL, "New": float("nan")}),
    "Infinity": canonical({**MINIMAL, "New": [float("inf")]}),
    "-Infinity": canonical({**MINIMAL, "Name": float("-inf")}),
    "number beyond floats": canonical({**MINIMAL, "New": 0}).replace(b": 0", b": 1e999"),
    "number of many digits": canonical({**MINIMAL, "New": 0}).replace(b": 0", b": " + b"9" * 100_000),
    "float of many digits": canonical({**MINIMAL, "New": 0}).replace(b": 0", b": 0." + b"9" * 100_000),
    "other float": canonical({**MINIMAL, "New": 1.5}).replace(b"1.5", b"1.50"),
    "huge size": canonical({**MINIMAL, "Snapshots": [{"SnapshotId": SNAP, "VolumeSize": 10**30}]}),
    "deep lists": b"[" * 100_000,
    "deep closed lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep member": canonical({**MINIMAL, "New": 0}).replace(b": 0", b": " + b"[" * 100_000 + b"]" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("manifest", CORRUPT.values(), ids=CORRUPT)
def test_anything_else_is_corrupt(manifest):
    with pytest.raises(amistore.CorruptArchiveError) as caught:
        decode_manifest(manifest)
    assert caught.value.record == "manifest"
    assert len(str(caught.value)) < 500


def deep(levels: int) -> object:
    value: object = 0
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_limited_alike_wherever_it_is_read():
    """Not by the interpreter's stack, of which a caller may have used much."""

    def at_depth(calls: int) -> amistore.Image:
        return at_depth(calls - 1) if calls else decode_manifest(canonical({**MINIMAL, "New": deep(49)}))

    assert at_depth(0) == at_depth(600)
    with pytest.raises(amistore.CorruptArchiveError):
        decode_manifest(canonical({**MINIMAL, "New": deep(50)}))


SEED = encode_manifest(full())


@settings(max_examples=400)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_a_mutated_manifest_is_refused_or_still_canonical(rng: random.Random, mutations: int):
    manifest = bytearray(SEED)
    for _ in range(mutations):
        place = rng.randrange(len(manifest))
        end = min(len(manifest), place + rng.randrange(1, 20))
        other = rng.randrange(len(manifest))
        mutation = rng.randrange(5)
        if mutation == 0:
            manifest[place] = rng.randrange(256)
        elif mutation == 1:
            del manifest[place:end]
        elif mutation == 2:
            manifest[place:place] = rng.choice(
                [b"null", b"[", b"{", b'"', b",", b"\\u0000", b"1e9", b"-", b"\xff"]
            )
        elif mutation == 3:
            manifest[place:place] = manifest[other : other + rng.randrange(40)]
        else:
            manifest[place:end] = manifest[other : other + end - place]
    try:
        image = decode_manifest(bytes(manifest))
    except amistore.ArchiveError:
        return
    assert encode_manifest(image) == manifest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.data())
def test_a_member_of_any_type_is_taken_losslessly_or_refused(data):
    members = json.loads(SEED)
    places = [members, members["BlockDeviceMappings"][0], members["BlockDeviceMappings"][0]["Ebs"]]
    places += [members["Snapshots"][0], members["Tags"][0], members["ProductCodes"][0]]
    place = data.draw(st.sampled_from(places))
    name = data.draw(st.sampled_from(sorted(place)))
    place[name] = data.draw(json_values)
    manifest = canonical(members)
    try:
        image = decode_manifest(manifest)
    except amistore.ArchiveError:
        return
    assert encode_manifest(image) == manifest


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | json_values.map(canonical))
def test_junk_is_refused(junk):
    with pytest.raises(amistore.ArchiveError):
        decode_manifest(junk)
