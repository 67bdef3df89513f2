"""Makes tests/data/format-1.0/, once. What is there is never made again: those bytes lie on disks for thirty years.

    python -m tests.data.make_golden

Each case is a folder with the shard files of one segment; golden.json lists the SHA-256 of each file and payload.
A new minor version gets a folder of its own beside this one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from raidd.codec.geometry import Geometry
from tests.support.sample_segment import SampleSegment, payload_bytes, sample_image, sample_segment, segment_id

FOLDER = Path(__file__).parent / "format-1.0"
INDEX = FOLDER / "golden.json"


def _part_of_a_large_image() -> SampleSegment:
    """The first part of an image whose size and digest are not known yet, and a version 2 in whole."""
    large, small = payload_bytes(9000, "large"), payload_bytes(517, "small")
    parts = [
        sample_image(1, 0, large, image_offset=0, size=None, sha256=None, source="scp:CT1"),
        sample_image(2, len(large), small, version=2, identity={}),
    ]
    return sample_segment(
        Geometry(3, 3), [large, small], number=4, replaces=[segment_id(90), segment_id(91)], parts=parts
    )


def cases() -> dict[str, SampleSegment]:
    """Every golden segment, by the name of its folder."""
    many = [payload_bytes(700 + 131 * number, f"image {number}") for number in range(12)]
    return {
        "mirror-1+1": sample_segment(Geometry(1, 1), [payload_bytes(5000, "mirror")], number=1),
        "blocks-2+1": sample_segment(Geometry(2, 1), [payload_bytes(2 * 65536 + 77, "blocks")], number=2),
        "images-4+2": sample_segment(Geometry(4, 2), many, number=3),
        "parts-3+3": _part_of_a_large_image(),
        "byte-1+2": sample_segment(Geometry(1, 2), [b"\x01"], number=5),
    }


def main() -> None:
    """Write what is not there yet; refuse to touch what is."""
    if INDEX.exists():
        raise SystemExit(f"{INDEX} exists: golden files are made once")
    index = {}
    for name, segment in cases().items():
        folder = FOLDER / name
        folder.mkdir(parents=True)
        files = {f"{segment.manifest.segment}-{i:02}.shard": segment.file(i) for i in range(len(segment.shards))}
        for file, data in files.items():
            (folder / file).write_bytes(data)
        index[name] = {
            "geometry": str(segment.manifest.geometry),
            "payload_length": len(segment.payload),
            "payload_sha256": hashlib.sha256(segment.payload).hexdigest(),
            "files": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
        }
    INDEX.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
