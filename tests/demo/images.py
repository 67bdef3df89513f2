"""The demo's images: real ones, as pydicom and pydicom-data bring them along, and as many relatives as are wanted.

A *relative* is the same image under another SOP Instance UID of the same length: another image for whoever keeps it,
with bytes of its own. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pydicom

from raidd.dicom.header import read_header

_FOLDERS: Final = (("pydicom", "data/test_files"), ("pydicom", "data/charset_files"), ("data_store", "data"))


@dataclass(frozen=True, slots=True)
class Picture:
    """One file to drop, and the SHA-256 that its bytes have before any of raidd sees them."""

    name: str
    data: bytes
    uid: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def real_images() -> list[Picture]:
    """All files there that are DICOM images, of equal ones the first.

    Without the few that end before their elements say: raidd waits 30 s for the rest of such a file, then keeps it as
    it is, and a demo has no time for that.
    """
    found: dict[str, Picture] = {}
    for name, path in _files():
        data = path.read_bytes()
        uid = _sop_instance_uid(data)
        if uid and path.name != "DICOMDIR" and not read_header(data, len(data)).truncated:
            picture = Picture(name, data, uid)
            found.setdefault(picture.sha256, picture)
    return list(found.values())


def relatives(pictures: Iterable[Picture], generation: int) -> list[Picture]:
    """The same images under new UIDs; without those whose UID does not lie open in the file."""
    found: dict[str, Picture] = {}
    for picture in pictures:
        uid = _other_uid(picture.uid, generation)
        data = picture.data.replace(picture.uid.encode(), uid.encode())
        if data != picture.data and _sop_instance_uid(data) == uid:
            relative = Picture(picture.name.replace("/", "-"), data, uid)
            found.setdefault(relative.sha256, relative)
    return list(found.values())


def _files() -> Iterator[tuple[str, Path]]:
    for package, folder in _FOLDERS:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"the package {package} is not installed")
        top = Path(spec.submodule_search_locations[0]) / folder
        for path in sorted(path for path in top.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")):
            yield f"{package}/{path.relative_to(top)}", path


def _sop_instance_uid(data: bytes) -> str:
    """What pydicom finds; "" when it cannot open the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
            return str(header.get("SOPInstanceUID") or "")
        except Exception:  # whatever it raises: it is no image then
            return ""


def _other_uid(uid: str, generation: int) -> str:
    """Same length and shape. A part keeps its first digit, which must not become 0; the root (1.2.840) stays."""
    digits = iter(str(int(hashlib.sha256(f"{generation} {uid}".encode()).hexdigest(), 16)))
    parts = uid.split(".")
    turned = [part[:1] + "".join(next(digits) if c.isdigit() else c for c in part[1:]) for part in parts[3:]]
    return ".".join([*parts[:3], *turned])
