"""recover.py as a person uses it: a child process of the system's Python, isolated, without any package."""

from __future__ import annotations

import ast
import fcntl
import os
import resource
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from crc32c import crc32c

from raidd import recover
from raidd.array.journal import journal_path, make_entry
from raidd.array.label import label_for
from raidd.array.roster import MemberState, RosterEntry, new_roster
from raidd.codec.geometry import Geometry, Level
from raidd.codec.manifest import ManifestImage
from tests.support.member_folders import RECOVER, SYSTEM_PYTHON, MemberFolders, rewritten, segment_of
from tests.support.sample_segment import ARRAY, WRITTEN_AT, SampleSegment, payload_bytes, sample_image, segment_id

IMAGES = [payload_bytes(length, str(length)) for length in (1, 70_000, 131_072, 200_001, 65_536)]
LARGE = payload_bytes(500_000, "large")


@pytest.fixture
def disks(tmp_path: Path) -> MemberFolders:
    return MemberFolders(tmp_path)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def body_offset(segment: SampleSegment) -> int:
    return len(segment.shards[0].prefix)


# What it gives back


@pytest.mark.parametrize("away", [(), *combinations(range(6), 2)], ids=str)
def test_any_four_of_six_disks_give_every_image_back(disks: MemberFolders, away: tuple[int, ...]) -> None:
    disks.store(segment_of(IMAGES))
    disks.label()
    outcome = disks.recover(away=away)
    assert outcome.code == 0, outcome.stderr
    assert sorted(outcome.contents) == sorted(IMAGES)


@pytest.mark.parametrize("geometry", [Geometry(1, 1), Geometry(1, 2), Geometry(2, 1), Geometry(3, 3)], ids=str)
def test_every_geometry_survives_the_loss_of_its_first_disks(tmp_path: Path, geometry: Geometry) -> None:
    disks = MemberFolders(tmp_path, geometry.n)
    disks.store(segment_of(IMAGES, geometry=geometry))
    outcome = disks.recover(away=range(geometry.m))
    assert outcome.code == 0, outcome.stderr
    assert sorted(outcome.contents) == sorted(IMAGES)


def test_images_land_in_folders_of_patient_study_and_series(disks: MemberFolders) -> None:
    identity = {
        "patient_name": "Müller^Bello", "patient_id": "4711", "study_date": "20261124", "study_description": "Thorax",
        "modality": "CT", "series_number": 2, "series_description": "lung", "instance_number": 7,
    }  # fmt: skip
    images = (sample_image(5, 0, b"pixels", identity=identity),)
    disks.store(segment_of([b"pixels"], images=images))
    assert list(disks.recover().files) == [
        "Müller_Bello_4711/20261124_Thorax/CT_2_lung/0007_1.2.826.0.1.3680043.8.498.5.dcm"
    ]


def test_a_member_folder_itself_or_a_folder_of_mounts_may_be_named(disks: MemberFolders) -> None:
    disks.store(segment_of(IMAGES))
    for given in ([disks.member(number) for number in (1, 3, 4, 5)], [disks.root]):
        out = disks.root / f"out{len(given)}"
        command = [SYSTEM_PYTHON, "-I", "-S", RECOVER, "--out", out, *given]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert len(list(out.rglob("*.dcm"))) == len(IMAGES)


def test_nothing_on_the_members_is_changed(disks: MemberFolders) -> None:
    disks.store(segment_of(IMAGES))
    before = {path: path.stat().st_mtime_ns for path in disks.root.rglob("*")}
    disks.recover(away=(0, 1))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path for path in disks.root.rglob("*") if path.parts[: len(disks.root.parts) + 1][-1] != "out"} == set(
        before
    )


@pytest.mark.parametrize("name", ["lock", "lock.2"])
def test_that_raidd_is_running_on_the_disks_is_said_and_no_more(disks: MemberFolders, name: str) -> None:
    disks.store(segment_of(IMAGES))
    for number in range(6):
        (disks.member(number) / "lock").touch()
    assert "is running" not in disks.recover(out=disks.root / "first").stderr
    path = disks.member(3) / name
    with path.open("w+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        outcome = disks.recover()
    assert outcome.code == 0
    assert f"raidd is running on these disks ({disks.member(3)})" in outcome.stderr
    assert sorted(outcome.contents) == sorted(IMAGES)


def test_raidd_can_start_while_images_are_recovered(disks: MemberFolders) -> None:
    """The last resort keeps no lock: here it stands still, with a pipe that nobody reads."""
    disks.store(segment_of([b"%d" % number for number in range(3000)]))
    (disks.member(0) / "lock").touch()
    command = [SYSTEM_PYTHON, "-I", "-S", RECOVER, "--list", *disks.mounts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as recovering:
        assert recovering.stdout is not None
        recovering.stdout.read(1)
        with (disks.member(0) / "lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        recovering.communicate(timeout=60)


def test_an_image_in_parts_is_put_together_from_its_segments(disks: MemberFolders) -> None:
    store_large(disks, last_known=True)
    outcome = disks.recover(away=(0, 5))
    assert outcome.code == 0, outcome.stderr
    assert outcome.contents == [LARGE]


def test_a_large_image_is_streamed_in_bounded_memory(disks: MemberFolders) -> None:
    size, limit = 80 << 20, 72 << 20
    store_large(disks, last_known=True, data=bytes(size), part=4 << 20)
    outcome = disks.recover(away=(0, 1), before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert outcome.code == 0, outcome.stderr
    assert outcome.contents == [bytes(size)]


def store_large(
    disks: MemberFolders, last_known: bool, skip: int | None = None, data: bytes = LARGE, part: int = 200_000
) -> list[SampleSegment]:
    """One image in parts; only the last says its size and digest."""
    whole = sample_image(9, 0, data)
    segments = []
    for number, start in enumerate(range(0, len(data), part)):
        piece = data[start : start + part]
        last = last_known and start + len(piece) == len(data)
        known = {"size": len(data), "sha256": whole.sha256} if last else {"size": None, "sha256": None}
        image = sample_image(9, 0, piece, image=whole.image, image_offset=start, **known)
        segment = segment_of([piece], number + 1, images=(image,))
        if number != skip:
            disks.store(segment)
        segments.append(segment)
    return segments


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_an_image_with_a_part_missing_is_named_and_not_restored(disks: MemberFolders, skip: int) -> None:
    store_large(disks, last_known=True, skip=skip)
    outcome = disks.recover()
    assert outcome.code == 1
    assert "1.2.826.0.1.3680043.8.498.9" in outcome.stderr
    assert outcome.files == {}


def test_older_versions_say_so_in_their_names(disks: MemberFolders) -> None:
    for number, data in enumerate((b"first", b"second", b"third"), start=1):
        image = sample_image(1, 0, data, version=number, image=segment_id(900 + number))
        disks.store(segment_of([data], number, images=(image,)))
    outcome = disks.recover()
    found = {Path(path).name: data for path, data in outcome.files.items()}
    uid = "1.2.826.0.1.3680043.8.498.1"
    assert found == {f"{uid}_v1.dcm": b"first", f"{uid}_v2.dcm": b"second", f"{uid}.dcm": b"third"}


def test_the_same_image_stored_twice_is_restored_once(disks: MemberFolders) -> None:
    disks.store(segment_of(IMAGES, 1, first=1))
    disks.store(segment_of(IMAGES, 2, first=1))
    outcome = disks.recover()
    assert (outcome.code, sorted(outcome.contents)) == (0, sorted(IMAGES))


def test_one_image_alone_can_be_asked_for(disks: MemberFolders) -> None:
    disks.store(segment_of(IMAGES, first=1))
    outcome = disks.recover("--sop", "1.2.826.0.1.3680043.8.498.3")
    assert (outcome.code, outcome.contents) == (0, [IMAGES[2]])
    assert disks.recover("--sop", "1.2.3").code == 1


def test_list_shows_every_image_and_writes_nothing(disks: MemberFolders) -> None:
    disks.store(segment_of(IMAGES, first=1))
    outcome = disks.recover("--list", away=(0, 1))
    assert outcome.code == 0
    assert outcome.stdout.count("  ok\n") == len(IMAGES)
    assert outcome.files == {}


def test_wrong_usage_ends_with_64(disks: MemberFolders) -> None:
    command = [SYSTEM_PYTHON, "-I", "-S", RECOVER, str(disks.mounts[0])]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 64


# Damage


def test_bit_flips_in_two_shards_of_each_row_are_decoded_around(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES))
    length = len(segment.shards[0].body)
    for row, offset in enumerate(range(100, length, 65_536)):
        for index in (row % 6, (row + 3) % 6):
            flip(disks.shard(segment, index), body_offset(segment) + offset)
    outcome = disks.recover()
    assert outcome.code == 0, outcome.stderr
    assert sorted(outcome.contents) == sorted(IMAGES)


def test_too_much_damage_costs_only_the_images_it_meets(disks: MemberFolders) -> None:
    segment = disks.store(segment_of([payload_bytes(65_536, str(n)) for n in range(12)]))
    for index in (0, 1, 2):
        flip(disks.shard(segment, index), body_offset(segment) + 5)
    outcome = disks.recover()
    assert outcome.code == 1
    assert len(outcome.files) == 9
    assert outcome.stderr.count("NOT RESTORED") == 3


def test_torn_shards_still_give_their_whole_blocks(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES))
    for index, blocks in ((0, 0), (1, 1), (2, 1)):
        path = disks.shard(segment, index)
        path.write_bytes(path.read_bytes()[: body_offset(segment) + blocks * 65_536])
    flip(disks.shard(segment, 5), body_offset(segment) + 65_536 + 3)
    outcome = disks.recover()
    assert outcome.code == 1  # the second row has three shards left, the first five
    assert IMAGES[0] in outcome.contents


@pytest.mark.parametrize("offset", [0, 13, 60, 126, 130, 400], ids=str)
def test_a_damaged_prefix_costs_only_its_shard(disks: MemberFolders, offset: int) -> None:
    segment = disks.store(segment_of(IMAGES))
    for index in (0, 2):
        flip(disks.shard(segment, index), offset)
    outcome = disks.recover()
    assert outcome.code == 0, outcome.stderr
    assert sorted(outcome.contents) == sorted(IMAGES)


def test_fewer_than_k_shards_are_listed_with_what_is_missing(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES[:2]), range(3))
    outcome = disks.recover()
    assert outcome.code == 1
    assert outcome.stderr.count("NOT RESTORED") == 2
    assert f"segment {segment.manifest.segment}: 3 shards found, 4 needed" in outcome.stderr
    assert str(disks.ids[5]) in outcome.stderr


def test_a_segment_without_one_readable_shard_is_named(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES))
    for index in range(6):
        flip(disks.shard(segment, index), 20)
    outcome = disks.recover()
    assert outcome.code == 1
    assert f"NOT RESTORED: segment {segment.manifest.segment}" in outcome.stderr


def test_an_unknown_major_is_called_newer_and_not_damaged(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES))
    for index in (0, 1):
        path = disks.shard(segment, index)
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, 8, 2)
        struct.pack_into("<I", data, 124, crc32c(data[:124]))
        path.write_bytes(data)
    outcome = disks.recover()
    assert outcome.code == 0, outcome.stderr
    assert "format 2.0, this program reads 1.x" in outcome.stderr
    assert sorted(outcome.contents) == sorted(IMAGES)


def test_an_unknown_minor_is_read(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES))
    for index in range(6):
        path = disks.shard(segment, index)
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, 10, 7)
        data[90] = 1
        struct.pack_into("<I", data, 124, crc32c(data[:124]))
        path.write_bytes(data)
    assert sorted(disks.recover(away=(2, 3)).contents) == sorted(IMAGES)


def test_a_shard_in_place_of_another_does_not_count(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES))
    disks.shard(segment, 1).write_bytes(segment.file(0))
    disks.shard(segment, 2).write_bytes(segment.file(0))
    outcome = disks.recover()
    assert (outcome.code, sorted(outcome.contents)) == (0, sorted(IMAGES))


# Doubt


def test_shards_that_do_not_agree_do_not_count_together(disks: MemberFolders) -> None:
    segment = segment_of(IMAGES)
    other = rewritten(segment, written_at="2026-11-24T09:00:00.000Z")
    disks.store(segment, range(4))
    disks.store(other, (4, 5))
    outcome = disks.recover()
    assert (outcome.code, sorted(outcome.contents)) == (0, sorted(IMAGES))
    assert disks.recover(away=(0,), out=disks.root / "out2").code == 1


def test_two_agreeing_groups_under_one_id_are_both_restored_and_named(tmp_path: Path) -> None:
    disks = MemberFolders(tmp_path, 4)
    one = segment_of([b"one"], geometry=Geometry(2, 2))
    other = segment_of([b"two"], geometry=Geometry(2, 2))
    disks.store(one, (0, 1))
    disks.store(other, (2, 3))
    outcome = disks.recover()
    assert outcome.code == 1
    assert "two different ones under this id" in outcome.stderr
    assert sorted(outcome.contents) == [b"one", b"two"]


def test_a_group_whose_tables_its_manifest_does_not_list_loses(tmp_path: Path) -> None:
    disks = MemberFolders(tmp_path, 4)
    good = disks.store(segment_of([b"good"], geometry=Geometry(2, 2)), (0, 1))
    forged = rewritten(good, written_at="2026-11-24T09:00:00.000Z", images=(sample_image(1, 0, b"good"),))
    disks.store(forged, (2, 3))
    for index in (2, 3):
        path = disks.shard(forged, index)
        data = bytearray(path.read_bytes())
        struct.pack_into("<I", data, 128, 1234)
        struct.pack_into("<I", data, 80, crc32c(data[128:132]))
        struct.pack_into("<I", data, 124, crc32c(data[:124]))
        path.write_bytes(data)
    outcome = disks.recover()
    assert (outcome.code, outcome.contents) == (0, [b"good"])


def test_more_disks_missing_than_parity_is_a_fault_even_if_all_that_is_seen_was_restored(disks: MemberFolders) -> None:
    disks.label()
    disks.store(segment_of(IMAGES, geometry=Geometry(2, 1)))  # coded narrower, all on disks 0 to 2
    outcome = disks.recover(away=(3, 4, 5))
    assert sorted(outcome.contents) == sorted(IMAGES)
    assert outcome.code == 1
    assert "3 disks are missing, 2 may be" in outcome.stderr


def test_a_label_that_requires_the_unknown_leaves_its_disk_alone(disks: MemberFolders) -> None:
    disks.label()
    disks.label(requires=["chunked-bodies"], numbers=(0,))
    disks.store(segment_of(IMAGES))
    outcome = disks.recover(away=(1,))
    assert outcome.code == 0, outcome.stderr
    assert "needs a newer recover.py" in outcome.stderr
    assert disks.recover(away=(1, 2), out=disks.root / "out2").code == 1


def test_a_label_of_a_newer_format_leaves_its_disk_alone(disks: MemberFolders) -> None:
    disks.label()
    disks.label(version="2.0", numbers=(0,))
    disks.store(segment_of(IMAGES))
    outcome = disks.recover(away=(1,))
    assert outcome.code == 0, outcome.stderr
    assert "needs a newer recover.py" in outcome.stderr


def test_damaged_labels_do_not_matter(disks: MemberFolders) -> None:
    disks.label()
    for number in range(6):
        flip(disks.member(number) / "label.json", 40)
    disks.store(segment_of(IMAGES))
    assert disks.recover(away=(4, 5)).code == 0


# Replaced and deleted


def test_a_replaced_segment_does_not_count_while_its_replacement_is_there(disks: MemberFolders) -> None:
    old = disks.store(segment_of([b"keep", b"drop"], 1, first=1))
    new = segment_of([b"keep"], 2, first=1, replaces=(old.manifest.segment,))
    disks.store(new)
    outcome = disks.recover()
    assert (outcome.code, outcome.contents) == (0, [b"keep"])


def test_a_replaced_segment_counts_again_when_its_replacement_is_lost(disks: MemberFolders) -> None:
    old = disks.store(segment_of([b"one", b"two"], 1, first=1))
    disks.store(segment_of([b"one", b"two"], 2, first=1, replaces=(old.manifest.segment,)), range(3))
    outcome = disks.recover()
    assert (outcome.code, sorted(outcome.contents)) == (0, [b"one", b"two"])


def test_a_replaced_segment_serves_what_is_damaged_in_its_replacement(disks: MemberFolders) -> None:
    old = disks.store(segment_of(IMAGES, 1, first=1))
    new = disks.store(segment_of(IMAGES, 2, first=1, replaces=(old.manifest.segment,)))
    for index in (0, 1, 4):
        flip(disks.shard(new, index), body_offset(new) + 7)
    outcome = disks.recover()
    assert (outcome.code, sorted(outcome.contents)) == (0, sorted(IMAGES))


def test_a_segment_replaced_by_a_replaced_one_does_not_count_when_that_one_is_lost(disks: MemberFolders) -> None:
    oldest = disks.store(segment_of([b"keep", b"drop"], 1, first=1))
    middle = disks.store(segment_of([b"keep"], 2, first=1, replaces=(oldest.manifest.segment,)), range(2))
    disks.store(segment_of([b"keep"], 3, first=1, replaces=(middle.manifest.segment,)))
    outcome = disks.recover()
    assert (outcome.code, outcome.contents) == (0, [b"keep"])


def test_segments_that_replace_each_other_hide_nothing(disks: MemberFolders) -> None:
    disks.store(segment_of([b"one"], 1, replaces=(segment_id(2),)))
    disks.store(segment_of([b"two"], 2, replaces=(segment_id(1), segment_id(2))))
    assert b"two" in disks.recover().contents


def purged(disks: MemberFolders, sequence: int) -> ManifestImage:
    segment = disks.store(segment_of([b"deleted", b"stays"], 1, first=1))
    disks.store(segment_of([b"other"], 2))
    image = segment.manifest.images[0]
    disks.purge(sequence, [segment.manifest.segment], [image], number=3)
    return image


def test_what_was_deleted_stays_deleted_unless_asked_for(disks: MemberFolders) -> None:
    purged(disks, 42)
    outcome = disks.recover()
    assert (outcome.code, sorted(outcome.contents)) == (0, [b"other", b"stays"])
    assert "1 images were deleted on purpose" in outcome.stdout
    assert len(disks.recover("--include-deleted", out=disks.root / "all").files) == 3


def test_an_image_delivered_again_after_its_deletion_is_restored(disks: MemberFolders) -> None:
    image = purged(disks, 42)
    again = replace(image, image=segment_id(77), offset=0)
    disks.store(segment_of([b"deleted"], 3, images=(again,), journal_sequence=42))
    assert sorted(disks.recover().contents) == [b"deleted", b"other", b"stays"]


def test_a_deletion_bars_only_what_was_written_before_it(disks: MemberFolders) -> None:
    purged(disks, 41)
    assert len(disks.recover().files) == 3


def test_a_forged_or_torn_deletion_is_not_believed(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES, first=1))
    disks.purge(42, [segment.manifest.segment], segment.manifest.images[:1], actor="mallory")
    journal = disks.member(1) / "journal" / "2026-11-24.jsonl"
    journal.parent.mkdir()
    journal.write_bytes(b'{"action":"purge","detail":{"images":[["1.2')
    outcome = disks.recover()
    assert (outcome.code, len(outcome.files)) == (0, len(IMAGES))
    assert "a deletion that cannot be believed" in outcome.stderr


# Hostile input


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1}, {"offset": 1}, {"length": 0}, {"length": 1 << 70}, {"image_offset": 1.5}, {"size": "4"},
        {"part_sha256": "zz"}, {"sha256": "00"}, {"version": None}, {"sop_instance_uid": 7}, {"image": ["x"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_manifest_costs_only_its_segment(disks: MemberFolders, change: dict[str, object]) -> None:
    disks.store(segment_of([b"fine"], 1))
    forge(disks, segment_of([b"evil"], 2), lambda text: edited(text, change))
    outcome = disks.recover()
    assert "Traceback" not in outcome.stderr
    assert (outcome.code, outcome.contents) == (1, [b"fine"])


def edited(text: bytes, change: dict[str, object]) -> bytes:
    document = recover.json.loads(text)
    document["images"][0].update(change)
    return recover.canonical(document)


def forge(disks: MemberFolders, segment: SampleSegment, edit: Callable[[bytes], bytes]) -> None:
    """Store the segment with another manifest under right checksums."""
    disks.store(segment)
    for index in range(6):
        path = disks.shard(segment, index)
        data = path.read_bytes()
        head = recover.parse_head(data)
        manifest = zlib.compress(edit(zlib.decompress(data[head.table_end : head.table_end + head.manifest_length])))
        prefix = bytearray(data[: head.table_end] + manifest)
        offset = -(-len(prefix) // 4096) * 4096
        struct.pack_into("<I", prefix, 16, offset)
        struct.pack_into("<I", prefix, 72, len(manifest))
        struct.pack_into("<I", prefix, 84, crc32c(manifest))
        struct.pack_into("<I", prefix, 124, crc32c(prefix[:124]))
        path.write_bytes(prefix.ljust(offset, b"\0") + data[head.body_offset :])


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"[" * 100_000, b'{"k":' + b"9" * 100_000 + b"}", b"\xff", b" " * (33 << 20), b"{}," * 600_000],
    ids=lambda text: repr(text[:8]) + str(len(text)),
)
def test_a_manifest_that_is_none_costs_only_its_segment(disks: MemberFolders, text: bytes) -> None:
    disks.store(segment_of([b"fine"], 1))
    forge(disks, segment_of([b"evil"], 2), lambda _: text)
    outcome = disks.recover()
    assert "Traceback" not in outcome.stderr
    assert (outcome.code, outcome.contents) == (1, [b"fine"])


def test_names_lead_nowhere_else(disks: MemberFolders) -> None:
    names = [
        "../../../up",
        "/etc/passwd",
        "..",
        ".",
        "",
        "CON",
        "a\0b\nc",
        "x" * 5000,
        "ü" * 500,
        "\u202egnp",
        "a/../b",
    ]
    images, offset, parts = [], 0, []
    for number, name in enumerate(names):
        images.append(name.encode() + b"!")
        identity = {"patient_name": name, "study_description": name, "series_description": name, "modality": name}
        uid = name or "."
        parts.append(sample_image(number, offset, images[-1], sop_instance_uid=uid, identity=identity))
        offset += len(images[-1])
    disks.store(segment_of(images, images=tuple(parts)))
    outside = set(disks.root.rglob("*"))
    outcome = disks.recover()
    assert outcome.code == 0, outcome.stderr
    assert sorted(outcome.contents) == sorted(images)
    new = set(disks.root.rglob("*")) - outside
    assert all((disks.root / "out") in (path, *path.parents) for path in new)
    assert all(len(part.encode()) <= 255 for path in outcome.files for part in path.split("/"))


def test_two_images_of_one_name_get_two_files(disks: MemberFolders) -> None:
    identity = {"patient_name": "Rex"}
    parts = tuple(sample_image(n, 3 * n, b"im%d" % n, sop_instance_uid=f"1.2.{n}", identity=identity) for n in range(2))
    disks.store(segment_of([b"im0", b"im1"], images=parts))
    folder = disks.root / "out" / "Rex" / "unknown study" / "unknown series"
    folder.mkdir(parents=True)
    (folder / "1.2.0.dcm").write_bytes(b"somebody else's")
    outcome = disks.recover()
    assert outcome.code == 0
    assert {Path(path).name: data for path, data in outcome.files.items()} == {
        "1.2.0.dcm": b"somebody else's", "1.2.0~2.dcm": b"im0", "1.2.1.dcm": b"im1",
    }  # fmt: skip


def test_links_in_out_are_never_followed(disks: MemberFolders) -> None:
    disks.store(segment_of([b"image"], first=1))
    elsewhere = disks.root / "elsewhere"
    elsewhere.mkdir()
    victim = elsewhere / "victim"
    victim.write_bytes(b"precious")
    out = disks.root / "out"
    out.mkdir()
    (out / "Müller_Bello").symlink_to(elsewhere)
    folder = out / "Müller_Bello~2" / "20261124" / "unknown series"
    folder.mkdir(parents=True)
    (folder / "1.2.826.0.1.3680043.8.498.1.dcm").symlink_to(victim)
    (folder / ".recover.part").symlink_to(victim)
    outcome = disks.recover()
    assert outcome.code == 0, outcome.stderr
    assert list(elsewhere.iterdir()) == [victim]
    assert victim.read_bytes() == b"precious"
    assert (folder / "1.2.826.0.1.3680043.8.498.1~2.dcm").read_bytes() == b"image"


def test_links_on_members_are_not_followed(disks: MemberFolders) -> None:
    segment = disks.store(segment_of(IMAGES))
    shard = disks.shard(segment, 0)
    moved = disks.root / "moved"
    shard.rename(moved)
    shard.symlink_to(moved)
    os.mkfifo(shard.parent / f"{segment_id(5)}-00.shard")
    outcome = disks.recover(away=(1,))
    assert sorted(outcome.contents) == sorted(IMAGES)


@pytest.mark.parametrize("inside", ["", "out", "raidd/deep/out"])
def test_out_on_a_member_is_refused(disks: MemberFolders, inside: str) -> None:
    disks.store(segment_of([b"image"]))
    target = disks.mounts[0] / inside if inside != "raidd/deep/out" else disks.member(0) / "deep" / "out"
    link = disks.root / "innocent"
    link.symlink_to(disks.mounts[0])
    before = set(disks.mounts[0].rglob("*"))
    for out in (target, link / "x"):
        command = [SYSTEM_PYTHON, "-I", "-S", RECOVER, "--out", out, *disks.mounts]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 1
        assert b"is on a disk of the array" in done.stderr
    assert set(disks.mounts[0].rglob("*")) == before


# Going on


def test_a_second_run_keeps_what_is_there_and_mends_what_is_not(disks: MemberFolders) -> None:
    disks.store(segment_of(IMAGES, first=1))
    first = disks.recover()
    out = disks.root / "out"
    paths = [out / path for path in first.files]
    paths[0].unlink()
    (paths[1].parent / ".recover.part").write_bytes(b"left by kill -9")
    stamps = {path: path.stat().st_mtime_ns for path in paths[1:]}
    second = disks.recover()
    assert second.code == 0
    assert second.files == first.files
    assert {path: path.stat().st_mtime_ns for path in paths[1:]} == stamps
    assert f"1 images restored (0.0 MB), {len(IMAGES) - 1} were there already" in second.stdout


def test_what_failed_without_enough_disks_is_restored_when_they_are_back(disks: MemberFolders) -> None:
    disks.store(segment_of(IMAGES))
    assert disks.recover(away=(0, 1, 2)).code == 1
    assert disks.recover(away=(0, 1)).code == 0


def test_a_file_that_hides_no_disk_is_not_success(tmp_path: Path) -> None:
    command = [SYSTEM_PYTHON, "-I", "-S", RECOVER, "--out", tmp_path / "out", tmp_path]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"No disk of an array found" in done.stderr


def test_an_out_that_takes_no_more_is_said_and_leaves_no_half_image(disks: MemberFolders) -> None:
    disks.store(segment_of([payload_bytes(10_000, "small"), payload_bytes(300_000, "big")]))
    outcome = disks.recover(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    assert outcome.code == 1
    assert "run again to go on" in outcome.stderr
    assert outcome.contents == [payload_bytes(10_000, "small")]


def test_names_are_utf_8_in_any_locale(disks: MemberFolders) -> None:
    disks.store(segment_of([b"image"], images=(sample_image(1, 0, b"image", identity={"patient_name": "王^小東"}),)))
    outcome = disks.recover("--list", environment={"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"})
    assert outcome.code == 0, outcome.stderr
    outcome = disks.recover(environment={"LC_ALL": "POSIX"})
    assert outcome.code == 0, outcome.stderr
    assert next(iter(outcome.files)).startswith("王_小東/")


def test_labels_and_journals_as_raidd_writes_them_are_believed(disks: MemberFolders) -> None:
    segment = disks.store(segment_of([b"deleted", b"stays"], first=1))
    image = segment.manifest.images[0]
    detail = {
        "segments": [str(segment.manifest.segment)],
        "images": [[image.sop_instance_uid, image.sha256]],
        "reason": "Wünsche 王",
    }
    entry = make_entry((41, "0" * 64), WRITTEN_AT, "anna", "purge", [str(image.image)], detail=detail)
    path = disks.member(2) / journal_path(entry)
    path.parent.mkdir()
    path.write_bytes(entry.to_line())
    entries = [RosterEntry(member, None, MemberState.SPARE, bay="oben ä") for member in disks.ids]
    roster = new_roster(ARRAY, "clinic-1 王", Level("raid6"), Geometry(4, 2), entries)
    for number, member in enumerate(disks.ids):
        (disks.member(number) / "label.json").write_bytes(label_for(member, roster).pack())
    outcome = disks.recover()
    assert (outcome.code, outcome.stderr, outcome.contents) == (0, "", [b"stays"])
    assert "4 disks are missing, 2 may be" in disks.recover(away=(0, 1, 3, 4)).stderr


def test_progress_is_shown_on_a_terminal_only(disks: MemberFolders) -> None:
    disks.store(segment_of([b"image"]))
    assert "\r" not in disks.recover().stderr
    terminal, child = os.openpty()
    command = [SYSTEM_PYTHON, "-I", "-S", RECOVER, "--out", disks.root / "out2", *disks.mounts]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=child, check=False).returncode == 0
    assert b"reading raidd-" in os.read(terminal, 65_536)
    os.close(terminal)
    os.close(child)


# Numbers


def test_crc32c_equals_the_crc32c_package() -> None:
    random = Random(7)
    for length in [*range(600), 4095, 4096, 65_535, 65_536, 65_537, 300_007]:
        data = random.randbytes(length)
        assert recover.crc32c(data) == crc32c(data), length


def test_the_generator_is_zfecs_for_every_geometry() -> None:
    import zfec

    for n in range(2, 33):
        for k in range(1, n):
            data = [bytes([1 if i == j else 0 for j in range(k)]) for i in range(k)]
            columns = zfec.Encoder(k, n).encode(data)
            assert recover.generator(k, n) == [list(row) for row in columns], (k, n)


@pytest.mark.parametrize("with_numpy", [True, False])
def test_any_k_shards_decode_to_the_data_with_and_without_numpy(
    with_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_numpy:
        monkeypatch.setattr(recover, "numpy", None)
    data = [payload_bytes(1000, str(n)) for n in range(5)]
    shards = [recover.combine(row, data) for row in recover.generator(5, 8)]
    for present in combinations(range(8), 5):
        rows = recover.decoding_rows(5, 8, present, range(5))
        assert [recover.combine(row, [shards[i] for i in present]) for row in rows] == data


def test_it_is_python_3_8_and_imports_only_the_standard_library() -> None:
    tree = ast.parse(RECOVER.read_text(), feature_version=(3, 8))
    imported = {
        name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    } | {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - {"numpy", "__future__"} <= set(__import__("sys").stdlib_module_names)
