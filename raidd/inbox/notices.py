"""Hints from the kernel: watchdog says where something happened in a watched tree, nothing more.

A hint is a path and whether it was *placed* (renamed there). Hints may be lost (queue overflow, no watch left for a
new folder) or wrong (the file is gone again): whoever uses them looks for himself and also scans. `InotifyObserver`
with ``generate_full_events=True``, or a rename from outside the tree would look like a create; on network mounts,
where inotify sees nothing of what others write, watchdog polls, with lstat, so that it follows no link.

Threads: watchdog's own call `hint`, which must be quick and thread-safe. `degraded` names the roots without hints.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver
from watchdog.observers.polling import PollingObserverVFS

from raidd.inbox.folders import Root
from raidd.inbox.mounts import network_mount
from raidd.inbox.names import OWN_PREFIX

POLL_S = 5.0
_WANTED: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]
"""No modify and no open events: raidd's own reading would cause the one, a long copy floods the other."""

Hint = Callable[[Root, bytes, bool], None]
"""hint(root, path relative to it, placed)."""


class Notices:
    """The observers of all roots. `keep_alive` is called by one thread; `stop` after it has ended."""

    def __init__(
        self,
        roots: Sequence[Root],
        hint: Hint,
        *,
        is_network: Callable[[Root], bool] = lambda root: network_mount(root.path),
        listen: bool = True,
    ) -> None:
        self._roots = tuple(roots)
        self._hint = hint
        self._is_network = is_network
        self._observers: dict[str, BaseObserver] = {}
        self._failures: dict[str, str] = {}
        self._listen = listen

    def stop(self) -> None:
        self._listen = False
        for name in list(self._observers):
            self._stop(name)

    def keep_alive(self) -> None:
        """Start what does not run: at first all observers, later those that ended (a folder was replaced)."""
        for root in self._roots if self._listen else ():
            observer = self._observers.get(root.name)
            if observer is None or not observer.is_alive() or not all(e.is_alive() for e in observer.emitters):
                self._stop(root.name)
                self._start(root)

    @property
    def degraded(self) -> dict[str, str]:
        """Root name -> why it gets no hints."""
        return dict(self._failures)

    def _start(self, root: Root) -> None:
        observer: BaseObserver | None = None
        try:
            observer = self._observer(root)
            observer.schedule(_Handler(root, self._hint), os.fsdecode(root.path), recursive=True, event_filter=_WANTED)
            observer.start()
        except OSError as error:  # no watch or instance left, the folder is not there
            self._failures[root.name] = error.strerror or str(error)
            _end(observer)
            return
        self._observers[root.name] = observer
        self._failures.pop(root.name, None)

    def _observer(self, root: Root) -> BaseObserver:
        if self._is_network(root):
            return PollingObserverVFS(os.lstat, os.scandir, polling_interval=POLL_S)
        return InotifyObserver(generate_full_events=True)

    def _stop(self, name: str) -> None:
        _end(self._observers.pop(name, None))


def _end(observer: BaseObserver | None) -> None:
    if observer is None:
        return
    with contextlib.suppress(RuntimeError, OSError):
        observer.stop()
        if observer.is_alive():
            observer.join(timeout=5)


class _Handler(FileSystemEventHandler):
    """Turns watchdog's events into hints."""

    def __init__(self, root: Root, hint: Hint) -> None:
        self._root = root
        self._hint = hint
        self._top = os.fsencode(root.path)

    def dispatch(self, event: FileSystemEvent) -> None:
        moved = isinstance(event, FileMovedEvent | DirMovedEvent)
        path = os.fsencode(event.dest_path if moved else event.src_path)
        relative = os.path.relpath(path, self._top) if path else b"."
        if relative in (b".", b"..") or relative.startswith(b"../"):
            return
        source = os.path.basename(os.fsencode(event.src_path))
        # What raidd itself puts back was changed by somebody a moment ago: it is not finished.
        placed = isinstance(event, FileMovedEvent) and not source.startswith(OWN_PREFIX)
        self._hint(self._root, relative, placed)
