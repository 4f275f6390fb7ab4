"""Front ends with the documented rules of public stores, before a server that has fewer.

The rules' sources stand with the stores' traits, in `amistore/backends/stores.py`. Where a page does not say
whether something is refused or ignored, it is refused here.
"""

from __future__ import annotations

import base64
import hashlib
import re
import urllib.parse
import zlib
from collections.abc import Iterable

import attrs
from backends.aws.proxy import Answer, Asked, Rules, error_answer

from amistore.backends import STORES, StoreTraits

_PART_NUMBER = re.compile(rb"<PartNumber>(\d+)</PartNumber>")
_CHECKSUM = re.compile(rb"<Checksum\w+>[^<]*</Checksum\w+>")
_CRC32 = "x-amz-checksum-crc32"
_CHECKSUM_HEADERS = ("x-amz-checksum-", "x-amz-sdk-checksum-algorithm")


def _query(asked: Asked, name: str) -> str:
    return urllib.parse.parse_qs(urllib.parse.urlsplit(asked.target).query).get(name, [""])[0]


def _number(asked: Asked) -> int:
    return int(_query(asked, "partNumber"))


class Several(Rules):
    """Several rules at once."""

    def __init__(self, *rules: Rules) -> None:
        self._rules = rules

    def path_style(self, target: str, host: str) -> str:
        for rule in self._rules:
            target = rule.path_style(target, host)
        return target

    def refusal(self, asked: Asked) -> Answer | None:
        return next((answer for rule in self._rules if (answer := rule.refusal(asked))), None)

    def answered(self, asked: Asked, answer: Answer) -> Answer:
        for rule in self._rules:
            answer = rule.answered(asked, answer)
        return answer


class Uploads(Rules):
    """Knows the parts that each upload was sent.

    Args:
        equal: whether parts must have one size, and the last one no larger.
        once: whether a part's number is taken once.
        all_named: whether a completion must name all parts that were sent.
        most: the most parts.
    """

    def __init__(
        self, *, equal: bool = False, once: bool = False, all_named: bool = False, most: int = 10_000
    ) -> None:
        self.equal, self.once, self.all_named, self.most = equal, once, all_named, most
        self._sizes: dict[str, dict[int, int]] = {}
        self._completed: set[str] = set()

    def refusal(self, asked: Asked) -> Answer | None:
        upload = _query(asked, "uploadId")
        if upload in self._completed:
            return error_answer(404, "NoSuchUpload", "it was completed")
        sizes = self._sizes.setdefault(upload, {})
        if asked.operation == "upload_part":
            number = _number(asked)
            if number > self.most:
                return error_answer(400, "InvalidArgument", f"Part number must be 1 to {self.most}")
            if self.once and number in sizes:
                return error_answer(400, "InvalidPart", "the part was uploaded before")
        if asked.operation == "complete_multipart_upload":
            named = [int(number) for number in _PART_NUMBER.findall(asked.body)]
            found = [sizes.get(number, 0) for number in named]
            if self.equal and (len({*found[:-1]}) > 1 or found[-1] > found[0]):
                words = "All non-trailing parts must have the same length."
                return error_answer(400, "InvalidPart", words)
            if self.all_named and sorted(sizes) != named:
                return error_answer(400, "InvalidPart", "a part that was uploaded is not named")
        return None

    def answered(self, asked: Asked, answer: Answer) -> Answer:
        if asked.operation == "upload_part" and answer.status == 200:
            self._sizes[_query(asked, "uploadId")][_number(asked)] = len(asked.body)
        if asked.operation == "complete_multipart_upload" and answer.status == 200:
            self._completed.add(_query(asked, "uploadId"))
        return answer


@attrs.frozen
class Refused(Rules):
    """Refuses requests with headers that begin so."""

    headers: tuple[str, ...]
    status: int
    code: str
    operations: tuple[str, ...] = ()

    def refusal(self, asked: Asked) -> Answer | None:
        if self.operations and asked.operation not in self.operations:
            return None
        for header in asked.headers:
            if header.startswith(self.headers):
                return error_answer(self.status, self.code, f"Unsupported header '{header}' received.")
        return None


class Checksums(Rules):
    """Compares the checksums of parts, tells them, and wants them again at the completion; moto does not."""

    def __init__(self) -> None:
        self._uploads: set[str] = set()

    def answered(self, asked: Asked, answer: Answer) -> Answer:
        crc32 = asked.headers.get(_CRC32)
        if asked.operation != "upload_part" or crc32 is None:
            return answer
        self._uploads.add(_query(asked, "uploadId"))
        others = {name: value for name, value in answer.headers.items() if name.lower() != _CRC32}
        return attrs.evolve(answer, headers={**others, _CRC32: crc32})

    def refusal(self, asked: Asked) -> Answer | None:
        completed = asked.operation == "complete_multipart_upload"
        if completed and _query(asked, "uploadId") in self._uploads:
            named = asked.body.count(b"<ChecksumCRC32>")
            if named != len(_PART_NUMBER.findall(asked.body)):
                return error_answer(400, "InvalidRequest", "The upload was created using a crc32 checksum.")
        crc32 = base64.b64encode(zlib.crc32(asked.body).to_bytes(4, "big")).decode()
        md5 = base64.b64encode(hashlib.md5(asked.body, usedforsecurity=False).digest()).decode()
        same = asked.headers.get(_CRC32, crc32), asked.headers.get("content-md5", md5)
        return None if same == (crc32, md5) else error_answer(400, "BadDigest", "the checksum differs")


class NoPartLists(Rules):
    """Lists no parts."""

    def refusal(self, asked: Asked) -> Answer | None:
        return error_answer(501, "NotImplemented", "no") if asked.operation == "list_parts" else None


class NoListedChecksums(Rules):
    """Its lists of parts have no checksums."""

    def answered(self, asked: Asked, answer: Answer) -> Answer:
        if asked.operation != "list_parts":
            return answer
        return attrs.evolve(answer, body=_CHECKSUM.sub(b"", answer.body))


class NoTagging(Rules):
    """Has no calls for tags."""

    def refusal(self, asked: Asked) -> Answer | None:
        tagging = "tagging" in urllib.parse.urlsplit(asked.target).query
        return error_answer(501, "NotImplemented", "GetObjectTagging") if tagging else None


class VirtualHosts(Rules):
    """Wants the bucket's name in front of its host, as Alibaba's OSS."""

    def path_style(self, target: str, host: str) -> str:
        bucket, _, rest = host.partition(".")
        return f"/{bucket}{target}" if rest.startswith("localhost") else target

    def refusal(self, asked: Asked) -> Answer | None:
        if asked.headers["host"].count(".localhost"):
            return None
        return error_answer(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access.")


class GoogleRequests(Rules):
    """Google changes `Accept-Encoding`, and wants a length of a request without a body."""

    def refusal(self, asked: Asked) -> Answer | None:
        if "accept-encoding" in asked.headers.get("authorization", "").lower():
            return error_answer(403, "SignatureDoesNotMatch", "the signature does not match")
        if asked.method in ("POST", "PUT") and "content-length" not in asked.headers:
            return error_answer(411, "MissingContentLength", "Length Required")
        return None


COMPLETIONS = ("complete_multipart_upload", "put_object")


def no_tags(status: int = 501, code: str = "NotImplemented") -> Iterable[Rules]:
    return Refused(("x-amz-tagging",), status, code), NoTagging()


def no_conditions() -> Rules:
    return Refused(("if-none-match", "if-match"), 501, "NotImplemented", COMPLETIONS)


def no_checksums() -> Rules:
    return Refused(_CHECKSUM_HEADERS, 400, "InvalidArgument")


def rules_of(name: str) -> Rules:
    """New rules of a front end."""
    return {
        "cloudflare-r2": lambda: Several(Checksums(), Uploads(equal=True), *no_tags()),
        "google-cloud-storage": lambda: Several(
            Checksums(), GoogleRequests(), no_checksums(), no_conditions(), *no_tags(400, "InvalidArgument")
        ),
        "backblaze-b2": lambda: Several(no_checksums(), no_conditions(), *no_tags(400, "InvalidArgument")),
        "mega-s4": lambda: Several(
            Checksums(),
            Uploads(equal=True, once=True, all_named=True),
            NoPartLists(),
            no_checksums(),
            no_conditions(),
            *no_tags(),
        ),
        "alibaba-oss": lambda: Several(VirtualHosts(), no_checksums(), no_conditions(), *no_tags()),
        "few-parts": lambda: Several(Checksums(), Uploads(most=5)),
        "no-list-of-parts": lambda: Several(Checksums(), Uploads(), NoPartLists()),
        "no-checksums-in-lists": lambda: Several(Checksums(), NoListedChecksums()),
        "no-conditions": lambda: Several(Checksums(), no_conditions()),
        "no-tags": lambda: Several(Checksums(), *no_tags()),
        "each-part-once": lambda: Several(Checksums(), Uploads(once=True)),
        "virtual-hosts-only": lambda: Several(Checksums(), VirtualHosts()),
    }[name]()


TRAITS = {
    **{name: STORES[name] for name in ("cloudflare-r2", "google-cloud-storage", "backblaze-b2")},
    **{name: STORES[name] for name in ("mega-s4", "alibaba-oss")},
    "few-parts": StoreTraits(most_parts=5),
    "no-list-of-parts": StoreTraits(part_listing=False),
    "no-checksums-in-lists": StoreTraits(),
    "no-conditions": StoreTraits(conditional_completion=False),
    "no-tags": StoreTraits(tags=False),
    "each-part-once": StoreTraits(replaceable_parts=False),
    "virtual-hosts-only": StoreTraits(addressing="virtual"),
}
"""Each front end's traits."""
