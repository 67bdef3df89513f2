"""Every error raidd raises on purpose, drawn as one tree, ordered by blast radius.

    RaiddError
    ├── ImageError          one image cannot be taken in or given back
    │   ├── ImageRefused        the inbox will not take this file (carries a refusal code)
    │   ├── ImageNotFound       no such SOP Instance UID or version
    │   └── ImageUnreadable     fewer than k good shards can be read right now
    ├── ShardError          one shard is of no use
    │   ├── ShardDamaged        the bytes contradict their checksums or limits
    │   └── ShardUnsupported    a newer format or another codec: unreadable, not damaged
    ├── MemberError         one member did not do what it was asked
    │   ├── MemberAway          not there, or something else is mounted in its place
    │   ├── MemberFaulty        the disk answered with an I/O error
    │   ├── MemberReadOnly      the file system refuses to write
    │   ├── MemberFull          no room: goes on serving, takes no new shards
    │   ├── MemberTimeout       missed its deadline: a hung disk
    │   └── MemberConflict      a file that must not exist is there already
    ├── ArrayError          the array as a whole cannot go on as asked
    │   ├── ArrayFull           too few members have room
    │   ├── ArrayUnwritable     too few members are up to protect anything
    │   ├── ArrayLocked         another process owns the array
    │   ├── LabelInvalid        a label cannot be read or trusted
    │   ├── LabelForked         two rosters that do not know each other
    │   ├── CatalogUnusable     corrupt, newer than this program, or behind the members
    │   └── StateDirFaulty      the system disk failed under state_dir
    └── OperatorError       the request was wrong, the array is as it was
        ├── ConfigInvalid       settings: every fault at once
        ├── RequestRefused      doing this would endanger images
        ├── RequestUnknown      no such slot, member, study …
        ├── TimedOut            the awaited state was not reached in time
        ├── PermissionRefused   the caller may look but not change
        └── DaemonUnreachable   no daemon answers on the socket

Each class carries the exit code of the command it ends (`raidctl --help`) and a default next step; an
instance may give a better one. `errno`-style causes stay reachable through ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Sequence


class RaiddError(Exception):
    """Base of all. ``next_step`` is a sentence for the operator, ``exit_code`` ends the command."""

    exit_code = 1
    next_step = "See the daemon's log: journalctl -u raidd"

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if next_step is not None:
            self.next_step = next_step


class ImageError(RaiddError):
    """One image is concerned."""


class ImageRefused(ImageError):
    """The inbox will not take this file; ``code`` is one of the inbox's refusal codes."""

    next_step = "Read NAME.reason.txt beside the file in the rejected folder; mend the file and drop it again."

    def __init__(self, code: str, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.code = code


class ImageNotFound(ImageError):
    """No image has this SOP Instance UID (or version)."""

    next_step = "Look it up with: raidctl list WORDS"


class ImageUnreadable(ImageError):
    """Fewer than k good shards of one of its segments can be read."""

    next_step = "Bring the missing disks back (raidctl status names them), then try again."


class ShardError(RaiddError):
    """One shard file is of no use to a reader."""


class ShardDamaged(ShardError):
    """Its bytes contradict its checksums, or break a limit of the format."""

    next_step = "Nothing to do by hand: raidd re-creates the shard from the others."


class ShardUnsupported(ShardError):
    """Written by a newer raidd, or with another codec. Never touched."""

    next_step = "Install the newer raidd that wrote this shard; nothing was changed."


class MemberError(RaiddError):
    """One member failed an operation; the others go on."""

    def __init__(self, message: str, *, member: str = "", next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.member = member


class MemberAway(MemberError):
    """The member's folder is not at its path, or on another device than its own."""

    next_step = "Check cable, power and mount of this disk; raidctl status names its path."


class MemberFaulty(MemberError):
    """The disk answered with an I/O error."""

    next_step = "Replace this disk soon: raidctl replace SLOT MOUNT"


class MemberReadOnly(MemberError):
    """The file system has gone read-only, as file systems do after an error."""

    next_step = "See dmesg for the cause, check the disk, then remount it or: raidctl replace SLOT MOUNT"


class MemberFull(MemberError):
    """No room for another shard. The member goes on serving what it holds."""

    next_step = "Add a disk: raidctl add MOUNT"


class MemberTimeout(MemberError):
    """An operation missed its deadline."""

    next_step = "The disk hangs: check cable and power, or: raidctl replace SLOT MOUNT"


class MemberConflict(MemberError):
    """A name that must be new is taken."""

    next_step = "Nothing to do by hand: raidd looks at what is there before it writes again."


class ArrayError(RaiddError):
    """The array as a whole cannot do what was asked."""


class ArrayFull(ArrayError):
    """Fewer than m+1 members have room."""

    next_step = "Add a disk (raidctl add MOUNT) or replace the smallest by a larger one; images wait in the inbox."


class ArrayUnwritable(ArrayError):
    """Too few members are up to store anything protected."""

    next_step = "Bring members back (raidctl status names what is missing); images wait in the inbox."


class ArrayLocked(ArrayError):
    """Another process owns this array."""

    next_step = "Stop it first: systemctl stop raidd (or find it by the pid in the lock file)."


class LabelInvalid(ArrayError):
    """A label.json is damaged, of another array, or asks for more than this program knows."""

    next_step = "Nothing was changed on that disk. raidctl assemble shows every label it finds."


class LabelForked(ArrayError):
    """Two groups of members carry rosters that do not know each other."""

    next_step = "Detach the group that is out of date, then: raidctl assemble MOUNT… with the other."


class CatalogUnusable(ArrayError):
    """The catalog is corrupt, newer than this program, or behind the members. It is only a cache."""

    next_step = "Stop raidd, then make it again from the members: raidctl catalog reindex"


class StateDirFaulty(ArrayError):
    """state_dir cannot be written safely; the process ends rather than go on guessing."""

    next_step = "Check the system's disk, then start raidd again; nothing acknowledged depends on state_dir."


FATAL = (StateDirFaulty, CatalogUnusable)
"""Never an image's or a disk's fault, and nothing to go on from: who catches RaiddError around more than the work of a
disk lets these through."""


class OperatorError(RaiddError):
    """The request cannot be done as given; nothing was changed."""


class ConfigInvalid(OperatorError):
    """Settings are wrong. ``faults`` lists all of them, one line each."""

    exit_code = 64
    next_step = "Correct the settings named above, then: raidd --check-config"

    def __init__(self, faults: Sequence[str], *, next_step: str | None = None) -> None:
        super().__init__("\n".join(faults), next_step=next_step)
        self.faults = tuple(faults)


class RequestRefused(OperatorError):
    """Refused because it would endanger images, or is not possible in this state."""

    next_step = "raidctl status shows the array as it is now."


class RequestUnknown(OperatorError):
    """It names a slot, member or study that is not there."""

    next_step = "raidctl status shows slots and members; raidctl list shows images."


class TimedOut(OperatorError):
    """The awaited state was not reached in time."""

    exit_code = 4
    next_step = "raidctl status shows what is still going on."


class PermissionRefused(OperatorError):
    """The caller may look, but not change."""

    next_step = "Use sudo, or ask root to add you: usermod -aG raidd-admin USER"


class DaemonUnreachable(OperatorError):
    """Nobody answers on the daemon's socket."""

    next_step = "Start it: systemctl start raidd (or raidd --config FILE); then raidctl status"
