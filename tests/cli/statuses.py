"""One array in five conditions, for golden renders and exit codes."""

from __future__ import annotations

from raidd.api import (
    Activity,
    AlertInfo,
    ArrayInfo,
    CapacityInfo,
    ImagesInfo,
    InboxInfo,
    MemberInfo,
    Status,
)

TIB = 1 << 40
NOW = "2026-11-24T14:30:00.000Z"
AT_TWO = "2026-11-24T14:02:00.000Z"


def member(slot: int | None, name: str, bay: str, **more: object) -> MemberInfo:
    return MemberInfo.model_validate(
        {
            "slot": slot,
            "state": "online",
            "path": f"/srv/raidd/disks/{name}",
            "uuid": f"00000000-0000-7000-8000-00000000{name}",
            "bay": bay,
            "size_bytes": 8_001_563_222_016,
            "used_bytes": 3_300_000_000_000,
            "model": "ST8000VN004-2M2101",
            "serial": f"ZA1B{name.upper()}",
            "filesystem": "xfs",
            **more,
        }
    )


def array(state: str, tolerated: int) -> ArrayInfo:
    return ArrayInfo.model_validate(
        {
            "name": "clinic-1",
            "id": "01935c5e-0000-7000-8000-000000000001",
            "level": "raid6",
            "k": 2,
            "m": 2,
            "state": state,
            "failures_tolerated": tolerated,
        }
    )


def status(**more: object) -> Status:
    told = {
        "array": array("healthy", 2),
        "members": [
            member(0, "a1b2", "top"),
            member(1, "b2c3", ""),
            member(2, "c3d4", "second"),
            member(3, "d4e5", ""),
        ],
        "images": ImagesInfo(count=148_203, studies=3_912, bytes=2_089_072_092_774, raw_bytes=4_178_144_185_548),
        "inbox": InboxInfo(last_stored_at="2026-11-24T14:29:48.000Z"),
        "capacity": CapacityInfo(free_bytes=8 * TIB, images_left=61_234, full_on="2027-03-14"),
        "codec": "zfec",
        "at": NOW,
        **more,
    }
    return Status.model_validate(told)


def healthy() -> Status:
    return status(spares=[member(None, "e5f6", "bottom", state="spare", used_bytes=0)])


def _one_failed(*more: MemberInfo) -> list[MemberInfo]:
    failed = {"state": "failed", "used_bytes": None, "errors": 17, "since": AT_TWO, "reason": "fsync returned EIO"}
    return [member(0, "a1b2", "top"), member(1, "b2c3", ""), member(2, "c3d4", "second", **failed), *more]


def degraded() -> Status:
    alert = AlertInfo(
        code="member-failed",
        severity="warning",
        slot=2,
        since=AT_TWO,
        message="fsync returned EIO",
        next="take out the disk in the second bay (serial …C3D4), put a new one in: sudo raidctl replace 2 MOUNT",
    )
    return status(array=array("degraded", 1), members=_one_failed(member(3, "d4e5", "")), alerts=[alert])


def rebuilding() -> Status:
    new = member(2, "77aa", "fourth", state="rebuilding", used_bytes=2_000_000_000_000)
    job = Activity(
        kind="rebuild",
        slot=2,
        progress=0.617,
        bytes_done=617,
        bytes_total=1000,
        rate_mib_s=212.4,
        eta_s=1080.0,
    )
    return status(
        array=array("degraded", 1),
        members=_one_failed(new, member(3, "d4e5", "")),
        activities=[job],
        next="nothing now: the rebuild ends by itself",
    )


def critical() -> Status:
    missing = {"state": "missing", "used_bytes": None, "since": "2026-11-22T09:05:00.000Z", "reason": "not mounted"}
    members = _one_failed(member(3, "d4e5", "", **missing))
    images = ImagesInfo(count=148_203, studies=3_912, bytes=2_089_072_092_774, unprotected=12)
    inbox = InboxInfo(
        waiting=40, rejected=3, last_stored_at=AT_TWO, reason="too few members are up to protect anything"
    )
    return status(
        array=array("critical", 0),
        members=members,
        images=images,
        inbox=inbox,
        next="check cable, power and mount of /srv/raidd/disks/d4e5",
    )


def failed() -> Status:
    missing = {"state": "missing", "used_bytes": None, "since": AT_TWO, "reason": "not mounted"}
    members = [
        member(0, "a1b2", "top"),
        member(1, "b2c3", "", **missing),
        member(2, "c3d4", "second", **missing),
        member(3, "d4e5", "", **missing),
    ]
    images = ImagesInfo(count=148_203, studies=3_912, bytes=2_089_072_092_774, unprotected=148_203, unreadable=148_203)
    return status(
        array=array("failed", 0), members=members, images=images, capacity=CapacityInfo(), next="bring the disks back"
    )


CONDITIONS = {
    "healthy": healthy,
    "degraded": degraded,
    "rebuilding": rebuilding,
    "critical": critical,
    "failed": failed,
}
EXIT_CODES = {"healthy": 0, "degraded": 1, "rebuilding": 1, "critical": 2, "failed": 2}
