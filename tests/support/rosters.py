"""Rosters and labels for tests: ids that can be read, sizes that are small."""

from __future__ import annotations

from uuid import UUID

from raidd.array.roster import MemberState, Presence, Roster, RosterEntry, new_roster
from raidd.codec.geometry import Geometry, Level

ARRAY = UUID("aaaaaaaa-0000-4000-8000-000000000000")
HERE = Presence(True, "", 0.0)
AWAY = Presence(False, "pulled", 1.0)


def member_id(number: int) -> UUID:
    """The id of the member with this number."""
    return UUID(int=0x1000_0000_0000_4000_8000_0000_0000_0000 + number)


def newcomer(number: int, **fields: object) -> RosterEntry:
    """A disk as `add` or `replace` presents it; slot and state are the roster's to set."""
    return RosterEntry(member_id(number), None, MemberState.SPARE, **fields)  # type: ignore[arg-type]


def roster_of(members: int, k: int | None = None, m: int = 2, level: str = "raid6") -> Roster:
    """A fresh array: full width unless ``k`` is given."""
    geometry = Geometry(members - m if k is None else k, m)
    return new_roster(ARRAY, "clinic-1", Level(level), geometry, [newcomer(number) for number in range(members)])
