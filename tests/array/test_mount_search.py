"""A member that is away is looked for on every mount, again and again: a mount that hangs costs one thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from raidd.array import discovery
from raidd.array.discovery import PAUSE_LIMIT_S, PAUSE_S, MountSearch
from raidd.array.host import find_member_folders

MEMBER, OTHER = uuid4(), uuid4()


class World:
    """Mounts that may hang, a clock that is set."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.mounts: list[str] = []
        self.now = 0.0
        self.looks: list[str] = []
        self.hanging: dict[str, threading.Event] = {}
        self.search = MountSearch(mounts=lambda: self.mounts, clock=lambda: self.now)

    def mount(self, name: str, *members: UUID) -> str:
        folder = self.home / name
        for member in members:
            (folder / f"raidd-{member}").mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        self.mounts.append(str(folder))
        return str(folder)

    def hang(self, mount: str) -> threading.Event:
        self.hanging[mount] = threading.Event()
        return self.hanging[mount]

    def look(self, folders: list[str]) -> list[tuple[str, UUID]]:
        self.looks += folders
        for folder in folders:
            if folder in self.hanging:
                self.hanging[folder].wait()
        return find_member_folders(folders)

    def find(self, member: UUID = MEMBER, within_s: float = 0.05) -> str | None:
        return self.search.find(member, within_s)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)
    monkeypatch.setattr(discovery, "find_member_folders", world.look)
    yield world
    for event in world.hanging.values():
        event.set()


def lookers(mount: str) -> int:
    return sum(f"look at {mount}" in thread.name for thread in threading.enumerate())


def test_it_is_found_wherever_it_is_mounted(world: World) -> None:
    assert world.find() is None
    world.mount("a", OTHER)
    place = world.mount("b", MEMBER)
    assert world.find(within_s=10.0) == place


def test_a_mount_that_hangs_costs_one_thread_however_often_it_is_asked(world: World) -> None:
    stuck = world.mount("stuck", OTHER)
    place = world.mount("good", MEMBER)
    event = world.hang(stuck)
    for _ in range(20):
        world.now += PAUSE_LIMIT_S
        assert world.find() == place
    assert world.looks.count(stuck) == 1
    assert lookers(stuck) == 1
    event.set()
    world.hanging.clear()
    for _ in range(1000):
        world.now += PAUSE_LIMIT_S
        if world.find(OTHER, within_s=10.0) == stuck:
            break
    assert world.find(OTHER) == stuck, "it is looked at again when it has come back"


def test_a_mount_that_comes_is_looked_at_at_once_else_the_pause_grows(world: World) -> None:
    mount = world.mount("a", OTHER)
    times = []
    for _ in range(300):
        before = len(world.looks)
        world.find()
        if len(world.looks) > before:
            times.append(world.now)
        world.now += 1
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[:4] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S, 8 * PAUSE_S]
    assert set(pauses[4:]) == {PAUSE_LIMIT_S}
    place = world.mount("b", MEMBER)
    assert world.find(within_s=10.0) == place
    assert mount in world.looks


def test_who_asks_while_another_searches_does_not_wait(world: World) -> None:
    place = world.mount("good", MEMBER)
    assert world.find(within_s=10.0) == place
    stuck = world.mount("stuck")
    event = world.hang(stuck)
    searching = threading.Thread(target=world.find, kwargs={"within_s": 60.0})
    searching.start()
    while stuck not in world.looks:
        pass
    assert world.find(within_s=60.0) == place, "what the search before found"
    event.set()
    searching.join(30)
    assert not searching.is_alive()


def test_what_is_gone_is_forgotten(world: World) -> None:
    place = world.mount("good", MEMBER)
    assert world.find(within_s=10.0) == place
    world.mounts.remove(place)
    assert world.find(within_s=10.0) is None
