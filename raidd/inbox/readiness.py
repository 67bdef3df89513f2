"""When a file in the inbox may be read: pure rules, from what was observed and the clock given.

Scanners, Windows and macOS write over SMB, where a close is only a hint: Finder closes an empty file, then
writes; a copy can stall. So a file is *due* when it is non-empty and has not changed for ``settle_s``, or at
once after a rename into place (whoever renames has finished). Files that look unfinished (empty, no SOP
Instance UID, shorter than their elements say) get `PATIENCE_S` after their last change before they are judged.
Whether somebody still has it open is asked of the kernel when it is read (`raidd.inbox.lease`).

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

PATIENCE_S = 30.0
"""How long after its last change a file that looks unfinished is given the benefit of the doubt."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a file: enough to tell whether it changed, without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    regular: bool

    @classmethod
    def of(cls, status: os.stat_result) -> Observation:
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            stat.S_ISREG(status.st_mode),
        )

    def same_content(self, other: Observation) -> bool:
        """Device, inode, size and mtime equal. (ctime moves with a rename or a chmod, which changes no byte.)"""
        return (self.device, self.inode, self.size, self.mtime_ns) == (
            other.device,
            other.inode,
            other.size,
            other.mtime_ns,
        )


@dataclass(frozen=True, slots=True)
class History:
    """What is known of a file's past: the last look, when it last changed, whether a rename put it in place."""

    observation: Observation
    changed_at: float
    placed: bool = False


def observe(history: History | None, observation: Observation, now: float, *, placed: bool = False) -> History:
    """The history after one more look. ``placed``: a rename into place was reported just now."""
    if history is not None and history.observation == observation:
        return History(observation, history.changed_at, history.placed or placed)
    return History(observation, now, placed)


def due_at(history: History, settle_s: float) -> float:
    """When the file may be read, if nothing changes until then."""
    if history.observation.regular and history.observation.size == 0:
        return history.changed_at + max(PATIENCE_S, settle_s)
    return history.changed_at if history.placed else history.changed_at + settle_s


def patience_ends_at(changed_at: float) -> float:
    """When a file that looks unfinished is judged as it is."""
    return changed_at + PATIENCE_S
