"""A web server on loopback that answers range requests for one file: it stands in for yours.

Python's own `http.server` knows no ranges; nginx, Apache, S3's presigned URLs and most
others do.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

__all__ = ["serve"]


@contextlib.contextmanager
def serve(path: Path) -> Iterator[tuple[str, list[int]]]:
    """The file's URL, and a list that gets the size of each answer."""
    sizes: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            size = path.stat().st_size
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"]).groups()
            if first:
                start, end = int(first), min(int(last), size - 1)
            else:
                start, end = max(0, size - int(last)), size - 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
            self.send_header("Content-Length", str(end - start + 1))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
            self.end_headers()
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(end - start + 1))
            sizes.append(end - start + 1)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{path.name}", sizes
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
