"""The messages on raidd's socket: HTTP/1.1 over a Unix socket, JSON, version 1.

The one place that both ends import: `daemon/control.py` serves these paths and models, `cli/client.py` asks
for them, the OpenAPI document is made of them. Shapes only: nothing here knows how an answer comes about.

Promises
- Keys and words may be added, never renamed or taken away; whoever reads ignores what it does not know (replies
  carry unknown keys through, so that an older raidctl still prints them), requests with an unknown key are refused.
- Every failure is an `ErrorReply` with the HTTP status of `http_status`; `to_error` gives the same class of
  `raidd.errors` back on the caller's side, with message, next step and exit code.
- Long requests (verify, wait, catalog check) answer 200 with JSON Lines (`application/x-ndjson`): progress lines
  with `"done": false`, then exactly one last line: the result with `"done": true`, or an `ErrorReply`. A stream
  that ends without that line was cut off.
- An image's content has its digest in a header. If what was read turns out to differ, the connection is cut
  before the last byte: a complete answer is a correct one.

Units are in the names; times are RFC 3339, UTC, milliseconds, `Z`; progress is 0…1.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from raidd.api_errors import ErrorReply as ErrorReply
from raidd.api_errors import error_reply as error_reply
from raidd.api_errors import http_status as http_status
from raidd.api_errors import to_error as to_error

API_PREFIX: Final = "/v1"

# Paths. GET unless said otherwise; only POST needs the role `admin` (VERIFY and WAIT excepted: looking is enough).
STATUS: Final = "/v1/status"  # Status
IMAGES: Final = "/v1/images"  # ?words=&words=&patient=… (ImageSearch) -> ImageList
IMAGE: Final = "/v1/images/{uid}"  # ?version= -> ImageInfo
IMAGE_CONTENT: Final = "/v1/images/{uid}/content"  # ?version= -> bytes; HEADER_SHA256, HEADER_VERSION, Content-Length
STUDY_IMAGES: Final = "/v1/studies/{uid}/images"  # -> ImageList: every version of every image of the study
VERIFY: Final = "/v1/verify"  # POST VerifyRequest -> lines: VerifyProgress… VerifyResult
WAIT: Final = "/v1/wait"  # POST WaitRequest -> lines: WaitProgress… WaitResult (or TimedOut)
MEMBERS: Final = "/v1/members"  # POST AddRequest -> MemberReply
SLOT_REPLACE: Final = "/v1/slots/{slot}/replace"  # POST ReplaceRequest -> ReplaceReply
SLOT_OFFLINE: Final = "/v1/slots/{slot}/offline"  # POST -> MemberReply
SLOT_ONLINE: Final = "/v1/slots/{slot}/online"  # POST -> MemberReply
SLOT_REMOVE: Final = "/v1/slots/{slot}/remove"  # POST -> MemberReply
SLOT_CAN_REMOVE: Final = "/v1/slots/{slot}/can-remove"  # -> CanRemove
REBUILD: Final = "/v1/rebuild"  # -> RebuildStatus; POST RebuildRequest -> RebuildStatus
CATALOG_CHECK: Final = "/v1/catalog/check"  # -> lines: CheckProgress… CheckResult
OPENAPI: Final = "/v1/openapi.json"

HEADER_SHA256: Final = "X-Raidd-SHA256"  # 64 hex digits, of the whole image
HEADER_VERSION: Final = "X-Raidd-Version"
LINES_TYPE: Final = "application/x-ndjson"
SOCKET_NAME: Final = "raidd.sock"  # in Config.raidd.run_dir

MemberWord = Literal["online", "suspect", "missing", "failed", "rebuilding", "spare", "draining", "offline", "retired"]
ArrayWord = Literal["healthy", "degraded", "critical", "failed"]
ImageWord = Literal["stored", "protected"]
SeverityWord = Literal["info", "warning", "critical", "emergency"]
PriorityWord = Literal["low", "normal", "high", "pause"]


class Reply(BaseModel):
    """An answer: unknown keys are carried along."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Request(BaseModel):
    """A question: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- status -----------------------------------------------------------------------------------------------------------


class ArrayInfo(Reply):
    """``failures_tolerated``: further members, whichever they are, that can die with nothing lost."""

    name: str
    id: str
    level: str
    k: int
    m: int
    state: ArrayWord
    failures_tolerated: int
    trial: bool = False  # made with --allow-same-device: protects nothing
    reason: str = ""  # why not healthy, a short clause


class MemberInfo(Reply):
    """One row. A slot that is rebuilding is two rows, the old member first. ``slot`` is null for spares."""

    slot: int | None = None
    state: MemberWord
    path: str
    uuid: str
    bay: str = ""
    size_bytes: int | None = None  # null when it is away and was never seen
    used_bytes: int | None = None  # null when it is away
    errors: int = 0  # failed operations and bad blocks since it was last put online
    since: str | None = None  # of the present state
    reason: str = ""
    model: str = ""
    serial: str = ""
    filesystem: str = ""


class ImagesInfo(Reply):
    """``bytes`` are the images' own, ``raw_bytes`` what all shards take."""

    count: int = 0
    studies: int = 0
    bytes: int = 0
    raw_bytes: int = 0
    unprotected: int = 0
    unreadable: int = 0


class CapacityInfo(Reply):
    """Room left for images (their own bytes, at the target geometry), and the forecast where there is one."""

    free_bytes: int | None = None
    images_left: int | None = None  # at the mean size so far
    full_on: str | None = None  # date, at this year's pace


class InboxInfo(Reply):
    """``waiting``: dropped, neither acknowledged nor refused. ``reason``: why they have to wait; "" = they do not."""

    waiting: int = 0
    rejected: int = 0
    last_stored_at: str | None = None
    reason: str = ""


class Activity(Reply):
    """A long job. ``kind``: rebuild, resync, rehome, repair, reindex, scrub, reshape, drain, compaction."""

    kind: str
    slot: int | None = None
    progress: float = Field(default=0.0, ge=0.0, le=1.0)
    bytes_done: int = 0
    bytes_total: int = 0
    rate_mib_s: float = 0.0
    eta_s: float | None = None  # null until it can be told honestly
    paused: bool = False


class ScrubInfo(Reply):
    """``state``: idle, running, paused. ``oldest_verified_at``: nothing was last looked at longer ago."""

    state: str = "idle"
    oldest_verified_at: str | None = None
    progress: float | None = None
    found: int = 0


class AlertInfo(Reply):
    """One open alert; ``next`` is a sentence, or a command that works when pasted."""

    code: str
    severity: SeverityWord
    slot: int | None = None
    since: str
    message: str
    next: str = ""
    silenced: bool = False
    silenced_until: str | None = None


class Status(Reply):
    """`raidctl status --json`: stable. ``at`` is the daemon's clock when it answered."""

    array: ArrayInfo
    members: list[MemberInfo] = []
    spares: list[MemberInfo] = []
    images: ImagesInfo = ImagesInfo()
    inbox: InboxInfo = InboxInfo()
    activities: list[Activity] = []
    scrub: ScrubInfo = ScrubInfo()
    alerts: list[AlertInfo] = []
    codec: str
    capacity: CapacityInfo = CapacityInfo()
    next: str = ""  # what the operator should do now; "" = nothing
    at: str


# --- images -----------------------------------------------------------------------------------------------------------


class ImageSearch(Request):
    """The query of IMAGES, repeated keys for ``words``. Dates are YYYYMMDD, inclusive; words match any name field."""

    words: list[str] = []
    patient: str | None = None
    owner: str | None = None
    species: str | None = None
    modality: str | None = None
    date_from: str | None = Field(default=None, pattern=r"^\d{8}$")
    date_to: str | None = Field(default=None, pattern=r"^\d{8}$")
    study: str | None = None
    limit: int = Field(default=100, ge=1, le=100_000)


class ImageInfo(Reply):
    """One version of one image: `raidctl list --json`. The other keys of its identity come along, flat."""

    sop_instance_uid: str
    version: int
    sha256: str
    size: int
    state: ImageWord
    received_at: str
    source: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    patient_name: str = ""
    patient_id: str = ""
    responsible_person: str = ""
    species: str = ""
    breed: str = ""
    modality: str = ""
    study_date: str = ""
    study_description: str = ""


class ImageList(Reply):
    """``more``: the limit cut the list."""

    images: list[ImageInfo] = []
    more: bool = False


# --- long requests ----------------------------------------------------------------------------------------------------


class VerifyRequest(Request):
    """Every version of these images, or all there is. Exactly one of the two."""

    uids: list[str] = []
    all: bool = False


class VerifyProgress(Reply):
    """Counts are of image versions."""

    done: Literal[False] = False
    images_done: int = 0
    images_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0


class VerifyFailure(Reply):
    """``error``: the class in raidd.errors."""

    sop_instance_uid: str
    version: int
    error: str
    message: str


class VerifyResult(Reply):
    """Digests that were equal, and the images whose were not or that could not be read."""

    done: Literal[True] = True
    verified: int
    failed: list[VerifyFailure] = []


class WaitRequest(Request):
    """Neither flag means both. ``timeout_s`` null: for ever."""

    idle: bool = False
    healthy: bool = False
    timeout_s: float | None = Field(default=None, ge=0)


class WaitProgress(Reply):
    """What is still awaited."""

    done: Literal[False] = False
    waiting: int = 0  # images in inbox and spool
    repairs: int = 0  # segments that miss shards
    message: str = ""


class WaitResult(Reply):
    """It is so."""

    done: Literal[True] = True


class CheckProgress(Reply):
    """How far the catalog has been compared."""

    done: Literal[False] = False
    progress: float = Field(default=0.0, ge=0.0, le=1.0)
    message: str = ""


class CheckResult(Reply):
    """``findings``: a sentence each; none = the catalog agrees with itself and with the members that are there.
    ``not_looked_at``: a sentence for each member of which nothing can be said."""

    done: Literal[True] = True
    segments: int = 0
    images: int = 0
    findings: list[str] = []
    not_looked_at: list[str] = []


# --- members ----------------------------------------------------------------------------------------------------------


class AddRequest(Request):
    """A blank mounted disk becomes a member, or a spare."""

    path: str
    spare: bool = False
    bay: str = ""
    enclosure: str = ""
    allow_same_device: bool = False
    allow_filesystem: bool = False


class MemberReply(Reply):
    """The member as it is after the change, and what the operator should know."""

    member: MemberInfo
    message: str = ""
    warnings: list[str] = []


class ReplaceRequest(Request):
    """``dry_run``: check everything, say what would happen, change nothing."""

    path: str
    bay: str = ""
    enclosure: str = ""
    allow_same_device: bool = False
    allow_filesystem: bool = False
    dry_run: bool = False


class ReplaceReply(Reply):
    """The plan; with ``started`` it is under way."""

    slot: int
    started: bool
    old: MemberInfo
    new: MemberInfo
    rebuild_bytes: int = 0  # to be re-created on the new member
    unfit_bytes: int = 0  # of those, what will not fit on it
    warnings: list[str] = []


class CanRemove(Reply):
    """May this slot's disk be taken out now with nothing lost?"""

    slot: int
    answer: Literal["yes", "no", "unknown"]
    reason: str = ""


class RebuildRequest(Request):
    """``action`` and ``priority`` are independent; absent = as it is."""

    action: Literal["pause", "resume"] | None = None
    priority: PriorityWord | None = None


class RebuildStatus(Reply):
    """``segments_waiting``: that still miss shards; ``skipped``: segments that cannot be mended, with the reason."""

    priority: PriorityWord
    paused: bool = False
    segments_waiting: int = 0
    activities: list[Activity] = []
    skipped: list[str] = []
