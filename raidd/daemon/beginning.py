"""How far a start is, for whoever asks meanwhile: the socket answers before everything is known.

Until the leftovers of the last run are settled no image is taken in, and while the catalog is being made again from
the members it knows only some of the images: nobody may be told that all is well, or that an image does not exist.
Written by one thread, read by any.
"""

from __future__ import annotations

from raidd import api


class Beginning:
    """``over``: everything is known and images come in."""

    def __init__(self, *, reindexing: bool, over: bool = False) -> None:
        self.over = over
        self._reindexing = reindexing
        self._done = self._total = 0

    def progress(self, done: int, total: int) -> None:
        """So many segments of the catalog are in."""
        self._done, self._total = done, total

    def ended(self) -> None:
        self._reindexing, self.over = False, True

    def unknown(self) -> str:
        """Why images may be there that the catalog does not know; "" when it is complete."""
        if not self._reindexing:
            return ""
        far = f" ({self._done} of {self._total} segments)" if self._total else ""
        return f"the catalog is being made again from the members{far}"

    def waiting(self) -> str:
        """Why images wait; "" when they need not because of the start."""
        return "" if self.over else self.unknown() or "what the last run left behind is being settled"

    def activity(self) -> api.Activity | None:
        if not self._reindexing:
            return None
        return api.Activity(kind="reindex", progress=self._done / self._total if self._total else 0.0)
