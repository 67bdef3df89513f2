"""The journal: an append-only, hash-chained record of all that happened, and its replica on the members.

JSON Lines, one file a day (`journal/2026-11-24.jsonl`), canonical (sorted keys, no spaces); an entry's ``hash`` is
the SHA-256 of the entry without it, ``previous`` the hash of the one before: nothing can be changed, left out or put
in between without breaking the chain. Sequence numbers rise; they leave a gap only where entries may have been lost
with a state_dir, so that no number is ever given twice.

Entries are appended in the catalog's own transaction (catalog_journal.py); here is what is pure, and the replica. A
replica may lag behind and may end in a torn line (a power cut): the next `replicate` heals both. What a replica holds
that the chain does not know is never overwritten: JournalForeign; `set_newest_aside` keeps it and makes room.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from raidd.array.member_disk import MemberDisk, quarantine
from raidd.errors import MemberError

GENESIS = (0, "0" * 64)
"""The head of an empty journal: (sequence, hash)."""
FOLDER = "journal"
PURGE, MERGE = "purge", "merge"

_DAY_FILE = re.compile(r"\d{4}-\d\d-\d\d\.jsonl", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_KEYS = ("sequence", "at", "actor", "action", "objects", "outcome", "detail", "previous")

Head = tuple[int, str]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One entry. ``at``: RFC 3339, UTC, ms. ``objects``: ids or UIDs. ``detail``: JSON."""

    sequence: int
    at: str
    actor: str
    action: str
    objects: tuple[str, ...]
    outcome: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    previous: str = GENESIS[1]
    hash: str = ""

    @property
    def head(self) -> Head:
        """(sequence, hash): the journal's head while this is its last entry."""
        return self.sequence, self.hash

    def to_line(self) -> bytes:
        """The entry as it stands in the files, with its newline."""
        return _canonical(self.to_document()) + b"\n"

    def to_document(self) -> dict[str, Any]:
        """The entry as JSON."""
        return {**_body(self), "hash": self.hash}


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Purged for ever: ``segments`` and ``images`` (UID, SHA-256) whose manifest's journal sequence is below ours."""

    sequence: int
    segments: tuple[UUID, ...]
    images: tuple[tuple[str, str], ...]


def make_entry(
    head: Head,
    at: str,
    actor: str,
    action: str,
    objects: Iterable[str] = (),
    outcome: str = "ok",
    detail: Mapping[str, Any] | None = None,
) -> JournalEntry:
    """The entry that follows ``head``. ValueError when ``detail`` is not JSON or a purge cannot be understood."""
    entry = JournalEntry(
        head[0] + 1, _clean(at), _clean(actor), _clean(action), tuple(map(_clean, objects)), _clean(outcome),
        json.loads(_canonical(dict(detail or {}))), head[1],
    )  # fmt: skip
    tombstones([entry])
    return _sealed(entry)


def parse_line(line: bytes) -> JournalEntry:
    """An entry from its line. ValueError when it is not one, or its hash is wrong."""
    return parse_document(json.loads(line))


def parse_document(document: object) -> JournalEntry:
    """An entry from its JSON. ValueError as `parse_line`."""
    if not isinstance(document, dict) or document.keys() != {*_KEYS, "hash"}:
        raise ValueError("not a journal entry")
    entry = JournalEntry(**{**document, "objects": tuple(document["objects"])})
    texts = (entry.at, entry.actor, entry.action, entry.outcome, entry.previous, entry.hash, *entry.objects)
    if not isinstance(entry.sequence, int) or not isinstance(entry.detail, dict):
        raise ValueError("not a journal entry")
    if any(not isinstance(text, str) for text in texts) or _sealed(entry).hash != entry.hash:
        raise ValueError(f"journal entry {entry.sequence}: its hash is wrong")
    return entry


def verify_chain(entries: Iterable[JournalEntry], head: Head = GENESIS) -> Head:
    """The head after ``entries``, which must follow ``head``. ValueError names the first that does not."""
    for entry in entries:
        if entry.previous != head[1] or entry.sequence <= head[0] or _sealed(entry).hash != entry.hash:
            raise ValueError(f"journal entry {entry.sequence} does not follow entry {head[0]}")
        head = entry.head
    return head


def journal_path(entry: JournalEntry) -> str:
    """The day file it belongs in, relative to the member folder."""
    return f"{FOLDER}/{entry.at[:10]}.jsonl"


def tombstones(entries: Iterable[JournalEntry]) -> list[Tombstone]:
    """What the purges among ``entries`` bar, merged ones included. ValueError for one that cannot be understood."""
    found = [_tombstone(entry) for entry in entries if entry.action == PURGE]
    return found + [_tombstone(entry) for entry in entries for entry in merged(entry) if entry.action == PURGE]


def merge_detail(strays: Iterable[JournalEntry]) -> dict[str, Any]:
    """What a `merge` entry tells of the branches that it ties in: their heads; whole, what must stay in force."""
    strays = list(strays)
    kept = [entry.to_document() for entry in strays if entry.action == PURGE or "versions" in entry.detail]
    return {"branches": [list(entry.head) for entry in strays], "entries": kept}


def merged(entry: JournalEntry) -> list[JournalEntry]:
    """The entries of branches that a `merge` entry carries. ValueError when it cannot be understood."""
    return [parse_document(one) for one in entry.detail.get("entries", [])] if entry.action == MERGE else []


def _tombstone(entry: JournalEntry) -> Tombstone:
    try:
        segments = tuple(UUID(segment) for segment in entry.detail["segments"])
        images = tuple((str(uid), str(sha256)) for uid, sha256 in entry.detail["images"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"journal entry {entry.sequence}: a purge without its segments and images") from error
    if any(not _DIGEST.fullmatch(sha256) for _uid, sha256 in images):
        raise ValueError(f"journal entry {entry.sequence}: a purge with a digest that is none")
    return Tombstone(entry.sequence, segments, images)


def _body(entry: JournalEntry) -> dict[str, Any]:
    return {**{key: getattr(entry, key) for key in _KEYS}, "objects": list(entry.objects), "detail": dict(entry.detail)}


def _sealed(entry: JournalEntry) -> JournalEntry:
    body = _body(entry)
    return JournalEntry(**{**body, "objects": entry.objects}, hash=hashlib.sha256(_canonical(body)).hexdigest())


def _canonical(document: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    return _clean(text).encode()


def _clean(text: str) -> str:
    """Valid Unicode, so that the line can be read back."""
    return _SURROGATE.sub("\ufffd", text)


# The replica -----------------------------------------------------------------------------------------------------


class JournalDamaged(MemberError):
    """A member's replica of the journal is damaged before its last line."""

    next_step = "Nothing to do by hand: raidd writes the replica again from its own journal."


class JournalForeign(JournalDamaged):
    """A member's replica of the journal goes on where ours does not: another branch."""


def read_replica(disk: MemberDisk) -> list[JournalEntry]:
    """All entries a member holds, in order; a torn last line is left out. JournalDamaged, MemberError.

    At once, for a look at the whole; what runs beside others takes a day at a time (`replicas`)."""
    entries = [entry for name in day_files(disk) for entry in read_day(disk, name)]
    try:
        verify_chain(entries)
    except ValueError as error:
        raise _damaged(disk, str(error)) from error
    return entries


def replica_head(disk: MemberDisk) -> Head:
    """The last entry a member holds, or the genesis. Reads the newest day only. JournalDamaged, MemberError."""
    for path in reversed(day_files(disk)):
        if entries := read_day(disk, path):
            return entries[-1].head
    return GENESIS


def replicate(disk: MemberDisk, entries: Sequence[JournalEntry]) -> int:
    """Append what the replica lacks of ``entries`` (a run of the chain); how many. Durable on return.

    JournalForeign when the replica's head is neither among them nor just before them.
    """
    if not entries:
        return 0
    files = day_files(disk)
    if files:
        _heal(disk, files[-1], entries[-1].at)
    known = replica_head(disk)
    fresh = [entry for entry in entries if entry.sequence > known[0]]
    if known not in {entry.head for entry in entries} and (not fresh or fresh[0].previous != known[1]):
        raise JournalForeign(
            f"the journal on member {disk.uuid} ends with entry {known[0]}, which ours does not follow",
            member=str(disk.uuid),
        )
    for path, lines in _by_day(fresh, files[-1] if files else "").items():
        disk.append(path, b"".join(lines))
    return len(fresh)


def set_newest_aside(disk: MemberDisk, now: str) -> bool:
    """Take the newest day file off a replica that is damaged or of another branch; False if there is none.

    It goes to quarantine: it may be the only trace of what was lost with a state_dir. Newest first, so that what a
    crash leaves is a shorter replica, and all that is good of it is kept.
    """
    files = day_files(disk)
    if files:
        quarantine(disk, files[-1], "this journal is damaged, or does not belong to the array's own", now)
    return bool(files)


def day_files(disk: MemberDisk) -> list[str]:
    """The files of a replica, in the order of the chain."""
    return [f"{FOLDER}/{name}" for name in disk.list(FOLDER) if _DAY_FILE.fullmatch(name)]


def _by_day(entries: Iterable[JournalEntry], newest: str) -> dict[str, list[bytes]]:
    """day file → lines. Files go on in the order of the chain, also when the clock is set back."""
    days: dict[str, list[bytes]] = {}
    for entry in entries:
        newest = max(newest, journal_path(entry))
        days.setdefault(newest, []).append(entry.to_line())
    return days


def read_day(disk: MemberDisk, path: str) -> list[JournalEntry]:
    """A day's entries. In the newest file the first bad line ends them: blocks of an append that a power cut
    interrupted reach the disk in any order."""
    entries = []
    for number, line in enumerate(disk.read(path).split(b"\n")[:-1], 1):
        try:
            entries.append(parse_line(line))
        except (ValueError, TypeError, RecursionError) as error:
            if path == day_files(disk)[-1]:
                break
            raise _damaged(disk, f"{path} line {number}: {error}") from error
    return entries


def whole_entries(disk: MemberDisk, path: str) -> list[JournalEntry]:
    """Every entry of a day that is whole and can be understood, whatever lies between them."""
    entries = []
    for line in disk.read(path).split(b"\n"):
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            entry = parse_line(line)
            tombstones([entry])
            entries.append(entry)
    return entries


def _heal(disk: MemberDisk, path: str, now: str) -> None:
    """Cut a torn tail, so that the next line begins at a line's beginning. More than one torn line is kept aside."""
    good = b"".join(entry.to_line() for entry in read_day(disk, path))
    tail = disk.read(path)[len(good) :]
    if b"\n" in tail:
        quarantine(disk, path, "lines of this journal are damaged", now)
    if tail:
        disk.replace(path, good)


def _damaged(disk: MemberDisk, what: str) -> JournalDamaged:
    return JournalDamaged(f"the journal on member {disk.uuid} is damaged: {what}", member=str(disk.uuid))
