"""`list`, `get`, `verify`: find images, get their exact bytes back, prove that they are the ones that went in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from raidd import api
from raidd.cli import download, tables, terminal
from raidd.cli.client import Daemon
from raidd.cli.dates import date_range
from raidd.cli.invocation import daemon
from raidd.cli.terminal import Bar, Misuse
from raidd.cli.wording import count
from raidd.errors import RaiddError, RequestUnknown

AsJson = Annotated[bool, typer.Option("--json", help="For scripts: keys are added, never renamed.")]


def register(app: typer.Typer) -> None:
    app.command("list")(list_images)
    app.command("get")(get)
    app.command("verify")(verify)


def list_images(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS", help="Each must be in one of the names.")
    ] = None,
    patient: Annotated[str | None, typer.Option(help="The animal's name or id.")] = None,
    owner: Annotated[str | None, typer.Option(help="The responsible person.")] = None,
    species: Annotated[str | None, typer.Option(help="As the machine wrote it: canine, Katze …")] = None,
    modality: Annotated[str | None, typer.Option(help="CT, DX, US, MR …")] = None,
    date: Annotated[str | None, typer.Option(metavar="A..B", help="Study date: 2026-11-24, 2026-11, A..B, A..")] = None,
    study: Annotated[str | None, typer.Option(metavar="UID", help="Study Instance UID.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Show at most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Find images, every version of them. Case and accents do not matter.

    \b
    raidctl list rex müller
    raidctl list --modality CT --date 2026-11..
    raidctl list --json --limit 100000 --date 2026
    """
    first, last = _dates(date)
    search = api.ImageSearch(
        words=words or [],
        patient=patient,
        owner=owner,
        species=species,
        modality=modality,
        date_from=first,
        date_to=last,
        study=study,
        limit=limit,
    )
    with daemon(context) as asked:
        found = asked.images(search)
    if as_json:
        terminal.show_json(found.images)
    elif found.images:
        terminal.show(tables.images(found))
    else:
        terminal.remark("no image matches")


def _dates(text: str | None) -> tuple[str | None, str | None]:
    try:
        return date_range(text) if text is not None else (None, None)
    except ValueError as error:
        raise Misuse(f"--date {error}") from None


def get(
    context: typer.Context,
    uid: Annotated[str | None, typer.Argument(metavar="UID", help="SOP Instance UID.")] = None,
    version: Annotated[int | None, typer.Option(min=1, metavar="N", help="Not the newest, but version N.")] = None,
    study: Annotated[str | None, typer.Option(metavar="UID", help="All images of a study, into the folder -o.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE|DIR|-", help="Where to; - is standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Get an image back, byte for byte.

    Or all images of a study. A file appears under its name only when its SHA-256 is the one the image had
    when it came in. Without -o the
    image goes to standard output, unless that is a terminal.

    \b
    raidctl get 1.2.840.113… -o rex.dcm
    raidctl get 1.2.840.113… --version 1 -o - | dcmdump -
    raidctl get --study 1.2.840.113… -o /tmp/rex
    """
    if (uid is None) == (study is None):
        raise Misuse("name one image by its UID, or a study by --study UID")
    if study is not None and (version is not None or output in (None, "-")):
        raise Misuse("--study needs a folder, -o DIR, and takes no --version")
    with daemon(context) as asked:
        if study is not None:
            _get_study(asked, study, Path(str(output)), force)
        elif uid is not None:
            _get_image(asked, uid, version, output, force)


def _get_image(asked: Daemon, uid: str, version: int | None, output: str | None, force: bool) -> None:
    target = Path(output) if output not in (None, "-") else None
    if target is None and output is None and sys.stdout.isatty():
        raise Misuse("an image is no text for a terminal: -o FILE writes it to a file")
    if target is not None and target.is_dir():
        target /= download.file_name(uid)
    to_device = target is not None and download.is_device(target)
    if target is not None and not force and not to_device:
        download.refuse_existing(target)
    with asked.content(uid, version) as content, Bar(uid, content.size) as bar:
        if target is None:
            download.stream(content, sys.stdout.buffer, bar.at)
        elif to_device:
            download.stream_to_device(content, target, bar.at)
        else:
            download.save(content, target, bar.at, force=force)


def _get_study(asked: Daemon, study: str, folder: Path, force: bool) -> None:
    """The newest version of each image; what is there already, equal, is left as it is."""
    newest: dict[str, api.ImageInfo] = {}
    for image in asked.study_images(study).images:
        if image.sop_instance_uid not in newest or image.version > newest[image.sop_instance_uid].version:
            newest[image.sop_instance_uid] = image
    if not newest:
        raise RequestUnknown(f"no study {study}", next_step="Look it up with: raidctl list WORDS")
    download.make_folder(folder)
    total, done = sum(image.size for image in newest.values()), 0
    with Bar(f"study of {count(len(newest), 'image')}", total) as bar:
        for uid, image in newest.items():
            _get_into(asked, image, folder / download.file_name(uid), force, bar, done)
            done += image.size
    terminal.remark(f"{count(len(newest), 'image')} in {folder}")


def _get_into(asked: Daemon, image: api.ImageInfo, target: Path, force: bool, bar: Bar, before: int) -> None:
    if download.holds(target, image.sha256):
        return
    if not force:
        download.refuse_existing(target)
    with asked.content(image.sop_instance_uid, image.version) as content:
        download.save(content, target, lambda size: bar.at(before + size), force=force)


def verify(
    context: typer.Context,
    uids: Annotated[list[str] | None, typer.Argument(metavar="UID", help="SOP Instance UIDs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All images there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read images back now and compare their SHA-256. Exit code 1 if any is not what went in.

    \b
    raidctl verify 1.2.840.113…
    raidctl verify --all
    """
    if bool(uids) == everything:
        raise Misuse("name images by their UIDs, or all of them by --all")
    request = api.VerifyRequest(uids=uids or [], all=everything)
    with daemon(context) as asked, Bar("verifying") as bar:
        result = asked.verify(request, lambda seen: bar.at(seen.bytes_done, seen.bytes_total or None))
    if as_json:
        terminal.show_json(result)
    else:
        terminal.show(tables.verified(result))
    if result.failed:
        raise _NotAllGood(f"{count(len(result.failed), 'image')} did not read back as stored")


class _NotAllGood(RaiddError):
    """Reported image by image already."""

    next_step = "raidctl status shows which disks are away or damaged; then verify again."
