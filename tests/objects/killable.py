"""Runs of `pack_object` and `unpack_object` in processes that die: `python -m objects.killable`.

A command a line on the standard input: what to do, the folder, and where to die, in JSON. Each is done
in a process of its own, forked here, so that hundreds need not import anything. It tells on the standard
output what it does, line by line; at its end a line says how it ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from objects import runs

import amistore
from amistore.backends.directory.ebs import DirectoryEBS
from amistore.backends.directory.s3 import DirectoryS3

WATCHED: dict[type, list[str]] = {
    DirectoryS3: ["create_multipart_upload", "upload_part", "complete_multipart_upload"],
    DirectoryEBS: ["start_snapshot", "put_snapshot_block", "complete_snapshot"],
    amistore.FileResumeLog: ["append", "clear"],
}


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Death:
    """Where the process ends, without any clean-up: before or after the Nth call of a verb."""

    def __init__(self) -> None:
        self.place: list[object] | None = None
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def watched(self, verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self._calls[verb] += 1
                number = self._calls[verb]
            # Which part or block it is: behind bucket, key and upload, or snapshot.
            what = {"upload_part": arguments[4:5], "put_snapshot_block": arguments[1:3]}.get(verb, ())
            say("begin", verb, *what)
            self._die("before", verb, number)
            result = call(*arguments, **options)
            self._die("after", verb, number)
            say("done", verb, *what)
            return result

        return watched

    def _die(self, *place: object) -> None:
        if self.place == list(place):
            os._exit(9)


def run(what: str, root: Path) -> None:
    cloud = amistore.DirectoryBackend(root)
    with amistore.FileResumeLog(root / "run.log") as log:
        if what == "pack":
            runs.pack_object(runs.source(), cloud.s3, log=log)
        else:
            amistore.unpack_object(cloud.s3, runs.BUCKET, runs.KEY, cloud.ebs, log=log, workers=2)


def main() -> None:
    death = Death()
    for service, verbs in WATCHED.items():
        for verb in verbs:
            setattr(service, verb, death.watched(verb, getattr(service, verb)))
    child = 0
    for line in sys.stdin:
        if child:
            os.waitpid(child, 0)
        what, root, death.place = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                run(what, Path(root))
                status = 0
            except amistore.AmistoreError as error:
                say("error", type(error).__name__, error)
            finally:
                os._exit(status)
        say("process", child)
        # Who kills it may not have read yet that it has ended: its number is its own until then.
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        say("ended", ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)


if __name__ == "__main__":
    main()
