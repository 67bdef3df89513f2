"""A trial array on folders of one disk, made by the real `init` in this very process: for what runs without a daemon.

array = TrialArray(tmp_path, members=4)
array.init()                                     exit code 0, or AssertionError with what it said
opened = array.open()                            as a start does; closed by `close`, or at the end of `with`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from raidd import config
from raidd.array.label import Label
from raidd.array.state_file import Remembered, StateFile
from raidd.daemon import graph, offline
from raidd.daemon.graph import Array
from raidd.daemon.opening import Opened, open_array
from raidd.inbox.sink import Receipt
from tests.support.sample_segment import sample_image

TRIAL = ("--allow-same-device", "--allow-filesystem")


class TrialArray:
    """Everything below ``home``. Not for several threads."""

    def __init__(self, home: Path, members: int = 4, *, name: str = "clinic-1") -> None:
        self.home, self.name = home, name
        self.config_file = home / "raidd.toml"
        self.state_dir, self.inbox = home / "state", home / "inbox"
        self.mounts = [home / f"disk{number}" for number in range(members)]
        self._open: list[Opened] = []
        home.mkdir(parents=True, exist_ok=True)
        for mount in self.mounts:
            mount.mkdir(parents=True)
        self.write_settings()

    def write_settings(self, more: str = "") -> None:
        """The settings file: places of its own, then these lines."""
        self.config_file.write_text(
            f'[raidd]\nstate_dir = "{self.state_dir}"\nrun_dir = "{self.home}/run"\ninbox = "{self.inbox}"\n'
            f'spool = "{self.home}/spool"\n[health]\ndeadline_s = 5\n{more}'
        )

    # -- commands, as raidctl starts them -------------------------------------------------------------------

    def init(self, *options: str, mounts: Sequence[Path] | None = None, trial: bool = True) -> int:
        """The exit code."""
        places = self.mounts if mounts is None else mounts
        return offline.main(
            ["init", f"--name={self.name}", *(TRIAL if trial else ()), *options, *self._config(), *map(str, places)]
        )

    def assemble(self, *mounts: Path | str) -> int:
        """Over all members unless some are named."""
        return offline.main(["assemble", *self._config(), *map(str, mounts or self.mounts)])

    def reindex(self) -> int:
        return offline.main(["catalog", "reindex", *self._config()])

    def _config(self) -> tuple[str, str]:
        return "--config", str(self.config_file)

    # -- looking --------------------------------------------------------------------------------------------

    def folder(self, slot: int) -> Path:
        """The member folder on the mount of this number."""
        return next(self.mounts[slot].glob("raidd-*"))

    def label(self, slot: int) -> Label:
        return Label.parse((self.folder(slot) / "label.json").read_bytes())

    def remembered(self) -> Remembered:
        known = StateFile(self.state_dir).load()
        assert known is not None
        return known

    def journal(self) -> list[dict[str, Any]]:
        """What the first member's replica holds."""
        lines = [line for day in sorted((self.folder(0) / "journal").glob("*.jsonl")) for line in day.open("rb")]
        return [json.loads(line) for line in lines]

    # -- running it -----------------------------------------------------------------------------------------

    def open(self) -> Array:
        """What a start does before its threads begin."""
        opened = open_array(config.load(self.config_file))
        self._open.append(opened)
        array = graph.build_array(opened, lambda _source, _sha256: False, lambda *_event: None)
        graph.make_whole(array)
        return array

    def put(self, array: Array, contents: Sequence[bytes], first: int = 1) -> Receipt:
        """One batch of these images; they have numbers (so UIDs and ids) from ``first`` on."""
        draft = array.store.draft(5.0)
        assert draft is not None
        offset, images = 0, []
        for number, content in enumerate(contents, first):
            draft.buffer[offset : offset + len(content)] = content
            images.append(sample_image(number, offset, content))
            offset += len(content)
        try:
            return array.store.commit(draft, offset, images)
        finally:
            draft.discard()

    def close(self) -> None:
        """A clean stop of all that was opened."""
        for opened in self._open:
            opened.membership.remember(stopping=True)
            for member in opened.membership.members():
                member.close()
            opened.catalog.close()
            opened.locks.release_all()
        self._open.clear()

    def __enter__(self) -> TrialArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
