"""File names as the inbox meets them: bytes that may be anything, judged by pattern, written as text.

A name on Linux is bytes without "/" and NUL. Windows and macOS senders leave files that are no images,
downloads in progress have their own endings, and raidd's own half-finished work has names that nobody else
gives. `source_text` writes any path as valid, printable text from which `source_path` gets the bytes back.
"""

from __future__ import annotations

import os
import re
import unicodedata
from enum import Enum, auto

OWN_PREFIX = b".raidd-"
_OWN = re.compile(rb"\.raidd-[0-9a-f]{16}\Z")
_COPY = re.compile(rb"\.raidd-[0-9a-f]{16}\.copy\Z")
_PARTIAL = (b".part", b".tmp", b".filepart", b".crdownload")
_JUNK = frozenset({b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b".ds_store", b"autorun.inf", b"dicomdir"})
_PROGRAMS = (b".exe", b".dll", b".com", b".bat", b".cmd", b".msi", b".scr", b".sys", b".ocx", b".lnk", b".jar", b".sh")
_STRANGE_FOLDERS = frozenset({b"lost+found", b"$recycle.bin", b"system volume information", b"@eadir"})
_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")


class NameKind(Enum):
    """What a name alone says."""

    ORDINARY = auto()
    JUNK = auto()
    """Refused without an alert, unless its content turns out to be an image after all."""
    NOT_YET = auto()
    """Not an image yet: looked at again when it is renamed."""
    OWN = auto()
    """An original that raidd was taking away."""


def name_kind(name: bytes) -> NameKind:
    """Judge one file name (not a path)."""
    lower = name.lower()
    if _OWN.match(name):
        return NameKind.OWN
    if lower in _JUNK or lower.startswith(b"._"):
        return NameKind.JUNK
    if name.startswith(b".") or lower.endswith(_PARTIAL):
        return NameKind.NOT_YET
    return NameKind.JUNK if lower.endswith(_PROGRAMS) else NameKind.ORDINARY


def folder_is_walked(name: bytes) -> bool:
    """False for hidden folders and those that file systems and servers keep for themselves."""
    return not name.startswith(b".") and name.lower() not in _STRANGE_FOLDERS


def own_name(token: str) -> bytes:
    """The name an original has while it is taken away; ``token`` is 16 hex digits."""
    return OWN_PREFIX + token.encode("ascii")


def copy_name(token: str) -> bytes:
    """The name of an unfinished copy outside the watched tree."""
    return own_name(token) + b".copy"


def is_copy_name(name: bytes) -> bool:
    """Is this an unfinished copy of ours (its original is still there)?"""
    return bool(_COPY.match(name))


def source_text(path: bytes) -> str:
    """``path`` as printable text; backslash, invisible and undecodable bytes become ``\\\\`` or ``\\xNN``."""
    return "".join(map(_printable, path.decode("utf-8", "surrogateescape")))


def source_path(text: str) -> bytes:
    """The bytes that `source_text` was given."""

    def plain(match: re.Match[str]) -> str:
        return chr(0xDC00 + int(match[1], 16)) if match[1] and int(match[1], 16) > 127 else _ascii(match[1])

    return _ESCAPED.sub(plain, text).encode("utf-8", "surrogateescape")


def _ascii(digits: str | None) -> str:
    return chr(int(digits, 16)) if digits else "\\"


def _printable(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) not in _HIDDEN_CATEGORIES:
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def shortened(name: bytes, ending: bytes) -> bytes:
    """``name + ending`` within the 255 bytes a file name may have."""
    return name[: 255 - len(ending)] + ending


def numbered(name: bytes, number: int | str) -> bytes:
    """``scan.dcm`` with a number or token before its extension: ``scan-2.dcm``."""
    stem, extension = os.path.splitext(name)
    return shortened(stem, b"-" + str(number).encode("ascii") + extension[:32])
