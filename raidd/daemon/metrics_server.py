"""Serves the metrics over HTTP on a thread of its own, on loopback unless the settings say otherwise.

A taken port is a warning for an alert, never a reason to stop (design, section 9): `start_once` says why it cannot
listen and tries again when called again. A scrape that hangs costs its own thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from raidd.daemon.logs import EventLog
from raidd.daemon.metrics import Snapshot, SnapshotCollector
from raidd.errors import RaiddError


class MetricsServer:
    """`GET /metrics` on `host:port`. `start_once` and `stop` from one thread."""

    def __init__(self, host: str, port: int, take: Callable[[], Snapshot], *, log: EventLog | None = None) -> None:
        self._place = (host, port)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(SnapshotCollector(take))
        self._log = log or EventLog("metrics")
        self._server: _Server | None = None

    @classmethod
    def on(cls, listen: str, take: Callable[[], Snapshot]) -> MetricsServer:
        """From the setting `metrics.listen`: `127.0.0.1:9850`, `[::1]:9850`."""
        host, _, port = listen.rpartition(":")
        return cls(host.strip("[]"), int(port), take)

    @property
    def port(self) -> int:
        """The port it listens on; 0 while it does not."""
        return self._server.server_port if self._server is not None else 0

    def start_once(self) -> str:
        """Listen if it does not yet. Returns "" or why it cannot, for an alert; may be called again."""
        if self._server is None:
            try:
                self._server = _Server(self._place, self._registry, self._log)
            except OSError as error:
                host, port = self._place
                return f"Metrics are not served: {host}:{port} cannot be had: {error.strerror or error}"
            serve = partial(self._server.serve_forever, poll_interval=0.1)
            threading.Thread(target=serve, name="daemon/metrics", daemon=True).start()
        return ""

    def stop(self) -> None:
        """The port is free afterwards; scrapes under way are not waited for."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, place: tuple[str, int], registry: CollectorRegistry, log: EventLog) -> None:
        self.registry = registry
        self.log = log
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's full name, which can take as long as a dead name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away is not worth a traceback."""


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds for a request to arrive
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            return self._answer(404, "text/plain; charset=utf-8", b"Metrics are at /metrics\n")
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            return self._answer(200, content_type, encode(self.server.registry))
        except RaiddError as error:
            return self._answer(503, "text/plain; charset=utf-8", f"{error.message}\n".encode())
        except Exception as error:
            self.server.log.error("scrape-failed", error=error)
            return self._answer(500, "text/plain; charset=utf-8", b"Internal error; see the log\n")

    def log_message(self, *_: Any) -> None:
        """Scrapes are not events."""

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
