"""`raidctl init`: blank disks become the members of a new array, all of them or none.

Everything is looked at and refused first; then what this machine needs is made (premises.py), then each member folder
whole under another name, renamed last. What cannot go on takes back what it made: a disk that fails on the way leaves
the others blank.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from uuid import UUID, uuid4

from raidd.array.admission import Newcomer, examine
from raidd.array.catalog import Catalog
from raidd.array.host import create_member_folder, remove_newborn
from raidd.array.label import label_for
from raidd.array.lock import ArrayLock
from raidd.array.roster import MemberState, Roster, RosterEntry, new_roster
from raidd.array.state_file import Remembered, StateFile
from raidd.codec.geometry import (
    Geometry,
    Level,
    LevelOffer,
    canonical_level,
    default_level,
    level_geometry,
    level_table,
    usable_bytes,
)
from raidd.config import Config
from raidd.daemon.advice import one_line, quantity
from raidd.daemon.opening import now_text
from raidd.daemon.papers import contact_line, papers
from raidd.daemon.premises import (
    Owner,
    load_or_template,
    make_folders,
    nearest_existing,
    own,
    owner_here,
    refuse_other_array,
    write_settings,
)
from raidd.errors import MemberError, RequestRefused

NAME_LIMIT = 64


def init(given: argparse.Namespace) -> None:
    """Label the members of a new array."""
    _check_name(given.name)
    config, text = load_or_template(given.config)
    count = len(given.mounts)
    level = Level(
        canonical_level(given.level) if given.level else default_level(count),
        **{k: v for k in ("copies", "width", "data", "parity") if (v := getattr(given, k)) is not None},
    )
    geometry = level_geometry(level, count)
    newcomers = examine(
        given.mounts,
        state_dir=str(nearest_existing(config.raidd.state_dir)),
        allow_same_device=given.allow_same_device,
        allow_filesystem=given.allow_filesystem,
    )
    refuse_other_array(config)
    owner = owner_here()
    entries = [_entry(one) for one in newcomers]
    trial = any(one.trial for one in newcomers)
    roster = new_roster(uuid4(), given.name, level, geometry, entries, contact_line(config.contact), trial)
    sizes = [one.size_bytes for one in newcomers]
    _print_levels(level_table(count, sizes), LevelOffer(level.name, *_numbers(geometry, sizes)))
    make_folders(config, owner)
    write_settings(given.config, text, owner)
    lock = ArrayLock.acquire(str(config.raidd.state_dir))
    try:
        _give_birth(config, newcomers, roster, given.config, owner)
    finally:
        lock.release()
    own(config.raidd.state_dir, owner)
    _print_made(roster, newcomers, config, given.config)


def _check_name(name: str) -> None:
    """It stands on labels, in mails and in front of every status line."""
    if not name.strip() or len(name) > NAME_LIMIT or any(unicodedata.category(c)[0] in "CZ" for c in name):
        raise RequestRefused(
            f"{name!r} is no name for an array",
            next_step=f"Take one word of at most {NAME_LIMIT} letters, digits and signs, such as clinic-1.",
        )


def _entry(newcomer: Newcomer) -> RosterEntry:
    return RosterEntry(
        uuid4(),
        None,
        MemberState.SPARE,  # slot and state are set by new_roster
        model=newcomer.model,
        serial=newcomer.serial,
        size=newcomer.size_bytes,
    )


def _give_birth(
    config: Config, newcomers: Sequence[Newcomer], roster: Roster, settings_path: Path, owner: Owner
) -> None:
    """All members and what this machine knows of them, or nothing."""
    common = papers(roster, settings_path)
    paths = {entry.member: one.path for entry, one in zip(roster.entries, newcomers, strict=True)}
    made: list[UUID] = []
    try:
        for member, path in paths.items():
            files = {"label.json": label_for(member, roster).pack(), **common}
            create_member_folder(path, member, owner, files)
            made.append(member)
        _remember(config, roster, paths)
    except BaseException:
        for member in made:
            with suppress(MemberError):
                remove_newborn(paths[member], member)
        raise


def _remember(config: Config, roster: Roster, paths: dict[UUID, str]) -> None:
    catalog_path = config.raidd.state_dir / "catalog.sqlite"
    if catalog_path.exists():  # of an array that is no more
        Catalog.set_aside(catalog_path, now_text())
    catalog = Catalog.open(catalog_path, array=roster.array)
    catalog.reserve(0, SystemRandom())
    catalog.append_journal(now_text(), _actor(), "init", (str(roster.array),), detail={"name": roster.array_name})
    catalog.close()
    StateFile(config.raidd.state_dir).save(Remembered(roster, paths, frozenset(paths)))


def _actor() -> str:
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.geteuid()).pw_name


def _numbers(geometry: Geometry, sizes_bytes: Sequence[int]) -> tuple[int, int, int, int]:
    return geometry.k, geometry.m, usable_bytes(geometry, sizes_bytes), geometry.m


def _print_levels(offers: Sequence[LevelOffer], chosen: LevelOffer) -> None:
    """The one that was chosen is among them, or comes last."""
    print("With these disks each level would give:")
    for offer in [*offers, *([] if chosen in offers else [chosen])]:
        mark = "  <- chosen" if offer == chosen else ""
        size = (
            f"{offer.usable_bytes / 1e12:.2f} TB"
            if offer.usable_bytes >= 1e12
            else f"{offer.usable_bytes / 1e9:.1f} GB"
        )
        print(
            f"  {offer.name:<8} {offer.k}+{offer.m}  room {size:>10}  "
            f"survives {quantity(offer.survives, 'dead disk')}{mark}"
        )


def _print_made(roster: Roster, newcomers: Sequence[Newcomer], config: Config, path: Path) -> None:
    k, m = roster.geometry.k, roster.geometry.m
    print(f"\nArray {roster.array_name} ({roster.level.name}, {k}+{m}) is made:")
    for entry, one in zip(roster.entries, newcomers, strict=True):
        print(f"  slot {entry.slot}  {one_line(one.path)}  {one.filesystem}")
    if roster.trial:
        print("Members share disks: this protects nothing, it only shows how.")
    print(one_line(f"Settings: {path}"))
    print(one_line(f"Images are dropped into: {config.raidd.inbox}"))
    print(one_line(f"next: start it: systemctl enable --now raidd (or: raidd --config {shlex.quote(str(path))})"))
