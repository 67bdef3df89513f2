"""What systemd is told (sd_notify(3)), over the `sdnotify` package. Without $NOTIFY_SOCKET nothing happens.

Never blocks and never raises: a notification that cannot be sent is lost, the daemon is not.
"""

from __future__ import annotations

import os
import time

import sdnotify


class Notifier:
    """Any thread may use it."""

    def __init__(self) -> None:
        self._systemd = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        if self._systemd is not None and self._systemd.socket is not None:
            self._systemd.socket.setblocking(False)

    def ready(self, status: str) -> None:
        """The socket answers, or a reload is over. An empty `status` leaves the one before."""
        self._send("READY=1", *([_status(status)] if status else []))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", _status(status))

    def _send(self, *lines: str) -> None:
        if self._systemd is not None:
            self._systemd.notify("\n".join(lines))


def _status(text: str) -> str:
    """`sdnotify` sends latin-1 and drops what does not fit: anything else becomes `?`; a line is a line."""
    return "STATUS=" + " ".join(text.encode("ascii", "replace").decode().split())
