"""A web server that misbehaves, to test the import of datasets from web addresses."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

REDIRECTS = {
    "/to-metadata": "http://169.254.169.254/latest/meta-data/",
    "/to-file": "file:///etc/passwd",
    "/loop": "/loop",
}
BODIES = {
    "/page": b"<!DOCTYPE html><title>Sign in</title>",
    "/short": b"PK\3\4 and no more",
    "/empty": b"",
    "/packed": gzip.compress(b"\0" * 5_000_000),
    "/large": b"PK" * 1_500_000,
    "/endless": b"PK" * 1_500_000,
    "/text": b"this is no archive",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = BODIES.get(self.path, b"")
        is_known = self.path in BODIES or self.path in REDIRECTS
        self.send_response(
            302 if self.path in REDIRECTS else 200 if is_known else 500 if self.path == "/error" else 404
        )
        if self.path in REDIRECTS:
            self.send_header("Location", REDIRECTS[self.path])
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body) + 1000 * (self.path == "/short")))
        self.end_headers()
        # The platform closes the connection when it refuses the answer.
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def bad_site() -> Iterator[str]:
    """Start the server, and give its address with a slash at the end."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
