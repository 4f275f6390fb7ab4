"""Make an AMI of a raw disk image, as NixOS's and coldsnap's uploaders do: read once, put over the network.

    python examples/upload_image.py disk.raw --name web --profile production --region eu-west-1

and without AWS, into a folder, or against the fake of AWS in this process:

    python examples/upload_image.py disk.raw --name web --folder cloud
    python examples/upload_image.py disk.raw --name web --fake

Killed or interrupted, it is run again as it is: blocks that are there are not put again. AWS needs
``pip install 'amistore[aws]'``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

import amistore


def backend_of(options: argparse.Namespace, stack: contextlib.ExitStack) -> amistore.backends.Backend:
    """The backend that gets the AMI."""
    if options.folder:
        return amistore.DirectoryBackend(options.folder)
    if options.fake:
        import boto3

        from amistore.testing.aws import FakeAWS

        given = stack.enter_context(FakeAWS()).client_options()
        url, region = given.pop("endpoint_url"), given["region_name"]
        session = boto3.Session(**given)
        return amistore.AWSBackend(session, region_name=region, endpoint_urls={"ec2": url, "ebs": url})
    return amistore.AWSBackend(profile_name=options.profile, region_name=options.region)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("disk")
    parser.add_argument("--name", required=True)
    parser.add_argument("--architecture", default="x86_64")
    parser.add_argument("--boot-mode", default=None)
    parser.add_argument("--fill-holes", action="store_true", help="for an encrypted account")
    parser.add_argument("--profile")
    parser.add_argument("--region")
    parser.add_argument("--folder")
    parser.add_argument("--fake", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        try:
            made = amistore.import_disks(
                options.disk,
                backend_of(options, stack),
                name=options.name,
                architecture=options.architecture,
                boot_mode=options.boot_mode,
                fill_holes=options.fill_holes,
                log=f"{options.disk}.import.log",
                progress=sys.stderr.isatty(),
            )
        except amistore.AmistoreError as error:
            print(f"not imported: {error}", file=sys.stderr)
            return 1
        print(made.image_id, *made.image.snapshot_ids)
    return 0


if __name__ == "__main__":
    sys.exit(main())
