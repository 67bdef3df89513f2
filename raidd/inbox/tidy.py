"""Subfolders that were emptied are removed after an hour untouched; those of the first level never.

Senders make folders per study and leave them behind; the first level belongs to people and machines (one share a
machine). "Untouched" is watched here, by the monotonic clock, over scans: the same empty folder with the same mtime.
rmdir refuses a folder that is not empty, so a file that arrives meanwhile is safe. A restart starts the hour anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from raidd.inbox.folders import FolderSeen, Root, opened, split

UNTOUCHED_S = 3600.0

_Key = tuple[str, bytes, tuple[int, int, int]]


class EmptyFolders:
    """Remembers since when each folder is empty; as large as the number of empty folders. One thread at a time."""

    def __init__(self) -> None:
        self._since: dict[_Key, float] = {}

    def tidy_once(self, found: Iterable[tuple[Root, FolderSeen]], now: float) -> int:
        """Take one scan's empty folders, remove those that have been so for an hour; how many."""
        since: dict[_Key, float] = {}
        removed = 0
        for root, seen in found:
            key = (root.name, seen.folder, seen.identity)
            since[key] = self._since.get(key, now)
            if b"/" in seen.folder and now - since[key] >= UNTOUCHED_S:
                removed += _remove(root, seen.folder)
        self._since = since
        return removed


def _remove(root: Root, path: bytes) -> bool:
    folder, name = split(path)
    with contextlib.suppress(OSError), opened(root.path, folder) as parent:
        os.rmdir(name, dir_fd=parent)
        return True
    return False
