"""ETags in one form, whoever has put something around them."""

import pytest

from amistore.backends.etags import bare_etag, is_same_etag

MD5 = "5d41402abc4b2a76b9719d911017c592"


@pytest.mark.parametrize(
    "etag", [MD5, f"{MD5}-12", "aGVsbG8=", "mtime-dhybxgexults-ino-4268", "a b", "", "W"]
)
@pytest.mark.parametrize(
    "form",
    [
        *('"{}"', "{}", 'W/"{}"', 'W/""{}""', '""{}""', '"W/"{}""', "&quot;{}&quot;", ' "{}" '),
        *('"{}-gzip"', '"{}"-gzip', 'W/"{}-gzip"', '"{}--gzip"'),
    ],
)
def test_what_is_put_around_an_etag_is_dropped(form, etag):
    assert bare_etag(form.format(etag)) == etag
    assert is_same_etag(form.format(etag), etag)


def test_an_md5_is_the_same_in_capitals_and_keeps_them_for_its_server():
    for etag in (MD5, f"{MD5}-12"):
        assert is_same_etag(f'"{etag.upper()}"', etag)
        assert bare_etag(f'"{etag.upper()}"') == etag.upper()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("aGVsbG8=", "AGVSBG8="),
        (MD5, f"{MD5}-1"),
        (f"{MD5}-1", f"{MD5}-2"),
        (MD5, MD5[:-1] + "3"),
        ("one", "gzip-one"),
        ("one-gzipped", "one"),
        ('o"ne', "one"),
        ("one-br", "one"),
        ("", "one"),
    ],
)
def test_etags_of_other_bytes_stay_others(one, other):
    assert not is_same_etag(one, other)
    assert not is_same_etag(other, f'W/"{one}"')


def test_a_weak_mark_is_dropped_before_quotes_and_md5s_only():
    assert bare_etag('"W/abc="') == "W/abc="  # base64 may begin so
    assert bare_etag(f"W/{MD5}") == MD5


def test_an_etag_of_any_length_is_compared_at_once():
    long = "x" + '"' * 1_000_000 + "x"
    assert bare_etag(long) == long
    assert is_same_etag(long, long)
