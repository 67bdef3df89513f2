"""From a status to an exit code, a verdict in words and the next thing to do. Pure; shared by status and check.

The convention of monitoring plugins: 0 healthy, 1 warning (degraded), 2 critical or failed, 3 unknown. An open
alert counts as well as the array's state (images that wait because the array is full leave it healthy), unless
somebody has silenced it; so do images that cannot be taken in.
"""

from __future__ import annotations

from raidd.api import Status
from raidd.cli.wording import count, in_words

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3

_OF_STATE = {"healthy": OK, "degraded": WARNING, "critical": CRITICAL, "failed": CRITICAL}
_OF_SEVERITY = {"info": OK, "warning": WARNING, "critical": CRITICAL, "emergency": CRITICAL}


def exit_code(status: Status) -> int:
    """The worst of the array's state, of the alerts that nobody has silenced, and of images that have to wait."""
    open_alerts = (_OF_SEVERITY[alert.severity] for alert in status.alerts if not alert.silenced)
    held_up = WARNING if status.inbox.waiting and status.inbox.reason else OK
    return max([_OF_STATE[status.array.state], held_up, *open_alerts])


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
    """What the daemon advises, else what its first open alert does; "" when nothing is to be done."""
    return status.next or next((alert.next for alert in status.alerts if alert.next and not alert.silenced), "")
