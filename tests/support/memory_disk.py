"""A member in memory that forgets what a file system may forget.

What is written is volatile until it is synced: bytes by their file's sync, names (created, renamed, removed, folders
too) by the sync of a folder they are in. `power_cut()` keeps exactly what is durable; with a seed it keeps, besides, a
random part of the rest, as journals and write-back do: each change of names happened or did not (a rename is one
change), each unsynced file has its old bytes, its new ones, or a torn mix with zeros and a short end.

It is stricter than ext4 and xfs are: what survives here survives there.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from random import Random
from uuid import UUID, uuid4

from raidd.array.member_disk import (
    CANARY_SIZE,
    FOLDERS,
    Buffer,
    FileNotThere,
    MemberDisk,
    Names,
    Space,
    parent_folder,
)
from raidd.errors import MemberConflict, MemberFaulty, MemberFull

Sizes = list[int]
PAGE = 512  # what a torn write tears at


class Node:
    """A file, or a folder (`names` is not None), as running programs see it and as the platter has it."""

    def __init__(self, *, folder: bool) -> None:
        self.names: dict[str, Node] | None = {} if folder else None
        self.durable_names: dict[str, Node] = {}
        self.data = bytearray()
        self.durable_data = b""
        self.dirty = False  # bytes not synced yet


class NameChange:
    """One atomic change of names: {(folder, name): what it then is, or None}."""

    def __init__(self, changes: dict[tuple[int, str], tuple[Node, Node | None]]) -> None:
        self.changes = changes  # keyed by (id(folder), name) -> (folder, node)

    def apply(self) -> None:
        for (_, name), (folder, node) in self.changes.items():
            if node is None:
                folder.durable_names.pop(name, None)
            else:
                folder.durable_names[name] = node


NameChanges = list[NameChange]


class MemoryFile:
    def __init__(self, disk: MemoryDisk, node: Node) -> None:
        self._disk, self._node, self._boot = disk, node, disk.boots

    def _check(self) -> None:
        if self._boot != self._disk.boots:
            raise MemberFaulty("this file was open when the power went", member=str(self._disk.uuid))

    def write(self, buffers: Sequence[Buffer]) -> None:
        with self._disk.lock:
            self._check()
            for buffer in buffers:
                self._disk.grow(self._node, len(self._node.data), memoryview(buffer).tobytes())

    def sync(self) -> None:
        with self._disk.lock:
            self._check()
            self._disk.sync_node(self._node)

    def length(self) -> int:
        with self._disk.lock:
            self._check()
            return len(self._node.data)

    def close(self) -> None:
        pass


class MemoryDisk(MemberDisk):
    """`capacity_bytes` None: no end of room. Born with the folders, lock and canary of a new member, durable."""

    def __init__(
        self, uuid: UUID | None = None, path: str = "", *, capacity_bytes: int | None = None, born: bool = True
    ) -> None:
        self._uuid = uuid or uuid4()
        self._path = path or f"/memory/{self._uuid}"
        self.capacity_bytes = capacity_bytes
        self.lock = threading.RLock()
        self.boots = 0
        self._root = Node(folder=True)
        self._pending: NameChanges = []
        if born:
            for folder in FOLDERS:
                self.make_folders(folder)
            self.put("lock", b"")
            self.put("canary", bytes(CANARY_SIZE))
            self.sync_all()

    @property
    def uuid(self) -> UUID:
        return self._uuid

    @property
    def path(self) -> str:
        return self._path

    # -- MemberDisk ---------------------------------------------------------------------------------------------------

    def create(self, path: str, length: int) -> MemoryFile:
        with self.lock:
            folder, name = self._parent(path)
            if name in self._names_of(folder, path):
                raise MemberConflict(f"{path} exists", member=str(self._uuid))
            if self.capacity_bytes is not None and self.used_bytes() + length > self.capacity_bytes:
                raise MemberFull(f"create {path}: no room for {length} bytes", member=str(self._uuid))
            node = Node(folder=False)
            self._change({(folder, name): node})
            return MemoryFile(self, node)

    def rename_new(self, source: str, target: str) -> None:
        with self.lock:
            target_folder, target_name = self._parent(target)
            if target_name in self._names_of(target_folder, target):
                raise MemberConflict(f"{target} exists", member=str(self._uuid))
            self._rename(source, target)

    def replace(self, path: str, data: bytes) -> None:
        with self.lock:
            self.make_folders("tmp")
            self.make_folders(parent_folder(path))
            file = self.create(f"tmp/{path.rpartition('/')[2]}-new", len(data))
            file.write([data])
            file.sync()
            self._rename(f"tmp/{path.rpartition('/')[2]}-new", path)
            self._sync_path(parent_folder(path))

    def append(self, path: str, data: bytes) -> None:
        with self.lock:
            self.make_folders(parent_folder(path))
            folder, name = self._parent(path)
            if name not in self._names_of(folder, path):
                self._change({(folder, name): Node(folder=False)})
            node = self._file(path)
            self.grow(node, len(node.data), data)
            self.sync_node(node)
            self._sync_path(parent_folder(path))

    def overwrite(self, path: str, offset: int, data: bytes) -> None:
        with self.lock:
            node = self._file(path)
            self.grow(node, offset, data)
            self.sync_node(node)

    def read(self, path: str, offset: int = 0, length: int = -1, *, uncached: bool = False) -> bytes:  # noqa: ARG002
        with self.lock:
            data = self._file(path).data
            return bytes(data[offset:] if length < 0 else data[offset : offset + length])

    def read_into(self, path: str, offset: int, buffer: memoryview) -> int:
        data = self.read(path, offset, buffer.nbytes)
        buffer.cast("B")[: len(data)] = data
        return len(data)

    def length(self, path: str) -> int:
        with self.lock:
            return len(self._file(path).data)

    def list(self, path: str) -> Names:
        with self.lock:
            try:
                names = self._names_of(self._find(path), path)
            except FileNotThere:
                return []
            return sorted(name if node.names is None else name + "/" for name, node in names.items())

    def make_folders(self, path: str) -> Names:
        with self.lock:
            unsynced: Names = []
            parts = path.split("/") if path else []
            for depth in range(len(parts)):
                whole = "/".join(parts[: depth + 1])
                folder, name = self._parent(whole)
                names = self._names_of(folder, whole)
                if name not in names:
                    self._change({(folder, name): Node(folder=True)})
                self._names_of(names[name], whole)
                if folder.durable_names.get(name) is not names[name]:
                    unsynced.append(whole)
            return unsynced

    def sync_folder(self, path: str) -> None:
        with self.lock:
            self._sync_names(self._find(path), path)

    def sync_all(self) -> None:
        with self.lock:
            for change in self._pending:
                change.apply()
            self._pending = []
            self._visit(self._root, self.sync_node)

    def unlink(self, path: str) -> None:
        with self.lock:
            try:
                folder, name = self._parent(path)
                if name in self._names_of(folder, path):
                    self._change({(folder, name): None})
            except FileNotThere:
                pass

    def space(self) -> Space:
        with self.lock:
            size = self.capacity_bytes if self.capacity_bytes is not None else 1 << 40
            return Space(size, max(0, size - self.used_bytes()), sys.maxsize, read_only=False)

    def check(self) -> None:
        pass

    # -- for tests ----------------------------------------------------------------------------------------------------

    def power_cut(self, seed: int | Random | None = None) -> MemoryDisk:
        """Become what a restart finds; handles opened before are dead. None: only what is durable. Returns itself."""
        random = seed if isinstance(seed, Random) else None if seed is None else Random(seed)
        with self.lock:
            self.boots += 1
            if random is not None:
                kept = random.choice((0.2, 0.5, 0.9, 1.0))
                for change in self._pending:  # in order; any subset may have reached the platter
                    if random.random() < kept:
                        change.apply()
            self._pending = []
            self._visit(self._root, lambda node: _restart(node, random), durable=True)
        return self

    def copy(self) -> MemoryDisk:
        """The same disk in another world: what is done to one is not seen by the other."""
        with self.lock:
            twin = MemoryDisk(self._uuid, self._path, capacity_bytes=self.capacity_bytes, born=False)
            memo: dict[int, object] = {}
            twin._root = copy.deepcopy(self._root, memo)
            for pending in self._pending:
                changes = {}
                for (_, name), (folder, node) in pending.changes.items():
                    folder_twin = copy.deepcopy(folder, memo)
                    changes[(id(folder_twin), name)] = (folder_twin, copy.deepcopy(node, memo))
                twin._pending.append(NameChange(changes))
            return twin

    def put(self, path: str, data: bytes) -> None:
        """A file with these bytes, durable at once; replaces what is there. Not a thing a disk can be asked for."""
        with self.lock:
            self.make_folders(parent_folder(path))
            folder, name = self._parent(path)
            node = self._names_of(folder, path).get(name) or Node(folder=False)
            node.data[:] = data
            self.sync_node(node)
            self._change({(folder, name): node})
            self._sync_path(parent_folder(path))

    def flip(self, path: str, offset: int, mask: int = 0xFF) -> None:
        """Silent damage: one byte changed behind everybody's back, durable."""
        with self.lock:
            node = self._file(path)
            node.data[offset] ^= mask
            node.durable_data = bytes(node.data)

    def files(self) -> dict[str, bytes]:
        """Every file by its path, as a program sees it now."""
        with self.lock:
            found: dict[str, bytes] = {}
            self._collect(self._root, "", found)
            return found

    def used_bytes(self) -> int:
        sizes: Sizes = []
        with self.lock:
            self._visit(self._root, lambda node: sizes.append(len(node.data)))
        return sum(sizes)

    # -- inside, lock held --------------------------------------------------------------------------------------------

    def _collect(self, node: Node, prefix: str, found: dict[str, bytes]) -> None:
        for name, child in (node.names or {}).items():
            if child.names is None:
                found[prefix + name] = bytes(child.data)
            else:
                self._collect(child, f"{prefix}{name}/", found)

    def _visit(self, node: Node, function: Callable[[Node], None], *, durable: bool = False) -> None:
        function(node)
        names = node.durable_names if durable else node.names
        for child in list_of(names):
            self._visit(child, function, durable=durable)

    def _find(self, path: str) -> Node:
        node = self._root
        for part in path.split("/") if path else []:
            names = node.names
            if names is None or part not in names:
                raise FileNotThere(f"{path} is not there", member=str(self._uuid))
            node = names[part]
        return node

    def _file(self, path: str) -> Node:
        node = self._find(path)
        if node.names is not None:
            raise MemberFaulty(f"{path} is not a regular file", member=str(self._uuid))
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        above, _, name = path.rpartition("/")
        if not name or ".." in path.split("/"):
            raise ValueError(f"not a path inside a member folder: {path!r}")
        return self._find(above), name

    def _names_of(self, node: Node, path: str) -> dict[str, Node]:
        if node.names is None:
            raise MemberFaulty(f"{path}: not a folder", member=str(self._uuid))
        return node.names

    def _change(self, changes: dict[tuple[Node, str], Node | None]) -> None:
        for (folder, name), node in changes.items():
            names = self._names_of(folder, name)
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node
        self._pending.append(NameChange({(id(f), name): (f, node) for (f, name), node in changes.items()}))

    def _rename(self, source: str, target: str) -> None:
        node = self._file(source)
        source_folder, source_name = self._parent(source)
        target_folder, target_name = self._parent(target)
        self._change({(source_folder, source_name): None, (target_folder, target_name): node})

    def _sync_names(self, folder: Node, path: str) -> None:
        self._names_of(folder, path)
        later: NameChanges = []
        for change in self._pending:
            if any(touched is folder for touched, _ in change.changes.values()):
                change.apply()
                for earlier in later:  # what it overtook must not come back
                    for key in change.changes:
                        earlier.changes.pop(key, None)
            else:
                later.append(change)
        self._pending = later

    def _sync_path(self, path: str) -> None:
        """The folder and all above it: for the calls that promise durability by themselves."""
        parts = path.split("/") if path else []
        for depth in range(len(parts) + 1):
            whole = "/".join(parts[:depth])
            self._sync_names(self._find(whole), whole)

    def grow(self, node: Node, offset: int, data: bytes) -> None:
        more = offset + len(data) - len(node.data)
        if self.capacity_bytes is not None and more > 0 and self.used_bytes() + more > self.capacity_bytes:
            raise MemberFull(f"no room for {more} bytes", member=str(self._uuid))
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + len(data)] = data
        node.dirty = True

    def sync_node(self, node: Node) -> None:
        node.durable_data, node.dirty = bytes(node.data), False


def list_of(names: dict[str, Node] | None) -> list[Node]:
    return list((names or {}).values())


def _restart(node: Node, random: Random | None) -> None:
    if node.names is not None:
        node.names = dict(node.durable_names)
        return
    if random is not None and node.dirty:
        node.durable_data = _torn(node.durable_data, bytes(node.data), random)
    node.data, node.dirty = bytearray(node.durable_data), False


def _torn(old: bytes, new: bytes, random: Random) -> bytes:
    """What may be found of `new` written over `old` without a sync."""
    kind = random.choice(("old", "new", "torn", "torn", "zeros", "short"))
    if kind == "old":
        return old
    if kind == "new":
        return new
    if kind == "zeros":
        return bytes(len(new))
    if kind == "short":
        return new[: random.randrange(len(new) + 1)]
    pages = range(0, len(new), PAGE)
    blank = old + bytes(max(0, len(new) - len(old)))
    return b"".join((new if random.random() < 0.5 else blank)[start : start + PAGE] for start in pages)[: len(new)]
