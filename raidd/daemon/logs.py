"""The daemon's log: one line an event, `key=value`, to stderr.

Under systemd stderr is the journal: it has the time, and takes the severity from a `<N>` prefix (sd-daemon(3)).
Elsewhere each line begins with the time (UTC) and the severity.

    2026-11-24T04:34:00.123Z warning inbox event=image-refused code=not-dicom name="a b.dcm"

File names, patient names and messages of libraries come from outside: whatever is not printable, line ends and
terminal escapes above all, is written as an escape, so that no name can forge a line or paint a screen.
Records of libraries (uvicorn, watchdog, SQLAlchemy) take the same way; a traceback is one escaped value.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

_SYSLOG: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_BARE: Final = re.compile(r"[\w.:/@%+,~-]+", re.ASCII)
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class EventLog:
    """The log of one owner (a package or thread). Any thread may use it; it never raises."""

    def __init__(self, owner: str) -> None:
        self._logger = logging.getLogger(f"raidd.{owner}")

    def debug(self, event: str, /, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)

    def critical(self, event: str, /, **fields: object) -> None:
        self._write(logging.CRITICAL, event, fields)

    def _write(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        self._logger.log(level, event, extra={"raidd_fields": fields})


class LineFormatter(logging.Formatter):
    """A record as one line; `journal`: with the severity as a prefix and without the time."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "raidd_fields", None)
        if fields is None:
            event, fields = "library", {"message": record.getMessage()}
        else:
            event = str(record.msg)
        words = [f"event={value(event)}", *(f"{key}={value(item)}" for key, item in fields.items())]
        if record.exc_info and record.exc_info[1] is not None:
            words.append(f"traceback={value(trace(record.exc_info[1]))}")
        return f"{self._start(record)} {' '.join(words)}"

    def _start(self, record: logging.LogRecord) -> str:
        owner = value(record.name.removeprefix("raidd."))
        if self._journal:
            return f"<{_priority(record.levelno)}>{owner}"
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return f"{at} {record.levelname.lower()} {owner}"


class NoteFormatter(logging.Formatter):
    """A record as a command's remark to who runs it: "note: MESSAGE"."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "raidd_fields", None)
        text = record.getMessage() if fields is None else f"{record.msg}: {fields.get('message', '')}"
        return f"note: {''.join(map(_escape, text))}"


def value(item: object) -> str:
    """`item` as a value: bare when it cannot be misread, otherwise quoted with everything unprintable escaped."""
    text = f"{type(item).__name__}: {item}" if isinstance(item, BaseException) else str(item)
    return text if _BARE.fullmatch(text) else f'"{"".join(map(_escape, text))}"'


def trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def configure(level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send every record of the process to `stream` (stderr). Replaces what was configured before."""
    out = sys.stderr if stream is None else stream
    _send(level, out, LineFormatter(journal=in_journal(os.environ, out)))


def configure_notes() -> None:
    """For a command that somebody runs: warnings and worse to stderr, in words, without times and owners."""
    _send(logging.WARNING, sys.stderr, NoteFormatter())


def _send(level: int, out: TextIO, formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    logging.raiseExceptions = False  # a log that cannot be written must not become a traceback on it
    logging.captureWarnings(True)
    # watchdog meets a folder twice when one is made while it registers the folder above: once is enough, all is well.
    warnings.filterwarnings("ignore", "Callback with id .* already exists", RuntimeWarning)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def in_journal(environ: Mapping[str, str], stream: TextIO) -> bool:
    """Does `stream` go to the journal? $JOURNAL_STREAM is inherited, so its device:inode must be this stream's."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _priority(level: int) -> int:
    return next((priority for least, priority in _SYSLOG if level >= least), 7)


def _escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"
