"""What runs without the daemon: init, assemble, catalog reindex. raidctl starts this module as a child process
(cli/offline_child.py says with which arguments).

All three take the locks that the daemon takes, so that none of them runs beside it. Everything is checked before
anything is written; `init` makes each member folder whole under another name and renames it last.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from uuid import UUID, uuid4

from raidd import config as settings
from raidd.array.admission import Newcomer, examine
from raidd.array.catalog import Catalog
from raidd.array.discovery import Sighting, discover
from raidd.array.host import create_member_folder
from raidd.array.label import choose_roster, label_for
from raidd.array.lock import ArrayLock
from raidd.array.roster import MemberState, Roster, RosterEntry, new_roster
from raidd.array.state_file import Remembered, StateFile
from raidd.codec.geometry import Level, LevelOffer, default_level, level_geometry, level_table
from raidd.config import Config
from raidd.config_template import render_template
from raidd.daemon import logs
from raidd.daemon.graph import build_array, make_whole
from raidd.daemon.opening import Opened, now_text, open_array, refuse_strangers
from raidd.daemon.papers import contact_line, papers
from raidd.errors import LabelInvalid, RaiddError, RequestRefused

USER = "raidd"
LOOK_S = 30.0


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
    config, text = _settings(given.config)
    count = len(given.mounts)
    level = Level(
        given.level or default_level(count),
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
    _print_levels(level_table(count, [one.size_bytes for one in newcomers]), level)
    _make_folders(config, owner)
    if text is not None:
        _write_settings(given.config, text)
    lock = ArrayLock.acquire(str(config.raidd.state_dir))
    try:
        _give_birth(newcomers, roster, given.config, owner)
        _remember(config, roster, {e.member: n.path for e, n in zip(roster.entries, newcomers, strict=True)})
    finally:
        lock.release()
    _own(config.raidd.state_dir, owner)
    _print_made(roster, newcomers, given.config)


def _settings(path: Path) -> tuple[Config, str | None]:
    """The settings; if there is no file yet, the defaults and the text to write."""
    if path.exists():
        return settings.load(path), None
    text = render_template()
    return replace(settings.parse(text, str(path)), path=path), text


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def _refuse_second_array(config: Config) -> None:
    known = StateFile(config.raidd.state_dir).load() if config.raidd.state_dir.exists() else None
    if known is not None:
        raise RequestRefused(
            f"{config.raidd.state_dir} already belongs to array {known.roster.array_name}",
            next_step="One array per state_dir: name another settings file, or add the disks: raidctl add MOUNT",
        )


def _owner() -> tuple[int, int] | None:
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


def _make_folders(config: Config, owner: tuple[int, int] | None) -> None:
    for folder in (config.raidd.state_dir, config.raidd.run_dir, config.raidd.inbox, config.raidd.spool):
        try:
            if not folder.exists():
                folder.mkdir(parents=True, mode=0o700 if folder == config.raidd.state_dir else 0o770)
                if owner is not None:
                    os.chown(folder, *owner)
        except OSError as error:
            raise RequestRefused(
                f"{folder} cannot be made: {error.strerror}",
                next_step="Run it as root, or name folders of your own in the settings file (--config FILE).",
            ) from error


def _write_settings(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestRefused(
            f"{path} cannot be written: {error.strerror}", next_step="Name another: --config FILE"
        ) from error


def _give_birth(newcomers: Sequence[Newcomer], roster: Roster, path: Path, owner: tuple[int, int] | None) -> None:
    common = papers(roster, path)
    for newcomer, entry in zip(newcomers, roster.entries, strict=True):
        files = {"label.json": label_for(entry.member, roster).pack(), **common}
        create_member_folder(newcomer.path, entry.member, owner, files)


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


def _own(folder: Path, owner: tuple[int, int] | None) -> None:
    if owner is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, *owner)


def _print_levels(offers: Sequence[LevelOffer], chosen: Level) -> None:
    print("With these disks each level would give:")
    for offer in offers:
        mark = "  <- chosen" if offer.name == chosen.name else ""
        size = (
            f"{offer.usable_bytes / 1e12:.2f} TB"
            if offer.usable_bytes >= 1e12
            else f"{offer.usable_bytes / 1e9:.1f} GB"
        )
        print(f"  {offer.name:<8} {offer.k}+{offer.m}  room {size:>10}  survives {offer.survives} dead disks{mark}")


def _print_made(roster: Roster, newcomers: Sequence[Newcomer], path: Path) -> None:
    k, m = roster.geometry.k, roster.geometry.m
    print(f"\nArray {roster.array_name} ({roster.level.name}, {k}+{m}) is made:")
    for entry, one in zip(roster.entries, newcomers, strict=True):
        print(f"  slot {entry.slot}  {one.path}  {one.filesystem}")
    if roster.trial:
        print("Members share disks: this protects nothing, it only shows how.")
    print(f"Settings: {path}\nnext: start it: systemctl enable --now raidd (or: raidd --config {path})")


# -- assemble, reindex --------------------------------------------------------------------------------------


def assemble(given: argparse.Namespace) -> None:
    """Bring an array back from its members' labels."""
    sightings = _find(given.mounts)
    labels = [s.label for s in sightings if s.label is not None]
    try:
        roster = choose_roster(labels)
    except LabelInvalid as error:
        raise LabelInvalid(f"{error.message}\n{_table(sightings)}", next_step=error.next_step) from error
    refuse_strangers(sightings, roster)
    print(_table(sightings))
    config, text = _saved_settings(given.config, sightings)
    owner = _owner()
    _make_folders(config, owner)
    if text is not None:
        _write_settings(given.config, text)
    _rebuild(config, sightings, roster, "assembled from the members")
    _own(config.raidd.state_dir, owner)


def _find(mounts: Sequence[str]) -> list[Sighting]:
    """Members below the mounts named, or on all mounts of the host. A MOUNT may hold several only if it is a folder."""
    real = [os.path.realpath(mount) for mount in mounts] or None
    return discover([], LOOK_S, real)


def _table(sightings: Sequence[Sighting]) -> str:
    lines = ["Labels found:" if sightings else "No label was found."]
    for seen in sightings:
        if seen.label is None:
            lines.append(f"  {seen.path}  {seen.uuid}  {seen.fault}")
        else:
            roster = seen.label.roster
            slot = "spare" if seen.label.slot is None else f"slot {seen.label.slot}"
            lines.append(f"  {seen.path}  {roster.array_name}  {slot}  epoch {roster.epoch}")
    return "\n".join(lines)


def _saved_settings(path: Path, sightings: Sequence[Sighting]) -> tuple[Config, str | None]:
    """An existing settings file is kept; else the copy on a member; else the defaults."""
    if path.exists():
        return settings.load(path), None
    for seen in sightings:
        saved = Path(seen.path) / f"raidd-{seen.uuid}" / "config" / "raidd.toml"
        try:
            text = saved.read_text(encoding="utf-8")
            return replace(settings.parse(text, str(path)), path=path), text
        except (OSError, UnicodeDecodeError, RaiddError):
            continue
    return _settings(path)


def _rebuild(config: Config, sightings: Sequence[Sighting] | None, roster: Roster | None, reason: str) -> None:
    opened = open_array(config, sightings=sightings, roster=roster, fresh_catalog=reason)
    try:
        array = build_array(opened, lambda _source, _sha256: False, _event)
        make_whole(array, _progress)
        while array.replicator.replicate_once():
            pass
        _report(opened)
        opened.membership.remember(stopping=True)
    finally:
        opened.catalog.close()
        opened.locks.unlock_all()


def _report(opened: Opened) -> None:
    """What is in the catalog now; RequestRefused (exit 1) when segments are left that could not be read."""
    counts = opened.catalog.counts(opened.membership.away())
    print(f"{counts.images} images in {counts.segments} segments are in the catalog.")
    if counts.unreadable_images:
        print(f"{counts.unreadable_images} of them cannot be read until more disks are back.")
    waiting = len(opened.catalog.reserved())
    if waiting:
        raise RequestRefused(
            f"{waiting} segments could not be taken in: too few of their shards can be read now",
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
    config = settings.load(given.config)
    _rebuild(config, None, None, "raidctl catalog reindex")
    _own(config.raidd.state_dir, _owner())


if __name__ == "__main__":
    sys.exit(main())
