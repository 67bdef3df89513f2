"""What runs without the daemon: init, assemble, catalog reindex. raidctl starts this module as a child process
(cli/offline_child.py says with which arguments).

All three take the locks that the daemon takes, so that none of them runs beside it. Everything is checked before
anything is written; `init` makes each member folder whole under another name and renames it last, and takes back what
it made when it cannot go on. Run by root, what they make belongs to user raidd if there is one: `init` gives it away,
the others become that user before they write.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import sys
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from uuid import UUID, uuid4

from raidd import config as settings
from raidd.array.admission import Newcomer, examine
from raidd.array.catalog import Catalog
from raidd.array.discovery import Sighting, discover
from raidd.array.host import create_member_folder, own_member_folder, remove_newborn
from raidd.array.label import choose_roster, label_for
from raidd.array.local_disk import LocalDisk
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
from raidd.config_template import render_template, write_settings
from raidd.daemon import logs
from raidd.daemon.advice import quantity
from raidd.daemon.graph import Array, build_array, make_whole, stale_ids, tell_absent
from raidd.daemon.opening import now_text, open_array, refuse_strangers
from raidd.daemon.papers import LEFT_OUT, contact_line, papers
from raidd.errors import LabelInvalid, MemberError, RaiddError, RequestRefused

USER = "raidd"
NAME_LIMIT = 64
LOOK_S = 30.0
SETTINGS_COPY = "config/raidd.toml"
Owner = tuple[int, int] | None
"""User and group, None for whoever runs this."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the child process; returns its exit code."""
    given = _parser().parse_args(arguments)
    logs.configure(level=30)
    try:
        given.run(given)
    except RaiddError as error:
        print(f"raidctl: {error.message}", file=sys.stderr)
        print(f"next: {error.next_step}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("raidctl: stopped; what was begun can be begun again", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raidctl")
    commands = parser.add_subparsers(required=True)
    init_ = commands.add_parser("init")
    init_.add_argument("--name", required=True)
    init_.add_argument("--level")
    for number in ("--copies", "--width", "--data", "--parity"):
        init_.add_argument(number, type=int)
    init_.add_argument("--allow-same-device", action="store_true")
    init_.add_argument("--allow-filesystem", action="store_true")
    init_.add_argument("--config", required=True, type=Path)
    init_.add_argument("mounts", nargs="+")
    init_.set_defaults(run=init)
    assemble_ = commands.add_parser("assemble")
    assemble_.add_argument("--config", required=True, type=Path)
    assemble_.add_argument("mounts", nargs="*")
    assemble_.set_defaults(run=assemble)
    catalog = commands.add_parser("catalog").add_subparsers(required=True).add_parser("reindex")
    catalog.add_argument("--config", required=True, type=Path)
    catalog.set_defaults(run=reindex)
    return parser


# -- init ---------------------------------------------------------------------------------------------------


def init(given: argparse.Namespace) -> None:
    """Label the members of a new array."""
    _check_name(given.name)
    config, text = _settings(given.config)
    count = len(given.mounts)
    level = Level(
        canonical_level(given.level) if given.level else default_level(count),
        **{k: v for k in ("copies", "width", "data", "parity") if (v := getattr(given, k)) is not None},
    )
    geometry = level_geometry(level, count)
    newcomers = examine(
        given.mounts,
        state_dir=str(_existing(config.raidd.state_dir)),
        allow_same_device=given.allow_same_device,
        allow_filesystem=given.allow_filesystem,
    )
    _refuse_second_array(config)
    owner = _owner()
    entries = [_entry(one) for one in newcomers]
    trial = any(one.trial for one in newcomers)
    roster = new_roster(uuid4(), given.name, level, geometry, entries, contact_line(config.contact), trial)
    sizes = [one.size_bytes for one in newcomers]
    _print_levels(level_table(count, sizes), LevelOffer(level.name, *_numbers(geometry, sizes)))
    _make_folders(config, owner)
    _write_settings(given.config, text, owner)
    lock = ArrayLock.acquire(str(config.raidd.state_dir))
    try:
        _give_birth(config, newcomers, roster, given.config, owner)
    finally:
        lock.release()
    _own(config.raidd.state_dir, owner)
    _print_made(roster, newcomers, config, given.config)


def _check_name(name: str) -> None:
    """It stands on labels, in mails and in front of every status line."""
    if not name.strip() or len(name) > NAME_LIMIT or any(unicodedata.category(c)[0] in "CZ" for c in name):
        raise RequestRefused(
            f"{name!r} is no name for an array",
            next_step=f"Take one word of at most {NAME_LIMIT} letters, digits and signs, such as clinic-1.",
        )


def _settings(path: Path) -> tuple[Config, str | None]:
    """The settings; if there is no file yet, the defaults and the text to write."""
    if not _missing(path):
        return settings.load(path), None
    text = render_template()
    return replace(settings.parse(text, str(path)), path=path), text


def _missing(path: Path) -> bool:
    """Not there. What cannot be looked at may be there: whoever opens it says why it cannot."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while _missing(path):
        path = path.parent
    return path


def _refuse_second_array(config: Config, array: UUID | None = None) -> None:
    """``array``: the one that may be there already."""
    known = None if _missing(config.raidd.state_dir) else StateFile(config.raidd.state_dir).load()
    if known is not None and known.roster.array != array:
        raise RequestRefused(
            f"{config.raidd.state_dir} already belongs to array {known.roster.array_name}",
            next_step="One array per state_dir: name another settings file, or add the disks: raidctl add MOUNT",
        )


def _owner() -> Owner:
    """User raidd if it exists and root runs this, else the caller."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def _entry(newcomer: Newcomer) -> RosterEntry:
    return RosterEntry(
        uuid4(),
        None,
        MemberState.SPARE,  # slot and state are set by new_roster
        model=newcomer.model,
        serial=newcomer.serial,
        size=newcomer.size_bytes,
    )


def _make_folders(config: Config, owner: Owner) -> None:
    """Those that are missing. The socket's can be passed by all (the socket itself cannot), state_dir by its owner."""
    places = config.raidd
    modes = {places.state_dir: 0o700, places.run_dir: 0o755, places.inbox: 0o770, places.spool: 0o770}
    for folder, mode in modes.items():
        try:
            if _missing(folder):
                folder.mkdir(parents=True)
                folder.chmod(mode)
                if owner is not None:
                    os.chown(folder, *owner)
        except OSError as error:
            raise RequestRefused(
                f"{folder} cannot be made: {error.strerror}",
                next_step="Run it as root, or name folders of your own in the settings file (--config FILE).",
            ) from error


def _write_settings(path: Path, text: str | None, owner: Owner) -> None:
    if text is not None and write_settings(path, text):
        _give(path, owner)


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


def _own(folder: Path, owner: Owner) -> None:
    for path in (folder, *folder.iterdir()):
        _give(path, owner)


def _give(path: Path, owner: Owner) -> None:
    if owner is None:
        return
    try:
        os.chown(path, *owner)
    except OSError as error:
        raise RequestRefused(
            f"{path} cannot be given to user {USER}: {error.strerror}", next_step=f"sudo chown {USER} {path}"
        ) from error


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
        print(f"  slot {entry.slot}  {one.path}  {one.filesystem}")
    if roster.trial:
        print("Members share disks: this protects nothing, it only shows how.")
    print(f"Settings: {path}\nImages are dropped into: {config.raidd.inbox}")
    print(f"next: start it: systemctl enable --now raidd (or: raidd --config {shlex.quote(str(path))})")


# -- assemble, reindex --------------------------------------------------------------------------------------


def assemble(given: argparse.Namespace) -> None:
    """Bring an array back from its members' labels."""
    sightings = _find(given.mounts)
    print(_table(sightings, given.mounts))
    roster = _choose(sightings)
    config, text = _saved_settings(given.config, sightings, roster)
    _refuse_second_array(config, roster.array)
    owner = _owner()
    _make_folders(config, owner)
    _write_settings(given.config, text, owner)
    if text is not None and LEFT_OUT in text:
        print(f"Addresses of alerts hold secrets, so the disks do not have them: put them into {given.config} again.")
    _own_all(config, sightings, roster, owner)
    _become(owner)
    _rebuild(config, sightings, roster, "assembled from the members")
    print(f"next: start it: systemctl start raidd (or: raidd --config {shlex.quote(str(given.config))})")


def _find(mounts: Sequence[str]) -> list[Sighting]:
    """Members on the mounts named, or on all mounts of the host."""
    real = [os.path.realpath(mount) for mount in mounts]
    strange = [mount for mount, place in zip(mounts, real, strict=True) if not os.path.isdir(place)]
    if strange:
        raise RequestRefused(
            "\n".join(f"{mount} is not a folder; is the disk mounted?" for mount in strange),
            next_step="Name the folders where the disks are mounted (lsblk -f lists disks and mounts).",
        )
    return discover([], LOOK_S, real or None)


def _choose(sightings: Sequence[Sighting]) -> Roster:
    """The roster that counts; what speaks against taking it is told with what can be done about it."""
    labels = [s.label for s in sightings if s.label is not None]
    arrays = sorted({f"{one.roster.array_name} ({one.roster.array})" for one in labels})
    if len(arrays) > 1:
        raise LabelInvalid(
            f"these disks belong to {len(arrays)} arrays: {', '.join(arrays)}",
            next_step="Name the mounts of one of them: raidctl assemble MOUNT…",
        )
    roster = choose_roster(labels)
    refuse_strangers(sightings, roster)
    return roster


def _table(sightings: Sequence[Sighting], mounts: Sequence[str]) -> str:
    lines = ["Labels found:"] if sightings else []
    for seen in sightings:
        if seen.label is None:
            lines.append(f"  {seen.path}  {seen.uuid}  {seen.fault}")
        else:
            roster = seen.label.roster
            slot = "spare" if seen.label.slot is None else f"slot {seen.label.slot}"
            lines.append(f"  {seen.path}  {roster.array_name}  {slot}  epoch {roster.epoch}")
    seen_at = {seen.path for seen in sightings}
    lines += [f"  {mount}  no label, or no answer" for mount in mounts if os.path.realpath(mount) not in seen_at]
    return "\n".join(lines) if lines else "No label was found on any mount."


def _saved_settings(path: Path, sightings: Sequence[Sighting], roster: Roster) -> tuple[Config, str | None]:
    """An existing settings file is kept; else the copy on the member that was there last; else the defaults."""
    if not _missing(path):
        return settings.load(path), None
    labelled = [(s, s.label.roster.epoch) for s in sightings if s.label is not None and s.array == roster.array]
    for seen, _epoch in sorted(labelled, key=lambda one: -one[1]):
        try:
            text = LocalDisk(seen.path, seen.uuid).read(SETTINGS_COPY).decode()
            return replace(settings.parse(text, str(path)), path=path), text
        except (UnicodeDecodeError, RaiddError):
            continue
    return _settings(path)


def _own_all(config: Config, sightings: Sequence[Sighting], roster: Roster, owner: Owner) -> None:
    """On a new machine user raidd may have another number than it had when the disks were written."""
    _own(config.raidd.state_dir, owner)
    for seen in sightings if owner is not None else ():
        if seen.array == roster.array and owner is not None:
            try:
                own_member_folder(seen.path, seen.uuid, owner)
            except MemberError as error:
                print(f"warning: {error.message}", file=sys.stderr)


def _become(owner: Owner) -> None:
    """From here on everything is written as user raidd. What is root's stays within reach of nobody else."""
    if owner is not None:
        os.initgroups(pwd.getpwuid(owner[0]).pw_name, owner[1])
        os.setegid(owner[1])
        os.seteuid(owner[0])


def _rebuild(config: Config, sightings: Sequence[Sighting] | None, roster: Roster | None, reason: str) -> None:
    opened = open_array(config, sightings=sightings, roster=roster, fresh_catalog=reason)
    try:
        array = build_array(opened, lambda _source, _sha256: False, _event)
        tell_absent(array, _event)
        make_whole(array, _progress)
        while array.replicator.replicate_once():
            pass
        _report(array)
        opened.membership.remember(stopping=True)
    finally:
        opened.catalog.close()
        opened.locks.unlock_all()


def _report(array: Array) -> None:
    """What is in the catalog now; RequestRefused (exit 1) when segments are left that could not be read."""
    catalog, membership = array.opened.catalog, array.opened.membership
    counts = catalog.counts(membership.away())
    print(f"{quantity(counts.images, 'image')} in {quantity(counts.segments, 'segment')}: all are in the catalog.")
    if counts.unreadable_images:
        print(f"{quantity(counts.unreadable_images, 'image')} of them cannot be read until more disks are back.")
    waiting = len(stale_ids(array))
    if waiting:
        raise RequestRefused(
            f"{quantity(waiting, 'segment')} more could not be taken in: too few of their shards can be read now",
            next_step="Nothing of them was changed. Bring the missing disks back: raidd takes them in then.",
        )


def _event(code: str, severity: str, message: str, _objects: Sequence[str]) -> None:
    print(f"{severity}: {message} ({code})", file=sys.stderr)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        width = 40 * done // max(total, 1)
        end = "\n" if done == total else ""
        print(f"\r[{'#' * width:<40}] {done} of {total} segments", end=end, file=sys.stderr, flush=True)


def reindex(given: argparse.Namespace) -> None:
    """Make the catalog again from the members."""
    config, owner = settings.load(given.config), _owner()
    if not _missing(config.raidd.state_dir):
        _own(config.raidd.state_dir, owner)
        _become(owner)
    _rebuild(config, None, None, "raidctl catalog reindex")


if __name__ == "__main__":
    sys.exit(main())
