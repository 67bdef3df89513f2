"""`raidctl assemble` and `raidctl catalog reindex`: the array, and what this machine knew of it, made again from its
members.

Both open the array as the daemon does and take the same locks, so that none of them runs beside it; they end when the
catalog is complete and every member that is there carries journal, papers and label. Nothing on a member is taken away
but by the rules of a start. Either can be stopped at any time and begun again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raidd import config as settings
from raidd.array.discovery import Sighting, discover
from raidd.array.host import own_member_folder
from raidd.array.label import choose_roster
from raidd.array.local_disk import LocalDisk
from raidd.array.roster import Roster
from raidd.array.unmounted import find_unmounted
from raidd.config import Config
from raidd.daemon.advice import one_line, quantity
from raidd.daemon.graph import Array, build_array, make_whole, stale_ids, tell_absent
from raidd.daemon.opening import open_array, refuse_strangers
from raidd.daemon.papers import LEFT_OUT
from raidd.daemon.premises import (
    Owner,
    become,
    is_missing,
    load_or_template,
    make_folders,
    own,
    owner_here,
    refuse_other_array,
    write_settings,
)
from raidd.errors import LabelInvalid, MemberError, RaiddError, RequestRefused

LOOK_S = 30.0
SETTINGS_COPY = "config/raidd.toml"


def assemble(given: argparse.Namespace) -> None:
    """Bring an array back from its members' labels."""
    sightings = _find(given.mounts)
    asleep = find_unmounted(LOOK_S) if os.geteuid() == 0 and not given.mounts else []
    print(_table([*sightings, *asleep], given.mounts))
    _refuse_unmounted(sightings, asleep)
    roster = _choose(sightings)
    config, text = _saved_settings(given.config, sightings, roster)
    refuse_other_array(config, roster.array)
    owner = owner_here()
    make_folders(config, owner)
    write_settings(given.config, text, owner)
    if text is not None and LEFT_OUT in text:
        print(f"Addresses of alerts hold secrets, so the disks do not have them: put them into {given.config} again.")
    _own_all(config, sightings, roster, owner)
    become(owner)
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


def _refuse_unmounted(sightings: Sequence[Sighting], asleep: Sequence[Sighting]) -> None:
    """Members that only have to be mounted are not to be done without."""
    arrays = {seen.array for seen in sightings} - {None}
    disks = sorted({seen.path for seen in asleep if not arrays or seen.array in arrays})
    if disks:
        places = [f"/srv/raidd/disks/{disk.removeprefix('/dev/').replace('/', '-')}" for disk in disks]
        mounting = [f"mkdir -p {place} && mount {disk} {place}" for disk, place in zip(disks, places, strict=True)]
        raise RequestRefused(
            f"{quantity(len(disks), 'disk')} with a label {'is' if len(disks) == 1 else 'are'} not mounted: "
            + ", ".join(disks),
            next_step=" && ".join([*mounting, "raidctl assemble"])
            + "   (or go on without: name the mounts that are to be taken)",
        )


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
    return "\n".join(map(one_line, lines)) if lines else "No label was found on any mount."


def _saved_settings(path: Path, sightings: Sequence[Sighting], roster: Roster) -> tuple[Config, str | None]:
    """An existing settings file is kept; else the copy on the member that was there last; else the defaults."""
    if not is_missing(path):
        return settings.load(path), None
    labelled = [(s, s.label.roster.epoch) for s in sightings if s.label is not None and s.array == roster.array]
    for seen, _epoch in sorted(labelled, key=lambda one: -one[1]):
        try:
            text = LocalDisk(seen.path, seen.uuid).read(SETTINGS_COPY).decode()
            return replace(settings.parse(text, str(path)), path=path), text
        except (UnicodeDecodeError, RaiddError):
            continue
    return load_or_template(path)


def _own_all(config: Config, sightings: Sequence[Sighting], roster: Roster, owner: Owner) -> None:
    """On a new machine user raidd may have another number than it had when the disks were written."""
    own(config.raidd.state_dir, owner)
    for seen in sightings if owner is not None else ():
        if seen.array == roster.array and owner is not None:
            try:
                own_member_folder(seen.path, seen.uuid, owner)
            except MemberError as error:
                print(one_line(f"warning: {error.message}"), file=sys.stderr)


def _rebuild(config: Config, sightings: Sequence[Sighting] | None, roster: Roster | None, reason: str) -> None:
    opened = open_array(config, sightings=sightings, roster=roster, fresh_catalog=reason)
    try:
        array = build_array(opened, lambda _source, _sha256: False, _event)
        tell_absent(array, _event)
        make_whole(array, _progress)
        while array.replicator.replicate_once():
            pass
        opened.membership.remember(stopping=True)
        _report(array)
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
    print(one_line(f"{severity}: {message} ({code})"), file=sys.stderr)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        width = 40 * done // max(total, 1)
        end = "\n" if done == total else ""
        print(f"\r[{'#' * width:<40}] {done} of {total} segments", end=end, file=sys.stderr, flush=True)


def reindex(given: argparse.Namespace) -> None:
    """Make the catalog again from the members."""
    config, owner = settings.load(given.config), owner_here()
    if not is_missing(config.raidd.state_dir):
        own(config.raidd.state_dir, owner)
        become(owner)
    _rebuild(config, None, None, "raidctl catalog reindex")
