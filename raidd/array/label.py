"""label.json: which array and slot a disk is, and what the array decided when it was last written. Pure bytes ↔ values.

Form (format.md): one JSON object, canonical (sorted keys, no spaces, UTF-8), with ``crc32c``: eight lower-case hex
digits of the CRC-32C of the canonical JSON without that key. A file that is not byte for byte what `Label.pack`
gives for what was read from it is damaged: half-written, flipped in any one bit, or edited by hand.

Three ends, never confused: a *good* label; a *damaged* one (LabelInvalid), which may be re-made; one that is *not
understood* (LabelUnsupported: newer major, or a word in ``requires``), from which nothing is read and to whose disk
nothing is written, least of all another label.

Which roster counts is decided over all labels found (`choose_roster`), by ancestry, never by a clock: the highest
epoch if all others are its ancestors; on a fork a side that fills N−m slots or more beats one on fewer than m+1
members, else nobody is believed. The roster never decides which images exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from crc32c import crc32c

from raidd.array.roster import MemberState, Roster, RosterEntry, canonical_json, level_of
from raidd.codec.geometry import Geometry
from raidd.errors import LabelForked, LabelInvalid

LABEL_NAME = "label.json"
FORMAT = "1.0"
LABEL_LIMIT = 1 << 20
KNOWN_REQUIREMENTS: frozenset[str] = frozenset()

_ENTRY_KEYS = frozenset({"member", "slot", "state", "enclosure", "bay", "model", "serial", "size"})
_SHARED_KEYS = frozenset({"array", "array_name", "level", "k", "m", "epoch", "roster", "contact", "trial", "history"})
_KEYS = _SHARED_KEYS | {"format", "requires", "member", "slot", "crc32c"}


class LabelUnsupported(LabelInvalid):
    """Written by a newer raidd: whole, but not understood. Read nothing from this disk, write nothing to it."""

    next_step = "Install the newer raidd that wrote this label; nothing was changed on that disk."


@dataclass(frozen=True, slots=True)
class Label:
    """One member's label. ValueError if its roster does not know the member."""

    member: UUID
    roster: Roster
    format: str = FORMAT
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.roster.find(self.member) is None:
            raise ValueError(f"{self.member} is not in the roster of its own label")

    @property
    def slot(self) -> int | None:
        """The member's slot, as its roster has it."""
        return self.roster.entry(self.member).slot

    @property
    def extra(self) -> Mapping[str, Any]:
        """Keys of a later minor version; the roster carries them to every label written from it."""
        return self.roster.extra

    def pack(self) -> bytes:
        """The file's bytes."""
        document = self._document()
        return canonical_json(document | {"crc32c": _checksum(document)})

    def _document(self) -> dict[str, Any]:
        own = {"format": self.format, "requires": list(self.requires), "member": str(self.member), "slot": self.slot}
        shared = self.roster.document() | {"history": list(self.roster.history)}
        shared["roster"] = [dict(entry.extra) | entry.document() for entry in self.roster.entries]
        return dict(self.extra) | shared | own

    @classmethod
    def parse(cls, data: bytes) -> Label:
        """The label in a file's bytes. LabelInvalid if it is damaged, LabelUnsupported if it is not understood."""
        document = _verified(data)
        _check_understood(document)
        try:
            return _from_document(document)
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise LabelInvalid(f"the label's keys do not fit together: {fault}") from fault


def label_for(member: UUID, roster: Roster) -> Label:
    """A fresh label. LabelInvalid if the roster does not know the member."""
    if roster.find(member) is None:
        raise LabelInvalid(f"{member} is not in the roster of {roster.array_name}")
    return Label(member, roster)


def remake_label(roster: Roster, member: UUID) -> Label:
    """The label of a disk whose own is damaged, from the others' roster.

    The caller has found one good shard head of this very array on the disk, in the folder that carries the member's
    id (format.md): a roster alone proves nothing about a disk. LabelInvalid for a member that is not in the roster
    or is retired: it has no place to be given back.
    """
    label = label_for(member, roster)
    if roster.entry(member).state is MemberState.RETIRED:
        raise LabelInvalid(f"{member} is retired from {roster.array_name}; its label is not made again")
    return label


# Reading --------------------------------------------------------------------------------------------------------


def _checksum(document: Mapping[str, Any]) -> str:
    return f"{crc32c(canonical_json(document)):08x}"


def _verified(data: bytes) -> dict[str, Any]:
    """The JSON object, its checksum and its very bytes verified. Bounded: a label is small."""
    if len(data) > LABEL_LIMIT:
        raise LabelInvalid(f"the label is {len(data)} bytes long; {LABEL_LIMIT} is the limit")
    try:
        document = json.loads(data.decode())
        if not isinstance(document, dict):
            raise LabelInvalid("the label is not a JSON object")
        without = {key: value for key, value in document.items() if key != "crc32c"}
        if document.get("crc32c") != _checksum(without):
            raise LabelInvalid("the label contradicts its checksum")
        if canonical_json(document) != data:
            raise LabelInvalid("the label is not in the form raidd writes")
    except (ValueError, RecursionError) as fault:
        raise LabelInvalid(f"the label is not whole JSON: {fault}") from fault
    return document


def _check_understood(document: Mapping[str, Any]) -> None:
    version, requires = document.get("format"), document.get("requires")
    if not isinstance(version, str) or not isinstance(requires, list):
        raise LabelInvalid("the label names no format")
    if version.partition(".")[0] != FORMAT.partition(".")[0]:
        raise LabelUnsupported(f"label format {version} is newer than {FORMAT}: read nothing, write nothing")
    unknown = [str(word) for word in requires if not (isinstance(word, str) and word in KNOWN_REQUIREMENTS)]
    if unknown:
        raise LabelUnsupported(f"the label requires {', '.join(unknown)}: read nothing, write nothing")


def _from_document(document: Mapping[str, Any]) -> Label:
    label = Label(_uuid(document["member"]), _roster(document), document["format"], tuple(document["requires"]))
    if _slot(document["slot"]) != label.slot:
        raise ValueError(f"slot {document['slot']} is not the roster's {label.slot}")
    return label


def _roster(document: Mapping[str, Any]) -> Roster:
    geometry = Geometry(_integer(document["k"]), _integer(document["m"]))
    return Roster(
        array=_uuid(document["array"]),
        array_name=_text(document["array_name"]),
        level=level_of(_text(document["level"]), geometry),
        geometry=geometry,
        epoch=_integer(document["epoch"]),
        history=tuple(_text(each) for each in _list(document["history"])),
        entries=tuple(_entry(each) for each in _list(document["roster"])),
        contact=_text(document["contact"]),
        trial=_flag(document["trial"]),
        extra={key: value for key, value in document.items() if key not in _KEYS},
    )


def _entry(document: Mapping[str, Any]) -> RosterEntry:
    return RosterEntry(
        member=_uuid(document["member"]),
        slot=_slot(document["slot"]),
        state=MemberState(document["state"]),
        enclosure=_text(document["enclosure"]),
        bay=_text(document["bay"]),
        model=_text(document["model"]),
        serial=_text(document["serial"]),
        size=_integer(document["size"]),
        extra={key: value for key, value in document.items() if key not in _ENTRY_KEYS},
    )


def _uuid(value: object) -> UUID:
    found = UUID(_text(value))
    if str(found) != value:
        raise ValueError(f"{value!r} is not an id in lower-case 8-4-4-4-12")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _slot(value: object) -> int | None:
    return None if value is None else _integer(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


# Choosing -------------------------------------------------------------------------------------------------------


def choose_roster(labels: Sequence[Label], *, remembered: Roster | None = None) -> Roster:
    """The roster that counts, given every good label found (damaged ones are left out by the caller).

    ``remembered``: the copy in state_dir, if there is one. It is compared like any other, but it is on no member and
    so has no vote in a fork: a system disk restored from a backup must not outvote a disk of the array.
    LabelInvalid: no label, or labels of two arrays. LabelForked: two rosters, neither the other's ancestor, and no
    side strong enough; the message shows each.
    """
    rosters = [label.roster for label in labels] + ([] if remembered is None else [remembered])
    if not rosters:
        raise LabelInvalid("no label was found", next_step="Give the mounts that hold the array's disks.")
    arrays = sorted({str(roster.array) for roster in rosters})
    if len(arrays) > 1:
        raise LabelInvalid(f"labels of {len(arrays)} arrays were found: {', '.join(arrays)}")
    sides = _sides(rosters, labels)
    if len(sides) == 1:
        return sides[0].tip
    winner = _winner(sides)
    if winner is None:
        raise LabelForked("\n".join(["the members' rosters forked:", *(side.describe() for side in sides)]))
    return winner.tip


@dataclass(frozen=True, slots=True)
class _Side:
    """A roster that no other found descends from, and the members whose labels lead to it and to no other such."""

    tip: Roster
    members: frozenset[UUID]

    @property
    def slots(self) -> int:
        """Slots of the tip that its members fill: an old and a new disk in one slot are one voice."""
        slots = {entry.slot for entry in self.tip.entries if entry.member in self.members}
        return len(slots - {None})

    def describe(self) -> str:
        states = ", ".join(f"slot {entry.slot} {entry.state}" for entry in self.tip.entries if entry.slot is not None)
        names = ", ".join(sorted(map(self._name, self.members))) or "only remembered, or by common ancestors"
        return f"  epoch {self.tip.epoch}, on {len(self.members)} members ({names}): {states}"

    def _name(self, member: UUID) -> str:
        entry = self.tip.find(member)
        return f"slot {entry.slot} {member}" if entry is not None and entry.slot is not None else str(member)


def _sides(rosters: Sequence[Roster], labels: Sequence[Label]) -> list[_Side]:
    """One side for each roster that is nobody's ancestor, highest epoch first."""
    by_hash = {roster.hash(): roster for roster in rosters}
    lineage = {found: {found, *roster.history} for found, roster in by_hash.items()}
    tips = [found for found in by_hash if not any(found in by_hash[other].history for other in by_hash)]
    tips.sort(key=lambda found: (-by_hash[found].epoch, found))
    held = [(label.member, {tip for tip in tips if label.roster.hash() in lineage[tip]}) for label in labels]
    return [_Side(by_hash[tip], frozenset(member for member, leads in held if leads == {tip})) for tip in tips]


def _winner(sides: Sequence[_Side]) -> _Side | None:
    """The one side on N−m slots or more, if each other is on fewer than m+1 members.

    Where the sides differ in N or m the stricter is taken. In a small array (N ≤ 2m, a mirror above all) each side
    may satisfy both: then there is no winner.
    """
    enough = max(side.tip.size - side.tip.geometry.m for side in sides)
    few = min(side.tip.geometry.m for side in sides) + 1
    winners = [
        side
        for side in sides
        if side.slots >= enough and all(len(other.members) < few for other in sides if other is not side)
    ]
    return winners[0] if len(winners) == 1 else None
