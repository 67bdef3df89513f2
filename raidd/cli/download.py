"""Writing an image that comes from raidd: whole and verified under its name, or not there at all.

`save` follows the order that makes a file durable: a temporary file in the same folder, its bytes, fsync, the
digest compared, the name given without taking another file's (link, not rename), fsync of the folder. A Ctrl-C or
a full disk leaves nothing behind. `stream` cannot take bytes back: a digest that does not match ends it in an error
*after* the last byte, which is all a pipe allows.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from raidd.cli.client import Content
from raidd.errors import ImageUnreadable, RequestRefused

NAME_LIMIT: Final = 200  # bytes; file systems take 255, some network shares less
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def file_name(uid: str) -> str:
    """UID.dcm, for a UID that follows the standard (PS3.5, 9.1); what does not gets a name that cannot harm."""
    safe = re.sub(r"[^0-9A-Za-z.-]", "_", uid).lstrip(".")[:NAME_LIMIT]
    if safe == uid and safe:
        return f"{uid}.dcm"
    return f"{safe}_{hashlib.sha256(uid.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}.dcm"


def stream(content: Content, target: BinaryIO, advance: Callable[[int], None]) -> None:
    """Copy to an open stream; ImageUnreadable at the end when what went through was not the image."""
    _compare(content, *_copy(content, target, advance))
    target.flush()


def stream_to_device(content: Content, target: Path, advance: Callable[[int], None]) -> None:
    """Copy to a pipe or device that is there already."""
    with _translated(target), target.open("wb", buffering=0) as file:
        stream(content, file, advance)


def save(content: Content, target: Path, advance: Callable[[int], None], *, force: bool = False) -> None:
    """Write to `target`; ``force`` replaces what is there. RequestRefused, ImageUnreadable: `target` is as it was."""
    with _translated(target):
        temporary = target.with_name(f".raidctl-{secrets.token_hex(8)}")
        try:
            # 0o666 as any program's: the caller's umask decides who may read it.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                digest, size = _copy(content, file, advance)
                os.fsync(file.fileno())
            _compare(content, digest, size)
            _give_name(temporary, target, force)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def holds(target: Path, sha256: str) -> bool:
    """Is this very image there already, so that an interrupted study goes on where it stopped?"""
    with _translated(target):
        if not target.is_file():
            return False
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def refuse_existing(target: Path) -> None:
    """Said before the transfer, not after it."""
    if os.path.lexists(target):
        raise RequestRefused(f"{target} is there already", next_step="Choose another name, or overwrite it: --force")


def make_folder(folder: Path) -> None:
    with _translated(folder):
        folder.mkdir(parents=True, exist_ok=True)


def is_device(target: Path) -> bool:
    """A pipe, a terminal or /dev/null is written to; a name must never be put in its place."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _copy(content: Content, target: BinaryIO, advance: Callable[[int], None]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    for piece in content.pieces:
        digest.update(piece)
        _write_all(target, piece)
        size += len(piece)
        advance(size)
    return digest.hexdigest(), size


def _write_all(target: BinaryIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[target.write(rest) :]


def _compare(content: Content, digest: str, size: int) -> None:
    if (digest, size) != (content.sha256, content.size):
        raise ImageUnreadable(
            f"what arrived is not the image: SHA-256 {digest} over {size} bytes, "
            f"not {content.sha256} over {content.size}",
            next_step="Try again; if it happens again: raidctl verify UID",
        )


def _give_name(temporary: Path, target: Path, force: bool) -> None:
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        refuse_existing(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:  # FAT and some network shares know no links
            raise
        refuse_existing(target)
        temporary.rename(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a network share whose folders cannot be synced
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RequestRefused(
            f"cannot write {target}: {error.strerror}",
            next_step="Choose a folder that you may write and that has room.",
        ) from error
