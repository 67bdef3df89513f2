"""Everything else that is listed: images, plans, jobs, findings, the monitoring line. Pure, as `render.py` is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from raidd.api import (
    CheckResult,
    ImageInfo,
    ImageList,
    MemberReply,
    RebuildStatus,
    ReplaceReply,
    Status,
    VerifyResult,
)
from raidd.cli import verdict, wording
from raidd.cli.render import STATE_STYLES, columns, progress
from raidd.cli.wording import clean

_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def images(found: ImageList) -> Text:
    """A line an image version, the UID whole (it is what `get` wants), newest first as the daemon sends them."""
    header = ("date", "patient", "owner", "species", "kind", "description", "v", "size", "state", "uid")
    lines = columns(header, [_image_row(image) for image in found.images], frozenset(("v", "size")))
    if found.more:
        lines.append(Text(" … and more: narrow the search, or raise --limit", style="dim"))
    return Text("\n").join(lines)


def _image_row(image: ImageInfo) -> list[Text]:
    date = image.study_date
    return [
        Text(f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdigit() else clean(date)),
        Text(clean(image.patient_name) or clean(image.patient_id)),
        Text(clean(image.responsible_person)),
        Text(clean(image.species)),
        Text(clean(image.modality)),
        Text(clean(image.study_description)),
        Text(str(image.version)),
        Text(wording.short_size(image.size)),
        Text(image.state, style=STATE_STYLES.get(image.state, "")),
        Text(clean(image.sop_instance_uid)),
    ]


def verified(result: VerifyResult) -> Text:
    lines = [
        f"{clean(failure.sop_instance_uid)} version {failure.version}: {clean(failure.message)}"
        for failure in result.failed
    ]
    return Text(
        "\n".join([*lines, f"{wording.count(result.verified, 'image')} verified, {len(result.failed):,} failed"])
    )


def checked(result: CheckResult) -> Text:
    compared = f"{wording.count(result.segments, 'segment')} and {wording.count(result.images, 'image')} compared"
    verdict_ = f", {wording.count(len(result.findings), 'finding')}" if result.findings else ", all agree"
    return Text("\n".join([*map(clean, result.findings), *map(clean, result.not_looked_at), compared + verdict_]))


def plan(reply: ReplaceReply) -> Text:
    """What `replace` will do, before it is done."""
    old, new = reply.old, reply.new
    lines = [
        f"slot {reply.slot}: {clean(old.path)} ({old.state}, {wording.short_size(old.size_bytes)})"
        f" is replaced by {clean(new.path)} ({wording.short_size(new.size_bytes)})",
        f"{wording.size(reply.rebuild_bytes)} will be re-created on it; images can be stored and read meanwhile",
    ]
    if reply.unfit_bytes:
        lines.append(f"{wording.size(reply.unfit_bytes)} will NOT fit: the array stays degraded until there is room")
    return Text("\n".join([*lines, *_warnings(reply.warnings)]))


def member(reply: MemberReply) -> Text:
    where = "spare" if reply.member.slot is None else f"slot {reply.member.slot}"
    said = f": {clean(reply.message)}" if reply.message else ""
    first = f"{where}, {clean(reply.member.path)}, is {reply.member.state}{said}"
    return Text("\n".join([first, *_warnings(reply.warnings)]))


def _warnings(warnings: Sequence[str]) -> list[str]:
    return [f"warning: {clean(warning)}" for warning in warnings]


def rebuild(status: RebuildStatus) -> Text:
    """The long jobs that re-create shards, what waits for them, what they had to skip."""
    lines = [
        f"{clean(job.kind)}{'' if job.slot is None else f' slot {job.slot}'}: {progress(job)}"
        for job in status.activities
    ]
    if not lines:
        lines = ["nothing is being rebuilt"]
    waiting = wording.count(status.segments_waiting, "segment misses", "segments miss")
    paused = ", paused" if status.paused else ""
    lines.append(f"{waiting} shards; priority {status.priority}{paused}")
    return Text("\n".join([*lines, *(f"skipped: {clean(reason)}" for reason in status.skipped)]))


def monitoring_line(status: Status) -> str:
    """One line as monitoring plugins speak: the verdict, a bar, performance data (label=value;warn;crit;min;max)."""
    array, found = status.array, status.images
    code = verdict.exit_code(status)
    text = f"RAIDD {_WORDS[code]} - {clean(array.name)} {array.state}: {verdict.headline(status)}"
    alerts = [alert for alert in status.alerts if not alert.silenced and alert.severity != "info"]
    causes = [array.reason, status.inbox.reason, *(alert.code for alert in alerts)]
    text += "".join(f"; {clean(cause)}" for cause in causes if cause)
    online = sum(member.state == "online" for member in status.members)
    data = {
        "failures_tolerated": f"{array.failures_tolerated};;;0;{array.m}",
        "members_online": f"{online};;;0",
        "images": f"{found.count};;;0",
        "bytes": f"{found.bytes}B;;;0",
        "unprotected": f"{found.unprotected};;0;0",
        "waiting": f"{status.inbox.waiting};;;0",
        "rejected": f"{status.inbox.rejected};;;0",
        "alerts": f"{len(alerts)};;;0",
    }
    # The bar ends the text: it must not occur within it.
    return text.replace("|", "/") + " | " + " ".join(f"{label}={value}" for label, value in data.items())


def unknown_line(message: str) -> str:
    """The monitoring line when nobody can tell."""
    return f"RAIDD UNKNOWN - {clean(message.splitlines()[0] if message else 'no answer').replace('|', '/')}"
