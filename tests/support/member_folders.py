"""Member folders on disk, made of sample segments as raidd would have written them, and recover.py run on them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from crc32c import crc32c

from raidd.codec.erasure import erasure
from raidd.codec.geometry import BLOCK_SIZE, Geometry, padded_length
from raidd.codec.manifest import ManifestImage
from raidd.codec.segment import data_bodies, seal
from raidd.codec.shard import shard_path
from tests.support.sample_segment import ARRAY, WRITTEN_AT, SampleSegment, member_ids, sample_image, sample_segment

RECOVER = Path(__file__).parents[2] / "raidd" / "recover.py"
# The interpreter that a person finds on the machine, without this project's packages.
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of recover.py left behind: its exit code, its words, and the files below OUT."""

    code: int
    stdout: str
    stderr: str
    files: dict[str, bytes]

    @property
    def contents(self) -> list[bytes]:
        """The restored images' bytes, in the order of their names."""
        return list(self.files.values())


class MemberFolders:
    """N mounts with one member each below ``root``. Every fault is done to the files themselves."""

    def __init__(self, root: Path, count: int = 6) -> None:
        self.root = root
        self.ids = member_ids(count)
        self.mounts = [root / f"disk{number}" for number in range(count)]
        for number, mount in enumerate(self.mounts):
            (mount / f"raidd-{self.ids[number]}" / "segments").mkdir(parents=True)

    def member(self, number: int) -> Path:
        return self.mounts[number] / f"raidd-{self.ids[number]}"

    def shard(self, segment: SampleSegment, index: int) -> Path:
        return self.member(index) / shard_path(segment.manifest.segment, index)

    def store(self, segment: SampleSegment, indexes: Iterable[int] | None = None) -> SampleSegment:
        """Write the shards (all, unless ``indexes`` are given), shard i on member i."""
        for index in range(segment.manifest.geometry.n) if indexes is None else indexes:
            path = self.shard(segment, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(segment.file(index))
        return segment

    def label(
        self, *, m: int = 2, version: str = "1.0", requires: Sequence[str] = (), numbers: Iterable[int] | None = None
    ) -> None:
        """Labels whose roster names every member as online in its slot."""
        roster = [
            {"member": str(member), "slot": slot, "state": "online", "enclosure": "", "bay": "", "model": "",
             "serial": "", "size": 1} for slot, member in enumerate(self.ids)
        ]  # fmt: skip
        for number in range(len(self.ids)) if numbers is None else numbers:
            label: dict[str, Any] = {
                "format": version, "requires": list(requires), "array": str(ARRAY), "array_name": "clinic-1",
                "level": "raid6", "member": str(self.ids[number]), "slot": number, "k": len(self.ids) - m, "m": m,
                "epoch": 3, "history": [], "roster": roster, "contact": "Dr. Ä", "trial": False,
            }  # fmt: skip
            label["crc32c"] = f"{crc32c(canonical(label)):08x}"
            (self.member(number) / "label.json").write_bytes(canonical(label))

    def purge(
        self, sequence: int, segments: Iterable[UUID], images: Iterable[ManifestImage], number: int = 0, **changes: Any
    ) -> None:
        """A tombstone in one member's journal; ``changes`` are made after its hash was taken."""
        images = list(images)
        entry: dict[str, Any] = {
            "sequence": sequence, "at": WRITTEN_AT, "actor": "anna", "action": "purge", "outcome": "ok",
            "objects": [str(image.image) for image in images], "previous": "0" * 64,
            "detail": {
                "segments": [str(segment) for segment in segments],
                "images": [[image.sop_instance_uid, image.sha256] for image in images],
            },
        }  # fmt: skip
        entry["hash"] = hashlib.sha256(canonical(entry)).hexdigest()
        folder = self.member(number) / "journal"
        folder.mkdir(exist_ok=True)
        with (folder / "2026-11-24.jsonl").open("ab") as file:
            file.write(canonical(entry | changes) + b"\n")

    def recover(
        self,
        *options: str,
        away: Iterable[int] = (),
        out: Path | None = None,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Outcome:
        """Run recover.py as a person without raidd would, on every mount but those ``away``.

        ``before`` is called in the child before Python starts.
        """
        out = out or self.root / "out"
        mounts = [str(mount) for number, mount in enumerate(self.mounts) if number not in set(away)]
        target = () if "--list" in options else ("--out", str(out))
        command = [SYSTEM_PYTHON, "-I", "-S", str(RECOVER), *target, *options, *mounts]
        done = subprocess.run(
            command, capture_output=True, timeout=120, check=False, env=environment, preexec_fn=before
        )
        files = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode(), files)


def canonical(document: Any) -> bytes:
    """Canonical JSON, spelled out here so that no code under test vouches for itself."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def rewritten(segment: SampleSegment, block_size: int = BLOCK_SIZE, **changes: Any) -> SampleSegment:
    """The same payload sealed with a changed manifest."""
    manifest = replace(segment.manifest, **changes)
    k = manifest.geometry.k
    buffer = bytearray(padded_length(len(segment.payload), k))
    buffer[: len(segment.payload)] = segment.payload
    bodies = data_bodies(memoryview(buffer), len(segment.payload), k)
    parity = erasure(manifest.geometry).encode(bodies)
    return SampleSegment(manifest, segment.payload, seal(manifest, [*bodies, *parity], block_size))


def segment_of(
    contents: Sequence[bytes],
    number: int = 1,
    geometry: Geometry | None = None,
    first: int | None = None,
    **changes: Any,
) -> SampleSegment:
    """A segment of these images; they have numbers (so UIDs and ids) from ``first`` on; 100 · number unless given."""
    first = 100 * number if first is None else first
    offset, parts = 0, []
    for count, content in enumerate(contents):
        parts.append(sample_image(first + count, offset, content))
        offset += len(content)
    segment = sample_segment(geometry or Geometry(4, 2), contents, number=number, parts=parts)
    return rewritten(segment, **changes) if changes else segment
