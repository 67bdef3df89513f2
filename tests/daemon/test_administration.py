"""What an operator may do to the members, and what is refused because images need them."""

from __future__ import annotations

import os
import pwd
import shlex
import threading
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from raidd import api
from raidd.array import host
from raidd.array.label import Label
from raidd.array.roster import MemberState, RosterEvent, apply
from raidd.codec.geometry import Level
from raidd.daemon import administration
from raidd.daemon.beginning import Beginning
from raidd.errors import MemberFaulty, RaiddError, RequestRefused, RequestUnknown, StateDirFaulty
from tests.support.arrays import SmallArray
from tests.support.governed import Governed

DATA = {f"1.2.{n}": Random(n).randbytes(size) for n, size in enumerate([1, 4096, 300_000])}
ADD = {"spare": False, "bay": "", "enclosure": "", "allow_same_device": True, "allow_filesystem": True}
TRIAL = {"allow_same_device": True, "allow_filesystem": True}


@pytest.fixture
def governed(tmp_path: Path) -> Governed:
    """Six members, raid6 (4+2), three images."""
    array = SmallArray(tmp_path / "array")
    array.put(DATA)
    return Governed(array, tmp_path)


def judge(governed: Governed, slot: int, event: RosterEvent) -> None:
    """What diagnosis will do."""
    membership = governed.array.membership
    member = membership.roster.slot_entry(slot).member
    membership.set_roster(apply(membership.roster, member, event, membership.presence(member)))


def all_read_back(governed: Governed) -> None:
    for uid, data in DATA.items():
        assert governed.array.read(uid) == data


# -- offline, online -------------------------------------------------------------------------------------------------


def test_offline_lets_the_member_go_and_says_who_asked(governed: Governed) -> None:
    reply = governed.administration.offline(1, "anna")
    assert (reply.member.state, reply.member.reason) == ("offline", "taken offline by the operator")
    assert governed.array.uuid(1) in governed.let_go, "its lock is dropped, so that it can be unmounted"
    assert not governed.array.membership.member(governed.array.uuid(1)).present  # type: ignore[union-attr]
    assert governed.journal == [("anna", "offline", (str(governed.array.uuid(1)),), {"slot": 1})]
    all_read_back(governed)


def test_the_label_of_an_offline_member_says_so(governed: Governed) -> None:
    """It carries the verdict before it is let go: another machine shows the same."""
    governed.administration.offline(1, "anna")
    label = Label.parse(governed.array.disk(1).inner.read("label.json"))
    assert label.roster.slot_entry(1).state == MemberState.OFFLINE


def test_offline_is_refused_when_images_would_not_survive_another_failure(governed: Governed) -> None:
    governed.array.lose(0)
    with pytest.raises(RequestRefused, match="3 images would be lost with the next disk") as refused:
        governed.administration.offline(1, "anna")
    assert "Bring the other members back" in refused.value.next_step
    assert governed.row(1).state == "online"


def test_offline_is_refused_when_images_could_not_be_read(governed: Governed) -> None:
    """Two of six are away already: all images are unprotected now and would be after; but they would be unreadable."""
    governed.array.lose(0)
    governed.array.lose(5)
    with pytest.raises(RequestRefused, match="3 images could not be read"):
        governed.administration.offline(1, "anna")
    all_read_back(governed)


def test_offline_of_a_healthy_mirrors_member_says_what_to_do_instead(tmp_path: Path) -> None:
    array = SmallArray(tmp_path / "array", 2, Level("mirror"))
    array.put(DATA)
    with pytest.raises(RequestRefused) as refused:
        Governed(array, tmp_path).administration.offline(0, "anna")
    assert "systemctl stop raidd" in refused.value.next_step


def test_a_member_that_is_away_already_may_be_taken_offline(governed: Governed) -> None:
    """So that nobody waits for it: it is on the bench."""
    governed.array.lose(0)
    governed.array.lose(5)
    assert governed.administration.offline(0, "anna").member.state == "offline"


def test_a_returning_offline_member_is_left_alone_until_online(governed: Governed) -> None:
    governed.administration.offline(1, "anna")
    governed.array.probe()
    assert governed.row(1).state == "offline"
    reply = governed.administration.online(1, "bert")
    assert "as soon as" in reply.message
    governed.array.probe()
    assert governed.row(1).state == "online"
    assert governed.journal[-1][:2] == ("bert", "online")


def test_online_counts_errors_anew_and_forgets_why_it_was_away(governed: Governed) -> None:
    """operator.md: errors since the member was last put online."""
    member = governed.array.membership.member(governed.array.uuid(1))
    assert member is not None
    member.count_error("a bad block")
    governed.administration.offline(1, "anna")
    assert governed.row(1).errors == 1
    governed.array.lost.add(governed.array.uuid(1))  # its disk is not back yet
    governed.administration.online(1, "anna")
    assert governed.row(1).errors == 0
    governed.array.probe()
    assert (governed.row(1).state, "is not on any mount" in governed.row(1).reason) == ("missing", True)


def test_a_failed_member_put_online_is_locked_and_looked_at(governed: Governed) -> None:
    judge(governed, 1, RosterEvent.FAIL)
    reply = governed.administration.online(1, "anna")
    assert reply.member.state == "rebuilding"
    assert governed.locked == ["/m/1"]
    governed.array.repair_all()
    assert governed.row(1).state == "online"


@pytest.mark.parametrize("command", ["online", "offline", "remove"])
def test_a_slot_that_is_not_there_is_named_with_those_that_are(governed: Governed, command: str) -> None:
    with pytest.raises(RequestUnknown, match="there is no slot 17; slots are 0, 1, 2, 3, 4, 5"):
        getattr(governed.administration, command)(17, "anna")
    with pytest.raises(RequestUnknown, match="no slot -1"):
        getattr(governed.administration, command)(-1, "anna")


def test_online_of_a_missing_member_says_that_it_comes_back_by_itself(governed: Governed) -> None:
    governed.array.lose(1)
    with pytest.raises(RequestRefused, match=r"slot 1 \(.*\) is missing: it cannot be put online") as refused:
        governed.administration.online(1, "anna")
    assert "cable" in refused.value.next_step


def test_refusals_speak_of_what_was_asked_and_name_commands_that_exist(governed: Governed) -> None:
    """No internal words, no `drain` before there is one, and the slot's number in what is to be pasted."""
    blank = governed.folder("blank")
    asked = {
        "replaced": lambda: governed.administration.replace(0, api.ReplaceRequest(path=str(blank), **TRIAL), "anna"),
        "removed": lambda: governed.administration.remove(0, "anna"),
    }
    for word, ask in asked.items():
        with pytest.raises(RequestRefused, match=f"slot 0 .* is online: it cannot be {word}") as refused:
            ask()
        assert refused.value.next_step.endswith("raidctl offline 0")


# -- can-remove, remove ----------------------------------------------------------------------------------------------


def test_can_remove_says_yes_no_and_unknown(governed: Governed) -> None:
    array, can_remove = governed.array, governed.administration.can_remove
    assert can_remove(1).answer == "yes"
    array.lose(0)
    assert (can_remove(1).answer, can_remove(1).reason) == ("no", "3 images would be lost with the next disk")
    array.lose(2)
    assert (can_remove(1).answer, can_remove(1).reason) == ("no", "3 images could not be read")
    array.lose(3)
    assert can_remove(1).answer == "unknown"


def test_can_remove_is_unknown_while_the_catalog_is_being_made(tmp_path: Path) -> None:
    """An empty catalog would say yes to everything."""
    governed = Governed(SmallArray(tmp_path / "array"), tmp_path, beginning=Beginning(reindexing=True))
    assert governed.administration.can_remove(0).answer == "unknown"
    with pytest.raises(RequestRefused, match="being made again"):
        governed.administration.offline(0, "anna")


def test_remove_takes_an_offline_member_out_for_good(governed: Governed) -> None:
    member = governed.array.uuid(1)
    governed.administration.offline(1, "anna")
    reply = governed.administration.remove(1, "anna")
    assert reply.member.state == "retired"
    assert [row.slot for row in governed.status().members] == [0, 2, 3, 4, 5]
    assert governed.array.membership.member(member) is None
    assert governed.journal[-1] == ("anna", "remove", (str(member),), {"slot": 1})
    all_read_back(governed)


def test_remove_is_refused_while_images_need_the_slot(governed: Governed) -> None:
    governed.administration.offline(1, "anna")
    governed.array.lose(0)
    with pytest.raises(RequestRefused, match="slot 1 cannot be removed") as refused:
        governed.administration.remove(1, "anna")
    assert refused.value.next_step.endswith("raidctl replace 1 MOUNT")


# -- add -------------------------------------------------------------------------------------------------------------


def test_add_makes_a_member_in_a_new_slot(governed: Governed) -> None:
    path = governed.folder("new")
    reply = governed.administration.add(api.AddRequest(path=str(path), bay="seventh", **TRIAL), "anna")
    assert (reply.member.slot, reply.member.state, reply.member.bay) == (6, "online", "seventh")
    assert "still as 4+2" in reply.message
    (folder,) = path.glob("raidd-*")
    assert Label.parse((folder / "label.json").read_bytes()).roster == governed.array.membership.roster
    assert governed.locked == [str(path)]
    assert governed.journal == [("anna", "add", (reply.member.uuid,), {"path": str(path), "spare": False})]
    for number in range(20):
        governed.array.put({f"2.{number}": b"x" * 5000})
    assert list((folder / "segments").rglob("*.shard")), "new images go to it"


def test_a_spare_holds_nothing_and_is_listed_apart(governed: Governed) -> None:
    path = governed.folder("it's new")
    reply = governed.administration.add(api.AddRequest(path=str(path), spare=True, **TRIAL), "anna")
    assert (reply.member.slot, reply.member.state) == (None, "spare")
    assert reply.message.endswith(f"""raidctl replace SLOT '{governed.home}/it'"'"'s new'""")
    assert [row.path for row in governed.status().spares] == [str(path)]
    governed.array.put({"2.1": b"x"})
    assert not list(path.rglob("*.shard"))


def test_a_member_that_shares_its_disk_marks_the_array_a_trial(governed: Governed) -> None:
    """The folder is on the system's disk."""
    assert not governed.status().array.trial
    reply = governed.administration.add(api.AddRequest(path=str(governed.folder("new")), **TRIAL), "anna")
    assert "protects nothing" in reply.warnings[0]
    assert governed.status().array.trial
    again = governed.administration.add(api.AddRequest(path=str(governed.folder("newer"))), "anna")
    assert again.member.state == "online", "later commands do not ask again"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "is not a folder; is the disk mounted?"),
        ("file", "is not a folder; is the disk mounted?"),
        ("full", "is not blank"),
        ("labelled", "is a member already"),
        ("blank", "is on the same disk as the system"),
    ],
)
def test_add_and_replace_refuse_what_init_refuses(governed: Governed, name: str, said: str) -> None:
    (governed.home / "file").touch()
    (governed.folder("full") / "x").touch()
    (governed.folder("labelled") / f"raidd-{uuid4()}").mkdir()
    governed.folder("blank")
    path, before = str(governed.home / name), governed.array.membership.roster
    governed.array.lose(1)
    with pytest.raises(RequestRefused, match=said):
        governed.administration.add(api.AddRequest(path=path, allow_filesystem=True), "anna")
    with pytest.raises(RequestRefused, match=said):
        governed.administration.replace(1, api.ReplaceRequest(path=path, allow_filesystem=True), "anna")
    assert governed.array.membership.roster == before
    assert governed.journal == []


@pytest.mark.parametrize("path", ["relative/path", "", "/with\0zero"])
def test_a_path_that_is_none_is_refused(governed: Governed, path: str) -> None:
    with pytest.raises(RequestRefused, match="is not the absolute path of a folder"):
        governed.administration.add(api.AddRequest(path=path, **TRIAL), "anna")


def test_a_mount_whose_name_is_no_text_is_refused(governed: Governed) -> None:
    """It could neither be shown nor asked for: status goes over the socket as text."""
    path = os.fsencode(governed.home) + b"/d\xffisk"
    os.mkdir(path)
    with pytest.raises(RequestRefused, match="is not valid text"):
        governed.administration.add(api.AddRequest.model_construct(path=os.fsdecode(path), **ADD), "anna")


def test_a_disk_that_may_not_be_written_to_says_how_to_give_it(
    governed: Governed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh file system belongs to root, raidd is another user. Root may write everywhere: access is denied here."""
    path = governed.folder("it's root's")
    monkeypatch.setattr("raidd.array.admission.os.access", lambda *_asked: False)
    with pytest.raises(RequestRefused, match="cannot be written to by user") as refused:
        governed.administration.add(api.AddRequest(path=str(path), **TRIAL), "anna")
    command = refused.value.message.rpartition(": ")[2]
    assert shlex.split(command) == ["sudo", "chown", pwd.getpwuid(os.geteuid()).pw_name, str(path)]


def test_a_disk_that_dies_while_it_is_taken_in_is_left_blank(
    governed: Governed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its label would name a roster that never came to be: with the next change, a fork."""
    path, before = governed.folder("new"), governed.array.membership.roster

    def dying(_disk: object) -> None:
        raise MemberFaulty("Input/output error")

    monkeypatch.setattr(governed.administration, "_lock_disk", dying)
    with pytest.raises(MemberFaulty):
        governed.administration.add(api.AddRequest(path=str(path), **TRIAL), "anna")
    assert host.is_blank(str(path))
    assert governed.array.membership.roster == before
    assert len(governed.array.membership.members()) == 6
    monkeypatch.undo()
    assert governed.administration.add(api.AddRequest(path=str(path), **TRIAL), "anna").member.slot == 6


def test_a_disk_that_hangs_while_it_is_taken_in_is_not_born_late(
    governed: Governed, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, done = threading.Event(), threading.Event()
    real = administration.create_member_folder

    def hanging(path: str, uuid: object, owner: object, files: object, still_wanted: object) -> None:
        hang.wait(60)
        try:
            real(path, uuid, owner, files, still_wanted)  # type: ignore[arg-type]
        finally:
            done.set()

    monkeypatch.setattr(administration, "create_member_folder", hanging)
    path = governed.folder("new")
    with pytest.raises(RaiddError, match="no answer within"):
        governed.administration.add(api.AddRequest(path=str(path), **TRIAL), "anna")
    hang.set()
    assert done.wait(60)
    assert host.is_blank(str(path))
    assert governed.administration.can_remove(0).answer == "yes", "the next request is not held up"


def test_a_hung_member_does_not_keep_its_replacement_out(governed: Governed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks its mount which disk it is on waits for ever; the disk is exactly the one to be replaced."""
    thaw = threading.Event()
    real = host.whole_disks

    def frozen(path: str) -> frozenset[str]:
        if path == "/m/1":
            thaw.wait(60)
        return real(path)

    monkeypatch.setattr("raidd.array.admission.whole_disks", frozen)
    monkeypatch.setattr("raidd.array.admission.LOOK_S", 0.3)
    governed.array.lose(1)
    try:
        request = api.ReplaceRequest(path=str(governed.folder("new")), **TRIAL)
        assert governed.administration.replace(1, request, "anna").started
    finally:
        thaw.set()


def test_a_state_dir_that_fails_ends_the_process(governed: Governed, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_remembered: object) -> None:
        raise StateDirFaulty("array.json: Input/output error")

    monkeypatch.setattr(governed.array.membership._state_file, "save", failing)
    with pytest.raises(StateDirFaulty):
        governed.administration.offline(1, "anna")
    assert [error.message for error in governed.given_up] == ["array.json: Input/output error"]


# -- replace ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "failed", "suspect", "offline"])
def test_replace_takes_a_slot_that_is_not_well_and_rebuilds_it(governed: Governed, how: str) -> None:
    array, old = governed.array, governed.array.uuid(2)
    if how == "missing":
        array.lose(2)
    elif how == "offline":
        governed.administration.offline(2, "anna")
    else:
        judge(governed, 2, RosterEvent.FAIL if how == "failed" else RosterEvent.SUSPECT)
    assert governed.row(2).state == how
    path = governed.folder("new")
    reply = governed.administration.replace(2, api.ReplaceRequest(path=str(path), **TRIAL), "anna")
    assert reply.started
    rows = [(row.state, row.path) for row in governed.status().members if row.slot == 2]
    was = {"missing": "failed", "failed": "failed", "suspect": "draining", "offline": "offline"}[how]
    assert rows == [(was, "/m/2"), ("rebuilding", str(path))], "two rows while rebuilding, the old one first"
    assert governed.journal[-1] == (
        "anna",
        "replace",
        (reply.new.uuid,),
        {"slot": 2, "old": str(old), "path": str(path)},
    )
    array.repair_all()
    assert [(row.state, row.path) for row in governed.status().members if row.slot == 2] == [("online", str(path))]
    assert governed.status().array.state == "healthy"
    for slot in (0, 1):
        array.lose(slot)
    all_read_back(governed)


def test_replace_by_a_spares_mount_uses_the_spare(governed: Governed) -> None:
    path = governed.folder("new")
    spare = governed.administration.add(api.AddRequest(path=str(path), spare=True, **TRIAL), "anna").member
    governed.array.lose(2)
    link = governed.home / "link"
    link.symlink_to(path)
    plan = governed.administration.replace(2, api.ReplaceRequest(path=str(link), dry_run=True), "anna")
    assert (plan.started, plan.new.uuid, plan.new.state) == (False, spare.uuid, "spare")
    reply = governed.administration.replace(2, api.ReplaceRequest(path=str(link)), "anna")
    assert (reply.started, reply.new.uuid, reply.new.state) == (True, spare.uuid, "rebuilding")
    governed.array.repair_all()
    assert governed.status().spares == []
    assert governed.status().array.state == "healthy"


def test_a_dry_run_says_what_would_happen_and_changes_nothing(governed: Governed) -> None:
    governed.array.lose(2)
    before, path = governed.array.membership.roster, governed.folder("new")
    plan = governed.administration.replace(2, api.ReplaceRequest(path=str(path), dry_run=True, **TRIAL), "anna")
    assert not plan.started
    assert (plan.old.path, plan.new.path) == ("/m/2", str(path))
    assert plan.rebuild_bytes == governed.array.catalog.load(governed.array.uuid(2))[1] > 0
    assert plan.unfit_bytes == 0
    assert governed.array.membership.roster == before
    assert host.is_blank(str(path))
    assert governed.journal == []


def test_a_plan_tells_what_will_not_fit(governed: Governed, monkeypatch: pytest.MonkeyPatch) -> None:
    governed.array.lose(2)
    real = administration.examine
    monkeypatch.setattr(
        administration, "examine", lambda *a, **k: [replace(real(*a, **k)[0], free_bytes=5000, size_bytes=100_000)]
    )
    request = api.ReplaceRequest(path=str(governed.folder("new")), dry_run=True, **TRIAL)
    plan = governed.administration.replace(2, request, "anna")
    assert plan.unfit_bytes == plan.rebuild_bytes - (5000 - 1000)  # 1 % is never filled


def test_bay_and_enclosure_go_over_to_the_new_disk(governed: Governed) -> None:
    path = governed.folder("first")
    request = api.AddRequest(path=str(path), bay="top", enclosure="shelf", **TRIAL)
    slot = governed.administration.add(request, "anna").member.slot
    assert slot is not None
    judge(governed, slot, RosterEvent.FAIL)
    new = api.ReplaceRequest(path=str(governed.folder("second")), **TRIAL)
    assert governed.administration.replace(slot, new, "anna").new.bay == "top"
    assert governed.array.membership.roster.slot_entry(slot).enclosure == "shelf"


def test_a_replacement_that_dies_can_be_replaced(governed: Governed) -> None:
    governed.array.lose(2)
    first, second = governed.folder("first"), governed.folder("second")
    reply = governed.administration.replace(2, api.ReplaceRequest(path=str(first), **TRIAL), "anna")
    dying = next(m for m in governed.array.membership.members() if str(m.uuid) == reply.new.uuid)
    dying.leave("pulled")
    assert governed.administration.replace(2, api.ReplaceRequest(path=str(second), **TRIAL), "anna").started
    governed.array.repair_all()
    assert (governed.row(2).state, governed.row(2).path) == ("online", str(second))
    all_read_back(governed)


def test_a_change_is_never_made_of_a_roster_that_another_has_changed(governed: Governed) -> None:
    """A rebuild ends while an operator's command is under way: both changes hold, in one line of rosters."""
    path, membership = governed.folder("new"), governed.array.membership
    inside, go = threading.Event(), threading.Event()
    real = administration.create_member_folder

    def slow(*given: object) -> None:
        inside.set()
        go.wait(60)
        real(*given)  # type: ignore[arg-type]

    def suspect() -> None:
        inside.wait(60)
        go.set()
        with membership.changing:
            member = membership.roster.slot_entry(0).member
            membership.set_roster(apply(membership.roster, member, RosterEvent.SUSPECT))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(administration, "create_member_folder", slow)
        other = threading.Thread(target=suspect)
        other.start()
        governed.administration.add(api.AddRequest(path=str(path), **TRIAL), "anna")
        other.join(60)
    assert membership.roster.slot_entry(0).state == MemberState.SUSPECT
    assert membership.roster.slot_entry(6).state == MemberState.ONLINE
