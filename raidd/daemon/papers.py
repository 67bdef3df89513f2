"""What lies on each member for the person who finds it: README.txt, recover.py, and a copy of the settings."""

from __future__ import annotations

import inspect
from pathlib import Path

from raidd import recover
from raidd.array.roster import Roster
from raidd.config import Contact

README = """\
This disk belongs to the raidd array "{name}" ({array}).

It holds DICOM images of a veterinary hospital, spread over {count} disks with a redundancy code. No single disk
holds whole images in readable form; any {k} of the disks together hold all of them ({level}).

Do not format it, and do not change anything in this folder.
{contact}
To get the images back without raidd: mount as many of the array's disks as there are on any computer with
Python 3 and run, with the mount points of the disks:

    python3 recover.py --out FOLDER MOUNT MOUNT ...

recover.py lies beside this file and needs nothing else. With raidd: raidctl assemble MOUNT ...
"""


def papers(roster: Roster, settings: Path | None) -> dict[str, bytes]:
    """Path on the member → content. Secrets are not in the settings file: it names files that hold them."""
    contact = f"\nWhom to call: {roster.contact}\n" if roster.contact else ""
    readme = README.format(
        name=roster.array_name,
        array=roster.array,
        count=roster.size,
        k=roster.geometry.k,
        level=f"{roster.level.name}, {roster.geometry.k} data and {roster.geometry.m} parity shards",
        contact=contact,
    )
    found: dict[str, bytes] = {
        "README.txt": readme.encode(),
        "recover.py": Path(inspect.getfile(recover)).read_bytes(),
    }
    if settings is not None and settings.is_file():
        found["config/raidd.toml"] = settings.read_bytes()
    return found


def contact_line(contact: Contact) -> str:
    """Whom to call, as it stands on the labels."""
    return " ".join(part for part in (contact.name, contact.phone) if part)
