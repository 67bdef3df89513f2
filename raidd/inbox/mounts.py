"""Which file systems tell us of changes: inotify sees only what happens through this host's kernel.

On a network mount, what another client writes is never reported; it has to be polled.
"""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "coda", "glusterfs", "lustre", "ncpfs"}
    | {"vboxsf", "virtiofs", "prl_fs", "ocfs2", "gfs2", "beegfs", "orangefs", "davfs", "fuse", "fuseblk"}
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def network_mount(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """True when changes under ``path`` may happen unseen by inotify (FUSE counts: anything may be behind it)."""
    try:
        lines = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    kind = filesystem_of(path.resolve(), lines)
    return kind in _NETWORK or kind.startswith("fuse.")


def filesystem_of(path: Path, mountinfo: list[str]) -> str:
    """The type of the file system ``path`` (absolute) is on, by proc(5)'s mountinfo; "" when it is not told."""
    best, kind = Path(""), ""
    for line in mountinfo:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, after.split()[0]  # of two mounts on one point the later one counts
    return kind
