"""Store every image that matches, of several Regions and accounts, on a cluster.

    python examples/fleet.py --folder DIR --bucket archive --name 'web*'

with folders in place of AWS, on processes of this machine; and on AWS, with workers of your own:

    python examples/fleet.py --profile production --region us-east-1 --region eu-west-1 \
        --bucket 'archive-{region}' --tag backup=nightly --newer-than 7 --summary night.json \
        --scheduler tls://scheduler:8786 --tls-ca ca.pem --tls-cert client.pem --tls-key client.key

Exit code: 0 all are stored, 1 some are not, 2 wrong arguments, 130 interrupted. Killed or interrupted, it is
run again as it is: what is stored is passed by, what was begun goes on. Needs ``pip install '.[aws,dask]'``
here and on the workers, which find the profiles' credentials by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import fnmatch
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster, Security, TimeoutError
from fleet_screen import Screen

import amistore
from amistore import GIB

log = logging.getLogger("amistore.fleet")


@dataclasses.dataclass
class Job:
    """An image, and what became of it."""

    image_id: str
    name: str = ""
    volumes: int = 0  # bytes, holes included
    task_id: str = ""
    percent: int = 0
    state: str = "waiting"  # then stored, failed or unfinished
    object: str | None = None
    content_id: str | None = None
    size: int | None = None  # of the object
    seconds: float | None = None  # in this run; None where an earlier one stored it
    error: str | None = None


@dataclasses.dataclass
class Place:
    """A Region of an account."""

    region: str | None
    profile: str | None
    backend: Any
    bucket: str
    engine: amistore.TaskEngine
    jobs: list[Job] = dataclasses.field(default_factory=list)
    error: str | None = None  # why its images are not known


def main() -> int:
    options = parse_options()
    started, interrupted = time.time(), False
    places: list[Place] = []
    with contextlib.ExitStack() as stack:
        try:
            executor, workers = stack.enter_context(cluster(options))
            for profile in options.profile or [None]:
                for region in options.region or [None]:
                    places.append(open_place(options, region, profile, executor, workers))
                    stack.callback(places[-1].engine.close)
            interrupted = run(places, options, Screen(live=sys.stdout.isatty()))
        except KeyboardInterrupt:
            interrupted = True
        except (amistore.AmistoreError, OSError, TimeoutError) as error:  # no Region, scheduler, workers
            sys.exit(f"{type(error).__name__}: {error}")
    summary = summarize(places, started, interrupted)
    text = json.dumps(summary, indent=2)
    if options.summary is None:
        print(text)
    else:
        options.summary.write_text(text + "\n")
    if interrupted:
        return 130
    return 1 if summary["errors"] or any(image["state"] != "stored" for image in summary["images"]) else 0


@contextlib.contextmanager
def cluster(options: argparse.Namespace) -> Iterator[tuple[Executor, int]]:
    """An executor, and how many orders are out at once: one for each of the workers' threads."""
    tls = {
        "tls_ca_file": options.tls_ca,
        "tls_client_cert": options.tls_cert,
        "tls_client_key": options.tls_key,
    }
    security = Security(require_encryption=True, **tls) if options.tls_ca else None
    with contextlib.ExitStack() as stack:
        address = options.scheduler
        if address is None:
            # The processes inherit it: Ctrl-C in a terminal is for this one alone, which waits for theirs.
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": logging.ERROR}
            address = LocalCluster(n_workers=options.workers, threads_per_worker=1, **local)
            signal.signal(signal.SIGINT, handler)
            stack.enter_context(address)
        client = stack.enter_context(Client(address, security=security))
        client.wait_for_workers(1, timeout=300)
        yield client.get_executor(), options.workers or sum(client.nthreads().values())


def open_place(
    options: argparse.Namespace, region: str | None, profile: str | None, executor: Executor, workers: int
) -> Place:
    """A place, with an engine and a journal of its own."""
    backend: Any
    if options.folder is None:
        backend = amistore.AWSBackend(region_name=region, profile_name=profile)  # can be sent to workers
        region = str(backend.ec2.region_name)
        options.state.mkdir(parents=True, exist_ok=True)
        journal = options.state / f"{profile or 'default'}-{region}.db"
        bucket = options.bucket.replace("{region}", region)
    else:
        backend, journal, bucket = amistore.DirectoryBackend(options.folder), None, options.bucket
        backend.s3.create_bucket(bucket.partition("/")[0])
    shared = {"executor": executor, "workers": workers, "concurrency": options.at_once}
    return Place(region, profile, backend, bucket, amistore.TaskEngine(backend, journal=journal, **shared))


def run(places: list[Place], options: argparse.Namespace, screen: Screen) -> bool:
    """Store all places' images, and show it meanwhile; return whether it was interrupted."""
    stopping = threading.Event()
    threads = [
        threading.Thread(target=begin, args=(place, options, stopping), daemon=True) for place in places
    ]
    try:
        for thread in threads:
            thread.start()
        creating = True
        while creating or any(map(unended, places)):
            creating = any(thread.is_alive() for thread in threads)
            for place in places:
                look(place, screen)
            screen.draw([job for place in places for job in place.jobs])
            stopping.wait(0.5)
        return False
    except KeyboardInterrupt:
        stopping.set()
        log.warning("stopping: the orders that are out are waited for")
        screen.draw([job for place in places for job in place.jobs])
        with ThreadPoolExecutor() as closing:  # all engines at once
            list(closing.map(lambda place: place.engine.close(), places))
        for place in places:
            for job in unended(place):
                if "completed" in screen.told.get(job.task_id, ()):  # meanwhile
                    note_stored(place, job)
        return True


def begin(place: Place, options: argparse.Namespace, stopping: threading.Event) -> None:
    """Create the tasks of a place; where the quota is used up, this waits until others have ended."""
    try:
        begun = {
            task.image_id: task.task_id
            for task in place.engine.resume()
            if isinstance(task, amistore.StoreImageTask) and task.state == "InProgress"
        }
        images = place.backend.ec2.describe_images()
    except amistore.AmistoreError as error:
        place.error = str(error)
        log.error("%s", error)
        return
    jobs = [
        Job(image.image_id, image.name or "", GIB * sum(each.volume_size or 0 for each in image.snapshots))
        for image in images
        if image.image_id in begun or matches(image, options)  # what was begun goes on in any case
    ]
    place.jobs = jobs + [
        Job(image_id) for image_id in begun if image_id not in {job.image_id for job in jobs}
    ]
    for job in place.jobs:
        if job.image_id in begun:
            job.task_id = begun[job.image_id]
        elif not stopping.is_set():
            create(place, job, stopping)


def matches(image: amistore.Image, options: argparse.Namespace) -> bool:
    """Whether an image is to be stored; one without a date has no age."""
    tags = {tag.key: tag.value or "" for tag in image.tags}
    if any(tags.get(key) != value for key, value in options.tag):
        return False
    if not any(fnmatch.fnmatchcase(image.name or "", glob) for glob in options.name or ["*"]):
        return False
    if options.older_than is None and options.newer_than is None:
        return True
    if image.creation_date is None:
        return False
    created = datetime.datetime.fromisoformat(image.creation_date.replace("Z", "+00:00"))
    days = (time.time() - created.timestamp()) / 86_400
    return (options.older_than or 0) < days < (options.newer_than or float("inf"))


def create(place: Place, job: Job, stopping: threading.Event) -> None:
    """Create an image's task, or note that an earlier run has stored it."""
    try:
        task = place.engine.create_store_image_task(
            image_id=job.image_id, bucket=place.bucket, if_exists="skip", on_quota="wait"
        )
        if task is not None:
            job.task_id = task.task_id
            return
        note_stored(place, job)
        log.info("%s: is stored already", job.image_id)
    except amistore.AmistoreError as error:
        if not stopping.is_set():  # the engine is closed
            job.state, job.error = "failed", str(error)
            log.error("%s: %s", job.image_id, error)


def note_stored(place: Place, job: Job) -> None:
    """Note the facts of an image's object."""
    bucket, _, prefix = place.bucket.partition("/")
    location = place.backend.s3.at(bucket, f"{prefix.rstrip('/')}/{job.image_id}.bin".lstrip("/"))
    with amistore.open(location) as archive:
        job.object, job.content_id = f"{bucket}/{location.key}", archive.content_id
    job.size, job.state = location.head().size, "stored"


def unended(place: Place) -> list[Job]:
    """A place's jobs that have a task, and no end so far."""
    return [job for job in place.jobs if job.task_id and job.state == "waiting"]


def look(place: Place, screen: Screen) -> None:
    """Note how far a place's tasks are, and what came of them."""
    jobs = unended(place)
    for start in range(0, len(jobs), 20):  # the most ids that a call takes
        some = {job.task_id: job for job in jobs[start : start + 20]}
        for task in place.engine.describe_store_image_tasks(
            image_ids=[job.image_id for job in some.values()]
        ):
            if (job := some.get(task.task_id)) is None:
                continue
            job.percent = task.progress_percentage
            told = screen.told.get(job.task_id, {})
            try:
                if task.state == "Completed":
                    note_stored(place, job)
                elif task.state == "Failed":
                    job.state, job.error = "failed", task.failure_reason
                elif "left unfinished" in told:
                    place.engine.wait(task)  # raises the reason
            except amistore.AmistoreError as error:
                job.state, job.error = "unfinished", str(error)
            if job.state != "waiting" and "running" in told:
                job.seconds = round(time.monotonic() - told["running"], 1)


def summarize(places: list[Place], started: float, interrupted: bool) -> dict[str, Any]:
    """What became of each image, and the totals."""
    jobs = [(place, job) for place in places for job in place.jobs]
    images: list[dict[str, Any]] = []
    for place, job in sorted(jobs, key=lambda pair: pair[1].image_id):
        row = dataclasses.asdict(job)
        for key in ("volumes", "task_id", "percent"):
            del row[key]
        state = "unfinished" if job.state == "waiting" else job.state
        images.append({"region": place.region, "profile": place.profile, **row, "state": state})
    states = [image["state"] for image in images]
    failed = [place for place in places if place.error]
    return {
        "interrupted": interrupted,
        "images": images,
        "errors": [{"region": each.region, "profile": each.profile, "error": each.error} for each in failed],
        "totals": {
            "images": len(images),
            **{state: states.count(state) for state in ("stored", "failed", "unfinished")},
            "size": sum(image["size"] or 0 for image in images),
            "seconds": round(time.time() - started, 1),
        },
    }


def key_and_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--bucket", required=True, help="a bucket, or bucket/prefix; {region} stands for the Region's name")
    add("--region", action="append", help="a Region; again for several")
    add("--profile", action="append", help="a profile of AWS's configuration; again for several accounts")
    add("--folder", type=Path, metavar="DIR", help="folders of an amistore.DirectoryBackend, instead of AWS")
    add("--tag", action="append", default=[], type=key_and_value, metavar="KEY=VALUE", help="of the images")
    add("--name", action="append", metavar="GLOB", help="of the images, such as 'web*'; again for others")
    add("--older-than", type=float, metavar="DAYS", help="images that were made before")
    add("--newer-than", type=float, metavar="DAYS", help="images that were made since")
    add("--scheduler", metavar="URL", help="Dask's, tls://… or tcp://…; without it, processes are begun here")
    for name in ("ca", "cert", "key"):
        add(f"--tls-{name}", metavar="FILE", help="for tls://, as of distributed.Security")
    add("--workers", type=int, help="processes that are begun here; of a scheduler's, orders out at once")
    add("--at-once", type=int, default=4, metavar="N", help="images of a Region stored at once (default 4)")
    state = Path.home() / ".local" / "state" / "amistore" / "fleet"
    add("--state", type=Path, default=state, metavar="DIR", help=f"for the journals (default {state})")
    add("--summary", type=Path, metavar="FILE", help="gets the summary as JSON, else standard output does")
    options = parser.parse_args()
    if options.folder is not None and (options.region or options.profile):
        parser.error("--folder goes without --region and --profile")
    tls = {(options.scheduler or "").startswith("tls:")}
    if tls | {bool(each) for each in (options.tls_ca, options.tls_cert, options.tls_key)} != tls:
        parser.error("tls:// goes with --tls-ca, --tls-cert and --tls-key, and nothing else does")
    if min(options.at_once, 1 if options.workers is None else options.workers) < 1:
        parser.error("--workers and --at-once are 1 at least")
    return options


if __name__ == "__main__":
    sys.exit(main())
