"""From a status to an exit code, a verdict in words and the next thing to do. Pure; shared by status and check.

The convention of monitoring plugins: 0 healthy, 1 warning (degraded), 2 critical or failed, 3 unknown. An open
alert counts as well as the array's state (images that wait because the array is full leave it healthy), unless
somebody has silenced it.
"""

from __future__ import annotations

from raidd.api import MemberInfo, Status
from raidd.cli.wording import count, in_words

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3

_OF_STATE = {"healthy": OK, "degraded": WARNING, "critical": CRITICAL, "failed": CRITICAL}
_OF_SEVERITY = {"info": OK, "warning": WARNING, "critical": CRITICAL, "emergency": CRITICAL}


def exit_code(status: Status) -> int:
    """The worst of the array's state and of the alerts that nobody has silenced."""
    open_alerts = (_OF_SEVERITY[alert.severity] for alert in status.alerts if not alert.silenced)
    return max([_OF_STATE[status.array.state], *open_alerts])


def headline(status: Status) -> str:
    """What the state means for the images, in one clause."""
    images, spare = status.images, status.array.failures_tolerated
    if status.array.state == "failed":
        lost = (
            f"{count(images.unreadable, 'image')} cannot be read now" if images.unreadable else "images cannot be read"
        )
        return f"{lost}; bring the missing disks back"
    if status.array.state == "critical":
        if images.unprotected:
            verb = "is" if images.unprotected == 1 else "are"
            return f"{count(images.unprotected, 'image')} {verb} stored but not protected; nothing is lost"
        return "no further disk may fail; nothing is lost"
    disks = "disk" if spare < 2 else "disks"
    if status.array.state == "healthy":
        return f"{'any ' if spare else ''}{in_words(spare)} {disks} may fail, nothing is lost"
    return f"{in_words(spare)} {'more' if spare else 'further'} {disks} may fail, nothing is lost"


def next_step(status: Status) -> str:
    """What the daemon advises; else what follows from the state itself; "" when nothing is to be done."""
    if status.next:
        return status.next
    if advice := next((alert.next for alert in status.alerts if alert.next and not alert.silenced), ""):
        return advice
    # What may come back by itself or by hand comes first: it mends more, and sooner, than a new disk.
    urgent_first = sorted(status.members, key=lambda member: member.state != "missing")
    return next((step for member in urgent_first if (step := _member_step(member, status))), "")


def _member_step(member: MemberInfo, status: Status) -> str:
    if any(other.slot == member.slot and other.state == "rebuilding" for other in status.members):
        return "nothing: it rebuilds by itself; to wait for it: raidctl wait --healthy"
    where = f" in {member.bay}" if member.bay else ""
    if member.state == "missing":
        return (
            f"check cable, power and mount of the disk{where} at {member.path}; "
            f"if it is dead: sudo raidctl replace {member.slot} MOUNT"
        )
    if member.state in ("failed", "suspect"):
        return f"replace the disk{where} at {member.path}: sudo raidctl replace {member.slot} MOUNT"
    if member.state == "offline":
        return f"when the work on it is done: sudo raidctl online {member.slot}"
    return ""
