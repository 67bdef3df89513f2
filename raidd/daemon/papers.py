"""What lies on each member for the person who finds it: README.txt, recover.py, and a copy of the settings.

Secrets are left out of the copy (format.md): a disk may leave the house. Passwords are in files of their own; what is
left are addresses (`alerts.urls`, `heartbeat_url`, `escalate_to`) that carry a token. Each keeps its scheme, so that
the copy is still a settings file, and says that it was left out.
"""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path

from raidd import recover
from raidd.array.roster import Roster
from raidd.config import Contact

README = """\
This disk belongs to the raidd array "{name}" ({array}).

It holds DICOM images of a veterinary hospital, spread over {count} disks with a redundancy code: any {enough} of them
together hold all of the images ({level}).

Do not format it, and do not change anything in this folder.
{contact}
To get the images back without raidd: mount as many of the array's disks as there are on any computer with
Python 3 and run, with the mount points of the disks:

    python3 recover.py --out FOLDER MOUNT MOUNT ...

recover.py lies beside this file and needs nothing else. With raidd: raidctl assemble MOUNT ...
"""


LOG = logging.getLogger(__name__)
LEFT_OUT = "left-out-of-this-copy"
_ADDRESS = re.compile(r"""(["'])([A-Za-z][A-Za-z0-9+.-]*://)(?:\\.|(?!\1).)*\1""")


def papers(roster: Roster, settings: Path | None) -> dict[str, bytes]:
    """Path on the member → content. Settings that cannot be read now are left as they are on the members."""
    contact = f"\nWhom to call: {roster.contact}\n" if roster.contact else ""
    readme = README.format(
        name=roster.array_name,
        array=roster.array,
        count=roster.size,
        enough=max(1, roster.size - roster.geometry.m),
        level=f"{roster.level.name}, {roster.geometry.k} data and {roster.geometry.m} parity shards",
        contact=contact,
    )
    found: dict[str, bytes] = {
        "README.txt": readme.encode(),
        "recover.py": Path(inspect.getfile(recover)).read_bytes(),
    }
    if settings is not None and (copy := _copy(settings)) is not None:
        found["config/raidd.toml"] = copy
    return found


def _copy(settings: Path) -> bytes | None:
    try:
        return without_secrets(settings.read_text(encoding="utf-8")).encode()
    except (OSError, UnicodeDecodeError) as error:
        LOG.warning("%s cannot be copied to the members: %s", settings, error)
        return None


def without_secrets(text: str) -> str:
    """The settings file with each address cut down to its scheme."""
    lines = (line if line.lstrip().startswith("#") else _cut(line) for line in text.splitlines(keepends=True))
    return "".join(lines)


def _cut(line: str) -> str:
    return _ADDRESS.sub(lambda found: f"{found[1]}{found[2]}{LEFT_OUT}{found[1]}", line)


def contact_line(contact: Contact) -> str:
    """Whom to call, as it stands on the labels."""
    return " ".join(part for part in (contact.name, contact.phone) if part)
