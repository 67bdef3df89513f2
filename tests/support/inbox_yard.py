"""An inbox on a real folder, a clock that the test moves, and a loop that runs both of Ingest's threads in turn."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from raidd.inbox.batch import Ingest
from raidd.inbox.custody import Custody
from raidd.inbox.folders import inbox_root, spool_root
from raidd.inbox.watch import Watcher
from tests.support.memory_sink import MemorySink

SETTLE_S = 2.0
START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@dataclass(slots=True)
class HandClock:
    """Monotonic seconds and the time of day, both moved by hand."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000.0)


@dataclass(slots=True)
class Yard:
    """``restart`` makes everything but the folders and the sink anew, as after a crash."""

    top: Path
    sink: MemorySink = field(default_factory=MemorySink)
    clock: HandClock = field(default_factory=HandClock)
    keep_days: int = 0
    part_size: int = 32 * 1024 * 1024
    image_max_bytes: int = 1 << 34
    step: Callable[[str], None] = lambda _: None
    watcher: Watcher = field(init=False)
    custody: Custody = field(init=False)
    ingest: Ingest = field(init=False)

    def __post_init__(self) -> None:
        for folder in (self.inbox, self.spool):
            folder.mkdir(parents=True)
        self.restart()

    @property
    def inbox(self) -> Path:
        return self.top / "inbox"

    @property
    def spool(self) -> Path:
        return self.top / "spool"

    @property
    def rejected(self) -> Path:
        return self.top / "inbox-rejected"

    @property
    def stored(self) -> Path:
        return self.top / "inbox-stored"

    def restart(self) -> None:
        roots = (inbox_root(self.inbox), spool_root(self.spool, self.inbox))
        self.watcher = Watcher(roots, SETTLE_S, clock=self.clock, listen=False)
        self.custody = Custody(roots, keep_days=self.keep_days, now=self.clock.now, step=self.step)
        self.ingest = Ingest(
            self.sink,
            self.watcher,
            self.custody,
            image_max_bytes=self.image_max_bytes,
            clock=self.clock,
            now=self.clock.now,
            part_size=self.part_size,
        )

    def drop(self, name: str | bytes, data: bytes, root: Path | None = None) -> Path:
        """Write a file as a sender does; subfolders are made."""
        path = os.path.join(os.fsencode(root or self.inbox), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(data)
        return Path(os.fsdecode(path))

    def run(self, turns: int = 10_000) -> None:
        """Both loops, without moving the clock more than commits are apart, until neither has anything to do."""
        for _ in range(turns):
            moved = self.ingest.prepare_once(0)
            moved = self.ingest.commit_once(0) or moved
            if not moved:
                self.clock.seconds += 0.06
                if not (self.ingest.prepare_once(0) or self.ingest.commit_once(0)):
                    return
        raise AssertionError("it never comes to rest: a busy loop")

    def settle(self, seconds: float = SETTLE_S + 0.1) -> None:
        """Look at the folders, let time pass, and take in what is due."""
        self.ingest.idle_once()
        self.clock.seconds += seconds
        self.run()

    def left(self, root: Path | None = None) -> list[str]:
        """Every file left in the inbox, relative."""
        top = root or self.inbox
        return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_symlink() or not p.is_dir())

    def balanced(self) -> bool:
        """dropped = stored + duplicates + rejected (+ withdrawn) once nothing waits."""
        c = self.ingest.counters()
        return c.dropped == c.stored + c.duplicates + c.rejected_total + c.withdrawn


def dicom(
    uid: str = "1.2.3.4", *, pixels: bytes = b"\x01\x02" * 50, patient: str = "Muster^Bello", maker: str = ""
) -> bytes:
    """A small CT image; ``maker`` changes only the file meta header."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = pydicom.uid.PYDICOM_IMPLEMENTATION_UID
    if maker:
        meta.ImplementationVersionName = maker
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
    dataset.PatientName, dataset.Modality = patient, "CT"
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = 10, len(pixels) // 20, 16
    dataset.add_new(0x7FE00010, "OW", pixels + b"\0" * (len(pixels) % 2))
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()
