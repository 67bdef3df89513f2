"""Load on a real daemon, from threads of the test: a sender that drops images, a reader that reads them back.

    with sending(raidd, seed) as sender:         small images, now and then several at once, each written and closed
        ...
    sender.sent                                  how many

    with reading(raidd) as reader:               images that are acknowledged, at random, each compared
        ...
    reader.count, reader.faults                  what went wrong; the caller says whether it may

Reading asks the daemon what there is, so it must be up all the while. All randomness comes from the seed.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import httpx

from raidd import api
from tests.support.real_daemon import RealDaemon, content

PREAMBLE = bytes(128) + b"DICM"
CT_IMAGE, EXPLICIT_LITTLE = b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.1.2.1"


def image(uid: str, pixels: bytes) -> bytes:
    """A small CT image, as PS3.10 writes it."""
    meta = _element(0x0002, 0x0010, b"UI", EXPLICIT_LITTLE)
    data = _element(0x0008, 0x0016, b"UI", CT_IMAGE) + _element(0x0008, 0x0018, b"UI", uid.encode())
    data += _element(0x0008, 0x0060, b"CS", b"CT") + _element(0x0010, 0x0010, b"PN", b"Miller^Rex")
    data += _element(0x0020, 0x000D, b"UI", uid.rpartition(".")[0].encode())
    head = _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta)))
    even = pixels + bytes(len(pixels) % 2)
    return PREAMBLE + head + meta + data + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(even)) + even


def _element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    padding = b"\0" if vr == b"UI" else b" "
    value += padding * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


class Sender:
    """Drops images until stopped. Sizes from 1 KiB to `largest`, most of them small."""

    def __init__(self, raidd: RealDaemon, seed: object, *, largest: int = 300_000, pause_s: float = 0.02) -> None:
        self._raidd, self._random, self._seed = raidd, Random(f"sender/{seed}"), seed
        self._largest, self._pause_s = largest, pause_s
        self._prefix = f"1.2.{self._random.getrandbits(60)}"
        self.sent = 0

    def send_one(self) -> None:
        """The next image of this seed."""
        self.sent += 1
        uid = f"{self._prefix}.{self.sent}"
        size = min(self._largest, int(1024 * self._largest ** (self._random.random() ** 2 / 2.2)))
        self._raidd.deliveries.drop(f"{uid}.dcm", image(uid, self._random.randbytes(size)), uid)

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            for _ in range(self._random.choice((1, 1, 1, 8))):
                self.send_one()
            stopping.wait(self._random.random() * 2 * self._pause_s)


class Reader:
    """Reads what is listed, at random. A fault is an image that did not come back as it went in."""

    def __init__(self, raidd: RealDaemon, seed: object) -> None:
        self._raidd, self._random = raidd, Random(f"reader/{seed}")
        self.count = 0
        self.faults: list[str] = []

    def run(self, stopping: threading.Event) -> None:
        with self._raidd.http() as asking:
            while not stopping.is_set():
                rows = asking.get(api.IMAGES, params={"limit": 100_000}).raise_for_status().json()["images"]
                for row in self._random.sample(rows, min(len(rows), 20)):
                    if not stopping.is_set():
                        self._read(asking, row)
                stopping.wait(0.05)

    def _read(self, asking: httpx.Client, row: dict[str, object]) -> None:
        try:
            data = content(asking, str(row["sop_instance_uid"]), int(str(row["version"])))
        except httpx.HTTPError as error:
            self.faults.append(f"{row['sop_instance_uid']}: {error!r} {_told(error)}")
            return
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            self.faults.append(f"{row['sop_instance_uid']}: other bytes")
        self.count += 1


def _told(error: httpx.HTTPError) -> str:
    return error.response.text[:300] if isinstance(error, httpx.HTTPStatusError) else ""


@contextmanager
def sending(raidd: RealDaemon, seed: object, *, largest: int = 300_000, pause_s: float = 0.02) -> Iterator[Sender]:
    """A sender in a thread of its own; stopped at the end, its last file closed."""
    sender = Sender(raidd, seed, largest=largest, pause_s=pause_s)
    with _running(sender.run):
        yield sender


@contextmanager
def reading(raidd: RealDaemon, seed: object) -> Iterator[Reader]:
    """A reader in a thread of its own."""
    reader = Reader(raidd, seed)
    with _running(reader.run):
        yield reader


class _Loop(threading.Thread):
    """A thread whose crash the test sees."""

    def __init__(self, run: object) -> None:
        super().__init__(daemon=True)
        self._work, self.stopping = run, threading.Event()
        self.crash: BaseException | None = None

    def run(self) -> None:
        try:
            self._work(self.stopping)  # type: ignore[operator]
        except BaseException as error:
            self.crash = error


@contextmanager
def _running(run: object) -> Iterator[None]:
    loop = _Loop(run)
    loop.start()
    try:
        yield
    finally:
        loop.stopping.set()
        loop.join(120)
    if loop.crash is not None:
        raise loop.crash
    assert not loop.is_alive(), "the load does not end"


def sleep_at_random(random: Random, least_s: float, most_s: float) -> float:
    """A moment that the seed decides; returns it, to be printed."""
    pause_s = random.uniform(least_s, most_s)
    time.sleep(pause_s)
    return pause_s
