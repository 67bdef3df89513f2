"""What the state means in a clause, and what the operator should do now. Pure.

The rule of every line: it names the disk by what can be seen of it (bay, path, serial), and where there is a
command, it is one that works when pasted.
"""

from __future__ import annotations

from collections.abc import Sequence

from raidd import api
from raidd.array.roster import ArrayState
from raidd.array.store import Standing

AWAY = ("missing", "failed")


def quantity(number: int, noun: str) -> str:
    """1 -> "1 image", 2 -> "2 images"."""
    return f"{number} {noun if number == 1 else noun + 's'}"


def one_line(text: str) -> str:
    """What a path or a name may hold must not steer the terminal: U+FFFD for all that is no printable sign."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def reason_clause(standing: Standing, members: Sequence[api.MemberInfo]) -> str:
    """Why the array is not healthy; "" when it is."""
    if standing.state == ArrayState.HEALTHY:
        return ""
    counts = standing.counts
    if counts.unreadable_images:
        return f"{quantity(counts.unreadable_images, 'image')} cannot be read until disks come back"
    if counts.unprotected_images:
        return f"{quantity(counts.unprotected_images, 'image')} would be lost with the next disk"
    away = [row for row in members if row.state in (*AWAY, "offline")]
    if away:
        return ", ".join(f"slot {row.slot} is {row.state}" for row in away)
    others = ", ".join(f"slot {row.slot} is {row.state}" for row in members if row.state != "online")
    if counts.absent_shards and not others:
        verb = "is" if counts.absent_shards == 1 else "are"
        return f"{quantity(counts.absent_shards, 'shard')} {verb} to be re-created"
    return others


def next_step(state: ArrayState, members: Sequence[api.MemberInfo], *, paused: bool, waiting: str) -> str:
    """One sentence, or a command; "" = nothing to do. ``waiting``: why images cannot be taken in."""
    rebuilding = {row.slot for row in members if row.state == "rebuilding"}
    for row in members:
        if row.state in AWAY and (row.slot not in rebuilding or state == ArrayState.FAILED):
            return _bring_back_or_replace(row, state)
    if paused and state != ArrayState.HEALTHY:
        return "repairs are paused: raidctl rebuild resume"
    if rebuilding:
        return "nothing now: the rebuild ends by itself (raidctl rebuild status --watch)"
    for row in members:
        if row.state == "offline":
            return f"when its disk is back in place: raidctl online {row.slot}"
    if waiting:
        return f"images wait in the inbox: {waiting}"
    return "nothing now: repairs end by themselves" if state != ArrayState.HEALTHY else ""


def _bring_back_or_replace(row: api.MemberInfo, state: ArrayState) -> str:
    """While images cannot be read a replacement would not help: this very disk is needed."""
    disk = ", ".join(part for part in (row.bay and f"bay {row.bay}", row.serial and f"serial {row.serial}") if part)
    named = f"{row.path or 'its disk'}{f' ({disk})' if disk else ''}"
    check = f"check cable, power and mount of {named}"
    if state == ArrayState.FAILED:
        return f"{check}; do not erase it: images cannot be read without it"
    if row.state == "failed":
        return f"replace {named} by a new disk: raidctl replace {row.slot} MOUNT"
    return f"{check}; if the disk is dead: raidctl replace {row.slot} MOUNT"
