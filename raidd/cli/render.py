"""The array at a glance: a status in, Rich text out. Pure: the time zone is given, the present is the status' own.

Columns are laid out by hand, so that a line is never cut or folded: what goes into a pipe or a ticket is whole.
Colours are only marks on words that say the same without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo

from rich.cells import cell_len
from rich.text import Text

from raidd.api import Activity, AlertInfo, MemberInfo, Status
from raidd.cli import verdict, wording
from raidd.cli.wording import clean

STATE_STYLES = {
    "healthy": "bold green",
    "degraded": "bold yellow",
    "critical": "bold red",
    "failed": "bold red",
    "online": "green",
    "suspect": "yellow",
    "missing": "red",
    "rebuilding": "cyan",
    "draining": "cyan",
    "offline": "yellow",
    "warning": "yellow",
    "emergency": "bold red",
    "protected": "green",
    "stored": "bold yellow",
}
USUAL_FILESYSTEMS = frozenset(("", "ext4", "xfs", "btrfs", "zfs"))
_RIGHT = frozenset(("size", "used", "errors"))


def sheet(status: Status, zone: tzinfo | None) -> Text:
    """All of it: verdict, numbers, members, activities, alerts, what to do next."""
    lines = [_verdict_line(status), _numbers_line(status), *_member_lines(status, status.members, zone)]
    return Text("\n").join([*lines, *_footer(status, zone)])


def only_wrong(status: Status, zone: tzinfo | None) -> Text:
    """`status -x`: one short line when all is well, else what is wrong and nothing more."""
    if verdict.exit_code(status) == verdict.OK:
        return Text.assemble(clean(status.array.name), " is ", _mark("healthy"))
    wrong = [member for member in status.members if member.state != "online"]
    lines = [_verdict_line(status), *(_member_lines(status, wrong, zone, spares=False) if wrong else [])]
    return Text("\n").join([*lines, *_footer(status, zone)])


def columns(header: Sequence[str], rows: Iterable[Sequence[Text]], right: frozenset[str] = _RIGHT) -> list[Text]:
    """A header and rows as aligned lines, columns two apart; the last column may be longer than its header."""
    table = [[Text(name, style="dim") for name in header], *(list(row) for row in rows)]
    widths = [max(cell_len(row[i].plain) for row in table) for i in range(len(header))]
    return [_aligned(row, widths, header, right) for row in table]


def _aligned(row: Sequence[Text], widths: Sequence[int], header: Sequence[str], right: frozenset[str]) -> Text:
    line = Text()
    for cell, width, name in zip(row, widths, header, strict=True):
        gap = " " * (width - cell_len(cell.plain))
        line.append("  " if line.plain else " ").append_text(
            Text.assemble(gap, cell) if name in right else Text.assemble(cell, gap)
        )
    line.rstrip()
    return line


def _mark(word: str, shown: str = "") -> Text:
    return Text(shown or word, style=STATE_STYLES.get(word, ""))


# --- the two lines on top ---------------------------------------------------------------------------------------------


def _verdict_line(status: Status) -> Text:
    array = status.array
    state = _mark(array.state, array.state.upper())
    return Text.assemble(clean(array.name), "   ", clean(array.level), "   ", state, f": {verdict.headline(status)}")


def _numbers_line(status: Status) -> Text:
    images = status.images
    parts = [wording.count(images.count, "image"), wording.count(images.studies, "study", "studies")]
    parts.append(wording.size(images.bytes))
    return Text(", ".join(parts) + _room(status) + "          " + _inbox(status))


def _room(status: Status) -> str:
    capacity = status.capacity
    until = f" (to {wording.month(capacity.full_on)})" if capacity.full_on else ""
    if capacity.images_left is not None:
        return f"; room for about {wording.about(capacity.images_left)} more{until}"
    return f"; room for {wording.size(capacity.free_bytes)}{until}" if capacity.free_bytes is not None else ""


def _inbox(status: Status) -> str:
    inbox = status.inbox
    parts = [f"inbox {inbox.waiting:,} waiting" if inbox.waiting else "inbox empty"]
    if inbox.last_stored_at:
        parts.append(f"last stored {wording.ago(inbox.last_stored_at, _now(status))}")
    if inbox.rejected:
        parts.append(f"{inbox.rejected:,} refused")
    return ", ".join(parts)


# --- members ----------------------------------------------------------------------------------------------------------


def _member_lines(
    status: Status, members: Sequence[MemberInfo], zone: tzinfo | None, *, spares: bool = True
) -> list[Text]:
    header = ("slot", "state", "disk", "bay", "size", "used", "errors", "")
    rows = [*members, *(status.spares if spares else [])]
    return columns(header, [_member_row(member, status, zone) for member in rows])


def _member_row(member: MemberInfo, status: Status, zone: tzinfo | None) -> list[Text]:
    used = "–"
    if member.used_bytes is not None and member.size_bytes:
        used = wording.percent(member.used_bytes, member.size_bytes)
    return [
        Text("–" if member.slot is None else str(member.slot)),
        _mark(member.state),
        Text(_disk(member)),
        Text(clean(member.bay)),
        Text(wording.short_size(member.size_bytes)),
        Text(used),
        Text(f"{member.errors:,}", style="yellow" if member.errors else ""),
        Text(_remark(member, status, zone)),
    ]


def _disk(member: MemberInfo) -> str:
    """Path, and of model and serial what tells one disk from the next when standing before them."""
    serial = f"…{clean(member.serial)[-4:]}" if member.serial else ""
    return "   ".join(
        part for part in (clean(member.path), f"{clean(member.model)[:8].strip()} {serial}".strip()) if part
    )


def _remark(member: MemberInfo, status: Status, zone: tzinfo | None) -> str:
    remarks = []
    if member.state == "rebuilding":
        remarks += [progress(job) for job in status.activities if job.slot == member.slot and job.kind == "rebuild"]
    elif member.state not in ("online", "spare") or member.reason:
        when = f"since {wording.since(member.since, _now(status), zone)}" if member.since else ""
        remarks.append(": ".join(part for part in (when, clean(member.reason)) if part))
    if member.filesystem not in USUAL_FILESYSTEMS:
        remarks.append(f"on {clean(member.filesystem)}")
    return ", ".join(remark for remark in remarks if remark)


def progress(job: Activity) -> str:
    """ "61 %, 212 MiB/s, 18 min left"; no time is named that is only a guess."""
    parts = [wording.percent(job.progress)]
    if job.paused:
        return f"{parts[0]}, paused"
    if job.rate_mib_s:
        parts.append(f"{job.rate_mib_s:.{0 if job.rate_mib_s >= 10 else 1}f} MiB/s")
    if job.eta_s is not None:
        parts.append(f"{wording.duration(job.eta_s)} left")
    return ", ".join(parts)


# --- below the members ------------------------------------------------------------------------------------------------


def _footer(status: Status, zone: tzinfo | None) -> list[Text]:
    lines = [
        _labelled(clean(job.kind), Text(("" if job.slot is None else f"slot {job.slot}  ") + progress(job)))
        for job in status.activities
        if job.kind != "rebuild" or not _has_row(job, status)
    ]
    lines += [_alert_line(alert, status, zone) for alert in status.alerts]
    if status.inbox.reason:
        lines.append(_labelled("waiting", Text(clean(status.inbox.reason), style="yellow")))
    if status.array.trial:
        lines.append(_labelled("trial", Text("the members may share one disk: this array protects nothing")))
    if step := verdict.next_step(status):
        lines.append(_labelled("next", Text(clean(step))))
    return lines


def _has_row(job: Activity, status: Status) -> bool:
    return any(member.slot == job.slot and member.state == "rebuilding" for member in status.members)


def _alert_line(alert: AlertInfo, status: Status, zone: tzinfo | None) -> Text:
    slot = "" if alert.slot is None else f" slot {alert.slot}"
    quiet = ""
    if alert.silenced:
        until = alert.silenced_until
        quiet = ", silenced" + (f" until {wording.since(until, _now(status), zone)}" if until else "")
    said = f", {clean(alert.message)}" if alert.message else ""
    since = wording.since(alert.since, _now(status), zone)
    head = Text.assemble("alert ", _mark(alert.severity))
    return _labelled(head, Text(f"{clean(alert.code)}{slot} since {since}{said}{quiet}"))


def _labelled(label: str | Text, text: Text) -> Text:
    head = Text.assemble(" ", label)
    head.append(" " * max(1, 16 - cell_len(head.plain)))
    return head.append_text(text)


def _now(status: Status) -> datetime:
    return wording.moment_of(status.at) or datetime.fromtimestamp(0, UTC)
