"""How fast a repair may go: idle, at full speed; while images come in, at a floor; never above a cap. Pure.

Units: bytes, MiB/s, seconds. `delay_s` answers how long to rest after ``done`` bytes that took ``took_s``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Priority = Literal["low", "normal", "high", "pause"]
MIB = 1 << 20
SHARE = {"low": 0.25, "normal": 0.5, "high": 1.0, "pause": 0.0}
"""The part of its own time that a repair may use while images come in."""


@dataclass(frozen=True, slots=True)
class Pace:
    """``floor_mib_s``: never slower than this while busy, 0 = no floor; ``rate_mib_s``: never faster, 0 = no cap."""

    priority: Priority
    floor_mib_s: float
    rate_mib_s: float

    def delay_s(self, done: int, took_s: float, *, busy: bool) -> float:
        """The rest that is due after ``done`` bytes."""
        rest = 0.0
        if busy and SHARE[self.priority] > 0:
            rest = took_s * (1 / SHARE[self.priority] - 1)
            if self.floor_mib_s > 0:
                rest = min(rest, max(0.0, done / (self.floor_mib_s * MIB) - took_s))
        if self.rate_mib_s > 0:
            rest = max(rest, done / (self.rate_mib_s * MIB) - took_s)
        return max(0.0, rest)
