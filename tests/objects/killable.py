"""Runs of `store` and `unpack` in processes that die: `python -m objects.killable`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deaths
from objects import ordered, runs

import amistore
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.s3 import DirectoryS3


def run(what: str, root: str, *_: str) -> None:
    cloud = amistore.DirectoryBackend(root)
    with amistore.FileResumeLog(Path(root) / "run.log") as log:
        if what == "pack":
            runs.store(runs.source(), cloud.s3, log=log)
        elif what == "orders":
            ordered.short_parts()
            with ThreadPoolExecutor(2) as executor:
                ordered.RESUMED.store(cloud.s3, executor, log=log)
        else:
            fill_holes = what == "fill"
            place = cloud.s3.at(runs.BUCKET, runs.KEY), cloud.ebs
            amistore.unpack(*place, log=log, workers=2, fill_holes=fill_holes)


if __name__ == "__main__":
    deaths.serve(
        run,
        {
            DirectoryS3: ["create_multipart_upload", "upload_part", "complete_multipart_upload"],
            DirectoryEBS: ["start_snapshot", "put_snapshot_block", "complete_snapshot"],
            amistore.FileResumeLog: ["append", "clear"],
        },
    )
