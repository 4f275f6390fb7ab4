"""docs/aws-images.md says what the code does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("boto3")

from amistore.backends.aws.ec2_images import FATES, KEPT
from amistore.backends.aws.policies import main, policy

PAGE = Path(__file__).parents[3] / "docs" / "aws-images.md"
KEY = "arn:aws:kms:us-east-1:123456789012:key/example"
COMMAND = "python -m amistore.backends.aws.policies "


def table() -> str:
    rows = ["| attribute | | why |", "|---|---|---|"]
    rows += [f"| `{name}` | {fate.value} | {reason} |" for name, (fate, reason) in FATES.items()]
    return "\n".join(rows)


def kept() -> str:
    return ", ".join(f"`{name}`" for name in KEPT) + ";"


def printed(flow: str) -> str:
    bucket = None if flow == "transfer" else "my-archives"
    return f"```json\n{json.dumps(policy(flow, bucket=bucket, kms_key_arns=[KEY]), indent=2)}\n```"


def test_the_table_of_what_is_not_kept_is_that_of_the_code() -> None:
    assert table() in PAGE.read_text()


def test_the_list_of_what_is_kept_is_that_of_the_code() -> None:
    assert kept() in re.sub(r"\s+", " ", PAGE.read_text())


@pytest.mark.parametrize("flow", ["store", "restore", "transfer"])
def test_the_policies_are_those_that_are_printed(flow: str) -> None:
    assert printed(flow) in PAGE.read_text()


def test_the_commands_print_policies_of_their_partitions(capsys: pytest.CaptureFixture[str]) -> None:
    partitions = []
    for line in re.findall(f"^{re.escape(COMMAND)}(.*)$", PAGE.read_text(), re.MULTILINE):
        main(shlex.split(line))
        resources = [each["Resource"] for each in json.loads(capsys.readouterr().out)["Statement"]]
        partitions.append({arn.split(":")[1] for found in resources for arn in found if arn != "*"})
    assert partitions == [{"aws"}, {"aws-us-gov"}]
