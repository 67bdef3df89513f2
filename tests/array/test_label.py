"""Labels: their exact bytes, every way to damage them, and whose word counts when they disagree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from crc32c import crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raidd.array.label import LABEL_LIMIT, Label, LabelUnsupported, choose_roster, label_for, remake_label
from raidd.array.roster import MemberState, Roster, RosterEntry, RosterEvent, add, apply, replace_member
from raidd.codec.geometry import Geometry, Level
from raidd.errors import LabelForked, LabelInvalid
from tests.support.rosters import ARRAY, AWAY, member_id, newcomer, roster_of

GOLDEN = Path(__file__).parents[1] / "data" / "format-1.0" / "label.json"


def golden_label() -> Label:
    """What the golden file says: 4+2 on a trial array, one slot rebuilding, a spare, one retired."""
    fields = {"enclosure": "left", "bay": "top", "model": "ST8000VN", "serial": "ZA1A1B2", "size": 8 * 10**12}
    roster = roster_of(6)
    entries = (replace(roster.entries[0], **fields), *roster.entries[1:])  # type: ignore[arg-type]
    roster = replace(roster, entries=entries, contact="Tierärztin Ü, 0123", trial=True)
    roster = replace_member(apply(roster, member_id(2), RosterEvent.FAIL), 2, newcomer(6))
    roster = add(roster, newcomer(7), spare=True)
    roster = apply(apply(roster, member_id(5), RosterEvent.OFFLINE), member_id(5), RosterEvent.RETIRE)
    return label_for(member_id(0), roster)


def signed(document: dict[str, Any]) -> bytes:
    """A label as somebody else's program might write it: any document with a right checksum."""
    document.pop("crc32c", None)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    document["crc32c"] = f"{crc32c(text.encode()):08x}"
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# The bytes


def test_the_golden_label_reads_as_it_did_when_it_was_written() -> None:
    assert Label.parse(GOLDEN.read_bytes()) == golden_label()


def test_the_golden_label_is_written_byte_for_byte() -> None:
    assert golden_label().pack() == GOLDEN.read_bytes()


def test_a_label_has_exactly_the_keys_of_the_format() -> None:
    document = json.loads(GOLDEN.read_bytes())
    shared = {"array", "array_name", "level", "k", "m", "epoch", "history", "roster", "contact", "trial"}
    assert set(document) == shared | {"format", "requires", "member", "slot", "crc32c"}
    keys = {"member", "slot", "state", "enclosure", "bay", "model", "serial", "size"}
    assert all(set(entry) == keys for entry in document["roster"])
    assert document["requires"] == []


def test_the_golden_checksum_can_be_told_without_raidd() -> None:
    document = json.loads(GOLDEN.read_bytes())
    assert signed(dict(document)) == GOLDEN.read_bytes()


text = st.text(st.characters(), max_size=20)
entries = st.builds(
    RosterEntry,
    member=st.uuids(),
    slot=st.none(),
    state=st.sampled_from([MemberState.SPARE, MemberState.FAILED, MemberState.OFFLINE, MemberState.RETIRED]),
    enclosure=text,
    bay=text,
    model=text,
    serial=text,
    size=st.integers(0, 1 << 62),
    extra=st.dictionaries(st.sampled_from(["wwn", "colour"]), st.none() | st.integers() | text.map(repr)),
)
labels = st.builds(
    lambda own, others, name, contact, trial, epoch, geometry, extra: label_for(
        own.member,
        Roster(ARRAY, name, Level("raid6"), geometry, epoch, (), (own, *others), contact, trial, extra),
    ),
    entries,
    st.lists(entries, max_size=4, unique_by=lambda entry: entry.member),
    text,
    text,
    st.booleans(),
    st.integers(1, 1 << 40),
    st.builds(Geometry, st.integers(1, 16), st.integers(1, 16)),
    st.dictionaries(st.sampled_from(["shelf", "x"]), st.lists(st.integers()) | st.booleans()),
)


@given(labels)
@settings(deadline=None)
def test_what_is_packed_is_parsed_again(label: Label) -> None:
    packed = label.pack()
    assert Label.parse(packed) == label
    assert Label.parse(packed).roster.hash() == label.roster.hash()
    assert Label.parse(packed).pack() == packed


def test_a_label_of_a_full_array_after_years_stays_within_its_limit() -> None:
    roster = roster_of(32)
    texts = dict.fromkeys(("enclosure", "bay", "model", "serial"), "\U0001f980" * 999)
    crowd = tuple(RosterEntry(member_id(100 + i), None, MemberState.RETIRED, **texts) for i in range(100))
    for _ in range(300):
        roster = roster.successor()
    packed = label_for(member_id(0), replace(roster, entries=(*roster.entries, *crowd))).pack()
    assert len(packed) < LABEL_LIMIT


# Damage


def test_every_single_bit_flip_of_the_golden_label_is_refused() -> None:
    golden = GOLDEN.read_bytes()
    for position in range(len(golden)):
        for bit in range(8):
            flipped = bytearray(golden)
            flipped[position] ^= 1 << bit
            with pytest.raises(LabelInvalid):
                Label.parse(bytes(flipped))


def test_every_half_written_label_is_refused() -> None:
    golden = GOLDEN.read_bytes()
    for length in range(len(golden)):
        with pytest.raises(LabelInvalid):
            Label.parse(golden[:length])


def test_a_label_with_a_tail_or_zeroed_blocks_is_refused() -> None:
    golden = GOLDEN.read_bytes()
    for damaged in (golden + b"\n", golden + golden, bytes(len(golden)), golden[:512] + bytes(len(golden) - 512)):
        with pytest.raises(LabelInvalid):
            Label.parse(damaged)


@given(labels, st.data())
@settings(deadline=None)
def test_any_single_bit_flip_of_any_label_is_refused(label: Label, data: st.DataObject) -> None:
    packed = bytearray(label.pack())
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(LabelInvalid):
        Label.parse(bytes(packed))


@given(st.binary(max_size=300))
@example(b"[" * 100_000)
@example(b'{"crc32c":NaN}')
@example(b'{"a":1,"a":1,"crc32c":"00000000"}')
@example(b'{"a":"\\ud800","crc32c":"00000000"}')
@example(b"1" * 10_000)
@example(b" " * (LABEL_LIMIT + 1))
@example(b"null")
def test_anything_else_is_refused_with_a_clear_error(data: bytes) -> None:
    with pytest.raises(LabelInvalid):
        Label.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(GOLDEN.read_bytes()))), json_values)
@settings(deadline=None)
def test_a_rightly_signed_label_with_a_wrong_value_is_read_or_refused(key: str, value: Any) -> None:
    document = json.loads(GOLDEN.read_bytes()) | {key: value}
    try:
        label = Label.parse(signed(document))
    except LabelInvalid:
        return
    assert label.pack() == signed(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("member", str(member_id(99))),
        ("member", str(ARRAY).upper()),
        ("slot", 1),
        ("slot", False),
        ("k", 31),
        ("m", 0),
        ("epoch", 0),
        ("epoch", 1.0),
        ("trial", 1),
        ("history", ["x" * 64]),
        ("history", {}),
        ("history", ["0" * 64] * 257),
        ("roster", []),
        ("roster", {}),
        ("array_name", None),
    ],
)
def test_a_rightly_signed_label_that_contradicts_itself_is_refused(key: str, value: Any) -> None:
    document = json.loads(GOLDEN.read_bytes()) | {key: value}
    with pytest.raises(LabelInvalid, match="do not fit together"):
        Label.parse(signed(document))


@pytest.mark.parametrize("key", sorted(set(json.loads(GOLDEN.read_bytes())) - {"crc32c"}))
def test_a_label_without_one_of_its_keys_is_refused(key: str) -> None:
    document = json.loads(GOLDEN.read_bytes())
    del document[key]
    with pytest.raises(LabelInvalid):
        Label.parse(signed(document))


# Later versions


def test_an_unknown_requirement_means_read_nothing_write_nothing() -> None:
    document = json.loads(GOLDEN.read_bytes()) | {"requires": ["sealed-journal"]}
    with pytest.raises(LabelUnsupported, match=r"sealed-journal: read nothing, write nothing") as caught:
        Label.parse(signed(document))
    assert "newer raidd" in caught.value.next_step


def test_a_newer_major_is_not_understood_whatever_else_it_says() -> None:
    with pytest.raises(LabelUnsupported, match=r"format 2\.0"):
        Label.parse(signed({"format": "2.0", "requires": [], "new": {}}))


def test_a_damaged_label_is_not_taken_for_a_newer_one() -> None:
    with pytest.raises(LabelInvalid) as caught:
        Label.parse(GOLDEN.read_bytes().replace(b'"format":"1.0"', b'"format":"3.0"'))
    assert not isinstance(caught.value, LabelUnsupported)


def test_a_newer_minor_is_read_and_its_keys_are_written_on() -> None:
    document = json.loads(GOLDEN.read_bytes()) | {"format": "1.7", "shelf": {"row": 3}}
    document["roster"][0]["wwn"] = "5000c500"
    label = Label.parse(signed(document))
    assert label.extra == {"shelf": {"row": 3}}
    rewritten = json.loads(label_for(member_id(1), label.roster.successor()).pack())
    assert rewritten["shelf"] == {"row": 3}
    assert rewritten["roster"][0]["wwn"] == "5000c500"


# Making


def test_a_label_is_made_only_for_a_member_of_the_roster() -> None:
    with pytest.raises(LabelInvalid, match="not in the roster"):
        label_for(member_id(9), roster_of(3))
    with pytest.raises(ValueError, match="not in the roster"):
        Label(member_id(9), roster_of(3))


def test_a_damaged_label_is_re_made_byte_for_byte() -> None:
    golden = golden_label()
    other = Label.parse(label_for(member_id(1), golden.roster).pack())
    assert remake_label(other.roster, member_id(0)).pack() == GOLDEN.read_bytes()


def test_a_retired_member_gets_no_label_back() -> None:
    with pytest.raises(LabelInvalid, match="retired"):
        remake_label(golden_label().roster, member_id(5))


# Choosing


def on(roster: Roster, *members: int) -> list[Label]:
    return [label_for(member_id(number), roster) for number in members]


def failing(roster: Roster, *members: int) -> Roster:
    for number in members:
        roster = apply(roster, member_id(number), RosterEvent.FAIL)
    return roster


def longer(roster: Roster, epochs: int) -> Roster:
    for _ in range(epochs):
        roster = roster.successor()
    return roster


def test_all_labels_alike_give_their_roster() -> None:
    assert choose_roster(on(roster_of(6), *range(6))) == roster_of(6)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
@settings(deadline=None)
def test_of_labels_in_one_line_the_newest_wins_however_few_carry_it(ages: list[int]) -> None:
    line = [roster_of(6)]
    for _ in range(40):
        line.append(line[-1].successor())
    found = [label_for(member_id(number), line[age]) for number, age in enumerate(ages)]
    assert choose_roster(found) == line[max(ages)]


def test_disjoint_absences_are_no_fork() -> None:
    """Member 0 is away while 1 fails, then 1 stays away while 0 is back: every label is in one line."""
    first = roster_of(4)
    second = failing(first, 0)
    third = apply(second, member_id(0), RosterEvent.ONLINE)
    fourth = failing(third, 1)
    found = [*on(first, 1), *on(second, 2), *on(fourth, 0, 3)]
    assert choose_roster(found) == fourth
    assert choose_roster(found[::-1]) == fourth


def test_a_stale_label_within_256_rosters_is_an_ancestor() -> None:
    old = roster_of(4)
    new = longer(old, 256)
    assert choose_roster([*on(old, 0, 1), *on(new, 2, 3)]) == new


def test_a_label_older_than_the_history_counts_as_a_side_of_its_own() -> None:
    old = roster_of(6)
    new = longer(old, 257)
    assert choose_roster([*on(old, 0), *on(new, 1, 2, 3, 4)]) == new
    with pytest.raises(LabelForked):
        choose_roster([*on(old, 0, 1, 2), *on(new, 3, 4, 5)])


@pytest.mark.parametrize(
    ("majority", "minority"), [((0, 1, 2, 3), (4, 5)), ((0, 1, 2, 3, 4), (5,)), ((0, 1, 2, 3), (5,))]
)
def test_a_fork_is_won_by_n_minus_m_against_fewer_than_m_plus_1(
    majority: Sequence[int], minority: Sequence[int]
) -> None:
    """4+2: four or more beat two or fewer, also when the few made more epochs."""
    many = failing(roster_of(6), 5)
    few = longer(failing(roster_of(6), 0, 1), 9)
    found = [*on(few, *minority), *on(many, *majority)]
    assert choose_roster(found) == many
    assert choose_roster(found[::-1]) == many


@pytest.mark.parametrize(
    ("left", "right"), [((0, 1, 2), (3, 4, 5)), ((0, 1, 2), (3, 4)), ((0,), (5,)), ((0, 1, 2, 3), ())]
)
def test_a_fork_without_a_strong_side_stops_and_shows_both(left: Sequence[int], right: Sequence[int]) -> None:
    one, other = failing(roster_of(6), 5), failing(roster_of(6), 0)
    found = [*on(one, *left), *on(other, *right)]
    if not right:
        assert choose_roster(found) == one
        return
    with pytest.raises(LabelForked) as caught:
        choose_roster(found)
    lines = caught.value.message.splitlines()
    assert len(lines) == 3
    assert all(f"on {len(side)} members" in caught.value.message for side in (left, right))
    assert "slot 5 failed" in caught.value.message
    assert "slot 0 failed" in caught.value.message


def test_the_two_halves_of_a_mirror_never_outvote_each_other() -> None:
    start = roster_of(2, 1, 1, level="mirror")
    with pytest.raises(LabelForked):
        choose_roster([*on(failing(start, 1), 0), *on(failing(start, 0), 1)])


def test_a_common_ancestor_votes_for_neither_side() -> None:
    start = roster_of(6)
    many, few = failing(start, 5), failing(start, 0)
    with pytest.raises(LabelForked, match="on 3 members"):
        choose_roster([*on(start, 0), *on(many, 1, 2, 3), *on(few, 5)])


def test_spares_have_no_vote_and_an_old_and_a_new_disk_of_one_slot_have_one() -> None:
    start = add(roster_of(6), newcomer(8), spare=True)
    many = replace_member(start, 2, newcomer(9), AWAY)
    few = failing(start, 0)
    with pytest.raises(LabelForked):
        choose_roster([*on(many, 1, 2, 9, 3, 8), *on(few, 0)])
    assert choose_roster([*on(many, 1, 2, 9, 3, 4), *on(few, 0)]) == many


def test_what_state_dir_remembers_is_compared_but_has_no_vote() -> None:
    start = roster_of(6)
    newer = failing(start, 0)
    assert choose_roster(on(start, *range(6)), remembered=newer) == newer
    assert choose_roster(on(newer, *range(6)), remembered=start) == newer
    assert choose_roster([], remembered=start) == start
    other = failing(start, 5)
    assert choose_roster(on(other, 0, 1, 2, 3), remembered=newer) == other
    with pytest.raises(LabelForked, match="on 0 members"):
        choose_roster(on(other, 1, 2, 3), remembered=newer)


def test_the_mirror_half_that_state_dir_remembers_is_not_made_a_majority_by_it() -> None:
    start = roster_of(2, 1, 1, level="mirror")
    left, right = failing(start, 1), failing(start, 0)
    with pytest.raises(LabelForked):
        choose_roster([*on(left, 0), *on(right, 1)], remembered=left)


def test_three_sides_need_one_that_beats_both() -> None:
    sides = [failing(roster_of(7, 4), number) for number in (0, 1, 2)]
    assert choose_roster([*on(sides[0], 2, 3, 4, 5, 6), *on(sides[1], 0), *on(sides[2], 1)]) == sides[0]
    with pytest.raises(LabelForked):
        choose_roster([*on(sides[0], 3, 4, 5, 6), *on(sides[1], 0), *on(sides[2], 1)])


def test_labels_of_two_arrays_and_no_labels_are_refused() -> None:
    other = replace(roster_of(3), array=UUID(int=5))
    with pytest.raises(LabelInvalid, match="2 arrays"):
        choose_roster([*on(roster_of(3), 0), *on(other, 1)])
    with pytest.raises(LabelInvalid, match="no label"):
        choose_roster([])


@given(st.permutations(range(6)), st.integers(1, 5), st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None)
def test_no_order_of_labels_changes_the_outcome(order: list[int], cut: int, grow: int, shrink: int) -> None:
    one, other = longer(failing(roster_of(6), 5), grow), longer(failing(roster_of(6), 0), shrink)
    found = [label_for(member_id(number), one if number < cut else other) for number in order]

    def outcome(labels: Sequence[Label]) -> Roster | None:
        try:
            return choose_roster(labels)
        except LabelForked:
            return None

    assert outcome(found) == outcome(sorted(found, key=lambda label: label.member))
    assert outcome(found) == (one if cut >= 4 else other if cut <= 2 else None)
