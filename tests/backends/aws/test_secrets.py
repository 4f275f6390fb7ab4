"""No secret is in a log, a repr, an error, a traceback or a resume log, whatever goes wrong."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import boto3
import pytest
from backends.aws import moves
from backends.aws.accounts import QUICK
from backends.aws.moves import KEY, LAYOUT

import amistore
from amistore import AWSBackend, DirectoryBackend
from amistore.testing.aws import FakeAWS

TOKEN = "canary-session-token"
KINDS = ("500", "throttle", "lost-reply", "short-body", "error-inside", "reset-before-answer")


@pytest.mark.usefixtures("way")
def test_no_secret_is_told_while_a_store_and_a_restore_go_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)  # of the root, so botocore and urllib3 tell all they do
    texts: list[str] = []
    with FakeAWS() as aws:
        credential = aws.add_credential(session_token=TOKEN)
        image_id = moves.add_ami(aws)
        options = aws.client_options(credential)
        url = options.pop("endpoint_url")
        aws_backend = AWSBackend(
            boto3.Session(**options), endpoint_urls={"ec2": url, "ebs": url}, retries=QUICK
        )
        cloud = DirectoryBackend(tmp_path / "cloud")
        cloud.s3.create_bucket("archive")
        for number, kind in enumerate(KINDS):
            aws.faults.add("*", kind, probability=0.02, seed=number)  # type: ignore[arg-type]
        with amistore.FileResumeLog(tmp_path / "log") as log:
            image = aws_backend.ec2.describe_image(image_id)
            aws.faults.add("GetSnapshotBlock", "500", calls=range(20, 40))
            try:
                amistore.store(
                    image,
                    aws_backend.ebs,
                    cloud.s3.at("archive", KEY),
                    log=log,
                    workers=1,
                    options=amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB),
                )
            except amistore.AmistoreError as error:
                texts += [repr(error), str(error), str(vars(error)), *traceback.format_exception(error)]
            texts.append((tmp_path / "log").read_bytes().decode("latin-1"))
            aws.faults.clear()
            amistore.store(
                image,
                aws_backend.ebs,
                cloud.s3.at("archive", KEY),
                log=log,
                workers=1,
                options=amistore.PackOptions(layout=LAYOUT, part_size=5 * amistore.MIB),
            )
        aws.remove_credential(credential)
        with pytest.raises(amistore.AccessDeniedError) as denied:
            amistore.unpack(cloud.s3.at("archive", KEY), aws_backend.ebs)
        texts += [repr(denied.value), *traceback.format_exception(denied.value)]
        connection = aws_backend.connection
        texts += map(repr, (aws_backend, connection, aws_backend.ebs, aws_backend.s3, aws_backend.ec2))
    assert len(texts) > 10
    texts += [record.getMessage() for record in caplog.records]
    texts.append(caplog.text)
    for secret in (TOKEN, credential.secret_access_key):
        told = [text for text in texts if secret in text]
        assert not told, told[0][:300]
