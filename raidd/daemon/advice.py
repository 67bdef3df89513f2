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


def reason_clause(standing: Standing, members: Sequence[api.MemberInfo]) -> str:
    """Why the array is not healthy; "" when it is."""
    if standing.state == ArrayState.HEALTHY:
        return ""
    counts = standing.counts
    if counts.unreadable_images:
        return f"{counts.unreadable_images} images cannot be read until disks come back"
    if counts.unprotected_images:
        return f"{counts.unprotected_images} images would be lost with the next disk"
    away = [row for row in members if row.state in (*AWAY, "offline")]
    if away:
        return ", ".join(f"slot {row.slot} is {row.state}" for row in away)
    if counts.absent_shards:
        return f"{counts.absent_shards} shards are being re-created"
    return ", ".join(f"slot {row.slot} is {row.state}" for row in members if row.state != "online")


def next_step(
    state: ArrayState, members: Sequence[api.MemberInfo], activities: Sequence[api.Activity], waiting: str
) -> str:
    """One sentence, or a command; "" = nothing to do."""
    if activities and any(job.paused for job in activities):
        return "the rebuild is paused: raidctl rebuild resume"
    rebuilding = {row.slot for row in members if row.state == "rebuilding"}
    for row in members:
        if row.state in AWAY and row.slot not in rebuilding:
            return _bring_back_or_replace(row)
    if rebuilding:
        return "nothing now: the rebuild ends by itself (raidctl rebuild status --watch)"
    for row in members:
        if row.state == "offline":
            return f"when its disk is back in place: raidctl online {row.slot}"
    if waiting:
        return f"images wait in the inbox: {waiting}"
    return "nothing now: repairs end by themselves" if state != ArrayState.HEALTHY else ""


def _bring_back_or_replace(row: api.MemberInfo) -> str:
    disk = ", ".join(part for part in (row.bay and f"bay {row.bay}", row.serial and f"serial {row.serial}") if part)
    named = f"{row.path}{f' ({disk})' if disk else ''}"
    return f"check cable, power and mount of {named}; if the disk is dead: raidctl replace {row.slot} MOUNT"
