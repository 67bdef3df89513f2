"""What this machine remembers of the array besides the catalog: `<state_dir>/array.json`.

The catalog is a cache and may be set aside; where the members were seen last must outlive that, for members that
are plain folders cannot be found by looking at mounts. Nothing here decides anything: the labels on the members
win (label.choose_roster), and without this file `raidctl assemble MOUNT…` makes it again.

Written whole, by fsync and rename; a failure under state_dir ends the process (StateDirFaulty).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from raidd.array.label import Label, label_for
from raidd.array.roster import Roster
from raidd.errors import CatalogUnusable, RaiddError, StateDirFaulty

NAME = "array.json"


@dataclass(frozen=True, slots=True)
class Remembered:
    """The roster last in force, each member's path, and who was up at the last stop."""

    roster: Roster
    paths: Mapping[UUID, str] = field(default_factory=dict)
    up_at_stop: frozenset[UUID] = frozenset()


class StateFile:
    """Reads and writes array.json. One writer: the caller serialises."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / NAME

    def load(self) -> Remembered | None:
        """What was remembered; None if there is no such file. CatalogUnusable if it cannot be read."""
        try:
            document = json.loads(self._path.read_bytes())
            return Remembered(
                Label.parse(document["label"].encode()).roster,
                {UUID(uuid): str(path) for uuid, path in document["paths"].items()},
                frozenset(UUID(uuid) for uuid in document["up_at_stop"]),
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirFaulty(f"{self._path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RaiddError) as error:
            raise CatalogUnusable(
                f"{self._path} cannot be read: {error}",
                next_step=f"Move it away, then make it again from the members: raidctl assemble MOUNT… ({self._path})",
            ) from error

    def save(self, remembered: Remembered) -> None:
        """Replace the file durably."""
        document = {
            "label": label_for(remembered.roster.entries[0].member, remembered.roster).pack().decode(),
            "paths": {str(uuid): path for uuid, path in remembered.paths.items()},
            "up_at_stop": sorted(str(uuid) for uuid in remembered.up_at_stop),
        }
        try:
            _write_durably(self._path, json.dumps(document, indent=1).encode())
        except OSError as error:
            raise StateDirFaulty(f"{self._path}: {error.strerror}") from error


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb") as file:  # noqa: PTH123
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
