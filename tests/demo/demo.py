"""`make demo`: real images survive two dead disks, a SIGKILL and a swap; at last they come back without raidd.

    python -m tests.demo.demo [--folder demo] [--kill "1 4"] [--python python3] [start|stop]

Every digest is taken here, of the files before raidd sees them and of what comes back, never from raidd's own word.
What does not come out as it must ends the demo with exit code 1. Can be run again: it starts anew.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from raidd import api
from raidd.cli.wording import clean
from raidd.errors import RaiddError
from tests.demo.images import Picture, real_images, relatives
from tests.demo.screen import Failed, bad, command, good, heading, look_at, paint, say, told
from tests.demo.stage import Stage

DISKS: Final = 6
MAY_DIE: Final = 2
SHOWN_ROWS: Final = 8
KILL_AFTER: Final = 30  # images acknowledged
WARNING: Final = "all six folders are on one disk: this protects nothing, it only shows how"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all came out as it must, 1 it did not, 64 wrong usage."""
    given = _parser().parse_args(arguments)
    stage = Stage(Path(given.folder).absolute(), given.folder)
    try:
        if given.action == "stop":
            return stop(stage)
        Demo(stage, slots_to_kill(given.kill), given.python).run()
    except (Failed, RaiddError) as error:
        bad(str(error))
        return 1
    except KeyboardInterrupt:
        stage.stop()
        bad("stopped; raidd as well")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description="Shows what raidd does, on six folders.")
    parser.add_argument("action", nargs="?", choices=("start", "stop"), default="start")
    parser.add_argument("--folder", default="demo", help="where everything lies (default: demo)")
    parser.add_argument("--kill", default="1 4", metavar="SLOTS", help='the two disks that die (default: "1 4")')
    parser.add_argument("--python", default="python3", help="the system's own Python, for recover.py")
    return parser


def slots_to_kill(text: str) -> list[int]:
    """The slots that the person names. Failed: not two of them, or not there."""
    words = text.replace(",", " ").split()
    known = {str(slot) for slot in range(DISKS)}
    if len(set(words)) != len(words) or len(words) != MAY_DIE or not set(words) <= known:
        raise Failed(f'KILL="{text}": name two different disks of 0 to {DISKS - 1}, as in: make demo KILL="1 4"')
    return sorted(map(int, words))


def stop(stage: Stage) -> int:
    """`make demo-stop`."""
    if stage.stop():
        say(f"raidd is stopped. Everything is as it was left in {stage.shown}/; to remove it: rm -rf {stage.shown}")
    else:
        say("no demo is running")
    return 0


@dataclass(slots=True)
class Demo:
    """The story, a method a chapter. ``kept``: digest -> picture, for all that raidd has acknowledged."""

    stage: Stage
    dying: list[int]
    python: str
    dead: list[str] = field(default_factory=list)  # members
    kept: dict[str, Picture] = field(default_factory=dict)

    def run(self) -> None:
        began = time.monotonic()
        self.opening()
        self.six_disks()
        self.images_come_in()
        self.disks_die()
        self.all_comes_back()
        self.killed_amid_an_upload()
        self.new_disks()
        self.without_raidd()
        self.ending(time.monotonic() - began)

    def opening(self) -> None:
        say(f"{paint('raidd', 'bold')}: RAID for DICOM images. Six folders in {self.stage.shown}/ stand in for disks.")
        say(f"Mind: {WARNING}")
        self.stage.set_up(DISKS)

    # -- 1 ---------------------------------------------------------------------------------------------------

    def six_disks(self) -> None:
        heading(1, "six disks become one array")
        disks = [str(self.stage.disk(number)) for number in range(DISKS)]
        self.stage.raidctl("init", "--name", "demo", "--allow-same-device", *disks)
        self._start()
        self.stage.show_status()
        look_at("HEALTHY, and how many disks may fail: of each image, four pieces hold its data and two are parity.")

    def _start(self) -> None:
        command(["raidd", "--config", f"{self.stage.shown}/raidd.toml", "&"])
        told(f"answers after {self.stage.start():.1f} s")

    # -- 2 ---------------------------------------------------------------------------------------------------

    def images_come_in(self) -> None:
        pictures = real_images()
        heading(2, f"{len(pictures)} real images come in")
        command(["cp", "-r", "…/pydicom/data/test_files", "…/data_store/data", f"{self.stage.shown}/inbox/"])
        told("X-ray, CT, MR, ultrasound, of many makers, some broken on purpose; and a Thumbs.db, as Windows leaves it")
        for picture in pictures:
            self._drop(picture)
        (self.stage.inbox / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0 not an image")
        self.stage.raidctl("wait", "--idle", "--timeout", "90")
        self._account_for(pictures)
        self.stage.raidctl("list", "--limit", "5", "--modality", "CT")
        self.stage.show_status()
        look_at("the second line: an original leaves the inbox only when its image is safe on all six disks.")

    def _drop(self, picture: Picture) -> None:
        path = self.stage.inbox / picture.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.data)

    def _account_for(self, pictures: Sequence[Picture]) -> None:
        """dropped = stored + duplicates + refused, and nothing is left in the inbox."""
        listed = {row.sha256 for row in self._listed()}
        stored = {picture.sha256: picture for picture in pictures if picture.sha256 in listed}
        refused = [path.name for path in self.stage.rejected.rglob("*") if path.name.endswith(".reason.txt")]
        left = _files(self.stage.inbox)
        if left or refused != ["Thumbs.db.reason.txt"]:
            raise Failed(f"left in the inbox: {left}; refused: {refused}")
        self.kept |= stored
        again = len(pictures) - len(stored)
        duplicates = f" + {again} duplicates" if again else ""
        good(f"{len(pictures) + 1} dropped = {len(stored)} stored{duplicates} + 1 refused; the inbox is empty")
        told(f"why it was refused: {self.stage.shown}/inbox-rejected/Thumbs.db.reason.txt")

    def _listed(self) -> list[api.ImageInfo]:
        with self.stage.ask() as asked:
            return asked.images(api.ImageSearch(limit=100_000)).images

    # -- 3 ---------------------------------------------------------------------------------------------------

    def disks_die(self) -> None:
        heading(3, f"disks {' and '.join(map(str, self.dying))} die")
        command(["rm", "-rf", *(f"{self.stage.shown}/disk{slot}" for slot in self.dying)])
        self.dead = [row.uuid for row in self.stage.status().members if row.slot in self.dying]
        for slot in self.dying:
            dead = self.stage.folder / f".dead{slot}"
            self.stage.disk(slot).rename(dead)
            shutil.rmtree(dead)
        self.stage.until(lambda: self._states(self.dying) == {"missing"}, "raidd misses the disks")
        self.stage.show_status()
        look_at(
            "the two slots are missing, the array is CRITICAL: a third disk must not die now. Nothing is lost, and the "
            'last line says what to do. (Others can die: make demo KILL="0 5")'
        )

    def _states(self, slots: Iterable[int]) -> set[str]:
        return {str(row.state) for row in self.stage.status().members if row.slot is not None and row.slot in slots}

    # -- 4 ---------------------------------------------------------------------------------------------------

    def all_comes_back(self) -> None:
        heading(4, "every image is read back from the four disks that are left")
        after = self._read_back(self.kept)
        say(f"\n  {'SHA-256 before':<27}{'SHA-256 after':<27}image")
        for sha256, picture in list(self.kept.items())[:: max(1, len(self.kept) // SHOWN_ROWS)][:SHOWN_ROWS]:
            equal = paint("=", "green") if after[sha256] == sha256 else paint("≠", "red")
            say(f"  {sha256[:22]}…  {equal} {after[sha256][:22]}…  {clean(picture.name)}")
        lines = [f"{sha256}  {after[sha256]}  {picture.name}\n" for sha256, picture in self.kept.items()]
        (self.stage.folder / "digests.txt").write_text("".join(lines), encoding="utf-8")
        self._must_be_equal(after, "came back, byte for byte")
        told(f"all of them, before and after side by side: {self.stage.shown}/digests.txt")

    def _read_back(self, wanted: Iterable[str]) -> dict[str, str]:
        """Digest before -> digest of what raidd gives now; "" for what it does not list."""
        rows = {row.sha256: row for row in self._listed()}
        after = {}
        with self.stage.ask() as asked:
            for sha256 in wanted:
                after[sha256] = ""
                if sha256 in rows:
                    digest = hashlib.sha256()
                    with asked.content(rows[sha256].sop_instance_uid, rows[sha256].version) as content:
                        for piece in content.pieces:
                            digest.update(piece)
                    after[sha256] = digest.hexdigest()
        return after

    @staticmethod
    def _must_be_equal(after: dict[str, str], what: str) -> None:
        equal = sum(before == now for before, now in after.items())
        if equal != len(after):
            raise Failed(f"{len(after) - equal} of {len(after)} images did not come back equal")
        good(f"{equal} of {len(after)} images {what}")

    # -- 5 ---------------------------------------------------------------------------------------------------

    def killed_amid_an_upload(self) -> None:
        pictures = relatives(self.kept.values(), 1)
        heading(5, f"kill -9 while {len(pictures)} more images are uploaded")
        self.stage.until(lambda: self.stage.has_noted_the_absence_of(self.dead), "raidd has noted the dead disks")
        upload = Upload(self.stage.inbox, pictures)
        upload.go_on()
        self.stage.until(lambda: len(upload.gone()) >= KILL_AFTER, "images are acknowledged")
        pid = self.stage.kill()
        upload.pause()
        acknowledged = upload.gone()
        command(["kill", "-9", str(pid)])
        told(
            f"{len(upload.sent)} images had been sent by then, {len(acknowledged)} of them acknowledged: their "
            f"originals were gone from the inbox. From now on only raidd has them."
        )
        self._start()
        self._must_be_equal(self._read_back(acknowledged), "that were acknowledged are there: nothing was lost")
        upload.go_on()
        upload.join()
        self.stage.raidctl("wait", "--idle", "--timeout", "90")
        after = self._read_back(picture.sha256 for picture in pictures)
        self._must_be_equal(after, "of the upload are stored now, each once: the sender had nothing to do again")
        self.kept |= {picture.sha256: picture for picture in pictures}
        self.stage.show_status()
        unprotected = self.stage.status().images.unprotected
        look_at(
            f"only the {unprotected} images from before are unprotected: new ones are coded for four disks, with two "
            "parity pieces as ever."
        )

    # -- 6 ---------------------------------------------------------------------------------------------------

    def new_disks(self) -> None:
        heading(6, "two new disks are put in")
        for number, slot in enumerate(self.dying):
            new = self.stage.disk(DISKS + number)
            new.mkdir()
            self.stage.raidctl("replace", str(slot), str(new))
            self.stage.show_status()
            if number == 0:
                look_at(f"slot {slot} is being rebuilt; images could come in and go out meanwhile.")
                self.stage.raidctl("rebuild", "--watch")
        self.stage.raidctl("wait", "--healthy", "--timeout", "90")
        self.stage.raidctl("status", "-x")
        self.stage.raidctl("verify", "--all")
        look_at("healthy again: each lost piece was made anew from the others, byte for byte the one that was lost.")

    # -- 7 ---------------------------------------------------------------------------------------------------

    def without_raidd(self) -> None:
        heading(7, "without raidd")
        told("raidd is stopped now. Each disk carries recover.py, which needs nothing but Python; four disks suffice.")
        self.stage.stop()
        lost = [self.stage.disk(slot) for slot in range(DISKS) if slot not in self.dying][:MAY_DIE]
        left = [disk for disk in sorted(self.stage.folder.glob("disk*")) if disk not in lost]
        out = self.stage.folder / "recovered"
        self._recover(out, left)
        found = _digests(out)
        after = {sha256: sha256 if sha256 in found else "" for sha256 in self.kept}
        self._must_be_equal(after, f"are in {self.stage.shown}/recovered, byte for byte")
        look_at(f"{self.stage.shown}/recovered: a folder a patient, in it a folder a study, in it a folder a series.")

    def _recover(self, out: Path, disks: Sequence[Path]) -> None:
        python = _system_python(self.python)
        program = next(disks[0].glob("raidd-*/recover.py"))
        words = [python, "-I", "-S", str(program), "--out", str(out), *map(str, disks)]
        shown = str(self.stage.folder)
        command([word.replace(shown, self.stage.shown) for word in words])
        if subprocess.run(words, check=False, stdin=subprocess.DEVNULL).returncode != 0:
            raise Failed("recover.py did not restore everything")

    # -- the end ---------------------------------------------------------------------------------------------

    def ending(self, seconds: float) -> None:
        heading(8, "your turn")
        self._start()
        say()
        say(f"  export PATH={Path(sys.executable).parent}:$PATH RAIDD_CONFIG={self.stage.settings}")
        say("  raidctl status --watch                 pull another disk meanwhile, drop an image …")
        say(f"  cp IMAGE.dcm {self.stage.inbox}/")
        say("  raidctl list                           raidctl get UID -o back.dcm")
        say("  make demo-stop                         ends raidd")
        say()
        say(f"  {paint(f'all went as it must, in {seconds:.0f} s;', 'bold')} but mind: {WARNING}")


class Upload:
    """A sender: writes each image under a name that is no image yet, then renames it. Can be interrupted."""

    def __init__(self, inbox: Path, pictures: Sequence[Picture]) -> None:
        self._inbox, self._pictures = inbox, pictures
        self.sent: list[Picture] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def go_on(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _send(self) -> None:
        for picture in self._pictures[len(self.sent) :]:
            if self._stop.wait(0.01):
                return
            part = self._inbox / f"{picture.name}.part"
            part.write_bytes(picture.data)
            part.rename(self._inbox / picture.name)
            self.sent.append(picture)

    def gone(self) -> list[str]:
        """Digests of what was sent and is no longer in the inbox under any name: acknowledged."""
        sent = list(self.sent)
        left = _digests(self._inbox)
        return [picture.sha256 for picture in sent if picture.sha256 not in left]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _digests(folder: Path) -> set[str]:
    """SHA-256 of all files below, under whatever name; one that is taken away at this moment is not there."""
    found = set()
    for path in _files(folder):
        try:
            found.add(hashlib.sha256(path.read_bytes()).hexdigest())
        except FileNotFoundError:
            continue
    return found


def _system_python(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Failed(f"there is no {name}")
    return found


if __name__ == "__main__":
    sys.exit(main())
