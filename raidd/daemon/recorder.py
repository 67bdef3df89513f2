"""Who writes into the journal what happens to the array, from any thread, and from the first moment on.

While a new catalog has not got the members' journal back, nothing may be appended: an entry in front of it would make
the whole journal a branch of its own. What happens until then is kept, with its time, and written after it; a crash
loses it, as it loses what no disk has yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from raidd.array.catalog import Catalog

Note = tuple[str, str, str, tuple[str, ...], dict[str, object]]


class Recorder:
    """``wait``: until `begin`, entries are kept."""

    def __init__(self, catalog: Catalog, now: Callable[[], str], *, wait: bool) -> None:
        self._catalog, self._now = catalog, now
        self._kept: list[Note] | None = [] if wait else None
        self._lock = threading.Lock()

    def write(self, actor: str, action: str, objects: tuple[str, ...], detail: dict[str, object]) -> None:
        """One entry. StateDirFaulty, CatalogUnusable: it is not written."""
        note = (self._now(), actor, action, objects, detail)
        with self._lock:
            if self._kept is not None:
                self._kept.append(note)
                return
        self._append(note)

    def begin(self) -> None:
        """The journal is whole: what was kept follows it, in order."""
        with self._lock:
            kept, self._kept = self._kept or [], None
            for note in kept:
                self._append(note)

    def _append(self, note: Note) -> None:
        at, actor, action, objects, detail = note
        self._catalog.append_journal(at, actor, action, objects, detail=detail)
