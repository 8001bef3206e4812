"""A page of a running search on this machine's loopback address, made anew when the records have grown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from nas.errors import InputError
from nas.record import TRIALS
from nas.report import page
from nas.report.report import live_page

LOOPBACK = "127.0.0.1"


class Watch:
    """The page of some run folders and its version, which changes whenever a record does."""

    def __init__(
        self, paths: Sequence[str | Path], make: Callable[[Sequence[str | Path]], str] = live_page
    ) -> None:
        self._paths, self._make = [Path(path) for path in paths], make
        self._lock = threading.Lock()
        self._made: tuple[str, str] = ("", "")

    def version(self) -> str:
        """Which records there are, and how long and how old they are."""
        found = [(str(file), file.stat()) for path in self._paths for file in sorted(path.rglob(TRIALS))]
        return " ".join(f"{name}:{state.st_size}:{state.st_mtime_ns}" for name, state in found)

    def html(self) -> str:
        """The page; where there is no run yet, or it cannot be read, one that says so and looks again."""
        with self._lock:
            version = self.version()
            if self._made[0] != version or not version:
                try:
                    made = self._make(self._paths)
                except InputError as error:
                    made = page.document(
                        "Waiting for a run", f"<p>{page.escape(str(error))}</p>", watched=True
                    )
                self._made = version, made
            return self._made[1]


def server(watch: Watch, port: int = 0) -> ThreadingHTTPServer:
    """Serves ``/`` and ``/version`` on loopback, at any free port where ``port`` is 0. Raises InputError."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A name that a page elsewhere has made to mean this machine is not answered.
            if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in (LOOPBACK, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            makers = {"/": ("text/html", watch.html), "/version": ("text/plain", watch.version)}
            path = urlsplit(self.path).path
            if path not in makers:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, make = makers[path]
            body = make().encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        made = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not from 0 to 65535"
        raise InputError(f"port: {port}: {reason}") from error
    made.daemon_threads = True
    return made
